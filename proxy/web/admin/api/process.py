"""The running process: its log level, and a reload of its settings."""

from collections.abc import Awaitable, Callable
from typing import Final, Literal

from proxy.core.errors import ConfigError, Conflict, Overloaded, RequestInvalid
from proxy.runtime.executors import in_thread
from proxy.settings import Settings
from proxy.web.admin.api.routes import AnyRoute, Caller, Model, NoParams, Params, Route

Level = Literal["debug", "info", "warning", "error"]
Apply = Callable[[Settings], Awaitable[Settings]]
Load = Callable[[], Settings]


class LogLevel(Model):
    """The lowest level that is logged, until the settings are reloaded."""

    level: Level


class LogLevelParams(Params):
    """The lowest level to log."""

    level: Level


class Reloaded(Model):
    """The settings are in force, except for those that need a restart."""

    reloaded: bool


class Process:
    """Changes the settings in force.

    ``load`` reads the settings again and raises ``ConfigError``; None: they come from no file.
    """

    def __init__(self, settings: Settings, load: Load | None) -> None:
        self._settings = settings
        self._load = load
        self._apply: Apply | None = None
        self.routes: Final[list[AnyRoute]] = [
            Route("POST", "reload", NoParams, Reloaded, self._reload, "Read the settings again."),
            Route("GET", "log-level", NoParams, LogLevel, self._get_level, "Show the log level."),
            Route(
                "PUT", "log-level", LogLevelParams, LogLevel, self._set_level, "Set the log level."
            ),
        ]

    def begin(self, apply: Apply) -> Apply:
        """Apply changed settings by ``apply`` from now on; return a function for other callers."""

        async def applied(settings: Settings) -> Settings:
            self._settings = await apply(settings)
            return self._settings

        self._apply = applied
        return applied

    async def _reload(self, _: NoParams, __: Caller) -> Model:
        if self._load is None:
            raise Conflict("this process has no configuration file to reload")
        try:
            await self._applied(await in_thread(self._load))
        except ConfigError as error:
            raise RequestInvalid(f"settings not reloaded, nothing has changed: {error}") from None
        return Reloaded(reloaded=True)

    async def _get_level(self, _: NoParams, __: Caller) -> Model:
        return LogLevel.model_validate({"level": self._settings.log.level})

    async def _set_level(self, params: LogLevelParams, _: Caller) -> Model:
        log = self._settings.log.model_copy(update={"level": params.level})
        await self._applied(self._settings.model_copy(update={"log": log}))
        return LogLevel(level=params.level)

    async def _applied(self, settings: Settings) -> None:
        if self._apply is None:
            raise Overloaded("starting; retry")
        await self._apply(settings)
