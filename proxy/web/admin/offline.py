"""Takes upstreams offline, and online again, while the proxy runs."""

from collections.abc import Mapping
from typing import Final

import structlog

from proxy.core.errors import NameUnknown, RequestInvalid
from proxy.upstream.offline import OfflineMode
from proxy.upstream.registry import Upstream
from proxy.web.admin.documents import Document

CONFIGURED: Final = "configured"

log = structlog.get_logger(__name__)


def shown(upstreams: Mapping[str, Upstream]) -> Document:
    """Return for each upstream whether it is offline now, and its mode."""
    return {
        "upstreams": {
            name: {
                "offline": upstream.is_offline,
                "mode": upstream.offline.mode.value,
                "configured": upstream.offline.configured.value,
            }
            for name, upstream in upstreams.items()
        }
    }


def switch(upstreams: Mapping[str, Upstream], name: str | None, value: str) -> None:
    """Set the mode of an upstream, of all without a name, until the process ends.

    ``configured`` returns to the settings. Raises ``NameUnknown``, ``RequestInvalid``.
    """
    values = [*OfflineMode, CONFIGURED]
    if value not in values:
        raise RequestInvalid(f"value is one of {', '.join(values)}")
    if name is not None and name not in upstreams:
        raise NameUnknown(f"{name!r} is not a configured upstream")
    for one in upstreams if name is None else [name]:
        upstreams[one].offline.live = None if value == CONFIGURED else OfflineMode(value)
        log.warning("offline mode changed", upstream=one, mode=value)
