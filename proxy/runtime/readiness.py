"""The reasons why the proxy is not ready, for ``/-/readyz``."""

from collections.abc import Mapping

import structlog

log = structlog.get_logger(__name__)


class Readiness:
    """Reasons by the name of the part that reported each."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    @property
    def reasons(self) -> Mapping[str, str]:
        """Current reasons by name; empty if the proxy is ready."""
        return self._reasons

    def report(self, name: str, reason: str) -> None:
        """Set the reason of ``name``, until ``clear``."""
        if self._reasons.get(name) != reason:
            log.warning("not ready", because=name, reason=reason)
        self._reasons[name] = reason

    def clear(self, name: str) -> None:
        """Remove the reason of ``name``."""
        if self._reasons.pop(name, None) is not None:
            log.info("ready again", because=name, others=sorted(self._reasons))
