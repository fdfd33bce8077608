"""Parts of ``tags``: the resolution of a tag, warnings of old copies, fallback directories."""

from dataclasses import dataclass, replace
from typing import Final

from proxy.content.facts import Tags
from proxy.core.errors import RegistryError, UpstreamUnavailable
from proxy.core.names import Digest, Tag, Target
from proxy.core.records import TagRecord
from proxy.repository.cool_downs import Served
from proxy.repository.origins import Origin
from proxy.repository.results import Forward, Manifest, ManifestHead
from proxy.runtime.metrics import Outcome
from proxy.upstream.registry import NamedManifest

FAILED_WARNING: Final = "stale: upstream failed, this is the last good copy"
PARTIAL_WARNING: Final = "stale: upstream failed, and this image is incomplete in the cache"
FALLBACK_WARNING: Final = "stale: upstream failed, this is the copy in a fallback directory"
SCARCE_WARNING: Final = "stale: there is a newer image, and pulls are nearly used up"
DELETED_WARNING: Final = "kept: upstream no longer has this tag"


@dataclass(frozen=True, slots=True)
class ResolvedTag:
    """The record of a tag, the outcome to report, and the seconds for which it stays fresh.

    ``served`` is the digest to serve: a younger one in ``record`` may be held.
    """

    record: TagRecord
    served: Served
    outcome: Outcome
    fresh: float | None
    forward: Forward | None = None

    @property
    def is_held_back(self) -> bool:
        """The tag points to another digest upstream."""
        return self.served.digest != self.record.descriptor.digest


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The digests of a tag before (None: unknown) and now, and whether that was recorded.

    ``served`` is the digest that clients get: ``now`` may be held.
    """

    before: Digest | None
    now: Digest
    is_recorded: bool
    served: Digest


def described(manifest: Manifest) -> ManifestHead:
    """Return the answer to a HEAD for which a stale manifest was found."""
    return ManifestHead(
        manifest.descriptor,
        manifest.outcome,
        manifest.warning,
        forward=manifest.forward,
        held_until=manifest.held_until,
    )


def require_confirmation(named: NamedManifest, record: TagRecord | None) -> None:
    """Raise ``UpstreamUnavailable`` if upstream only repeats an old copy of what is known.

    Upstream is then a Millpond that could not ask its own upstream, and sends a warning.
    """
    is_old = named.warning is not None and named.warning.startswith(("stale: ", "kept: "))
    if is_old and record is not None and record.descriptor == named.descriptor:
        raise UpstreamUnavailable(f"upstream does not confirm the tag: {named.warning}")


def instead_of(error: RegistryError, copy: Manifest | None) -> Manifest:
    """Return the copy that replaces upstream's answer; raise ``error`` if there is none."""
    if copy is None:
        raise error
    return replace(copy, forward=Forward(error.upstream_status, error))


async def tag_in_fallback(
    origin: Origin, records: Tags, target: Target, tag: Tag
) -> TagRecord | None:
    """Return and record a tag from a fallback directory; None if none has it.

    The record counts as never checked: upstream is asked as soon as possible.
    """
    for fallback in origin.fallbacks:
        if (descriptor := await fallback.tag(target, tag)) is not None:
            record = TagRecord(descriptor, 0.0)
            await records.set(target, tag, record)
            return record
    return None
