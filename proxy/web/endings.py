"""What happens at the end of every request under ``/v2/`` besides counting and logging it."""

from collections.abc import Callable, Mapping

from proxy.core.names import Kind
from proxy.runtime.metrics import Outcome
from proxy.upstream.registry import Upstream
from proxy.web.exchange import Exchange

_INSTEAD = {
    Kind.MANIFEST: "the last good copy",
    Kind.TAGS: "the last list of tags",
    Kind.REFERRERS: "the last list of referrers",
}


class Endings:
    """Called with every exchange at its end."""

    def __init__(
        self, learn: Callable[[Exchange], None], upstreams: Mapping[str, Upstream]
    ) -> None:
        """``learn`` is called with each exchange; failures go to the logs of ``upstreams``."""
        self._learn = learn
        self._upstreams = upstreams

    def __call__(self, exchange: Exchange) -> None:
        """Report a failure of upstream, and let the exchange be learnt."""
        failure, target = exchange.failure, exchange.target
        upstream = None if target is None else self._upstreams.get(target.upstream)
        if failure is not None and upstream is not None:  # a reload may have removed it
            upstream.failures.report(failure, _served(exchange))
        self._learn(exchange)


def _served(exchange: Exchange) -> str:
    """Return what the client got instead of upstream's answer."""
    if exchange.outcome is Outcome.STALE and exchange.route is not None:
        return _INSTEAD.get(exchange.route.kind, "a held copy")
    if exchange.first_byte is not None:
        return "a body that breaks off"
    return f"an error: {exchange.status} {exchange.code}"
