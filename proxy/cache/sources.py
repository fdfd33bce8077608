"""Where content comes from: one upstream and the rule that holds for it."""

from typing import NamedTuple

from proxy.policy import Rule
from proxy.upstream.registry import Upstream


class Source(NamedTuple):
    """One upstream, and how old its answers may be."""

    upstream: Upstream
    rule: Rule
