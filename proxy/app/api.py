"""Wires the Admin API: its groups of routes, and what they work on."""

from dataclasses import dataclass

from proxy.app.engine import Environment
from proxy.settings import Settings
from proxy.web.admin.actions import Services
from proxy.web.admin.api.application import Api
from proxy.web.admin.api.guard import Guard
from proxy.web.admin.api.keeping import Keeping
from proxy.web.admin.api.openapi import Description
from proxy.web.admin.api.process import Process
from proxy.web.admin.api.state import State
from proxy.web.admin.statistics import Statistics


@dataclass(frozen=True, slots=True)
class Operating:
    """The Admin API, and those of its parts that have a life of their own."""

    api: Api
    process: Process


def built(
    statistics: Statistics,
    services: Services,
    guard: Guard,
    settings: Settings,
    environment: Environment,
) -> Operating:
    """Return the Admin API."""
    process = Process(settings, environment.load)
    groups = (State(statistics, guard.access), Keeping(services), process)
    routes = [route for group in groups for route in group.routes]
    return Operating(Api(Description(routes).routes, guard), process)
