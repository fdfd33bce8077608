"""The paths between replicas: clients cannot use them."""

import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.core.names import Digest, Repo, Target
from proxy.fleet.protocol import CONTENT_HEADER, ContentRequest
from proxy.fleet.signatures import HEADER, WINDOW, Signer
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.fleet.fleets import SECRET
from tests.fleet.together import StartReplica, fleet, starting
from tests.parts import redis as redises
from tests.parts.process import free_port
from tests.parts.redis import Redis
from tests.running import Proxy, Start

IMAGE = content.image("between", layers=(100_000,))
LAYER = Digest(IMAGE.layers[0])
TARGET = Target("docker.io", Repo("library/app"))
QUESTION = ContentRequest("blobs", TARGET, LAYER)


@pytest.fixture
def redis() -> Iterator[Redis]:
    with redises.running() as server:
        yield server


@pytest.fixture
async def replica(
    upstream: FakeUpstream, redis: Redis, clock: Clock, tmp_path: Path
) -> AsyncIterator[StartReplica]:
    upstream.add("library/app", IMAGE)
    async with starting(upstream, redis, clock, tmp_path) as start:
        yield start


@pytest.fixture
async def one(replica: StartReplica) -> Proxy:
    proxy = await replica()
    await proxy.get(f"/v2/library/app/blobs/{LAYER}")
    await proxy.get(f"/v2/library/app/manifests/{IMAGE.digest}")
    await proxy.settled()
    return proxy


def signed(
    proxy: Proxy, method: str = "GET", path: str = QUESTION.path, **other: Any
) -> dict[str, str]:
    """Return the header of a request, with something else than the right value."""
    own = fleet(proxy)
    secret = other.get("secret", SECRET).encode()
    signer = Signer(secret, "http://me", lambda: own.store.now() + other.get("late", 0))
    return {HEADER: signer.sign(method, other.get("to", own.address), path)}


async def test_a_replica_gets_a_blob_and_learns_what_it_may_do_with_it(one: Proxy) -> None:
    headers = signed(one)
    answer = await one.get(QUESTION.path, **headers)
    assert answer.body == IMAGE.blobs[LAYER]
    said = answer.headers[CONTENT_HEADER]
    assert said == "size=100000;public=1;confirmed=1"
    signer = Signer(SECRET.encode(), "http://me", lambda: 0)
    assert signer.verify_response(headers[HEADER], answer.headers[HEADER], 200, said)


@pytest.mark.parametrize("offset", [1, 99_999, 100_000])
async def test_a_replica_gets_the_rest(one: Proxy, offset: int) -> None:
    path = QUESTION._replace(offset=offset).path
    answer = await one.get(path, **signed(one, path=path))
    assert answer.body == IMAGE.blobs[LAYER][offset:]


async def test_what_another_repository_holds_is_not_confirmed(one: Proxy) -> None:
    path = QUESTION._replace(target=Target("docker.io", Repo("org/other"))).path
    answer = await one.head(path, **signed(one, "HEAD", path))
    assert answer.headers[CONTENT_HEADER].endswith("confirmed=0")
    path = ContentRequest("manifests", Target("docker.io", Repo("x")), Digest(IMAGE.digest)).path
    assert (await one.get(path, **signed(one, path=path))).status == 404


async def test_private_content_is_said_to_be_private(replica: StartReplica) -> None:
    proxy = await replica(hub={"username": "me", "password": "hunter2"})
    await proxy.get(f"/v2/library/app/blobs/{LAYER}")
    await proxy.settled()
    answer = await proxy.get(QUESTION.path, **signed(proxy))
    assert answer.headers[CONTENT_HEADER] == "size=100000;public=0;confirmed=1"


async def refused(proxy: Proxy, headers: dict[str, str], method: str = "GET") -> None:
    """Check that a request is answered as one for a page that does not exist."""
    answer = await proxy.ask(method, QUESTION.path, **headers)
    nothing = await proxy.ask(method, "/-/nothing")
    assert (answer.status, answer.body) == (nothing.status, nothing.body)
    assert HEADER not in answer.headers
    assert CONTENT_HEADER not in answer.headers


@pytest.mark.parametrize(
    "other",
    [
        {"secret": "another secret, just as long"},
        {"to": "http://10.9.9.9:5000"},
        {"late": WINDOW + 60},
        {"late": -WINDOW - 60},
        {"method": "HEAD"},
        {"path": QUESTION._replace(offset=1).path},
    ],
    ids=str,
)
async def test_a_wrong_proof_is_refused(one: Proxy, other: dict[str, Any]) -> None:
    await refused(one, signed(one, **other))


@pytest.mark.parametrize("headers", [{}, {HEADER: ""}, {HEADER: "1 2 3"}, {HEADER: "x" * 5000}])
async def test_clients_cannot_use_it(one: Proxy, headers: dict[str, str]) -> None:
    await refused(one, headers)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_nothing_can_be_changed(one: Proxy, method: str) -> None:
    await refused(one, signed(one, method), method)


async def test_a_proof_works_once(one: Proxy) -> None:
    headers = signed(one)
    assert (await one.get(QUESTION.path, **headers)).status == 200
    await refused(one, headers)


async def test_the_secret_and_proofs_are_not_logged(one: Proxy) -> None:
    headers = signed(one)
    await one.get(QUESTION.path, **headers)
    log = one.log.getvalue()
    assert SECRET not in log
    assert headers[HEADER].split(" ")[2] not in log


async def test_without_a_secret_even_a_right_proof_is_refused(replica: StartReplica) -> None:
    proxy = await replica(fleet={"secret_file": None})
    await refused(proxy, signed(proxy))


async def test_a_short_secret_is_refused_at_the_start(
    replica: StartReplica, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    short.write_text("hunter2")
    with pytest.raises(Exception, match="less than 16 bytes") as refusal:
        await replica(fleet={"secret_file": str(short)})
    assert "hunter2" not in str(refusal.value)


async def test_a_replica_starts_and_serves_without_redis(start: Start) -> None:
    proxy = await start(fleet={"redis": f"redis://:hunter2@127.0.0.1:{free_port()}"})
    assert (await proxy.get("/v2/")).status == 200
    assert isinstance(proxy.log, io.StringIO)
    assert "hunter2" not in proxy.log.getvalue()
