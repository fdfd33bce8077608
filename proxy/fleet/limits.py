"""Limits of requests to a registry, shared by all replicas: rate limit, cool-down, circuit.

A change is published at once, or shortly after, together with the next changes. A replica that
starts, or may have missed changes, reads the last ones.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from proxy.core.errors import FleetUnavailable
from proxy.core.tolerant_json import read_object
from proxy.fleet.store import Store, Subscription

CHANNEL: Final = "limits"
LIFE_SECONDS: Final = 86400
GATHER_SECONDS: Final = 0.1
"""Changes within this time make one message."""

RETRY_SECONDS: Final = 1.0

_PUBLISH_STATE: Final = """
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return redis.call('PUBLISH', ARGV[3], ARGV[1])
"""


class LimitedUpstream(Protocol):
    """One upstream."""

    def shared_state(self) -> dict[str, object]:
        """Return the current limits, as JSON values."""

    def apply_shared_state(self, state: Mapping[str, object], seconds_ago: float) -> None:
        """Adopt the limits of another replica that are newer."""


class SharedLimits:
    """The limits of all upstreams. Run ``follow`` as a task."""

    def __init__(
        self,
        store: Store,
        upstreams: Mapping[str, LimitedUpstream],
        is_shared: Callable[[str], bool],
    ) -> None:
        """``is_shared``: an upstream has one limit for all clients."""
        self._store = store
        self._upstreams = upstreams
        self._is_shared = is_shared
        self._publish_state = store.script("tell_limits", _PUBLISH_STATE)
        self._changed: set[str] = set()
        self._limited: set[str] = set()
        """Upstreams that have ever reported a limit to this replica."""
        self._has_gap = False
        self._woken = asyncio.Event()
        store.subscribe(CHANNEL, Subscription(self._on_message, self._on_gap))

    def change(self, upstream: str) -> None:
        """Record that the limits of an upstream have changed."""
        self._changed.add(upstream)
        self._limited.add(upstream)
        self._woken.set()

    async def follow(self) -> None:
        """Publish changes to the other replicas, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                if self._has_gap:
                    await self._read()
                while self._changed:
                    await self._publish(self._changed.pop())
            except FleetUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
                self._on_gap()
            await asyncio.sleep(GATHER_SECONDS)

    async def _publish(self, name: str) -> None:
        upstream = self._upstreams.get(name)
        if upstream is None or not self._is_shared(name):
            return
        state = {"upstream": name, "at": self._store.now(), **upstream.shared_state()}
        key, channel = self._store.key("limits", name), self._store.key(CHANNEL)
        await self._publish_state([key], [json.dumps(state), LIFE_SECONDS, channel])

    async def _read(self) -> None:
        """Read published limits, and publish those known here. Raises ``FleetUnavailable``."""
        names = [name for name in self._upstreams if self._is_shared(name)]
        keys = [self._store.key("limits", name) for name in names]
        for state in await self._store.run("MGET", *keys) if keys else ():
            if isinstance(state, bytes):
                self._on_message(state)
        self._has_gap = False
        self._changed.update(self._limited)

    def _on_gap(self) -> None:
        self._has_gap = True
        self._woken.set()

    def _on_message(self, data: bytes) -> None:
        state = read_object(data)
        name, at = state.get("upstream"), state.get("at")
        upstream = self._upstreams.get(name) if isinstance(name, str) else None
        if upstream is None or not isinstance(at, int | float) or not self._is_shared(str(name)):
            return
        upstream.apply_shared_state(state, max(0.0, self._store.now() - at))
