"""Writes the names of held images to ``index.json``: the cache is an OCI image layout.

So ``skopeo copy oci:DIR:docker.io/library/nginx:latest …`` reads an image without a registry, and
tags and pins are restored from this file if the index was lost.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final, Protocol

import structlog

from proxy.content.content import Content
from proxy.core import manifests
from proxy.core.errors import StorageError
from proxy.core.manifests import OCI_INDEX
from proxy.core.names import Digest, Image, Tag, Target, sha256
from proxy.core.oci_layout import BEGIN, END, NEXT, OURS, entries, entry_of, named_image, wrapping
from proxy.core.oci_layout import annotations as annotations_of
from proxy.core.records import Descriptor, TagRecord
from proxy.core.tolerant_json import read_large_object, read_object
from proxy.runtime.executors import Pool, in_thread

PINS: Final = "dev.millpond.pins"

PUBLISH_SECONDS: Final = 5.0
PAUSE_FACTOR: Final = 20.0
"""The pause after a write, as a multiple of the write's duration."""

_SLICE: Final = 100

log = structlog.get_logger(__name__)


class LayoutFile(Protocol):
    """The file ``index.json``; blocks. Raises ``OSError``."""

    def read_index(self) -> bytes:
        """Return its content."""

    def write_index(self, content: bytes | bytearray) -> None:
        """Replace its content durably."""


class Layout:
    """Keeps ``index.json`` current while the proxy runs. ``pins`` returns the pins to write."""

    def __init__(self, content: Content, file: LayoutFile, pins: Callable[[], list[str]]) -> None:
        self._content = content
        self._file = file
        self._pins = pins
        self._foreign: list[object] = []
        self._published: tuple[int, list[str]] | None = None
        self._loaded = asyncio.Event()
        self._is_unreadable = False
        self._keeping = asyncio.Lock()

    async def load(self) -> None:
        """Restore tags from ``index.json`` that the index has lost, and read entries of others.

        While the file cannot be read it is not written either: its entries would be lost. Raises
        ``StorageError``, and may then be called again.
        """
        if self._loaded.is_set():
            return
        # A tag that cannot be read looks unknown. Reading all of them raises then.
        known = {one.name async for batch in self._content.tags.all() for one in batch}
        try:
            listed = entries(await in_thread(self._file.read_index))
        except FileNotFoundError:
            listed = iter(())
        except OSError as error:
            self._is_unreadable = True
            self._content.faults.count_error(StorageError(f"reading index.json: {error}"))
            return
        learnt, foreign = 0, list[object]()
        for count, entry in enumerate(listed):
            if count % _SLICE == 0:
                await asyncio.sleep(0)
            if OURS not in annotations_of(entry):
                foreign.append(entry)
            elif (
                (named := named_image(entry)) is not None
                and named.tag is not None
                and f"{named.target}:{named.tag}" not in known
            ):
                learnt += await self._restore_tag(named.target, named.tag, named.descriptor)
        if learnt:
            log.warning("tags found in index.json that the index had lost", tags=learnt)
        self._foreign = foreign
        self._loaded.set()

    async def _restore_tag(self, target: Target, tag: Tag, descriptor: Descriptor) -> bool:
        """Record a tag as never checked, unless it was pulled meanwhile; return if it was not."""
        if await self._content.tags.get(target, tag) is not None:
            return False
        await self._content.tags.restore(target, tag, TagRecord(descriptor, 0.0))
        return True

    async def loaded(self) -> None:
        """Return once ``load`` has ended: tags that are deleted from now on stay deleted."""
        await self._loaded.wait()

    async def publish_forever(self) -> None:
        """Write ``index.json`` whenever its content has changed, with pauses in between."""
        while not self._loaded.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(PUBLISH_SECONDS):
                    await self._loaded.wait()
            if self._is_unreadable:
                await self.load()
        while True:
            started = time.monotonic()
            await self.publish_if_changed()
            await asyncio.sleep(max(PUBLISH_SECONDS, PAUSE_FACTOR * (time.monotonic() - started)))

    async def publish_if_changed(self) -> None:
        """Write ``index.json`` if its content has changed, once the last one has been read."""
        async with self._keeping:  # two that write at once take each other's temporary file
            inputs = self._content.revision, self._pins()
            if self._loaded.is_set() and inputs != self._published and await self.publish():
                self._published = inputs

    async def publish(self) -> bool:
        """Write ``index.json``; return True if it was written."""
        head: dict[str, object] = {"schemaVersion": 2, "mediaType": OCI_INDEX}
        if names := self._pins():
            head["annotations"] = {PINS: " ".join(names)}
        content = bytearray(f"{json.dumps(head)[:-1]}{BEGIN}".encode())
        for entry in self._foreign:
            content += json.dumps(entry).encode() + NEXT
        async for line in self._lines():
            content += line
        if content.endswith(NEXT):
            del content[-len(NEXT) :]
        content += END
        try:
            await in_thread(lambda: self._file.write_index(content), Pool.SYNC)
        except OSError as error:
            self._content.faults.count_error(StorageError(f"writing index.json: {error}"))
            return False
        return True

    async def _lines(self) -> AsyncIterator[bytes]:
        """Yield a line for each held image: for every tag, or for its digest if it has none.

        A tag whose digest is only claimed is omitted.
        """
        async for batch in self._content.tags.all():
            for one in batch:
                if one.held is not None and one.is_linked:
                    yield await self._entry(Image(one.target, one.tag, None), one.record.descriptor)
        async for untagged in self._content.graph.untagged():
            for target, held in untagged:
                yield await self._entry(Image(target, None, held.digest), held.descriptor)

    async def _entry(self, image: Image, descriptor: Descriptor) -> bytes:
        """Return the line of one image; empty for a type that the layout cannot name."""
        made = entry_of(image, descriptor)
        if made is None:
            return b""
        if made.wrapper is not None and await self._content.record(made.wrapper.digest) is None:
            await self._content.store_manifest(made.wrapper, made.wrapper_body)
        return json.dumps(made.document).encode() + NEXT


async def pins_named(file: LayoutFile) -> list[str]:
    """Return the pins in ``index.json``; none if it cannot be read."""
    try:
        content = await in_thread(file.read_index)
    except OSError as error:
        log.warning("index.json cannot be read", error=str(error))
        return []
    document = read_object(content.partition(BEGIN.encode())[0] + b"}")
    document = document or read_large_object(content)
    return str(annotations_of(document).get(PINS, "")).split()


def wrapper_of(manifest: Descriptor) -> Digest | None:
    """Return the index that wraps a Docker manifest, None for other manifests."""
    if manifest.media_type != manifests.DOCKER_MANIFEST:
        return None
    return sha256(wrapping(manifest))
