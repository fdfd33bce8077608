"""Events of the cache: the recent ones, and a stream of new ones."""

from dataclasses import dataclass
from typing import Annotated, Final

from aiohttp.web import StreamResponse
from pydantic import Field

from proxy.core.errors import RequestInvalid
from proxy.runtime.events import Event, EventKind, Events
from proxy.web.admin.api.routes import AnyRoute, Caller, Model, Params, Route
from proxy.web.admin.api.streams import EventStream, Streams, comment, event

QUIET_SECONDS: Final = 15.0
"""Without an event for this long, a comment keeps the connection open."""

Fact = str | int | float | bool | None


class EventsParams(Params):
    """Parameters that select events."""

    kinds: Annotated[str, Field(max_length=300, description="Kinds, with commas; none: all.")] = ""
    after: Annotated[int | None, Field(ge=0, description="Only later serial numbers.")] = None
    follow: Annotated[bool, Field(description="false: only the recent ones, as JSON.")] = True

    @property
    def wanted(self) -> frozenset[EventKind]:
        """The kinds. Raises ``RequestInvalid``."""
        try:
            return frozenset(EventKind(kind) for kind in self.kinds.split(",") if kind)
        except ValueError:
            raise RequestInvalid(f"kinds: one of {', '.join(EventKind)}") from None


class CacheEvent(Model):
    """One event; ``time`` is Unix seconds, ``data`` depends on ``kind``."""

    serial: int
    time: float
    kind: str
    subject: str
    data: dict[str, Fact]


class RecentEvents(Model):
    """The recent events, the latest last."""

    events: list[CacheEvent]


@dataclass(frozen=True, slots=True)
class EventFeed:
    """The events of the cache."""

    events: Events
    streams: Streams

    @property
    def routes(self) -> list[AnyRoute]:
        """The routes of this group."""
        text = "Follow the events, recent ones first."
        return [
            Route(
                "GET", "events", EventsParams, RecentEvents, self._events, text, events=CacheEvent
            )
        ]

    async def _events(self, params: EventsParams, caller: Caller) -> Model | StreamResponse:
        kinds, after = params.wanted, params.after
        if after is None:
            after = _last_seen(caller.request.headers.get("Last-Event-ID"))
        if after > self.events.last:  # of an earlier process
            after = 0
        if not params.follow:
            recent = self.events.recent(kinds, after=after)
            return RecentEvents(events=[_shown(one) for one in recent])
        with self.events.subscribed(kinds) as subscription:
            recent = self.events.recent(kinds, after=after)
            async with self.streams.opened(caller) as stream:
                await _send(stream, recent)
                lost = 0
                while not stream.has_ended:
                    found = await stream.wait(subscription.next(), QUIET_SECONDS)
                    if subscription.dropped > lost:
                        await stream.send(comment(f"{subscription.dropped - lost} events lost"))
                        lost = subscription.dropped
                    await (stream.send(comment("")) if found is None else _send(stream, [found]))
        return stream.response


async def _send(stream: EventStream, events: list[Event]) -> None:
    text = b"".join(
        event(one.kind, _shown(one).model_dump_json().encode(), one.serial) for one in events
    )
    if text:
        await stream.send(text)


def _shown(one: Event) -> CacheEvent:
    return CacheEvent.model_validate(one, from_attributes=True)


def _last_seen(header: str | None) -> int:
    """Return the serial number in ``Last-Event-ID``, 0 without a valid one."""
    is_number = header is not None and header.isascii() and header.isdecimal()
    return int(header) if is_number and header is not None and len(header) < 18 else 0
