"""Pulls whole images into the cache without a client.

A pull fetches an index, the selected images in it, and their configurations and layers. When the
rate limit of upstream runs low, the rest of it is reserved for clients
(``freshness.rate_limit_reserve``).
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from proxy.content.content import Content
from proxy.content.downloads import Downloads
from proxy.core.errors import (
    ManifestUnknown,
    NotFound,
    RegistryError,
    RequestInvalid,
    TooManyRequests,
)
from proxy.core.manifests import walk
from proxy.core.names import Digest, Image, Tag, Target, parse_digest
from proxy.core.platforms import platform_name, usual_name
from proxy.core.policy import CacheDirective
from proxy.core.records import Child
from proxy.core.tolerant_json import as_list, read_object
from proxy.repository import Cache
from proxy.repository.origins import Origin
from proxy.repository.referrers import fallback_tag
from proxy.repository.results import Manifest
from proxy.runtime.executors import in_thread_if_large
from proxy.runtime.metrics import Outcome
from proxy.runtime.supervisor import running_beside

CONCURRENCY: Final = 4
"""Blobs of all pulls that are fetched at the same time: clients must still get slots."""

REPORT_SECONDS: Final = 0.5
_MAX_DEPTH: Final = 5
"""Maximum number of manifests of an image that are fetched."""

ATTACHED: Final = ("sig", "att", "sbom")
"""Suffixes of the tags under which cosign keeps signatures, attestations and SBOMs."""

Event = dict[str, Any]


class Selected(NamedTuple):
    """The selected manifests of an index; ``problem`` names wanted platforms that it has not."""

    images: list[Child]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Platforms:
    """The selected platforms of an index, as ``linux/arm64/v8``; none selects all."""

    wanted: tuple[str, ...]

    def choose(self, index: bytes, listed: Iterable[Child]) -> Selected:
        """Return the selected manifests of an index. Raises ``ManifestUnknown`` if there are none.

        A manifest without a platform is always selected, and may be for any platform.
        Attestations, whose platform is ``unknown``, are selected only with all platforms.
        """
        if not self.wanted:
            return Selected(list(listed))
        platforms = {
            str(entry.get("digest")): entry.get("platform")
            for entry in as_list(read_object(index).get("manifests"))
            if isinstance(entry, dict)
        }
        names = {
            one: platform_name(entry) for one, entry in platforms.items() if isinstance(entry, dict)
        }
        chosen = [
            one
            for one in listed
            if one.digest not in names or any(_is(names[one.digest], each) for each in self.wanted)
        ]
        absent = [each for each in self.wanted if not any(_is(one, each) for one in names.values())]
        known = ", ".join(sorted({*names.values()} - {"unknown/unknown"}))
        problem = f"there is no image for {', '.join(absent)}; there is {known}"
        if not chosen:
            raise ManifestUnknown(problem)
        has_any = names.keys() != platforms.keys()
        return Selected(chosen, problem if absent and not has_any else None)


def _is(name: str, wanted: str) -> bool:
    """Return True if a platform is the wanted one, or a variant of it."""
    wanted = usual_name(wanted)
    return name == wanted or name.startswith(f"{wanted}/")


@dataclass(frozen=True, slots=True)
class PullOptions:
    """The images to fetch, by platform, and whether to fetch referrers.

    ``is_dry`` fetches only manifests, and reports the bytes of blobs that are not held.
    """

    platforms: Platforms
    with_referrers: bool = False
    is_dry: bool = False


class Pulled(NamedTuple):
    """The outcome of a pull: what it fetched, and why the image is not complete or not current."""

    fetched_bytes: int
    problems: list[str]


@dataclass(slots=True)
class _Pull:
    """One pull and its progress: ``sizes`` of the selected blobs, and those that have ``ended``."""

    target: Target
    wanted: PullOptions
    sizes: dict[Digest, int] = field(default_factory=dict)
    ended: set[Digest] = field(default_factory=set)
    held: set[Digest] = field(default_factory=set)
    missing: list[Event] = field(default_factory=list)
    root: Digest | None = None
    warning: str | None = None


class Puller:
    """Pulls images. Clients join its downloads."""

    def __init__(
        self,
        cache: Cache,
        content: Content,
        sources: Mapping[str, Origin],
        downloads: Downloads,
    ) -> None:
        self._cache = cache
        self._content = content
        self._sources = sources
        self._downloads = downloads
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._is_stopping = False

    def stop(self) -> None:
        """End all pulls soon: their events end without ``done``."""
        self._is_stopping = True

    async def run(self, image: Image, wanted: PullOptions) -> AsyncGenerator[Event]:
        """Pull an image; yield the progress, the failures, and the totals.

        The pull ends when the caller stops reading; downloads that have begun continue. Without
        ``done`` at its end it was stopped. Raises ``RequestInvalid`` for a digest without a
        repository.
        """
        if image.target is None:
            raise RequestInvalid(f"{image}: name the repository too, as nginx@{image.digest}")
        pull = _Pull(image.target, wanted)
        yield {"event": "start", "image": str(image)}
        async with running_beside(self._fetch(image, pull), f"pull {image}") as work:
            while not (await asyncio.wait([work], timeout=REPORT_SECONDS))[0]:
                if self._is_stopping:
                    return
                yield {"event": "progress", **self._so_far(pull)}
            work.result()
        if not wanted.is_dry:
            await self._report_evicted(pull)
        for missing in pull.missing:
            yield missing
        yield {
            "event": "done",
            "image": str(image),
            "digest": pull.root,
            **self._so_far(pull),
            ("to_fetch_bytes" if wanted.is_dry else "fetched_bytes"): self._fetched(pull),
            "missing": len(pull.missing),
            "warning": pull.warning,
        }

    async def outcome(self, image: Image, wanted: PullOptions) -> Pulled:
        """Pull an image to the end; return the outcome. Raises ``RequestInvalid`` as ``run``."""
        problems: list[str] = []
        pulled: Pulled | None = None
        async for event in self.run(image, wanted):
            if event["event"] == "missing":
                problems.append(f"{event['digest']}: {event['reason']}")
            if event["event"] == "done":
                problems += filter(None, [event["warning"]])
                pulled = Pulled(event["fetched_bytes"], problems)
        return pulled or Pulled(0, [*problems, "the pull ended early"])

    async def _fetch(self, image: Image, pull: _Pull) -> None:
        try:
            root = await self._root(image, pull.target)
        except RegistryError as error:
            _miss(pull, str(image), error.message)
            return
        pull.root, pull.warning = root.descriptor.digest, root.warning
        async with asyncio.TaskGroup() as group:

            async def take(digest: Digest) -> list[Digest]:
                known = root if digest == pull.root else None
                return await self._take(pull, digest, known, group)

            async for _ in walk([root.descriptor.digest], take, max_depth=_MAX_DEPTH):
                pass

    async def _root(self, image: Image, target: Target) -> Manifest:
        if image.digest is not None:
            manifest = await self._manifest(target, image.digest)
            await self._cache.tags.cool_downs.check(target, image.digest)
            return manifest
        assert image.tag is not None
        is_past = await self._cache.tags.past.configured(target, image.tag) is not None
        if is_past or not self._sources[target.upstream].is_scarce:
            return await self._cache.tags.get(target, image.tag, CacheDirective.REVALIDATE)
        refreshed = await self._cache.tags.refresh(target, image.tag)  # by HEAD, which is free
        return await self._manifest(target, refreshed.served)

    async def _manifest(self, target: Target, digest: Digest) -> Manifest:
        """Return a manifest. Raises ``TooManyRequests`` if it is not held and pulls are scarce."""
        if self._sources[target.upstream].is_scarce and not await self._content.holds(digest):
            raise TooManyRequests(
                f"{target.upstream}: the rest of its rate limit is reserved for clients"
            )
        return await self._cache.manifests.get(target, digest, CacheDirective.ANY)

    async def _take(
        self, pull: _Pull, digest: Digest, known: Manifest | None, group: asyncio.TaskGroup
    ) -> list[Digest]:
        """Fetch a manifest (None: not ``known`` yet), and begin to fetch its blobs.

        Returns the selected manifests in it.
        """
        target = pull.target
        try:
            manifest = known or await self._manifest(target, digest)
            if manifest.outcome is Outcome.THROUGH:
                raise ManifestUnknown("its format is not kept")
            is_held = await self._content.holds(digest)
            if not is_held and not await self._cache.manifests.restore(target, digest):
                raise ManifestUnknown("there is no room for it")
            listed = manifest.children
            if listed is None:
                raise ManifestUnknown("the content that it lists is not understood")
            choose = partial(pull.wanted.platforms.choose, manifest.body, listed.manifests)
            chosen = (
                await in_thread_if_large(len(manifest.body), choose)
                if listed.manifests
                else Selected([])
            )
        except RegistryError as error:
            _miss(pull, digest, error.message)
            return []
        if chosen.problem is not None:
            _miss(pull, digest, chosen.problem)
        pull.held.add(digest)
        for blob in listed.blobs:
            if blob.digest not in pull.sizes:
                pull.sizes[blob.digest] = blob.size
                fetch = self._look if pull.wanted.is_dry else self._blob
                group.create_task(fetch(pull, blob.digest), name="pull a blob")
        referrers = await self._referrers(pull, digest) if pull.wanted.with_referrers else []
        return [*(child.digest for child in chosen.images), *referrers]

    async def _referrers(self, pull: _Pull, digest: Digest) -> list[Digest]:
        """Return the manifests that refer to one: by the API, and by the tags of cosign."""
        found: list[Digest] = []
        try:
            listed = await self._cache.referrers.get(
                pull.target, digest, None, CacheDirective.REVALIDATE
            )
            found += (parse_digest(str(entry["digest"])) for entry in listed.entries)
        except RegistryError as error:
            _miss(pull, digest, f"its referrers could not be listed: {error.message}")
        for suffix in ATTACHED:
            tag = Tag(f"{fallback_tag(digest)}.{suffix}")
            try:
                attached = await self._cache.tags.get(pull.target, tag, CacheDirective.REVALIDATE)
                found.append(attached.descriptor.digest)
            except NotFound:
                continue
            except RegistryError as error:
                _miss(pull, tag, error.message)
        return found

    async def _look(self, pull: _Pull, digest: Digest) -> None:
        if await self._content.holds(digest):
            pull.held.add(digest)
        pull.ended.add(digest)

    async def _blob(self, pull: _Pull, digest: Digest) -> None:
        async with self._slots:
            try:
                if await self._content.holds(digest):
                    pull.held.add(digest)
                if not await self._cache.blobs.fetch(pull.target, digest):
                    _miss(pull, digest, "there is no room for it")
            except RegistryError as error:
                _miss(pull, digest, error.message)
            pull.ended.add(digest)

    async def _report_evicted(self, pull: _Pull) -> None:
        """Report blobs that were evicted again because not all of them fit."""
        known = {event["digest"] for event in pull.missing}
        for digest in pull.ended - known:
            if not await self._content.holds(digest):
                _miss(pull, digest, "it was evicted again: there is no room for all of it")

    def _so_far(self, pull: _Pull) -> Event:
        """Return the bytes of blobs that have arrived, and of all selected blobs so far."""
        done = sum(pull.sizes[digest] for digest in pull.ended)
        for digest in pull.sizes.keys() - pull.ended:
            download = self._downloads.live(pull.target, digest)
            done += 0 if download is None else download.written
        return {"bytes": done, "total": sum(pull.sizes.values())}

    def _fetched(self, pull: _Pull) -> int:
        missing = {event["digest"] for event in pull.missing}
        fetched = pull.ended - pull.held - missing
        return sum(pull.sizes[digest] for digest in fetched)


def _miss(pull: _Pull, digest: str, reason: str) -> None:
    pull.missing.append({"event": "missing", "digest": digest, "reason": reason})
