"""The shared Redis, with time limits: it may be slow, empty or unreachable at any time.

A command is sent at most twice. After a failure Redis gets no commands: until ``watch`` reaches it
again, every command fails immediately.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

from proxy.core.errors import FleetUnavailable
from proxy.fleet.connecting import ANSWER_SECONDS, CONNECT_SECONDS, CONNECTIONS, client
from proxy.runtime.part_counters import FleetCounters

if TYPE_CHECKING:
    from redis.asyncio.client import PubSub

SCHEMA: Final = 1
"""Part of every key. A version that changes what is stored counts it up, so that two versions can
share a Redis during an upgrade."""

_FOR_WATCH: Final = 2
"""Connections that ``Store.watch`` uses."""

WATCH_SECONDS: Final = 1.0
"""Interval at which Redis is tried again after a failure."""

SILENCE_SECONDS: Final = 5.0
"""A subscription without an answer to its pings for this time is lost."""

STOPPED_SECONDS: Final = 4 * (CONNECT_SECONDS + ANSWER_SECONDS)
"""A longer time than all limits together was not spent in Redis: this process was not running."""

CLOCK_SECONDS: Final = 10.0
"""Interval at which the clock of Redis is read."""

Argument = str | bytes | int | float
Script = Callable[[Sequence[str], Sequence[Argument]], Awaitable[Any]]
"""Runs a Lua script with keys and arguments. Raises ``FleetUnavailable``."""

log = structlog.get_logger(__name__)


class Subscription(NamedTuple):
    """The callbacks of a channel. ``on_gap``: messages may have been lost before this moment."""

    on_message: Callable[[bytes], None]
    on_gap: Callable[[], None]


class Store:
    """One client of Redis for the whole process. Run ``watch`` as a task, and ``close`` it."""

    def __init__(self, url: str, name: str, counters: FleetCounters) -> None:
        """``name`` is the fleet's. Nothing connects yet."""
        from redis.exceptions import ConnectionError as NoConnection  # noqa: PLC0415 - see ``client``
        from redis.exceptions import RedisError  # noqa: PLC0415
        from redis.exceptions import TimeoutError as NoAnswer  # noqa: PLC0415

        self._redis, self._close = client(url)
        self._errors: Final = (RedisError, OSError)
        self._lost: Final = (NoConnection, NoAnswer, OSError)
        self._prefix: Final = f"millpond:{SCHEMA}:{name}:"
        self._counters = counters
        self._turns = asyncio.Semaphore(CONNECTIONS - _FOR_WATCH)
        self._subscriptions: dict[str, Subscription] = {}
        self._offset = 0.0
        self._offset_until = float("-inf")
        self.is_unreachable = False
        """Commands fail at once."""

    def __repr__(self) -> str:
        return f"<Store {self._prefix} {'away' if self.is_unreachable else 'there'}>"

    def key(self, *parts: str) -> str:
        """Return the key or channel of this fleet with these parts."""
        return self._prefix + ":".join(parts)

    async def run(self, command: str, *arguments: Argument) -> Any:
        """Return the answer to one command, as redis-py does. Raises ``FleetUnavailable``."""
        async with self._turn(command.lower()):
            return await self._redis.execute_command(command, *arguments)  # type: ignore[no-untyped-call]

    async def run_all(self, *commands: Sequence[Argument]) -> list[Any]:
        """Return the answers to several commands in one round trip. Raises ``FleetUnavailable``.

        Other commands may run between them; the answer to a command that fails is its exception.
        """
        names = [str(command[0]).lower() for command in commands]
        async with self._turn(*names), self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error=False)

    def script(self, name: str, source: str) -> Script:
        """Return a Lua script as a function. Metrics count it as the command ``name``."""
        registered = self._redis.register_script(source)

        async def run(keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
            async with self._turn(name):
                return await registered(keys=list(keys), args=list(arguments))

        return run

    def subscribe(self, channel: str, subscription: Subscription) -> None:
        """Follow a channel. Call it before ``watch``."""
        self._subscriptions[self.key(channel)] = subscription

    async def publish(self, channel: str, message: bytes) -> None:
        """Send a message to all subscribers, this replica included. Raises ``FleetUnavailable``."""
        await self.run("PUBLISH", self.key(channel), message)

    def now(self) -> float:
        """Return the time of Redis in Unix seconds, which all replicas share.

        It is measured at intervals; before the first measurement, it is this machine's time.
        """
        if self._offset_until == float("-inf"):
            return time.time()
        return time.monotonic() + self._offset

    async def watch(self) -> None:
        """Follow the channels, and detect when Redis is back, until cancelled."""
        while True:
            try:
                await self._follow()
            except self._errors as error:
                _end_if_cancelled(0)
                self._mark_unreachable(error)
            await asyncio.sleep(WATCH_SECONDS)

    async def close(self) -> None:
        """Close all connections."""
        await self._close()

    @asynccontextmanager
    async def _turn(self, *commands: str) -> AsyncIterator[None]:
        """Count commands, when there is a connection for them. Raises as ``_counted``.

        Waiting in redis-py's own pool has a time limit, and on Python 3.11 hundreds of waiters may
        block each other permanently.
        """
        async with self._turns:
            with self._counted(*commands):
                yield

    @contextmanager
    def _counted(self, *commands: str) -> Iterator[None]:
        """Count commands and their time. Raises ``FleetUnavailable`` for what the library raises.

        An error answer is a failure too, but proves that Redis is reachable.
        """
        if self.is_unreachable:
            self._counters.redis_skipped += len(commands)
            raise FleetUnavailable("Redis is away")
        for command in commands:
            self._counters.redis_commands[command] += 1
        cancellations = _cancellations()
        started = time.monotonic()
        try:
            yield
        except self._errors as error:
            self._counters.redis_failures += 1
            if not isinstance(error, self._lost):
                log.error("Redis refuses a command", commands=commands, reason=str(error))
            elif time.monotonic() - started < STOPPED_SECONDS:
                self._mark_unreachable(error)
            raise FleetUnavailable(type(error).__name__) from error
        finally:
            self._counters.redis_seconds += time.monotonic() - started
            _end_if_cancelled(cancellations)

    def _mark_unreachable(self, error: Exception) -> None:
        """Log the class of an error, because a message may quote the URL."""
        if not self.is_unreachable:
            self.is_unreachable = True
            log.warning(
                "Redis is unreachable, this replica works alone", reason=type(error).__name__
            )

    async def _follow(self) -> None:
        """Pass messages to their subscriptions until the connection is lost. Raises its error."""
        await self._read_clock()
        async with self._subscribed() as pubsub:
            self._mark_reachable()
            heard = time.monotonic()
            while (now := time.monotonic()) - heard < SILENCE_SECONDS:
                message = await pubsub.get_message(timeout=WATCH_SECONDS)
                _end_if_cancelled(0)
                if time.monotonic() - now > STOPPED_SECONDS:  # messages have waited meanwhile
                    heard = time.monotonic()
                if message is not None:
                    heard = time.monotonic()
                    self._deliver(message)
                else:
                    await pubsub.ping()
                if self.is_unreachable or time.monotonic() > self._offset_until:
                    await self._read_clock()
                    self._mark_reachable()
        raise TimeoutError("no answer to pings")

    @asynccontextmanager
    async def _subscribed(self) -> AsyncIterator["PubSub"]:
        """Open a connection that follows the channels. Raises the library's errors."""
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(self._prefix, *self._subscriptions)
            yield pubsub

    def _deliver(self, message: dict[str, Any]) -> None:
        channel = message["channel"]
        subscription = None if channel is None else self._subscriptions.get(channel.decode())
        if subscription is None:
            return
        match message["type"]:
            case "subscribe":  # what was sent before is lost, all after it arrives
                subscription.on_gap()
            case "message":
                subscription.on_message(message["data"])

    async def _read_clock(self) -> None:
        """Read the clock of Redis. Raises the library's errors."""
        before = time.monotonic()
        seconds, micros = await self._redis.time()
        after = time.monotonic()
        self._offset = seconds + micros / 1e6 - (before + after) / 2
        self._offset_until = after + CLOCK_SECONDS

    def _mark_reachable(self) -> None:
        if self.is_unreachable:
            self.is_unreachable = False
            log.info("Redis is back")


def _cancellations() -> int:
    """Return how often this task was cancelled."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _end_if_cancelled(before: int) -> None:
    """Raise ``CancelledError`` if this task was cancelled more often than ``before``.

    redis-py may lose a cancellation, or replace it by an error of its own: the task would go on.
    """
    if _cancellations() > before:
        raise asyncio.CancelledError
