"""Receives the content of a bundle, and makes its images visible when it is complete.

Blobs arrive one by one. Each is hashed before it is stored, and no repository may serve it until
``commit`` has found all content of the bundle. So an interrupted import, or one of a damaged
bundle, leaves only blobs that no client can get; the next import of the same bundle does not
transfer them again.
"""

import time
from collections.abc import AsyncIterator, Collection
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Final

import structlog

from proxy.content.content import Content
from proxy.content.notices import Cached
from proxy.content.pins import Pins
from proxy.core import manifests
from proxy.core.errors import (
    Conflict,
    ContentMismatch,
    RegistryError,
    RequestInvalid,
    StorageError,
    StorageUnavailable,
)
from proxy.core.names import Digest, Repo, Target, matches, sha256
from proxy.core.records import Descriptor, ImageSet, disk_bytes
from proxy.core.units import show_size
from proxy.runtime.executors import in_thread_if_large
from proxy.services.bundle.contents import BundledBlob, Contents
from proxy.services.imports import NOTE, Imports

MAX_NAMED: Final = 1000
"""Maximum number of missing digests in an error."""

_NOWHERE: Final = Target("import", Repo("import"))
"""The repository of content that is not linked to any repository yet."""

_BATCH: Final = 1000

_Referrer = tuple[Target, Digest, dict[str, object]]
"""A repository, a subject there, and the entry of what refers to it."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Report:
    """The result of an import. ``kept`` are tags whose record here is newer."""

    images: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    pins: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    blobs: int = 0
    bytes: int = 0


class Importer:
    """Imports bundles. ``upstreams`` are the names of the configured registries."""

    def __init__(self, content: Content, pins: Pins, upstreams: Collection[str]) -> None:
        self.imports: Final = Imports(content)
        self._content = content
        self._pins = pins
        self._upstreams = upstreams

    async def plan(self, contents: Contents) -> list[Digest]:
        """Return the digests that are not held; count a use of the others, to evict them last.

        Raises ``Conflict`` if the cache has no space for all of it at the same time.
        """
        if (shortage := await self._shortage(contents)) is not None:
            raise Conflict(shortage)
        missing: list[Digest] = []
        for digest in contents.blobs:
            if await self._content.holds(digest):
                self._content.touch(digest)
            else:
                missing.append(digest)
        return missing

    async def _shortage(self, contents: Contents) -> str | None:
        """Return why the cache cannot hold all of an import at the same time; None if it can."""
        evictor = self._content.evictor
        needed = sum(disk_bytes(blob.size) for blob in contents.blobs.values())
        protected = [one for one in await self._pins.protected() if one not in contents.blobs]
        kept = 0
        for at in range(0, len(protected), _BATCH):
            records = await self._content.records(protected[at : at + _BATCH])
            kept += sum(disk_bytes(record.size) for record in records.values())
        room = int(evictor.limit * evictor.quota.high_mark) - kept
        if needed <= room:
            return None
        return (
            f"all of it needs {show_size(needed)} in the cache, which has room for "
            f"{show_size(max(0, room))}: {evictor.limit_reason}, storage.high_mark is "
            f"{evictor.quota.high_mark:.0%}, and other images that are pinned or in use take "
            f"{show_size(kept)}"
        )

    async def receive(self, blob: BundledBlob, pieces: AsyncIterator[bytes]) -> None:
        """Store content, which no repository may serve yet.

        Raises ``ContentMismatch`` for other bytes, ``RequestInvalid`` for more or fewer of them,
        ``StorageUnavailable`` if there is no room.
        """
        try:
            if blob.media_type is None:
                await self._receive_blob(blob, pieces)
            else:
                await self._receive_manifest(blob, blob.media_type, pieces)
        except StorageError as error:
            raise StorageUnavailable(f"{blob.digest} cannot be stored: {error}") from error

    async def commit(self, contents: Contents) -> Report:
        """Link everything to its repositories and set the tags, in one step.

        Raises ``RequestInvalid`` or ``Conflict`` that names what is missing, ``StorageUnavailable``
        if the disk fails; nothing becomes visible then.
        """
        await self._check(contents)
        report = Report(blobs=len(contents.blobs))
        report.bytes = sum(blob.size for blob in contents.blobs.values())
        public = [blob.digest for blob in contents.blobs.values() if blob.is_public]
        pins = self._valid_pins(contents, report)

        async def record(notes: dict[str, object]) -> None:
            await self._content.tags.add_images(await self._images(contents, report, notes))

        try:
            for at in range(0, len(public), _BATCH):
                await self._content.publish(public[at : at + _BATCH])
            await self._pins.add_all(pins, record)
        except StorageError as error:
            raise StorageUnavailable(f"the import cannot be recorded: {error}") from error
        await self._report_pins(pins, report)
        for upstream in sorted({one.upstream for one in contents.links} - {*self._upstreams}):
            report.notes.append(
                f"{upstream} is not configured here, so its images cannot be pulled; add it under "
                "upstreams"
            )
        log.info("imported", source=contents.source, images=len(report.images))
        return report

    async def _receive_blob(self, blob: BundledBlob, pieces: AsyncIterator[bytes]) -> None:
        started = time.monotonic()
        writer = await self._content.trusted_writer(_NOWHERE, blob.digest, blob.size)
        with closing(writer):
            async with writer:
                offset = 0
                async for piece in pieces:
                    offset = _counted(blob, offset + len(piece))
                    await writer.write(offset - len(piece), piece)
                _complete(blob, offset)
                try:
                    await writer.prove()
                except ContentMismatch as error:
                    self._content.faults.report_mismatch(error, None, blob.digest, "bundle")
                    raise
                if await writer.store(is_public=False):
                    self._arrived(blob, started)

    async def _receive_manifest(
        self, blob: BundledBlob, media_type: str, pieces: AsyncIterator[bytes]
    ) -> None:
        if blob.size > manifests.MAX_SIZE:
            raise RequestInvalid(f"{blob.digest}: no manifest is as long as {blob.size} bytes")
        body, started = bytearray(), time.monotonic()
        async for piece in pieces:
            body += piece
            _counted(blob, len(body))
        _complete(blob, len(body))
        content = bytes(body)
        if not await in_thread_if_large(len(content), lambda: matches(blob.digest, content)):
            error = ContentMismatch(f"the bundle: the content does not match {blob.digest}")
            error.found = sha256(content)
            self._content.faults.report_mismatch(error, None, blob.digest, "bundle")
            raise error
        parsed = await in_thread_if_large(len(content), lambda: manifests.read(content))
        descriptor = Descriptor(media_type, blob.digest, blob.size)
        if await self._content.store_manifest(descriptor, content, parsed.listed):
            self._arrived(blob, started)
        if not await self._content.holds(blob.digest):
            bound = self._content.evictor.limit_reason
            raise StorageUnavailable(
                f"{blob.digest} cannot be stored: no room ({bound}), or the disk fails"
            )

    def _arrived(self, blob: BundledBlob, started: float) -> None:
        seconds = time.monotonic() - started
        self._content.arrived(Cached(None, blob.digest, blob.size, "import", seconds))

    async def _check(self, contents: Contents) -> None:
        """Raise ``RequestInvalid`` unless everything is held, with the sizes of the contents."""
        wrong: list[Digest] = []
        digests = [*contents.blobs]
        for at in range(0, len(digests), _BATCH):
            batch = digests[at : at + _BATCH]
            records = await self._content.records(batch)
            for digest in batch:
                record = records.get(digest)
                if record is None or record.size != contents.blobs[digest].size:
                    wrong.append(digest)
        if wrong:
            shown = "\n".join(wrong[:MAX_NAMED])
            reason = await self._shortage(contents) or (
                "they have not arrived, or were evicted since; run the import again"
            )
            raise Conflict(
                f"{len(wrong):,} of {len(digests):,} pieces are missing: {reason}\n{shown}"
            )
        for one in contents.tags:
            about = one.record.descriptor
            if contents.blobs[about.digest].size != about.size:
                raise RequestInvalid(f"{one.name}: its size is not that of {about.digest}")

    async def _images(
        self, contents: Contents, report: Report, notes: dict[str, object]
    ) -> ImageSet:
        """Return what becomes visible: a tag only if it was not seen here later."""
        tags = {}
        for one in contents.tags:
            known = await self._content.tags.get(one.target, one.tag)
            if known is not None and known.checked_at > one.record.checked_at:
                report.kept.append(one.name)
            else:
                report.images.append(one.name)
                tags[one.target, one.tag] = one
        images = {one.name: one.record.descriptor.digest for one in tags.values()}
        return ImageSet(
            contents.links,
            await self._referrers(contents),
            {image: one.record for image, one in tags.items()},
            {(one.target, one.tag): one.history for one in contents.tags},
            {**notes, NOTE: await self.imports.with_new(contents, images)},
        )

    async def _referrers(self, contents: Contents) -> list[_Referrer]:
        """Return what the manifests of a bundle refer to."""
        found: list[_Referrer] = []
        for target, digests in contents.links.items():
            for digest in digests:
                media_type = contents.blobs[digest].media_type
                if media_type is None:
                    continue
                body = await self._content.read(digest) or b""
                parsed = await in_thread_if_large(len(body), partial(manifests.read, body))
                if parsed.subject is not None:
                    entry = parsed.subject.entry(Descriptor(media_type, digest, len(body)))
                    found.append((target, parsed.subject.digest, entry))
        return found

    def _valid_pins(self, contents: Contents, report: Report) -> list[str]:
        """Return the pins of a bundle that mean something here."""
        valid = []
        for pin in contents.pins:
            try:
                valid.append(self._pins.full_name(pin))
            except RegistryError as error:
                report.notes.append(f"pin {pin}: {error.message}")
        return valid

    async def _report_pins(self, pins: Collection[str], report: Report) -> None:
        for pin in await self._pins.all() if pins else ():
            if pin.name in pins:
                report.pins.append(pin.name)
                if pin.refused is not None:
                    report.notes.append(f"pin {pin.name}: {pin.refused}")


def as_document(report: Report) -> dict[str, object]:
    """Return a report as JSON values."""
    return asdict(report)


def _counted(blob: BundledBlob, received: int) -> int:
    if received > blob.size:
        raise RequestInvalid(f"{blob.digest}: more than its {blob.size} bytes")
    return received


def _complete(blob: BundledBlob, received: int) -> None:
    if received < blob.size:
        raise RequestInvalid(f"{blob.digest}: {received} of its {blob.size} bytes")
