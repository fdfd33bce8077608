"""What the fake was asked and what it answered: requests as facts, and the log of them."""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from multidict import CIMultiDictProxy, MultiDict, MultiDictProxy, MultiMapping

Server = Literal["registry", "token", "cdn"]
ContentKind = Literal["manifest", "blob", "tags", "referrers"]
Kind = ContentKind | Literal["ping", "catalog", "token", "data", "other"]
Outcome = Literal["open", "whole", "cut", "dropped"]

_PATHS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("ping", re.compile(r"/v2/?")),
    ("catalog", re.compile(r"/v2/_catalog")),
    ("tags", re.compile(r"/v2/(?P<repository>.+)/tags/list")),
    ("manifest", re.compile(r"/v2/(?P<repository>.+)/manifests/(?P<reference>[^/]+)")),
    ("blob", re.compile(r"/v2/(?P<repository>.+)/blobs/(?P<reference>[^/]+)")),
    ("referrers", re.compile(r"/v2/(?P<repository>.+)/referrers/(?P<reference>[^/]+)")),
    ("token", re.compile(r"(?:/v2|/other)?/token")),
    ("data", re.compile(r"/data/(?:blob|manifest)/(?P<repository>.+)/(?P<reference>[^/]+)")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One request, and as much of its answer as has been given so far.

    `path` is as on the wire, without the query. `client` is the address that asks. `status` is 0 until the headers are out. `sent`
    counts the body bytes handed to the socket. `outcome`: `open` while in flight, `whole` once the
    answer is complete, `cut` if the fake broke it off, `dropped` if the client went away.
    """

    server: Server
    method: str
    path: str
    kind: Kind
    repository: str | None
    reference: str | None
    query: MultiMapping[str]
    headers: CIMultiDictProxy[str]
    form: MultiMapping[str] = field(default_factory=lambda: MultiDictProxy(MultiDict()))
    at: float
    client: str = ""
    status: int = 0
    sent: int = 0
    outcome: Outcome = "open"

    def with_form(self, fields: Mapping[str, str]) -> "Record":
        """The same with the fields of a posted form."""
        return replace(self, form=MultiDictProxy(MultiDict(fields)))

    @property
    def begun(self) -> bool:
        """Is it a GET whose body, or a part of it, is on its way?"""
        return self.method == "GET" and self.status in {200, 206}


def locate(path: str) -> tuple[Kind, str | None, str | None]:
    """The kind, the repository and the reference that `path` names."""
    for kind, pattern in _PATHS:
        if found := pattern.fullmatch(path):
            named = found.groupdict()
            return kind, named.get("repository"), named.get("reference")
    return "other", None, None


class Exchange:
    """A request in flight: the one who answers it notes its progress here."""

    def __init__(self, record: Record, changed: Callable[[], None]) -> None:
        self.record = record
        self._changed = changed

    def start(self, status: int) -> None:
        """Note that the headers are out."""
        self.record = replace(self.record, status=status)
        self._changed()

    def send(self, count: int) -> None:
        """Note that `count` more bytes are out."""
        self.record = replace(self.record, sent=self.record.sent + count)
        self._changed()

    def end(self, outcome: Outcome) -> None:
        """Note how it ended; the first to say so is right."""
        if self.record.outcome == "open":
            self.record = replace(self.record, outcome=outcome)
            self._changed()


class Log:
    """All exchanges since the start or the last `clear`, in order of arrival."""

    def __init__(self) -> None:
        self._exchanges: list[Exchange] = []
        self._pulse = asyncio.Event()

    def open(self, record: Record) -> Exchange:
        """Add a request that has just arrived."""
        exchange = Exchange(record, self._beat)
        self._exchanges.append(exchange)
        self._beat()
        return exchange

    def clear(self) -> None:
        """Forget everything, also what is still in flight."""
        self._exchanges.clear()
        self._beat()

    def of(self, server: Server) -> list[Record]:
        """What `server` was asked."""
        return [entry.record for entry in self._exchanges if entry.record.server == server]

    def bodies(self, digest: str) -> int:
        """How many GETs for this blob got (the start of) a body, from the registry or its CDN."""
        records = [*self.of("registry"), *self.of("cdn")]
        return sum(r.begun and r.reference == digest and r.kind != "manifest" for r in records)

    async def until(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:  # noqa: ASYNC109 - a test that hangs tells less than one that fails
        """Wait until `condition` holds, which is tested whenever anything happens here."""
        async with asyncio.timeout(timeout):
            while not condition():
                self._pulse.clear()
                await self._pulse.wait()

    def _beat(self) -> None:
        self._pulse.set()
