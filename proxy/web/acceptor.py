"""Accepts connections, up to a limit that the file descriptors allow.

uvloop's own server closes connections that it cannot accept without a response, and if ``accept``
fails unexpectedly it closes the listening socket without a message. So this module accepts them.

There are three cases:

- Below the limit a connection is served.
- At the limit connections wait in the kernel's queue, while idle connections are closed, the
  longest idle first.
- If the limit is still reached after ``PATIENCE``, waiting connections get 503, a few at a time, so
  that clients retry later or use another mirror.

An ``accept`` that fails for lack of descriptors or memory counts as the second case.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import structlog

from proxy.runtime.singleflight import SingleFlight
from proxy.web.clients import Clients
from proxy.web.closing import Refusal

PATIENCE: Final = 1.0
"""Seconds that a connection waits before it is refused."""

REFUSALS: Final = 16
"""Maximum number of connections that are being refused at a time."""

_EVERY: Final = 0.05
_BATCH: Final = 64
_HANDSHAKE_SECONDS: Final = 15.0
_HASTY_HANDSHAKE_SECONDS: Final = 3.0
_WARN_EVERY: Final = 60.0
_SHORT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Factory = Callable[[], asyncio.Protocol]

log = structlog.get_logger(__name__)


class Acceptor:
    """Serves one listening socket, up to ``limit`` connections at a time."""

    def __init__(
        self,
        listener: socket.socket,
        factory: Factory,
        clients: Clients,
        *,
        limit: int,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare; ``factory`` makes the protocol of a connection, ``context`` is for HTTPS."""
        self._listener = listener
        self._factory = factory
        self._clients = clients
        self._limit = limit
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._opening: SingleFlight[Any] = SingleFlight("connection")  # mostly TLS handshakes
        self._refusing = 0
        self._short_since: float | None = None
        self._warned_at = -_WARN_EVERY
        self._tick: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Accept connections until ``close``."""
        self._listener.setblocking(False)  # noqa: FBT003 - the standard library's own
        self._loop.add_reader(self._listener, self._accept_some)

    async def close(self) -> None:
        """Stop listening; accepted connections stay with their server."""
        if self._tick is not None:
            self._tick.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        await self._opening.close()

    @property
    def _room(self) -> int:
        return self._limit - len(self._clients) - len(self._opening)

    def _accept_some(self) -> None:
        for _ in range(_BATCH):
            if self._room <= 0:
                self._wait("too many clients")
                return
            accepted = self._accepted()
            if accepted is None:
                return
            self._opening.start(accepted, partial(self._serve, accepted, self._factory))

    def _accepted(self) -> socket.socket | None:
        """Return the next connection, None if none waits or no descriptor is free."""
        try:
            accepted, _ = self._listener.accept()
        except BlockingIOError:
            self._short_since = None
            return None
        except OSError as error:  # other errors concern a connection that has already ended
            if error.errno in _SHORT:
                self._wait(error.strerror or str(error))
            return None
        accepted.setblocking(False)  # noqa: FBT003 - the standard library's own
        return accepted

    async def _serve(self, accepted: socket.socket, factory: Factory) -> bool:
        """Start to serve a connection; return False if its TLS handshake failed."""
        seconds = _HANDSHAKE_SECONDS if self._short_since is None else _HASTY_HANDSHAKE_SECONDS
        try:
            await self._loop.connect_accepted_socket(
                factory,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=None if self._context is None else seconds,
            )
        except OSError as error:  # includes TLS errors and timeouts
            log.debug("connection failed", error=str(error))
            accepted.close()
            return False
        return True

    async def _refuse(self, accepted: socket.socket) -> None:
        if not await self._serve(accepted, self._refusal):
            self._refusing -= 1  # its protocol never got the connection

    def _wait(self, reason: str) -> None:
        """Pause accepting until the number of connections is below the limit."""
        now = self._loop.time()
        if self._short_since is None:
            self._short_since = now
        if now - self._warned_at >= _WARN_EVERY:
            self._warned_at = now
            log.warning("connections wait for free descriptors", reason=reason, limit=self._limit)
        self._loop.remove_reader(self._listener)
        if self._tick is None:
            self._tick = self._loop.call_later(_EVERY, self._look_again)

    def _look_again(self) -> None:
        self._tick = None
        self._clients.close_idle(max(1, self._limit // 2))
        if self._room > 0:
            self._loop.add_reader(self._listener, self._accept_some)
            return
        if self._short_since is not None and self._loop.time() - self._short_since >= PATIENCE:
            self._refuse_some()
        self._tick = self._tick or self._loop.call_later(_EVERY, self._look_again)

    def _refuse_some(self) -> None:
        while self._refusing < REFUSALS:
            accepted = self._accepted()
            if accepted is None:
                return
            self._refusing += 1
            self._opening.start(accepted, partial(self._refuse, accepted))

    def _refusal(self) -> asyncio.Protocol:
        return Refusal(self._refused, self._refusal_ended)

    def _refused(self) -> None:
        self._clients.refused()
        log.debug("connection refused", limit=self._limit)

    def _refusal_ended(self) -> None:
        self._refusing -= 1
