"""Counters over time, and the images with the most pulls."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from proxy.core.records import Clock
from proxy.services.popularity import Popularity
from proxy.services.series import MAX_POINTS, Series
from proxy.web.admin.api.routes import AnyRoute, Caller, Model, Params, Route

DEFAULT_SECONDS = 3600.0


class SeriesParams(Params):
    """The time span, and the maximum number of points."""

    since: Annotated[
        float | None, Field(ge=0, le=1e12, description="Unix time; without it, an hour ago.")
    ] = None
    points: Annotated[int, Field(ge=1, le=MAX_POINTS)] = 120


class Point(Model):
    """The counts of ``step`` seconds from ``time`` on; ``cache_bytes`` is at their end.

    ``hits`` are requests that needed no body from a registry.
    """

    time: int
    requests: int
    hits: int
    client_bytes: int
    upstream_bytes: int
    cache_bytes: int
    errors: int
    pulls_spent: int


class TimeSeries(Model):
    """Points in order. There are none for times at which the proxy did not run."""

    start: int
    step: int
    points: list[Point]


class TopParams(Params):
    """The order and the number of images."""

    by: Literal["pulls", "bytes"] = "pulls"
    limit: Annotated[int, Field(ge=1, le=1000)] = 20


class PopularImage(Model):
    """An image with its pulls and bytes; ``last_pull`` is null if unknown."""

    name: str
    pulls: int
    bytes: int
    last_pull: float | None


class Top(Model):
    """The images with the most pulls or bytes."""

    images: list[PopularImage]


@dataclass(frozen=True, slots=True)
class History:
    """The routes of counters over time and of popular images."""

    series: Series
    popularity: Popularity
    clock: Clock

    @property
    def routes(self) -> list[AnyRoute]:
        """The routes of this group."""
        text = "Show counters over time."
        return [
            Route("GET", "series", SeriesParams, TimeSeries, self._series, text, is_public=True),
            Route("GET", "top", TopParams, Top, self._top, "List the most popular images."),
        ]

    async def _series(self, params: SeriesParams, _: Caller) -> Model:
        since = self.clock() - DEFAULT_SECONDS if params.since is None else params.since
        await self.series.load()
        self.series.sample()
        found = self.series.points(since, params.points)
        points = [Point(time=at, **sample._asdict()) for at, sample in found.samples]
        return TimeSeries(start=found.start, step=found.step, points=points)

    async def _top(self, params: TopParams, _: Caller) -> Model:
        await self.popularity.fold()
        found = self.popularity.top(params.by, params.limit)
        rows = [
            PopularImage(
                name=one.name, pulls=one.pulls, bytes=one.bytes, last_pull=one.last_pull or None
            )
            for one in found
        ]
        return Top(images=rows)
