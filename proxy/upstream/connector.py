"""Connections that limit an upstream to one response to each request.

aiohttp 3.14 skips any number of interim responses (RFC 9110 §15.2), and queues each response that
it parses, including unrequested ones. A registry could use both to fill the memory and stall the
loop, so the protocol below counts them. It overrides internals of aiohttp:
``tests/upstream/test_connector.py`` verifies that the installed version still has them.
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
"""Interim responses before the final one. Registries send none; proxies send a few."""

_SLICE: Final = 16 * 1024
"""Bytes of headers parsed at a time: about a thousand of the shortest responses."""


class TooManyInterimError(ClientConnectionError):
    """Upstream sent more than ``MAX_INTERIM`` interim responses, or switched protocols."""


class _OneResponse(ResponseHandler):
    """Accepts one final response to each request and ends the connection at anything more."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._interim = 0
        self._has_response = False

    def set_response_params(self, **parameters: Any) -> None:
        """Expect the next response; aiohttp calls this before each request."""
        self._interim = 0
        self._has_response = False
        super().set_response_params(**parameters)

    def data_received(self, data: bytes) -> None:
        """Parse ``data``: headers in slices, a body in one piece.

        There are three cases:

        - The response has not begun: ``data`` may be a flood of interim responses, and only a
          count between slices ends it early.
        - Inside a body there is nothing to count, and slices would cost throughput.
        - After the response no data may arrive: it would be treated as the next response.
        """
        if self._parser is None or self._upgraded:
            super().data_received(data)
            return
        begin = 0
        while begin < len(data) and not self._is_in_body:
            if self._has_response:
                self._end()
                return
            super().data_received(data[begin : begin + _SLICE])
            begin += _SLICE
            if self._should_stop:
                return
        if begin < len(data) or not data:
            super().data_received(data[begin:] if begin else data)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Queue a final response; count an interim one.

        101 ends the connection at once: no request of ours asks to switch protocols.
        """
        code = data[0].code
        if 100 <= code < 200:
            self._interim += 1
            if self._interim == MAX_INTERIM + 1 or code == 101:
                self.set_exception(TooManyInterimError("interim responses without a final one"))
                self._end()
        elif self._has_response:
            self._end()
        else:
            self._has_response = True
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
    """Opens such connections without a limit on their number."""

    def __init__(self, context: SSLContext, resolver: AbstractResolver) -> None:
        super().__init__(limit=0, ssl=context, resolver=resolver)
        make: Callable[..., ResponseHandler] = _OneResponse
        self._factory = partial(make, loop=self._loop)
