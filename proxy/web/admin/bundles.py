"""The operator's pages for bundles: lists, sends and receives content of the cache."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from aiohttp.web import BaseRequest, StreamResponse

from proxy.content.content import Content
from proxy.core.errors import BlobUnknown, RequestInvalid
from proxy.core.manifests import is_media_type
from proxy.core.names import parse_digest
from proxy.core.routing import Router
from proxy.core.selection import Selector, is_pattern, selector_of
from proxy.core.tolerant_json import as_list
from proxy.repository.results import LocalBlob
from proxy.runtime.executors import Pool, in_thread
from proxy.services.bundle import contents as bundle
from proxy.services.bundle.contents import BundledBlob
from proxy.services.export import Exporter, Selection
from proxy.services.importing import Importer, as_document
from proxy.services.pull import Platforms
from proxy.web.admin import tags
from proxy.web.admin.documents import Document, Page, read_body, reply, required, stream
from proxy.web.sendfile import Sending

MAX_SELECTION: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Bundles:
    """The services behind the pages."""

    content: Content
    exporter: Exporter
    importer: Importer
    router: Router

    @property
    def pages(self) -> dict[str, dict[str, Page]]:
        """The pages by path and method."""
        return {
            "/-/inventory": {"GET": self._get_inventory},
            "/-/export": {"POST": self._post_export},
            "/-/content": {"GET": self._get_content, "PUT": self._put_content},
            "/-/import": {"GET": self._get_import, "POST": self._post_import},
            "/-/import-plan": {"POST": self._post_plan},
        }

    async def _get_inventory(self, request: BaseRequest) -> StreamResponse:
        return await stream(request, self._inventory())

    async def _inventory(self) -> AsyncGenerator[Document]:
        async for batch in self.content.digests():
            for digest, record in (await self.content.records(batch)).items():
                yield {"digest": digest, "size": record.size}

    async def _post_export(self, request: BaseRequest) -> StreamResponse:
        wanted = await read_body(request, MAX_SELECTION)
        selection = self._selection(_object(wanted or b"{}"))
        found, problems = await self.exporter.contents(selection)
        text = await in_thread(found.to_json, Pool.COMPUTE)
        return reply({"contents": text.decode(), "problems": problems})

    def _selection(self, wanted: dict[str, Any]) -> Selection:
        since = wanted.get("since")
        if since is not None and not isinstance(since, int | float):
            raise RequestInvalid("since is a Unix time")
        names = [str(name) for name in as_list(wanted.get("images"))]
        return Selection(
            tuple(map(self._selector, names)),
            is_all=wanted.get("all") is True,
            is_pinned=wanted.get("pinned") is True,
            since=since,
            platforms=Platforms(tuple(map(str, as_list(wanted.get("platforms"))))),
            with_referrers=wanted.get("referrers", True) is True,
        )

    def _selector(self, name: str) -> Selector:
        """Return the selector of a pattern, or of one image: without a tag, ``latest``."""
        if is_pattern(name):
            return self.router.parse_selector(name)
        return selector_of(self.router.parse_image(name))

    async def _get_content(self, request: BaseRequest) -> StreamResponse:
        digest = parse_digest(required(request, "digest"))
        file = await self.content.open(digest)
        if file is None:
            raise BlobUnknown(f"{digest} is not in the cache")
        with closing(file):
            response = StreamResponse(headers={"Content-Type": "application/octet-stream"})
            response.content_length = file.size
            sending = Sending(request, response)
            await sending.begin()
            await sending.file(LocalBlob(file), 0, file.size)
            await sending.finish()
        return response

    async def _put_content(self, request: BaseRequest) -> StreamResponse:
        media_type = request.query.get("media_type")
        if media_type is not None and not is_media_type(media_type):
            raise RequestInvalid("media_type is not a media type")
        size = request.query.get("size", "")
        if not size.isdecimal() or len(size) > 18:
            raise RequestInvalid("digest and size (a number of bytes) are required")
        digest = parse_digest(required(request, "digest"))
        blob = BundledBlob(digest, int(size), media_type, is_public=False)
        await self.importer.receive(blob, _pieces(request))
        return reply({"digest": digest})

    async def _get_import(self, _: BaseRequest) -> StreamResponse:
        imports = await self.importer.imports.all()
        shown = [tags.import_as_document(one) | {"images": [*one.images]} for one in imports]
        return reply({"imports": shown})

    async def _post_plan(self, request: BaseRequest) -> StreamResponse:
        return reply({"missing": await self.importer.plan(await _contents(request))})

    async def _post_import(self, request: BaseRequest) -> StreamResponse:
        return reply(as_document(await self.importer.commit(await _contents(request))))


async def _contents(request: BaseRequest) -> bundle.Contents:
    """Return the contents file in the body of a request. Raises ``RequestInvalid``."""
    text = await read_body(request, bundle.MAX_BYTES)
    return await in_thread(partial(bundle.parse, text), Pool.COMPUTE)


async def _pieces(request: BaseRequest) -> AsyncIterator[bytes]:
    while piece := await request.content.readany():
        yield piece


def _object(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise RequestInvalid("the body is not a JSON object")
    return document
