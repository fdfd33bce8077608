"""Routes of the Admin API: path, parameters, answer, audience and handler."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from aiohttp.web import Request, StreamResponse
from pydantic import BaseModel, ConfigDict

from proxy.access.principals import Principal

PREFIX: Final = "/-/api/v1/"


class Model(BaseModel):
    """A document of the API, or a part of one."""

    model_config = ConfigDict(frozen=True)


class Params(BaseModel):
    """The parameters of a route: of its path and query, or of its JSON body for POST and PUT."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NoParams(Params):
    """A route without parameters."""


P = TypeVar("P", bound=Params)


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request; ``principal`` None: a client that may not administer."""

    request: Request
    principal: Principal | None

    @property
    def may_administer(self) -> bool:
        """The client is an operator."""
        return self.principal is not None


Handler = Callable[[P, Caller], Awaitable[Model | StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route(Generic[P]):
    """One method of one path, relative to ``PREFIX``, as ``jobs/{id}``.

    ``answer`` None: there is only a stream. ``events`` are the data of a stream's events. ``dry``
    is the answer to a dry run, with status 200.
    """

    method: str
    path: str
    params: type[P]
    answer: type[Model] | None
    handle: Handler[P]
    summary: str
    is_public: bool = False
    status: int = 200
    events: type[Model] | None = None
    dry: type[Model] | None = None

    @property
    def is_change(self) -> bool:
        """The route changes something."""
        return self.method != "GET"


AnyRoute = Route[Any]
