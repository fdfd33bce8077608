"""What the fake holds, and what an honest registry answers about it."""

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, assert_never
from urllib.parse import urlencode

from tests.fakes.auth import Addresses
from tests.fakes.content import INDEX_TYPES, OCI_INDEX, Content
from tests.fakes.records import ContentKind, Kind, Record
from tests.fakes.replies import Reply, error, json_reply

_DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}")
_KEY = b"the CDN knows it"
_INDEX = ("OCI index", "OCI indexes")
_MANIFEST = ("OCI manifest", "OCI manifests")
_NO_PAGE = Reply(404, b"404 page not found\n", {"Content-Type": "text/plain"})


@dataclass(slots=True)
class RateLimit:
    """Docker Hub's: each GET of a manifest counts, HEAD is free, at zero it is 429."""

    limit: int = 100
    remaining: int = 100
    window: int = 21600
    retry_after: int | None = None


@dataclass(slots=True)
class Behaviour:
    """How this registry differs from others without being faulty; change it at any time.

    `redirects`: kinds answered by 307 to the CDN, with a signature good for `signature_ttl`
    seconds; `relative_location`: to a path on the registry itself, as Google does. `page_size`
    caps what a listing gives at once. `strict_accept`: 404 for an index, or a manifest, which the
    Accept header does not name.
    """

    redirects: set[Kind] = field(default_factory=set)
    relative_location: bool = False
    signature_ttl: float = 300.0
    referrers: bool = True
    catalog: bool = True
    page_size: int | None = None
    absolute_links: bool = False
    strict_accept: bool = False
    rate_limit: RateLimit | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A manifest as stored."""

    body: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository's content."""

    manifests: dict[str, Stored] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def resolve(self, reference: str) -> tuple[str, Stored] | None:
        """The digest and the manifest behind a tag or a digest."""
        digest = self.tags.get(reference, reference)
        stored = self.manifests.get(digest)
        return None if stored is None else (digest, stored)

    def add(self, content: Content, tags: Iterable[str]) -> None:
        """Store all manifests and blobs of `content`, under `tags` too."""
        for digest, held in content.manifests.items():
            self.manifests[digest] = Stored(held.manifest, held.media_type)
        self.blobs.update(content.blobs)
        self.tags.update(dict.fromkeys(tags, content.digest))


class Registry:
    """Answers requests out of its repositories; knows nothing of faults, users or sockets."""

    def __init__(self, behaviour: Behaviour, clock: Callable[[], float]) -> None:
        self.behaviour = behaviour
        self.repositories: dict[str, Repository] = {}
        self._clock = clock

    def answer(self, record: Record, at: Addresses) -> Reply:
        """The answer to a request which may pass."""
        if record.method not in {"GET", "HEAD"}:
            return error(405, "UNSUPPORTED")
        match record.kind:
            case "ping":
                return json_reply({}, headers={"Docker-Distribution-API-Version": "registry/2.0"})
            case "data":
                return self.data(record)
            case "catalog" if self.behaviour.catalog:
                page, headers = self._page(record, sorted(self.repositories), at)
                return json_reply({"repositories": page}, headers=headers)
            case "other" | "token" | "catalog":
                return _NO_PAGE
            case kind:
                return self._content(kind, record, at)

    def _content(self, kind: ContentKind, record: Record, at: Addresses) -> Reply:
        repository = self.repositories.get(record.repository or "")
        if repository is None:
            return error(404, "NAME_UNKNOWN", "repository name not known to registry")
        if not record.query.get("n", "0").isdigit():
            return error(400, "PAGINATION_NUMBER_INVALID")
        reply = self._own(kind, record, repository, at)
        if kind in self.behaviour.redirects and reply.status == 200:
            return self._redirect(record, reply, at)
        return reply

    def _own(
        self, kind: ContentKind, record: Record, repository: Repository, at: Addresses
    ) -> Reply:
        """The answer this host gives itself, before it thinks of redirecting."""
        match kind:
            case "manifest":
                return self._manifest(record, repository)
            case "blob":
                return self._blob(record, repository)
            case "tags":
                return self._tags(record, repository, at)
            case "referrers":
                return self._referrers(record, repository, at)
            case unreachable:
                assert_never(unreachable)

    def data(self, record: Record) -> Reply:
        """What the CDN answers: the bytes if the signature is right and fresh, as S3 does."""
        if record.server == "cdn" and "Authorization" in record.headers:
            return Reply(400, b"<Code>InvalidArgument</Code> Only one auth mechanism allowed")
        expires = record.query.get("expires", "0")
        right = _signature(record.path, expires, record.method)
        if record.query.get("signature") != right or float(expires) <= self._clock():
            return Reply(403, b"<Code>AccessDenied</Code> Request has expired")
        repository = self.repositories.get(record.repository or "", Repository())
        reference = record.reference or ""
        if record.path.startswith("/data/blob/"):
            body, media_type = repository.blobs.get(reference), "application/octet-stream"
        else:
            found = repository.resolve(reference)
            body, media_type = (found[1].body, found[1].media_type) if found else (None, "")
        if body is None:
            return Reply(404, b"<Code>NoSuchKey</Code>")
        etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
        headers = {"Content-Type": media_type, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        return Reply(200, body, headers, ranges=True)

    def _redirect(self, record: Record, reply: Reply, at: Addresses) -> Reply:
        path = f"/data/{record.kind}/{record.repository}/{record.reference}"
        expires = repr(self._clock() + self.behaviour.signature_ttl)
        signed = {"expires": expires, "signature": _signature(path, expires, record.method)}
        base = "" if self.behaviour.relative_location else at.cdn
        made = replace(reply, status=307, body=b"", ranges=False).with_header("Content-Type", None)
        return made.with_header("Location", f"{base}{path}?{urlencode(signed)}")

    def _manifest(self, record: Record, repository: Repository) -> Reply:
        quota, allowed = self._count(record)
        if not allowed:
            message = "You have reached your pull rate limit."
            return _with(error(429, "TOOMANYREQUESTS", message), quota)
        found = repository.resolve(record.reference or "")
        if found is None:
            return _with(error(404, "MANIFEST_UNKNOWN", "manifest unknown"), quota)
        digest, stored = found
        if self.behaviour.strict_accept and stored.media_type not in _accepted(record):
            one, many = _INDEX if stored.media_type in INDEX_TYPES else _MANIFEST
            message = f"{one} found, but accept header does not support {many}"
            return _with(error(404, "MANIFEST_UNKNOWN", message), quota)
        if digest in record.headers.get("If-None-Match", ""):
            return _with(Reply(304, headers={"ETag": f'"{digest}"'}), quota)
        headers = {"Content-Type": stored.media_type, "Docker-Content-Digest": digest}
        return _with(Reply(200, stored.body, headers | {"ETag": f'"{digest}"'}), quota)

    def _count(self, record: Record) -> tuple[dict[str, str], bool]:
        """The rate limit headers to send, and whether this request is within the limit."""
        quota = self.behaviour.rate_limit
        if quota is None:
            return {}, True
        allowed = record.method == "HEAD" or quota.remaining > 0
        if allowed and record.method == "GET":
            quota.remaining -= 1
        headers = {
            "ratelimit-limit": f"{quota.limit};w={quota.window}",
            "ratelimit-remaining": f"{quota.remaining};w={quota.window}",
            "docker-ratelimit-source": "192.0.2.1",
        }
        if not allowed and quota.retry_after is not None:
            headers["Retry-After"] = str(quota.retry_after)
        return headers, allowed

    def _blob(self, record: Record, repository: Repository) -> Reply:
        digest = record.reference or ""
        body = repository.blobs.get(digest)
        if body is None:
            return error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
        }
        return Reply(200, body, headers, ranges=True)

    def _tags(self, record: Record, repository: Repository, at: Addresses) -> Reply:
        page, headers = self._page(record, sorted(repository.tags), at)
        return json_reply({"name": record.repository, "tags": page}, headers=headers)

    def _referrers(self, record: Record, repository: Repository, at: Addresses) -> Reply:
        if not self.behaviour.referrers:
            return _NO_PAGE
        if not _DIGEST.fullmatch(record.reference or ""):
            return error(400, "DIGEST_INVALID")
        wanted = record.query.get("artifactType")
        about = _about(repository, record.reference)
        found = {d["digest"]: d for d in about if wanted in {None, d.get("artifactType")}}
        page, headers = self._page(record, sorted(found), at)
        if wanted is not None:
            headers["OCI-Filters-Applied"] = "artifactType"
        listed = [found[digest] for digest in page]
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
        return json_reply(document, headers=headers | {"Content-Type": OCI_INDEX})

    def _page(
        self, record: Record, names: Sequence[str], at: Addresses
    ) -> tuple[list[str], dict[str, str]]:
        """The names after `last`, at most `n` or a page of them, and the Link to the next."""
        last = record.query.get("last")
        rest = [name for name in names if last is None or name > last]
        sizes = [int(record.query["n"])] if "n" in record.query else []
        if self.behaviour.page_size is not None:
            sizes.append(self.behaviour.page_size)
        size = min(sizes, default=len(rest))
        page = rest[:size]
        if not page or len(page) == len(rest):
            return page, {}
        query = {**record.query, "n": str(size), "last": page[-1]}
        base = at.registry if self.behaviour.absolute_links else ""
        target = f"{base}{record.path.partition('?')[0]}?{urlencode(query)}"
        return page, {"Link": f'<{target}>; rel="next"'}


def _about(repository: Repository, subject: str | None) -> list[dict[str, Any]]:
    """Descriptors of the manifests whose `subject` is this digest."""
    found = []
    for digest, stored in repository.manifests.items():
        try:
            document = json.loads(stored.body)
        except ValueError:
            continue
        if (document.get("subject") or {}).get("digest") != subject:
            continue
        config = (document.get("config") or {}).get("mediaType")
        made = {"mediaType": stored.media_type, "digest": digest, "size": len(stored.body)}
        extra = {
            "artifactType": document.get("artifactType", config),
            "annotations": document.get("annotations"),
        }
        found.append(made | {key: value for key, value in extra.items() if value})
    return found


def _accepted(record: Record) -> set[str]:
    lines = record.headers.getall("Accept", [])
    return {part.partition(";")[0].strip() for line in lines for part in line.split(",")}


def _signature(path: str, expires: str, method: str) -> str:
    return hmac.new(_KEY, f"{method} {path} {expires}".encode(), "sha256").hexdigest()


def _with(reply: Reply, headers: dict[str, str]) -> Reply:
    for name, value in headers.items():
        reply = reply.with_header(name, value)
    return reply
