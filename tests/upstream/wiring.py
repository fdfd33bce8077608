"""One upstream's parts, connected to a fake on a real socket, without the rest of the proxy."""

import time
from typing import Any

from yarl import URL

from proxy.runtime.metrics import UpstreamCounters
from proxy.settings import Patience, Timeouts, UpstreamTLS
from proxy.upstream.auth import Authorizer
from proxy.upstream.circuit_breaker import CircuitBreaker
from proxy.upstream.client import Client
from proxy.upstream.credentials import Credential, StaticCredentials
from proxy.upstream.guard import SYSTEM_NETWORK, Guard
from proxy.upstream.transport import Transport, client_context


def transport(url: str, **timeouts: str) -> Transport:
    guard = Guard(URL(url), (), private=False, network=SYSTEM_NETWORK)
    context = client_context("lab", UpstreamTLS())
    return Transport("lab", guard, context, Timeouts.model_validate(timeouts), UpstreamCounters())


def client(over: Transport, answer: float = 10.0, **patience: Any) -> Client:
    authorizer = Authorizer(over, StaticCredentials(Credential("alice", "wonderland")), ())
    breaker = CircuitBreaker("lab", Patience.model_validate(patience), time.monotonic)
    return Client(over, authorizer, breaker, answer)
