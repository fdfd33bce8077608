"""Reads the bodies of webhooks: a few at a time, with limits of time and size."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aiohttp.web import BaseRequest

from proxy.access.principals import network_of
from proxy.core.errors import Overloaded, RequestInvalid
from proxy.web.admin.documents import read_body

MAX_BODY: Final = 1024 * 1024
READING: Final = 16
"""Maximum number of bodies that are read, and in memory, at the same time."""

PER_SENDER: Final = 4
"""Maximum number of bodies from one address or IPv6 /64 without a proven secret."""

READ_SECONDS: Final = 10.0


class BodyReader:
    """Reads at most ``READING`` bodies at a time, and ``per_sender`` of them of one address.

    A signature covers the body, so any sender can make Millpond read a body, and can send it slowly
    up to the time limit. The limit per address leaves capacity for other senders.
    """

    def __init__(self, per_sender: int) -> None:
        self._per_sender = per_sender
        self._senders: Counter[str] = Counter()

    async def read(self, request: BaseRequest) -> bytes:
        """Return the body. Raises ``RequestInvalid``, or ``Overloaded`` with too many at a time."""
        if (request.content_length or 0) > MAX_BODY:
            raise RequestInvalid(f"at most {MAX_BODY} bytes")
        try:
            with self._place(network_of(request.remote)):
                async with asyncio.timeout(READ_SECONDS):
                    return await read_body(request, MAX_BODY)
        except TimeoutError:
            raise RequestInvalid("the body did not arrive in time") from None

    @contextmanager
    def _place(self, sender: str) -> Iterator[None]:
        if self._senders.total() >= READING or self._senders[sender] >= self._per_sender:
            raise Overloaded("too many webhooks at a time; retry")
        self._senders[sender] += 1
        try:
            yield
        finally:
            self._senders[sender] -= 1
            if not self._senders[sender]:
                del self._senders[sender]
