"""The aiohttp ``Application`` of the Admin API: authorizes and answers requests.

``web.server`` is a low-level server, so the application has no separate server: ``handle`` passes
requests to it. It parses the parameters, calls the handler of the route, and converts every failure
into Millpond's error document.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiohttp.web import (
    Application,
    AppRunner,
    BaseRequest,
    HTTPException,
    HTTPMethodNotAllowed,
    Request,
    RequestKey,
    Response,
    StreamResponse,
)
from pydantic import BaseModel, ValidationError

from proxy.core.errors import (
    Overloaded,
    PathNotFound,
    RegistryError,
    RequestInvalid,
    StorageError,
    Unsupported,
)
from proxy.web.admin.api.guard import Authorize, Guard
from proxy.web.admin.api.routes import PREFIX, AnyRoute, Caller, Params
from proxy.web.admin.documents import JSON, read_body, refusal, unavailable
from proxy.web.pacing import PacedResponse

if TYPE_CHECKING:
    from proxy.access.principals import Principal

MAX_BODY: Final = 256 * 1024
MAX_PROBLEMS: Final = 5
"""Maximum number of wrong parameters in an error."""

_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

_AUTHORIZE: Final[RequestKey[Authorize]] = RequestKey("authorize", Callable)  # type: ignore[arg-type]

log = structlog.get_logger(__name__)


class Api:
    """The application. ``running`` must be entered before requests are handled."""

    def __init__(self, routes: Iterable[AnyRoute], guard: Guard) -> None:
        self.routes: Final = tuple(routes)
        self._guard = guard
        self._application = Application()
        for route in self.routes:
            add = self._application.router.add_route
            answer = partial(self._answer, route)
            add(route.method, PREFIX + route.path, answer)
            if route.method == "GET" and route.events is None:
                add("HEAD", PREFIX + route.path, answer)
        self._handle: Callable[[Request], Awaitable[StreamResponse]] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let the application handle requests while the context is open."""
        runner = AppRunner(self._application)
        await runner.setup()
        assert runner.server is not None
        self._handle = runner.server.request_handler
        try:
            yield
        finally:
            self._handle = None
            await runner.cleanup()

    async def handle(self, request: BaseRequest, authorize: Authorize) -> StreamResponse:
        """Answer a request; ``authorize`` decides if its client may administer.

        Raises ``RegistryError`` for a path or method that does not exist.
        """
        assert isinstance(request, Request)
        if self._handle is None:
            raise Overloaded("starting or stopping; retry")
        request[_AUTHORIZE] = authorize
        try:
            return await self._handle(request)
        except HTTPMethodNotAllowed as error:
            problem = f"{request.method}: this path does not support it"
            raise Unsupported(problem, allowed=sorted(error.allowed_methods)) from None
        except HTTPException:
            raise PathNotFound(f"no such path; {PREFIX}openapi.json lists all") from None

    async def _answer(self, route: AnyRoute, request: Request) -> StreamResponse:
        principal: Principal | None = None
        failure: RegistryError | None = None
        try:
            principal = await self._guard.identify(route, request, request[_AUTHORIZE])
            return await _answered(route, Caller(request, principal))
        except RegistryError as error:
            failure = error
        except StorageError as error:
            failure = unavailable(request, error)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            log.exception("request failed unexpectedly", path=request.path)
            failure = RegistryError("internal error")
        finally:
            self._guard.record(route, request, principal, failure)
        return refusal(failure)


async def _answered(route: AnyRoute, caller: Caller) -> StreamResponse:
    params = await _params(route, caller.request)
    answer = await route.handle(params, caller)
    if isinstance(answer, StreamResponse):
        return answer
    is_dry = route.dry is not None and isinstance(answer, route.dry)
    return document(answer, 200 if is_dry else route.status)


def document(answer: BaseModel, status: int = 200) -> Response:
    """Return a response that is one document."""
    body = answer.model_dump_json().encode()
    return PacedResponse(status=status, body=body, content_type=JSON, headers=_HEADERS)


async def _params(route: AnyRoute, request: Request) -> Params:
    """Return the parameters of a request. Raises ``RequestInvalid``."""
    values: dict[str, Any] = dict(request.query)
    if len(values) < len(request.query):
        raise RequestInvalid("a parameter may be given once")
    if route.method in ("POST", "PUT"):
        if values:
            raise RequestInvalid("parameters belong in the body, a JSON object")
        values = await _body(request)
    values |= request.match_info
    try:
        found: Params = route.params.model_validate(values)
    except ValidationError as error:
        raise RequestInvalid(_problems(error)) from None
    return found


async def _body(request: Request) -> dict[str, Any]:
    """Return the JSON object of a body, {} without one. Raises ``RequestInvalid``."""
    text = await read_body(request, MAX_BODY)
    if not text:
        return {}
    if request.content_type != JSON:
        raise RequestInvalid(f"the body needs the header Content-Type: {JSON}")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestInvalid("the body is not JSON") from None
    if not isinstance(values, dict):
        raise RequestInvalid("the body is not a JSON object")
    return values


def _problems(error: ValidationError) -> str:
    """Return the wrong parameters with the reasons, without their values."""
    found = [
        f"{'.'.join(map(str, one['loc'])) or 'parameters'}: {one['msg']}"
        for one in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    more = f"; and {len(found) - MAX_PROBLEMS} more" if len(found) > MAX_PROBLEMS else ""
    return "; ".join(found[:MAX_PROBLEMS]) + more
