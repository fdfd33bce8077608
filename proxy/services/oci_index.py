"""Names for what is held, in the ``index.json`` of the OCI image layout that the cache is.

So ``skopeo copy oci:DIR:docker.io/library/nginx:latest …`` reads an image without a registry, and
tags and pins are found again when the index has been lost.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final, Protocol

import structlog

from proxy.content.content import Content
from proxy.core import manifests
from proxy.core.errors import StorageError
from proxy.core.manifests import OCI_INDEX
from proxy.core.names import Digest, Image, sha256
from proxy.core.oci_layout import BEGIN, END, NAME, NEXT, OURS, TRUE, entries, named_image
from proxy.core.oci_layout import annotations as annotations_of
from proxy.core.records import Descriptor, TagRecord
from proxy.core.tolerant_json import read_large_object, read_object
from proxy.runtime.executors import Pool, in_thread

PINS: Final = "dev.millpond.pins"

PUBLISH_SECONDS: Final = 5.0
REST: Final = 20.0
"""After a write, so many times as long as it took."""

_SLICE: Final = 100
_ALPHANUMERIC: Final = r"[A-Za-z0-9]+"
_COMPONENT: Final = rf"{_ALPHANUMERIC}(?:(?:[-._:@+]|--){_ALPHANUMERIC})*"
_READABLE = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
"""What containers/image takes for a name in a layout (``oci/internal/oci_util.go``)."""

log = structlog.get_logger(__name__)


class Shelf(Protocol):
    """Where ``index.json`` lies; blocks. Raises ``OSError``."""

    def read(self) -> bytes:
        """Return its content."""

    def write(self, content: bytes | bytearray) -> None:
        """Replace its content, for good."""


class Layout:
    """Keeps ``index.json`` current while the proxy runs. ``pins`` tells the pins to note there."""

    def __init__(self, content: Content, shelf: Shelf, pins: Callable[[], list[str]]) -> None:
        self._content = content
        self._index = content.index
        self._shelf = shelf
        self._pins = pins
        self._foreign: list[object] = []
        self._published: tuple[int, list[str]] | None = None
        self._recalled = asyncio.Event()
        self._is_unreadable = False
        self._keeping = asyncio.Lock()

    async def recall(self) -> None:
        """Learn tags from ``index.json`` that the index has lost, and what others put there.

        While the file cannot be read it is not written either: it would lose what it says.
        """
        if self._recalled.is_set():
            return
        await self._index.ready()
        try:
            listed = entries(await in_thread(self._shelf.read))
        except FileNotFoundError:
            listed = iter(())
        except OSError as error:
            self._is_unreadable = True
            self._content.trouble(StorageError(f"reading index.json: {error}"))
            return
        learnt, foreign = 0, list[object]()
        for count, entry in enumerate(listed):
            if count % _SLICE == 0:
                await asyncio.sleep(0)
            if OURS not in annotations_of(entry):
                foreign.append(entry)
            elif (known := named_image(entry)) is not None and known.tag is not None:
                target, tag, descriptor = known.target, known.tag, known.descriptor
                if self._index.pointed(target, tag) is None:
                    await self._index.set_tag(target, tag, TagRecord(descriptor, 0.0))
                    learnt += 1
        if learnt:
            log.warning("tags found in index.json that the index had lost", tags=learnt)
        self._foreign = foreign
        self._recalled.set()

    async def recalled(self) -> None:
        """Return once ``recall`` has ended: what is forgotten from now on stays forgotten."""
        await self._recalled.wait()

    async def publish_for_ever(self) -> None:
        """Write ``index.json`` whenever what it tells has changed, but never all the time."""
        while not self._recalled.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(PUBLISH_SECONDS):
                    await self._recalled.wait()
            if self._is_unreadable:
                await self.recall()
        while True:
            started = time.monotonic()
            await self.keep()
            await asyncio.sleep(max(PUBLISH_SECONDS, REST * (time.monotonic() - started)))

    async def keep(self) -> None:
        """Write ``index.json`` if what it tells has changed, and the last one has been read."""
        async with self._keeping:  # two that write at once take each other's temporary file
            told = self._index.revision, self._pins()
            if self._recalled.is_set() and told != self._published and await self.publish():
                self._published = told

    async def publish(self) -> bool:
        """Write ``index.json``; tell whether the disk took it."""
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
            await in_thread(lambda: self._shelf.write(content), Pool.SYNC)
        except OSError as error:
            self._content.trouble(StorageError(f"writing index.json: {error}"))
            return False
        return True

    async def _lines(self) -> AsyncIterator[bytes]:
        """Yield a line for each held image: by every tag, or by its digest if it has none.

        A tag whose upstream only claims that it points to held content is no name for it.
        """
        tagged: set[Digest] = set()
        for count, (target, tag, record) in enumerate(self._index.tagged()):
            if count % _SLICE == 0:
                await asyncio.sleep(0)
            digest = record.descriptor.digest
            if self._index.held(digest) is not None and await self._index.linked(target, digest):
                tagged.add(digest)
                yield await self._entry(Image(target, tag, None), record.descriptor)
        for count, digest in enumerate(self._index.manifests()):
            if count % _SLICE == 0:
                await asyncio.sleep(0)
            held = self._index.held(digest)
            if held is None or digest in tagged or self._index.is_listed(digest):
                continue
            descriptor = Descriptor(held.media_type or "", digest, held.size)
            for holder in (await self._index.holders(digest))[:1]:
                yield await self._entry(Image(holder, None, digest), descriptor)

    async def _entry(self, image: Image, descriptor: Descriptor) -> bytes:
        """Return the line of one image; nothing for what the layout cannot tell.

        Readers take OCI types only. A Docker list reads as an OCI index under that type; a Docker
        manifest does not, so an index of our own is laid around it.
        """
        annotations = {OURS: str(image)}
        if _READABLE.fullmatch(str(image)):
            annotations[NAME] = str(image)
        elif _READABLE.fullmatch(by_digest := f"{image.target}@{descriptor.digest}"):
            annotations[NAME] = by_digest
        shown = descriptor
        match descriptor.media_type:
            case manifests.OCI_MANIFEST | manifests.OCI_INDEX:
                pass
            case manifests.DOCKER_LIST:
                shown = Descriptor(OCI_INDEX, descriptor.digest, descriptor.size)
            case manifests.DOCKER_MANIFEST:
                shown = await self._wrapped(descriptor)
            case _:
                return b""
        if shown is not descriptor:
            annotations[TRUE] = json.dumps(_json(descriptor))
        return json.dumps(_json(shown) | {"annotations": annotations}).encode() + NEXT

    @staticmethod
    def wrapper(manifest: Descriptor) -> Digest | None:
        """Return the index that is laid around a Docker manifest, None for other manifests."""
        if manifest.media_type != manifests.DOCKER_MANIFEST:
            return None
        return sha256(_wrapping(manifest))

    async def _wrapped(self, descriptor: Descriptor) -> Descriptor:
        """Hold an index that lists one manifest, without a platform: any reader takes it."""
        body = _wrapping(descriptor)
        wrapper = Descriptor(OCI_INDEX, sha256(body), len(body))
        if self._index.held(wrapper.digest) is None:
            await self._content.keep(wrapper, body)
        return wrapper


async def pins_named(shelf: Shelf) -> list[str]:
    """Return the pins that ``index.json`` names."""
    content = await _content(shelf)
    document = read_object(content.partition(BEGIN.encode())[0] + b"}")
    document = document or read_large_object(content)
    return str(annotations_of(document).get(PINS, "")).split()


async def _content(shelf: Shelf) -> bytes:
    """Return what is in ``index.json``; nothing when it cannot be read."""
    try:
        return await in_thread(shelf.read)
    except OSError as error:
        log.warning("index.json cannot be read", error=str(error))
        return b""


def _wrapping(descriptor: Descriptor) -> bytes:
    """Return an index of one manifest."""
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_json(descriptor)]}
    return json.dumps(document).encode()


def _json(descriptor: Descriptor) -> dict[str, object]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
