"""Why the proxy is not ready: what ``/-/readyz`` answers. Any module may report a reason."""

from collections.abc import Mapping

import structlog

log = structlog.get_logger(__name__)


class Readiness:
    """The reasons for which the proxy is not ready, each under the name of what reported it."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    @property
    def reasons(self) -> Mapping[str, str]:
        """The current reasons by name; empty when the proxy is ready."""
        return self._reasons

    def report(self, name: str, reason: str) -> None:
        """Set the reason of ``name``. It stays until ``clear``."""
        if self._reasons.get(name) != reason:
            log.warning("not ready", because=name, reason=reason)
        self._reasons[name] = reason

    def clear(self, name: str) -> None:
        """Remove the reason of ``name``, if there is one."""
        if self._reasons.pop(name, None) is not None:
            log.info("ready again", because=name, others=sorted(self._reasons))
