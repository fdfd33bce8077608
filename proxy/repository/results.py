"""What the cache answers: one class per way of sending it, each closed by who sends it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import NamedTuple

from proxy.content.downloads import Reader
from proxy.core.errors import RegistryError
from proxy.core.manifests import Children
from proxy.core.records import Descriptor
from proxy.runtime.metrics import Outcome
from proxy.storage import BlobFile


class Forward(NamedTuple):
    """What came of asking upstream about an answer that is held, for ``Cache-Status``.

    ``status`` is upstream's; ``error`` is why the held copy was sent instead of upstream's answer.
    """

    status: int | None
    error: RegistryError | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as upstream sent it, verified.

    ``children`` is what it lists, None when that is not known. ``warning`` is for a
    ``Warning: 299`` header; ``fresh`` is for how many seconds a tag is answered without asking,
    None where that does not apply; ``forward`` is set where upstream was
    asked although the answer was held.
    """

    descriptor: Descriptor
    body: bytes
    outcome: Outcome
    children: Children | None
    warning: str | None = None
    fresh: float | None = None
    forward: Forward | None = None


@dataclass(frozen=True, slots=True)
class Described:
    """What a HEAD of a manifest tells."""

    descriptor: Descriptor
    outcome: Outcome
    warning: str | None = None
    fresh: float | None = None
    forward: Forward | None = None


@dataclass(frozen=True, slots=True)
class Sized:
    """What a HEAD of a blob tells; ``size`` in bytes, None when upstream does not say."""

    size: int | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Listed:
    """One page of names, and the query of the next page; empty at the end."""

    names: list[str]
    further: dict[str, str]
    outcome: Outcome
    warning: str | None = None
    forward: Forward | None = None


@dataclass(frozen=True, slots=True)
class Referrers:
    """Descriptors of what refers to a manifest, as JSON values."""

    entries: tuple[dict[str, object], ...]
    is_filtered: bool
    outcome: Outcome
    warning: str | None = None
    forward: Forward | None = None


@dataclass(frozen=True, slots=True)
class Local:
    """A held blob, opened.

    ``rest`` yields it from an offset on from upstream, for when the disk fails to read it.
    """

    file: BlobFile
    rest: Callable[[int], AsyncIterator[bytes]]
    outcome: Outcome = Outcome.HIT

    async def aclose(self) -> None:
        """Close the file."""
        self.file.close()


@dataclass(frozen=True, slots=True)
class Small:
    """A held blob that lies in RAM whole."""

    body: bytes
    outcome: Outcome = Outcome.HIT

    async def aclose(self) -> None:
        """Do nothing: there is no file."""


@dataclass(frozen=True, slots=True)
class Live:
    """A blob that is arriving.

    ``rest`` yields it from an offset on from upstream anew, for when the disk fails the download.
    """

    reader: Reader
    rest: Callable[[int], AsyncIterator[bytes]]

    @property
    def outcome(self) -> Outcome:
        """MISS for the request that began the download, JOIN for the others."""
        return Outcome.MISS if self.reader.first else Outcome.JOIN

    async def aclose(self) -> None:
        """Let go of the download, which goes on."""
        self.reader.close()


@dataclass(frozen=True, slots=True)
class Through:
    """A blob that there is no room for: verified on its way, its last byte held back."""

    size: int | None
    chunks: AsyncIterator[bytes]
    resources: AsyncExitStack
    outcome: Outcome = Outcome.THROUGH

    async def aclose(self) -> None:
        """End the download."""
        await self.resources.aclose()


Blob = Local | Small | Live | Through
