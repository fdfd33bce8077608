"""Worker processes: what they answer, what they relay, and that clients do not notice."""

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any
from urllib.request import urlopen

import pytest
from aiohttp import ClientError, ClientResponse, ClientSession, TCPConnector, UnixConnector

from proxy.app.workers import pool
from proxy.app.workers.channel import MAX_FRAME, Channel
from proxy.app.workers.report_receiver import ReportReceiver
from proxy.runtime.events import EventKind
from proxy.settings import Settings
from tests.access.people import basic, write_users
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.parts.millpond import running
from tests.running import Proxy, started, until

IMAGE, OTHER = content.image(1, layers=(2048, 3_000_000)), content.image(2, layers=(2048,))
SMALL, LARGE = IMAGE.layers
CHANGING = ("Date", "X-Request-Id")
MANIFEST = "/v2/library/app/manifests/latest"
REPORTS: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE, tags=["latest"])


Start = Callable[..., Awaitable[Proxy]]


@pytest.fixture
async def start(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[Start]:
    """Start a proxy with two workers, which have no fake clock."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Proxy:
            changes = {"workers": 2, **settings}
            proxy = started(upstream, tmp_path / "cache", time.time, changes)  # type: ignore[arg-type]
            return await stack.enter_async_context(proxy)

        yield start


@pytest.fixture
async def proxy(start: Start) -> Proxy:
    return await start()


async def warm(proxy: Proxy) -> None:
    """Pull the image through every worker, until the main process holds it."""
    for path in (MANIFEST, *(f"/v2/library/app/blobs/{digest}" for digest in IMAGE.blobs)):
        assert (await proxy.get(path)).status == 200
    await proxy.settled()
    await until(lambda: {*IMAGE.blobs} <= proxy.held())


@pytest.fixture(autouse=True)
def reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the reports that arrive from each worker."""
    REPORTS.clear()
    add = ReportReceiver._add

    def counted(self: ReportReceiver, worker: str, report: dict[str, Any]) -> None:
        add(self, worker, report)
        REPORTS[worker] += 1

    monkeypatch.setattr(ReportReceiver, "_add", counted)


async def reported() -> None:
    """Return when the main process knows all that the workers have done so far.

    The next report of a worker may be on its way already; the second one begins after now.
    """
    before = dict(REPORTS)
    await until(lambda: all(REPORTS[name] >= count + 2 for name, count in before.items()))


async def metric(proxy: Proxy, name: str) -> dict[str, float]:
    """The values of a metric by its labels, as of when the workers have reported."""
    await reported()
    text = (await proxy.get("/metrics")).body.decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith(name))
    return {labels.removeprefix(name): float(value) for labels, _, value in lines}


async def by_workers(proxy: Proxy, name: str) -> float:
    return sum((await metric(proxy, f"millpond_worker_{name}_total")).values())


async def test_hits_are_answered_by_workers_and_counted_once(proxy: Proxy) -> None:
    await warm(proxy)
    paths = [MANIFEST, f"/v2/library/app/blobs/{SMALL}", f"/v2/library/app/blobs/{LARGE}"]
    before, stats = await by_workers(proxy, "requests"), proxy.numbers
    for path in paths * 4:
        answer = await proxy.get(path)
        assert answer.status == 200
        assert answer.headers["Cache-Status"].startswith("Millpond; hit")
        assert answer.headers["Server"] == "millpond"
    assert await by_workers(proxy, "requests") - before == 12
    assert proxy.numbers["hits"] - stats["hits"] == 12
    sent = 4 * (len(IMAGE.manifest) + 2048 + 3_000_000)
    assert proxy.numbers["bytes_to_clients"] - stats["bytes_to_clients"] == sent
    lines = [json.loads(line) for line in proxy.log.getvalue().splitlines()]
    logged = [one for one in lines if one["event"] == "request" and one.get("kind")]
    assert len(logged) == 1 + len(IMAGE.blobs) + 12
    assert {one["client"] for one in logged} == {"127.0.0.1"}


async def test_pulls_from_workers_are_events_once_somebody_wants_them(proxy: Proxy) -> None:
    await warm(proxy)
    began, events = time.time(), proxy.app.events
    with events.subscribed([EventKind.PULL]) as subscription:
        async with asyncio.timeout(30), fresh(proxy) as client:
            event = None
            while event is None:  # each worker learns of the subscriber in its turn
                await read(client, MANIFEST, {"User-Agent": "test/1"})
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        event = await subscription.next()
    assert event.subject == "docker.io/library/app:latest"
    assert began < event.time < time.time()
    assert dict(event.data) == {
        "digest": IMAGE.digest,
        "client": "127.0.0.1",
        "outcome": "hit",
        "bytes": len(IMAGE.manifest),
        "user_agent": "test/1",
    }


def fresh(proxy: Proxy) -> ClientSession:
    """A client that opens a connection for each request, so that all workers get some."""
    connector = TCPConnector(force_close=True, limit=16)
    return ClientSession(f"http://{proxy.app.address}", connector=connector, auto_decompress=False)


async def read(
    client: ClientSession, path: str, headers: dict[str, str] | None = None
) -> ClientResponse:
    """Return the answer when its body has been read, so that its connection is closed."""
    async with client.get(path, headers=headers) as answer:
        await answer.read()
    return answer


def of_workers() -> list[int]:
    """The process ids of the workers that this process has started and not lost."""
    return [pid for pid in children(os.getpid()) if is_worker(pid)]


async def test_a_moved_tag_and_lost_content_are_seen_by_every_worker_at_once(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await warm(proxy)
    async with fresh(proxy) as client:

        async def digests() -> set[str]:
            answers = [await read(client, MANIFEST) for _ in range(16)]
            return {answer.headers["Docker-Content-Digest"] for answer in answers}

        assert await digests() == {IMAGE.digest}
        upstream.add("library/app", OTHER, tags=["latest"])
        assert (await proxy.get(MANIFEST, Cache_Control="no-cache")).status == 200
        assert await digests() == {OTHER.digest}
        path = proxy.storage / "blobs" / LARGE.replace(":", "/")
        path.unlink()  # the index still has it
        for _ in range(8):
            async with client.get(f"/v2/library/app/blobs/{LARGE}") as answer:
                assert answer.status == 200
                assert await answer.read() == IMAGE.blobs[LARGE]
        assert upstream.bodies(LARGE) == 2


async def test_a_file_that_fails_in_the_middle_is_finished_by_the_main_process(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    big = content.image(3, layers=(24_000_000,))
    [digest] = big.layers
    upstream.add("library/app", big, tags=["big"])
    path = f"/v2/library/app/blobs/{digest}"
    assert (await proxy.get(path)).status == 200
    await proxy.settled()
    async with proxy.client.get(path) as answer:
        first = await answer.content.readexactly(100_000)
        os.truncate(proxy.storage / "blobs" / digest.replace(":", "/"), 16_000_000)
        assert first + await answer.read() == big.blobs[digest]
    assert (await proxy.get(path)).body == big.blobs[digest]


REQUESTS: list[tuple[str, str, dict[str, str]]] = [
    ("GET", MANIFEST, {}),
    ("HEAD", MANIFEST, {}),
    ("GET", f"{MANIFEST}?ns=docker.io", {}),
    ("GET", f"/v2/library/app/manifests/{IMAGE.digest}", {}),
    ("HEAD", f"/v2/library/app/manifests/{IMAGE.digest}", {"If-None-Match": f'"{IMAGE.digest}"'}),
    ("GET", MANIFEST, {"If-None-Match": IMAGE.digest}),
    ("GET", MANIFEST, {"Cache-Control": "only-if-cached"}),
    ("GET", "/v2/library/app/manifests/none", {}),
    ("GET", "/v2/library/app/manifests/..", {}),
    ("GET", "/v2/library/app/tags/list", {}),
    ("GET", f"/v2/library/app/referrers/{IMAGE.digest}", {}),
    ("GET", "/v2/_catalog", {}),
    ("GET", "/v2/", {}),
    ("GET", "/", {}),
    ("GET", "/-/nothing", {}),
    ("GET", "/-/token", {}),
    ("POST", f"/v2/library/app/blobs/{SMALL}", {}),
    ("DELETE", MANIFEST, {}),
    *(
        (method, f"/v2/library/app/blobs/{digest}", headers)
        for digest in (SMALL, LARGE)
        for method in ("GET", "HEAD")
        for headers in (
            {},
            {"Range": "bytes=10-99"},
            {"Range": "bytes=-5"},
            {"Range": "bytes=9999999-"},
            {"Range": "bytes=5-1"},
            {"Range": "bytes=0-9", "If-Range": '"other"'},
            {"If-None-Match": f'"{digest}"'},
        )
    ),
    ("GET", f"/v2/library/other/blobs/{SMALL}", {}),
    ("GET", f"/v2/library/app/blobs/sha256:{'0' * 64}", {}),
    ("GET", f"/v2/library/app/blobs/{SMALL}", {"Millpond-Client": '{"address": "6.6.6.6"}'}),
]


async def test_every_answer_is_that_of_a_single_process(start: Start) -> None:
    said: list[list[Any]] = []
    for count in (1, 2):
        proxy = await start(workers=count, catalog=True)
        await warm(proxy)
        answers = []
        for method, path, headers in REQUESTS:
            await proxy.ask(method, path, **headers)
            for _ in range(3):  # the third time from the response cache
                answer = await proxy.ask(method, path, **headers)
                shown = {
                    name: value
                    for name, value in answer.headers.items()
                    if name.title() not in CHANGING
                }
                shown["Cache-Status"] = shown.get("Cache-Status", "").partition("; ttl")[0]
                answers.append((method, path, headers, answer.status, shown, answer.body))
        said.append(answers)
        await proxy.close()
    for one, two in zip(*said, strict=True):
        assert one == two


async def test_a_header_that_is_no_utf_8_means_the_same_to_the_main_process(proxy: Proxy) -> None:
    host, _, port = proxy.app.address.rpartition(":")
    with proxy.app.events.subscribed([EventKind.PULL]) as subscription:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"GET {MANIFEST} HTTP/1.1\r\nHost: here\r\n".encode()
            + b"User-Agent: odd\xff\r\nConnection: close\r\n\r\n"
        )
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        async with asyncio.timeout(30):
            event = await subscription.next()
    assert event.data["user_agent"] == "odd?"


async def test_a_killed_worker_is_replaced_and_no_client_that_retries_once_fails(
    proxy: Proxy,
) -> None:
    await warm(proxy)
    path, data = f"/v2/library/app/blobs/{LARGE}", IMAGE.blobs[LARGE]
    pids, failed, done = of_workers(), [0], asyncio.Event()
    assert len(pids) == 2

    async def pull(client: ClientSession) -> bool:
        try:
            async with client.get(path) as answer:
                return answer.status == 200 and await answer.read() == data
        except ClientError:
            return False

    async def pull_on() -> int:
        count = 0
        async with fresh(proxy) as client:
            while not done.is_set():
                if not await pull(client):
                    failed[0] += 1
                    assert await pull(client)
                count += 1
        return count

    pulling = [asyncio.create_task(pull_on()) for _ in range(4)]
    await asyncio.sleep(0.5)
    os.kill(pids[0], signal.SIGKILL)
    await until(lambda: len(set(of_workers()) - set(pids)) == 1)
    await asyncio.sleep(1.0)
    done.set()
    assert min(await asyncio.gather(*pulling)) > 0
    assert (await proxy.get("/-/readyz")).status == 200
    failures = await metric(proxy, "millpond_background_failures_total")
    assert failures['{task="worker 1"}'] + failures['{task="worker 2"}'] == 1


async def test_new_settings_hold_in_every_worker_as_soon_as_they_are_in_force(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await warm(proxy)
    policy = {"images": ["docker.io/library/app"], "deny": True}
    hub = {"docker.io": {"url": upstream.url}}
    async with fresh(proxy) as client:
        for status, policies in ((403, [policy]), (200, [])):
            changed = Settings.model_validate({"upstreams": hub, "policies": policies})
            await proxy.app.reload(changed)
            answers = [await read(client, MANIFEST) for _ in range(12)]
            assert {answer.status for answer in answers} == {status}


async def test_a_worker_that_hangs_is_replaced(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "HANG_SECONDS", 3.0)
    await warm(proxy)
    await reported()  # the next looks have the shorter limit
    pids = of_workers()
    os.kill(pids[0], signal.SIGSTOP)
    await until(lambda: pids[0] not in of_workers() and len(of_workers()) == 2)
    assert "it has reported nothing for" in proxy.log.getvalue()
    async with fresh(proxy) as client:
        answers = [await read(client, MANIFEST) for _ in range(12)]
        assert {answer.status for answer in answers} == {200}
    failures = await metric(proxy, "millpond_background_failures_total")
    assert failures['{task="worker 1"}'] + failures['{task="worker 2"}'] == 1


async def test_a_report_that_is_too_long_is_not_awaited() -> None:
    """The main process kills and replaces a worker whose report raises."""
    ours, theirs = socket.socketpair()
    with theirs:
        channel = await Channel.from_socket(ours)
        theirs.sendall((MAX_FRAME + 1).to_bytes(4, "big"))
        with pytest.raises(ValueError, match="a frame of"):
            await channel.receive()
        channel.close()


async def test_what_is_taken_offline_is_left_to_the_main_process(proxy: Proxy) -> None:
    await warm(proxy)
    socket = UnixConnector(str(proxy.storage / "admin.sock"))
    async with ClientSession("http://admin", connector=socket) as operator:
        for value, is_relayed in (("true", True), ("configured", False)):
            async with operator.post(f"/-/offline?value={value}") as answer:
                assert answer.status == 200
            before = await by_workers(proxy, "requests")
            async with fresh(proxy) as client:
                for _ in range(12):
                    assert (await read(client, MANIFEST)).status == 200
            assert (await by_workers(proxy, "requests") == before) is is_relayed


async def test_a_tag_of_the_past_is_left_to_the_main_process(proxy: Proxy) -> None:
    await warm(proxy)
    past = MANIFEST.replace("/v2/", "/v2/as-of/2020-01-01/")
    base, connector = f"http://{proxy.app.address}", TCPConnector(limit=1)
    async with ClientSession(base, connector=connector) as client:
        for _ in range(4):  # the same headers, on one connection: the worker remembers them
            async with client.get(MANIFEST) as answer:
                assert await answer.read() == IMAGE.manifest
        async with client.get(past) as answer:
            assert answer.status == 404
            await answer.read()


async def test_limits_are_those_of_all_workers_together(start: Start) -> None:
    proxy = await start(access={"limits": {"downloads": 1}})
    await warm(proxy)
    before = await by_workers(proxy, "requests")
    async with fresh(proxy) as client:
        for _ in range(8):
            async with client.get(f"/v2/library/app/blobs/{LARGE}") as answer:
                assert await answer.read() == IMAGE.blobs[LARGE]
    assert await by_workers(proxy, "requests") == before


async def test_stopping_lets_running_responses_end(start: Start, upstream: FakeUpstream) -> None:
    proxy = await start(shutdown_grace="20s")
    big = content.image(3, layers=(24_000_000,))
    [digest] = big.layers
    upstream.add("library/app", big, tags=["big"])
    path = f"/v2/library/app/blobs/{digest}"
    assert (await proxy.get(path)).status == 200
    await proxy.settled()
    pids = of_workers()
    async with fresh(proxy) as client, client.get(path) as answer:
        first = await answer.content.readexactly(100_000)
        await until(lambda: proxy.app.responses() == 1)
        closing = asyncio.create_task(proxy.close())
        await asyncio.sleep(0.5)
        assert not closing.done()
        assert first + await answer.read() == big.blobs[digest]
    await closing
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def address_rules(*networks: str) -> dict[str, Any]:
    """Access for clients of some networks, which trusted proxies on this machine name."""
    return {
        "networks": {"here": list(networks)},
        "rules": [{"allow": "pull", "to": ["network:here"]}],
        "trusted_proxies": ["127.0.0.1"],
    }


async def test_a_relayed_request_is_its_clients_whatever_the_client_says(start: Start) -> None:
    proxy = await start(access=address_rules("192.0.2.0/24"))
    path = f"/v2/library/app/blobs/{SMALL}"
    forged = json.dumps({"address": "192.0.2.7", "is_tls": False, "version": [1, 1]})
    assert (await proxy.get(path, X_Forwarded_For="192.0.2.7")).status == 200
    await proxy.settled()
    await until(lambda: SMALL in proxy.held())
    for _ in range(3):
        allowed = await proxy.get(path, X_Forwarded_For="192.0.2.7")
        assert allowed.status == 200
        for headers in ({}, {"Millpond-Client": forged}, {"X-Forwarded-For": "198.51.100.1"}):
            assert (await proxy.get(path, **headers)).status == 403
    await proxy.settled()
    await reported()
    lines = [json.loads(line) for line in proxy.log.getvalue().splitlines()]
    clients = [one["client"] for one in lines if one["event"] == "request"]
    assert sorted(set(clients)) == ["127.0.0.1", "192.0.2.7", "198.51.100.1"]
    assert await by_workers(proxy, "requests") > 0


async def test_clients_with_our_tokens_are_served_by_workers_and_pulls_are_audited(
    start: Start, tmp_path: Path
) -> None:
    users = write_users(tmp_path / "htpasswd", ann="secret")
    rules = [{"allow": "pull", "to": ["user:ann"]}]
    audit = tmp_path / "audit.log"
    files = {"htpasswd_file": str(users), "audit_file": str(audit)}
    proxy = await start(access={**files, "rules": rules})
    scope = "/-/token?scope=repository:library/app:pull"
    answer = await proxy.get(scope, Authorization=basic("ann", "secret"))
    token = {"Authorization": f"Bearer {json.loads(answer.body)['token']}"}
    blob = f"/v2/library/app/blobs/{LARGE}"
    for path in (MANIFEST, blob):
        assert (await proxy.get(path, **token)).status == 200
    await proxy.settled()
    before = await by_workers(proxy, "requests")
    for _ in range(3):
        assert (await proxy.get(MANIFEST, **token)).status == 200
        assert (await proxy.get(blob, **token)).body == IMAGE.blobs[LARGE]
        assert (await proxy.get(blob)).status == 401
        assert (await proxy.get(blob, Authorization="Bearer x.y.z")).status == 401
    assert await by_workers(proxy, "requests") - before == 3  # manifests are audited
    await until(lambda: audit.read_text().count('"event":"pull","outcome":"allowed"') == 4)
    [ann] = [one for one in proxy.stats["clients"] if one["client"] == "user:ann"]
    assert ann["bytes"] >= 4 * 3_000_000
    write_users(users, ann="other")
    for path in (MANIFEST, blob):
        assert (await proxy.get(path, **token)).status == 401


def test_the_end_of_the_main_process_ends_no_response_of_a_worker() -> None:
    big = content.image(3, layers=(24_000_000,))
    [digest] = big.layers
    with serving(big) as upstream, running(upstream, extra={"workers": 2}) as millpond:
        path = f"/v2/library/app/blobs/{digest}"
        assert urlopen(f"{millpond.url}{path}", timeout=60).read() == big.blobs[digest]
        wait_until(lambda: not millpond.stats()["downloads"])
        hits = [urlopen(f"{millpond.url}{path}", timeout=60) for _ in range(2)]
        workers = [pid for pid in children(millpond.pid) if is_worker(pid)]
        assert len(workers) == 2
        assert [hit.headers["Cache-Status"] for hit in hits] == ["Millpond; hit"] * 2
        millpond.kill()
        wait_until(lambda: not accepts(millpond.port))
        millpond.start()  # on the same port and directory, beside the former workers
        for hit in hits:
            assert hit.read() == big.blobs[digest]
            hit.close()
        wait_until(lambda: not any(map(is_worker, workers)))


def children(pid: int) -> list[int]:
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def is_worker(pid: int) -> bool:
    with suppress(OSError):
        return b"proxy.app.workers" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


@contextmanager
def serving(image: content.Content) -> Iterator[str]:
    """Run a fake upstream in a thread of its own; give its URL."""
    ready: Queue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Queue()

    async def serve() -> None:
        async with FakeUpstream() as fake:
            fake.add("library/app", image, tags=["latest"])
            done = asyncio.Event()
            ready.put((fake.url, asyncio.get_running_loop(), done))
            await done.wait()

    thread = Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    url, loop, done = ready.get(timeout=60)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
