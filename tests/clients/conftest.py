"""A real upstream and real clients for the whole run, and a fresh Millpond between them per test.

Daemons learn their mirror when they start, so every Millpond listens on the same port.
"""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.parts import clients as every_client
from tests.parts import millpond, registry
from tests.parts.client import Client
from tests.parts.clients import RUNNING, Clients
from tests.parts.curl import Curl
from tests.parts.docker import Docker
from tests.parts.millpond import Millpond
from tests.parts.podman import Podman
from tests.parts.process import free_port
from tests.parts.registry import Registry
from tests.parts.shelf import SECRET, Shelf, push_all
from tests.parts.skopeo import Skopeo
from tests.parts.token_server import Access

USER = {"username": "alice", "password": "wonderland"}
BOT = {"acme-bot": "bot-secret", "AWS": "123456789012-auth-token"}  # as docs/access.md, and moto
COMPANY = "acme/app"


@pytest.fixture(scope="session")
def upstream() -> Iterator[Registry]:
    users = {"pusher": "secret", USER["username"]: USER["password"], **BOT}
    with registry.running(Access(users, private=frozenset({SECRET, COMPANY}))) as running:
        yield running


@pytest.fixture(scope="session")
def shelf(upstream: Registry) -> Shelf:
    return push_all(upstream)


@pytest.fixture(scope="session")
def port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def clients(port: int) -> Iterator[Clients]:
    with every_client.running(f"127.0.0.1:{port}") as clients:
        yield clients


@pytest.fixture(params=RUNNING)
def client(clients: Clients, request: pytest.FixtureRequest) -> Client:
    return clients[request.param]


@pytest.fixture
def docker(clients: Clients) -> Docker:
    client = clients["docker"]
    assert isinstance(client, Docker)
    return client


@pytest.fixture
def skopeo(clients: Clients) -> Skopeo:
    client = clients["skopeo"]
    assert isinstance(client, Skopeo)
    return client


@pytest.fixture
def podman(clients: Clients) -> Podman:
    client = clients["podman"]
    assert isinstance(client, Podman)
    return client


@pytest.fixture
def curl(clients: Clients) -> Curl:
    client = clients["curl"]
    assert isinstance(client, Curl)
    return client


@pytest.fixture
def settings() -> dict[str, Any]:
    """Settings over the usual ones; a test that needs some parametrizes this."""
    return {}


@pytest.fixture
def proxy(
    upstream: Registry, shelf: Shelf, port: int, settings: dict[str, Any]
) -> Iterator[Millpond]:
    """An empty cache; `shelf` is asked for so that pushing never falls into a test's log."""
    with millpond.running(upstream.url, port, settings) as running:
        yield running
        sys.stdout.write(running.log()[-20_000:])  # pytest shows it when the test failed
