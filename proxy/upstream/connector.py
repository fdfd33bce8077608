"""Connections that bound what an upstream may send around its answer.

aiohttp 3.14 skips interim responses (RFC 9110 §15.2) without a bound and queues every response
that it parses, also those that nobody asked for. Both let a registry fill memory and stall the
loop, so the protocol below counts them. ``tests/upstream/test_connector.py`` holds it against the
installed aiohttp.
"""

import asyncio
from functools import partial
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, Final

from aiohttp import ClientConnectionError, StreamReader, TCPConnector
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_INTERIM: Final = 32
"""Interim responses before one answer. Registries send none; proxies send a few."""

_SLICE: Final = 16 * 1024
"""Bytes of a header block that are parsed at once: about a thousand of the shortest responses."""


class TooManyInterimError(ClientConnectionError):
    """More than ``MAX_INTERIM`` interim responses came instead of an answer."""


class _OneAnswer(ResponseHandler):
    """Accepts one answer to each request. Whatever exceeds that ends the connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._interim = 0
        self._is_answered = False

    def set_response_params(self, **parameters: Any) -> None:
        """Begin to wait for the next answer; aiohttp calls this before each request."""
        self._interim = 0
        self._is_answered = False
        super().set_response_params(**parameters)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived: header blocks in slices, the rest of a body at once.

        Three cases. Before the answer's headers are complete, the data may be a flood of interim
        responses, and only counting between slices ends it early. Inside a body there is nothing
        to count, and slices would cost throughput. After the answer nothing may come at all.
        """
        if self._parser is None or self._upgraded:
            super().data_received(data)
            return
        begin = 0
        while begin < len(data) and not self._is_in_body:
            if self._is_answered:
                self._end()
                return
            super().data_received(data[begin : begin + _SLICE])
            begin += _SLICE
            if self._should_stop:
                return
        if begin < len(data) or not data:
            super().data_received(data[begin:] if begin else data)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Queue an answer; count interim responses instead, which nobody reads.

        101 ends the connection at once: it changes the protocol, which no request asked for.
        """
        code = data[0].code
        if 100 <= code < 200:
            self._interim += 1
            if self._interim == MAX_INTERIM + 1 or code == 101:
                self.set_exception(TooManyInterimError("interim responses without an answer"))
                self._end()
        elif self._is_answered:
            self._end()
        else:
            self._is_answered = True
            super().feed_data(data, size)

    @property
    def _is_in_body(self) -> bool:
        return self._payload is not None and not self._payload.is_eof()

    @property
    def _should_stop(self) -> bool:
        transport = self.transport
        return self.exception() is not None or transport is None or transport.is_closing()

    def _end(self) -> None:
        self.force_close()
        if self.transport is not None:
            self.transport.abort()


class Connector(TCPConnector):
    """Opens such connections, as many as are asked for."""

    def __init__(self, context: SSLContext, resolver: AbstractResolver) -> None:
        super().__init__(limit=0, ssl=context, resolver=resolver)
        make: Callable[..., ResponseHandler] = _OneAnswer
        self._factory = partial(make, loop=self._loop)
