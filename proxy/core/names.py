"""The grammar of digests, repositories, tags and ``/v2/`` paths.

Distribution-spec "Pulling manifests", image-spec ``descriptor.md`` "Digests".
"""

import hashlib
import re
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Final, NamedTuple, NewType

from proxy.core.errors import ContentMismatch, DigestInvalid, NameInvalid, PathNotFound, TagInvalid

Digest = NewType("Digest", str)
Repo = NewType("Repo", str)
Tag = NewType("Tag", str)

MAX_REPO_LENGTH: Final = 255
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPO = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST = re.compile(r"([a-z0-9]+(?:[+._-][a-z0-9]+)*):([a-zA-Z0-9=_-]+)")
_HEX_LENGTH: Final = {"sha256": 64, "sha512": 128}
_AS_OF = re.compile(r"/v2/as-of/(\d{4}-\d{2}-\d{2})/(.+)", re.ASCII)
_HEX = re.compile(r"[a-f0-9]+")
_SHA256 = re.compile(r"sha256:[a-f0-9]{64}")


class Kind(Enum):
    """The endpoint of a ``/v2/`` path."""

    BASE = auto()
    MANIFEST = auto()
    BLOB = auto()
    TAGS = auto()
    REFERRERS = auto()
    CATALOG = auto()


class Route(NamedTuple):
    """A parsed path: ``ref`` is a tag, a digest, or empty.

    ``as_of`` is the moment whose tags are requested (Unix seconds), None for the present.
    """

    kind: Kind
    repo: Repo
    ref: str
    as_of: float | None = None


class Target(NamedTuple):
    """A repository of a configured upstream."""

    upstream: str
    repo: Repo

    def __str__(self) -> str:
        return f"{self.upstream}/{self.repo}"


class Image(NamedTuple):
    """A reference to an image: a repository with a tag or a digest, or a digest alone."""

    target: Target | None
    tag: Tag | None
    digest: Digest | None

    def __str__(self) -> str:
        if self.target is None:
            return str(self.digest)
        return f"{self.target}@{self.digest}" if self.digest else f"{self.target}:{self.tag}"


CATALOG: Final = Repo("_catalog")
"""Stands for a registry's list of repositories; no repository has this name."""


def parse_digest(text: str) -> Digest:
    """Return ``text`` as a digest with sha256 or sha512. Raises ``DigestInvalid``."""
    if _SHA256.fullmatch(text):  # nearly all of them
        return Digest(text)
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise DigestInvalid(f"{_shown(text)} is not a digest; expected algorithm:hex")
    algorithm, encoded = match.groups()
    length = _HEX_LENGTH.get(algorithm)
    if length is None:
        raise DigestInvalid(
            f"digest algorithm {algorithm!r} is not supported: sha256 and sha512 are"
        )
    if len(encoded) != length or _HEX.fullmatch(encoded) is None:
        raise DigestInvalid(f"a {algorithm} digest has {length} lower-case hexadecimal digits")
    return Digest(text)


def parse_repo(text: str) -> Repo:
    """Return ``text`` as a repository name. Raises ``NameInvalid``."""
    if len(text) > MAX_REPO_LENGTH:
        raise NameInvalid(f"repository name is longer than {MAX_REPO_LENGTH} characters")
    if _REPO.fullmatch(text) is None:
        raise NameInvalid(f"{_shown(text)} is not a repository name")
    return Repo(text)


def parse_tag(text: str) -> Tag:
    """Return ``text`` as a tag. Raises ``TagInvalid``."""
    if _TAG.fullmatch(text) is None:
        raise TagInvalid(f"{_shown(text)} is not a tag")
    return Tag(text)


def is_digest(ref: str) -> bool:
    """Return True if a reference is a digest: a tag has no colon."""
    return ":" in ref


def digests_of(data: bytes) -> frozenset[Digest]:
    """Return the digest of ``data`` by each supported algorithm."""
    return frozenset(
        Digest(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")
        for algorithm in _HEX_LENGTH
    )


def matches(digest: Digest, data: bytes) -> bool:
    """Return True if ``digest`` is the digest of ``data``."""
    algorithm, _, encoded = digest.partition(":")
    return hashlib.new(algorithm, data).hexdigest() == encoded


class DigestVerifier:
    """Hashes content as it arrives and compares it with a digest."""

    def __init__(self, digest: Digest) -> None:
        algorithm, _, self._expected = digest.partition(":")
        self._digest = digest
        self._state = hashlib.new(algorithm)

    def update(self, chunk: bytes | memoryview) -> None:
        """Hash the next bytes."""
        self._state.update(chunk)

    @property
    def is_valid(self) -> bool:
        """True if the bytes so far match the digest."""
        return self._state.hexdigest() == self._expected

    @property
    def actual(self) -> Digest:
        """The digest of the bytes so far."""
        return Digest(f"{self._state.name}:{self._state.hexdigest()}")

    def check(self, where: object) -> None:
        """Raise ``ContentMismatch`` unless the bytes match; ``where`` names their source."""
        if not self.is_valid:
            error = ContentMismatch(f"{where}: the content does not match {self._digest}")
            error.found = self.actual
            raise error


def sha256(data: bytes) -> Digest:
    """Return the sha256 digest of ``data``."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def parse_path(path: str) -> Route:
    """Return the parsed form of a decoded ``/v2/`` path (distribution-spec "Endpoints").

    ``/v2/as-of/2026-10-01/<name>/…`` is ``/v2/<name>/…`` at the beginning of a day in UTC. Raises
    ``NameInvalid``, ``TagInvalid``, ``DigestInvalid``, or ``PathNotFound`` if no endpoint has this
    path.
    """
    if (dated := _AS_OF.fullmatch(path)) is not None:
        return _parse_plain(f"/v2/{dated[2]}")._replace(as_of=_day(dated[1]))
    return _parse_plain(path)


def _day(text: str) -> float:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise NameInvalid(f"as-of/{text}: there is no such day; write as-of/2026-10-01") from None


def _parse_plain(path: str) -> Route:
    if path in ("/v2/", "/v2"):
        return Route(Kind.BASE, Repo(""), "")
    if path == "/v2/_catalog":
        return Route(Kind.CATALOG, Repo(""), "")
    head, _, ref = path.removeprefix("/v2/").rpartition("/")
    name, _, verb = head.rpartition("/")
    if not path.startswith("/v2/") or not name:
        raise PathNotFound(f"no such endpoint: {_shown(path)}")
    match verb:
        case "manifests":
            parsed: str = parse_digest(ref) if is_digest(ref) else parse_tag(ref)
            return Route(Kind.MANIFEST, parse_repo(name), parsed)
        case "blobs":
            return Route(Kind.BLOB, parse_repo(name), parse_digest(ref))
        case "referrers":
            return Route(Kind.REFERRERS, parse_repo(name), parse_digest(ref))
        case "tags" if ref == "list":
            return Route(Kind.TAGS, parse_repo(name), "")
        case _:
            raise PathNotFound(f"no such endpoint: {_shown(path)}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
