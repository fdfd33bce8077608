"""What can go wrong: effects, each a function from one answer to a worse one, and rules for them.

upstream.fault(truncate(100), kind="blob", reference=digest, times=1)
"""

import asyncio
import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.fakes.records import Kind, Record
from tests.fakes.replies import Delivery, Reply, error

Effect = Callable[[Record, Reply], Reply]

_CODES: Mapping[int, str] = {
    400: "UNSUPPORTED",
    401: "UNAUTHORIZED",
    403: "DENIED",
    404: "MANIFEST_UNKNOWN",
    405: "UNSUPPORTED",
    429: "TOOMANYREQUESTS",
    503: "UNAVAILABLE",
}


@dataclass(slots=True)
class Rule:
    """Effects on the answers to the requests that match.

    `kind` None means any request to the registry itself, but none to its token server (kind
    `token`) or CDN (kind `data`). A rule skips the first `after` matches and serves `times` of
    those that follow (None: all). Refusals for want of credentials count only if `challenges`.
    """

    effects: tuple[Effect, ...]
    kind: Kind | None = None
    reference: str | None = None
    repository: str | None = None
    method: str | None = None
    times: int | None = None
    after: int = 0
    challenges: bool = False
    used: int = field(default=0, init=False)

    def apply(self, record: Record, reply: Reply, *, refused: bool) -> Reply:
        """The answer after this rule; `refused` if it is a refusal for want of credentials."""
        if not self._matches(record) or (refused and not self.challenges):
            return reply
        if self.times is not None and self.used >= self.times:
            return reply
        if self.after > 0:
            self.after -= 1
            return reply
        self.used += 1
        for effect in self.effects:
            reply = effect(record, reply)
        return reply

    def _matches(self, record: Record) -> bool:
        if self.kind is None and record.server != "registry":
            return False
        pairs = (
            (self.kind, record.kind),
            (self.reference, record.reference),
            (self.repository, record.repository),
            (self.method, record.method),
        )
        return all(wanted in {None, found} for wanted, found in pairs)


def status(
    code: int,
    *,
    retry_after: str | int | None = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Effect:
    """Another status, with a JSON error as its body unless `body` says otherwise."""

    def effect(_record: Record, reply: Reply) -> Reply:
        made = error(code, _CODES.get(code, "UNKNOWN"))
        if body is not None:
            made = Reply(code, body, {"Content-Type": "text/plain"})
        if retry_after is not None:
            made = made.with_header("Retry-After", str(retry_after))
        for name, value in (headers or {}).items():
            made = made.with_header(name, value)
        return replace(made, delivery=reply.delivery)

    return effect


def delay(seconds: float) -> Effect:
    """Nothing, not even headers, for a while."""
    return _travel(delay=seconds)


def hold(gate: asyncio.Event) -> Effect:
    """Nothing, not even headers, until `gate` is set."""

    def effect(_record: Record, reply: Reply) -> Reply:
        gates = (*reply.delivery.gates, gate)
        return replace(reply, delivery=replace(reply.delivery, gates=gates))

    return effect


def slow(rate: float) -> Effect:
    """A body at `rate` bytes/second."""
    return _travel(rate=rate)


def stall(at: int, release: asyncio.Event) -> Effect:
    """Headers and `at` bytes, then nothing until `release` is set, then the rest."""
    return _travel(stall_at=at, release=release)


def truncate(at: int, *, reset: bool = False) -> Effect:
    """The right Content-Length, `at` bytes, then the connection closed (or reset)."""
    return _travel(cut_at=at, reset=reset)


def hang_up(*, reset: bool = False) -> Effect:
    """The connection closed (or reset) instead of an answer."""
    return _travel(refuse=True, reset=reset)


def chunked() -> Effect:
    """The body in chunks, with no Content-Length, also on HEAD."""
    return _travel(chunked=True)


def announce(excess: int) -> Effect:
    """A Content-Length that is `excess` bytes too long, or too short if negative."""
    return _travel(excess=excess)


def corrupt(at: int = -1) -> Effect:
    """One byte of the body flipped: the first (0), the last (-1) or any other."""

    def effect(_record: Record, reply: Reply) -> Reply:
        body = bytearray(reply.body)
        if body:
            body[at] ^= 0xFF
        return replace(reply, body=bytes(body))

    return effect


def body(data: bytes, content_type: str | None = None) -> Effect:
    """Another body under the same status and headers, such as a login page."""

    def effect(_record: Record, reply: Reply) -> Reply:
        made = replace(reply, body=data)
        return made if content_type is None else made.with_header("Content-Type", content_type)

    return effect


def gzipped(*, asked: bool = False) -> Effect:
    """The body compressed: even if nobody asked, or only if the request accepts it (`asked`)."""

    def effect(record: Record, reply: Reply) -> Reply:
        if asked and "gzip" not in record.headers.get("Accept-Encoding", ""):
            return reply
        made = replace(reply, body=gzip.compress(reply.body, mtime=0))
        return made.with_header("Content-Encoding", "gzip")

    return effect


def header(name: str, value: str | None) -> Effect:
    """One header set to something else, or (None) left out."""

    def effect(_record: Record, reply: Reply) -> Reply:
        return reply.with_header(name, value)

    return effect


def digest_header(value: str | None) -> Effect:
    """Docker-Content-Digest left out (None) or wrong."""
    return header("Docker-Content-Digest", value)


def no_ranges() -> Effect:
    """The whole body with 200, whatever Range says."""

    def effect(_record: Record, reply: Reply) -> Reply:
        return replace(reply, ranges=False).with_header("Accept-Ranges", None)

    return effect


def content_range(value: str) -> Effect:
    """The part that was asked for, under another `Content-Range`."""
    return _travel(content_range=value)


def to_ranges(*effects: Effect) -> Effect:
    """Effects for requests with a `Range` only."""

    def effect(record: Record, reply: Reply) -> Reply:
        for made in effects if "Range" in record.headers else ():
            reply = made(record, reply)
        return reply

    return effect


def redirect(location: str | None = None, code: int = 307) -> Effect:
    """Go to `location`; None leads back to the same address, for ever."""

    def effect(record: Record, reply: Reply) -> Reply:
        return Reply(code, headers={"Location": location or record.path}, delivery=reply.delivery)

    return effect


def _travel(**changes: Any) -> Effect:
    def effect(_record: Record, reply: Reply) -> Reply:
        delivery: Delivery = replace(reply.delivery, **changes)
        return replace(reply, delivery=delivery)

    return effect
