"""A client of the Admin API that holds every answer against the OpenAPI document."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientResponse, ClientSession, UnixConnector
from jsonschema import Draft202012Validator

from proxy.web.admin.api.routes import PREFIX
from tests.running import Proxy

JSON = "application/json"
Document = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """A status and the document that came with it."""

    status: int
    document: Document

    @property
    def error(self) -> tuple[str, str]:
        """Code and message of an error."""
        [entry] = self.document["errors"]
        return entry["code"], entry["message"]


class ApiClient:
    """Asks the API; every answer must be as the document says."""

    def __init__(self, session: ClientSession, description: Document) -> None:
        self.session = session
        self.description = description

    async def ask(
        self, method: str, path: str, body: Any = None, *, headers: Any = None, **query: Any
    ) -> Told:
        """Return what the API says."""
        sent = {"json": body} if body is not None else {}
        url = PREFIX + path
        async with self.session.request(
            method, url, params={k: str(v) for k, v in query.items()}, headers=headers, **sent
        ) as answer:
            return self.checked(method, path, answer.status, await answer.read())

    async def get(self, path: str, **query: Any) -> Document:
        """Return the document of an answer that must be good."""
        told = await self.ask("GET", path, **query)
        assert told.status == 200, told
        return told.document

    async def change(self, method: str, path: str, body: Any = None, **query: Any) -> Document:
        """Return the document of a change that must succeed."""
        told = await self.ask(method, path, body, **query)
        assert told.status in (200, 202), told
        return told.document

    @asynccontextmanager
    async def stream(self, path: str, **query: Any) -> AsyncIterator["Stream"]:
        """Open a stream of events."""
        headers = query.pop("headers", None)
        async with self.session.get(PREFIX + path, params=query, headers=headers) as answer:
            assert answer.status == 200, await answer.read()
            assert answer.headers["Content-Type"] == "text/event-stream"
            yield Stream(answer, self.operation("GET", path), self.description)

    def checked(self, method: str, path: str, status: int, body: bytes) -> Told:
        document = json.loads(body)
        operation = self.operation(method, path)
        answers = {} if operation is None else operation["responses"]
        if str(status) in answers:
            schema = answers[str(status)]["content"][JSON]["schema"]
        else:
            assert status >= 400, (method, path, status)
            schema = {"$ref": "#/components/schemas/Errors"}
        validate(document, schema, self.description)
        return Told(status, document)

    def operation(self, method: str, path: str) -> Document | None:
        """Return what the document says about a path."""
        paths = self.description["paths"]
        base, _, last = path.rpartition("/")
        for name in (path, f"{base}/{{id}}" if last else path):
            operation = paths.get(PREFIX + name, {}).get(method.lower())
            if operation is not None:
                return dict(operation)
        return None


class Stream:
    """Events of an open stream."""

    def __init__(
        self, answer: ClientResponse, operation: Document | None, description: Document
    ) -> None:
        assert operation is not None
        content = operation["responses"]["200"]["content"]["text/event-stream"]["schema"]
        self._schema = content["contentSchema"]
        self._description = description
        self._answer = answer

    async def next(self) -> tuple[dict[str, str], Document]:
        """Return the fields of the next event, and its data."""
        fields: dict[str, str] = {}
        while True:
            line = (await self._answer.content.readline()).decode()
            assert line, "the stream ended"
            if line == "\n":
                if "data" in fields:
                    break
                continue
            name, _, value = line.rstrip("\n").partition(": ")
            if name:  # else it is a comment
                fields[name] = value
        data = json.loads(fields.pop("data"))
        validate(data, self._schema, self._description)
        return fields, data

    async def rest(self) -> bytes:
        """Return what follows until the stream ends."""
        return await self._answer.content.read()


def validate(document: Any, schema: Document, description: Document) -> None:
    whole = {**schema, "components": description["components"]}
    Draft202012Validator(whole).validate(document)


@asynccontextmanager
async def on_socket(proxy: Proxy) -> AsyncIterator[ApiClient]:
    """The operator's client, on the admin socket."""
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with ClientSession("http://millpond", connector=connector) as session:
        yield await described(session)


async def described(session: ClientSession) -> ApiClient:
    async with session.get(PREFIX + "openapi.json") as answer:
        assert answer.status == 200, await answer.read()
        return ApiClient(session, await answer.json())
