"""Builds the Admin API: its groups of routes, and the services that they use."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from proxy.app.engine import Engine
from proxy.runtime.events import Events
from proxy.runtime.supervisor import Supervisor
from proxy.services.explain import Explainer
from proxy.services.image_search import ImageSearch
from proxy.services.jobs import Jobs
from proxy.services.popularity import Popularity
from proxy.services.series import Series
from proxy.web.admin.actions import Services
from proxy.web.admin.api.application import Api
from proxy.web.admin.api.events import EventFeed
from proxy.web.admin.api.explaining import Explaining
from proxy.web.admin.api.guard import Guard
from proxy.web.admin.api.history import History
from proxy.web.admin.api.images import Images
from proxy.web.admin.api.jobs import JobRoutes
from proxy.web.admin.api.live import Live
from proxy.web.admin.api.openapi import Description
from proxy.web.admin.api.process import Process
from proxy.web.admin.api.protection import ProtectionRoutes
from proxy.web.admin.api.state import State
from proxy.web.admin.api.streams import Streams
from proxy.web.admin.statistics import Statistics


@dataclass(frozen=True, slots=True)
class OperatorApi:
    """The Admin API, and its parts with a separate lifetime."""

    api: Api
    events: Events
    process: Process
    live: Live
    streams: Streams
    jobs: Jobs
    series: Series
    popularity: Popularity
    image_search: ImageSearch

    @asynccontextmanager
    async def running(self, background: Supervisor) -> AsyncIterator[None]:
        """Answer while the context is open; its exit cancels all jobs."""
        background.start("live", self.live.run)
        background.start("samples", self.series.run)
        background.start("pulls by image", self.popularity.run)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.series.close)
            stack.push_async_callback(self.popularity.close)
            stack.push_async_callback(self.jobs.close)
            await stack.enter_async_context(self.api.running())
            yield


def build_api(
    engine: Engine, statistics: Statistics, services: Services, guard: Guard, process: Process
) -> OperatorApi:
    """Return the Admin API."""
    jobs, streams = Jobs(), Streams()
    series = Series(engine.storage.content, engine.metrics)
    popularity = Popularity(engine.storage.content, engine.metrics.tally)
    image_search = ImageSearch(engine.storage.content, popularity.pulls)
    live = Live(statistics, streams)
    explainer = Explainer(
        engine.storage.content,
        engine.cache,
        engine.origins,
        pins=services.pins,
        feeds=services.feeds,
    )
    groups = (
        State(statistics, guard.access),
        live,
        EventFeed(engine.events, streams),
        History(series, popularity, engine.storage.clock),
        ProtectionRoutes(services),
        Images(services, image_search, popularity),
        Explaining(explainer, engine.router, services.guards),
        JobRoutes(services, jobs),
        process,
    )
    routes = [route for group in groups for route in group.routes]
    api = Api(Description(routes).routes, guard)
    return OperatorApi(
        api, engine.events, process, live, streams, jobs, series, popularity, image_search
    )
