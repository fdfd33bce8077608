"""Events reach receivers over HTTP: signed, in both formats, again after failures, and bounded."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from cloudevents.v1.http import from_http
from standardwebhooks import Webhook, WebhookVerificationError

from proxy.core.errors import ConfigError
from proxy.runtime.events import EventKind
from proxy.services.notifications import delivery
from proxy.services.notifications.formats import cloudevent
from proxy.services.notifications.signing import Signer
from proxy.settings import Settings
from tests.fakes import content
from tests.fakes.receiver import Receiver
from tests.fakes.tls import certificate
from tests.fakes.upstream import FakeUpstream
from tests.parts.millpond import running
from tests.running import Proxy, Start, until

IMAGE, OTHER = content.image(1, layers=(1000,)), content.image(2, layers=(1000,))
[LAYER] = IMAGE.layers
REPO = "/v2/library/app"
MANIFEST = f"{REPO}/manifests/latest"
NAME = "docker.io/library/app"
EVENTS = Path(__file__).parents[3] / "docs/events.md"
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
NEXT_SECRET = "whsec_" + base64.b64encode(bytes(range(32, 64))).decode()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as one:
        yield one


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "FIRST_PAUSE", 0.02)


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(f"# for CI\n{SECRET}\n{NEXT_SECRET}\n")
    return file


def key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix("whsec_"))


Notify = Callable[..., Awaitable[Proxy]]


@pytest.fixture
def notify(start: Start, receiver: Receiver) -> Notify:
    """Start a proxy with one receiver of moved tags; arguments change it."""

    async def notify(**changes: Any) -> Proxy:
        known = {"url": receiver.url, "name": "ci", "events": ["tag-moved"], **changes}
        return await start(notifications=[known])

    return notify


async def counters(proxy: Proxy, name: str = "ci") -> dict[str, float]:
    """What `/metrics` says about a receiver."""
    page = (await proxy.get("/metrics")).body.decode()
    found = {}
    for line in page.splitlines():
        if line.startswith("millpond_notification") and f'receiver="{name}"' in line:
            metric, _, labels = line.rpartition(" ")[0].partition("{")
            reason = labels.partition('reason="')[2].partition('"')[0]
            found[reason or metric.removeprefix("millpond_")] = float(line.rpartition(" ")[2])
    return found


async def until_counted(proxy: Proxy, **wanted: float) -> None:
    async with asyncio.timeout(30):
        while not (await counters(proxy)).items() >= wanted.items():
            await asyncio.sleep(0.01)


async def test_a_moved_tag_is_a_cloudevent_that_is_signed(
    notify: Notify, receiver: Receiver, secret_file: Path
) -> None:
    proxy = await notify(secret_file=str(secret_file))
    await proxy.get(MANIFEST)
    await until(lambda: len(receiver.received) == 1)
    [one] = receiver.received
    assert one.headers["Content-Type"] == "application/cloudevents+json"
    event = from_http(dict(one.headers), one.body)
    assert event["specversion"] == "1.0"
    assert event["type"] == "dev.millpond.tag-moved"
    assert event["subject"] == f"{NAME}:latest"
    assert event["source"].startswith("millpond://")
    assert event["id"] == one.id
    assert event["time"].endswith("Z")
    assert datetime.fromisoformat(event["time"]).timestamp() == pytest.approx(
        proxy.app.content.clock(), abs=1
    )
    assert event.data == {"from": None, "to": IMAGE.digest}
    for secret in (SECRET, NEXT_SECRET):
        Webhook(secret).verify(one.body, dict(one.headers))
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(one.body + b" ", dict(one.headers))
    await until_counted(proxy, notifications_delivered_total=1, notifications_queued=0)
    for secret in ("whsec_", SECRET[6:], "/hook"):
        assert secret not in proxy.log.getvalue()


async def test_the_check_of_the_documents_accepts_what_is_genuine(
    notify: Notify, receiver: Receiver, secret_file: Path
) -> None:
    proxy = await notify(secret_file=str(secret_file))
    await proxy.get(MANIFEST)
    await until(lambda: len(receiver.received) == 1)
    [one] = receiver.received
    [example] = re.findall(r"^```python\n(.+?)^```", EVENTS.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(example, names)
    for secret in (SECRET, NEXT_SECRET):
        assert names["is_genuine"](secret, one.headers, one.body)
    assert not names["is_genuine"](SECRET, one.headers, one.body + b" ")
    assert not names["is_genuine"]("whsec_" + "A" * 44, one.headers, one.body)
    old = {**one.headers, "webhook-timestamp": str(int(one.headers["webhook-timestamp"]) - 400)}
    old["webhook-signature"] = Signer([key(SECRET)]).sign(
        one.id, int(old["webhook-timestamp"]), one.body
    )
    assert not names["is_genuine"](SECRET, old, one.body)


def test_the_example_of_the_documents_has_every_attribute() -> None:
    [example] = re.findall(r"^```json\n(.+?)^```", EVENTS.read_text(), re.DOTALL | re.MULTILINE)
    event = {"time": 0.0, "kind": "tag-moved", "subject": "s", "data": {"from": None, "to": "d"}}
    written = json.loads(cloudevent(event, "msg_1", "millpond://here:1").body)
    shown = json.loads(example)
    assert shown.keys() == written.keys()
    assert shown["data"].keys() == written["data"].keys()


async def test_the_envelope_of_distribution(notify: Notify, receiver: Receiver) -> None:
    kinds = ["pull", "cached", "tag-moved"]
    proxy = await notify(format="distribution", events=kinds)
    await proxy.get(MANIFEST, User_Agent="docker/27")
    await until(lambda: len(receiver.received) == 3)
    assert {one.headers["Content-Type"] for one in receiver.received} == {
        "application/vnd.docker.distribution.events.v2+json"
    }
    events = [event for one in receiver.received for event in one.document["events"]]
    assert [event["id"] for event in events] == [one.id for one in receiver.received]
    pushed, moved, pulled = events
    size = len(IMAGE.manifest)
    known = {"digest": IMAGE.digest, "repository": NAME}
    assert (pushed["action"], moved["action"], pulled["action"]) == ("push", "push", "pull")
    assert pushed["target"] == known | {
        "mediaType": "application/octet-stream", "size": size, "length": size,
    }  # fmt: skip
    assert moved["target"] == known | {"tag": "latest"}
    assert pulled["target"] == known | {"tag": "latest", "size": size, "length": size}
    assert pulled["request"] == {"method": "GET", "useragent": "docker/27", "addr": "127.0.0.1"}
    assert pulled["actor"] == {}
    assert all(event["timestamp"].endswith("Z") and event["source"]["addr"] for event in events)


async def test_a_failure_is_repeated_with_the_same_id_and_a_new_signature(
    notify: Notify, receiver: Receiver, secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "FIRST_PAUSE", 0.7)  # 1.05 seconds together at least
    receiver.answers = [(500, {}), (503, {})]
    proxy = await notify(secret_file=str(secret_file))
    await proxy.get(MANIFEST)
    await until(lambda: len(receiver.received) == 3)
    assert len({one.id for one in receiver.received}) == 1
    assert len({one.body for one in receiver.received}) == 1
    assert len({one.headers["webhook-timestamp"] for one in receiver.received}) > 1
    for one in receiver.received:
        Webhook(SECRET).verify(one.body, dict(one.headers))
    await until_counted(proxy, notifications_delivered_total=1, notification_failures_total=2)


async def test_retry_after_is_honoured(notify: Notify, receiver: Receiver) -> None:
    receiver.answers = [(429, {"Retry-After": "1"})]
    proxy = await notify()
    await proxy.get(MANIFEST)
    await until(lambda: len(receiver.received) == 2)
    first, second = receiver.received
    assert second.at - first.at >= 0.95


async def test_events_wait_for_a_receiver_that_is_away(notify: Notify, receiver: Receiver) -> None:
    await receiver.stop()
    proxy = await notify()
    await proxy.get(MANIFEST)
    await until_counted(proxy, notifications_queued=1)
    async with asyncio.timeout(30):
        while not (await counters(proxy))["notification_failures_total"] >= 2:
            await asyncio.sleep(0.01)
    await receiver.start()
    await until(lambda: len(receiver.received) == 1)
    assert receiver.of("tag-moved")[0]["data"]["to"] == IMAGE.digest


async def test_a_full_queue_loses_the_oldest_and_counts_them(
    notify: Notify, receiver: Receiver, upstream: FakeUpstream
) -> None:
    receiver.gate.clear()
    proxy = await notify(max_queue=3, timeout="60s")
    for number in range(6):
        upstream.add("library/app", content.image(10 + number), tags=[f"t{number}"])
        await proxy.get(f"{REPO}/manifests/t{number}")
        await until(lambda: len(receiver.received) == 1)
    await until_counted(proxy, full=3, notifications_queued=3)
    receiver.gate.set()
    await until(lambda: len(receiver.received) == 4)
    subjects = [one["subject"].rpartition(":")[2] for one in receiver.of("tag-moved")]
    assert subjects == ["t0", "t3", "t4", "t5"], "the first was on its way already"


async def test_receivers_get_the_kinds_and_images_that_they_want(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.add("org/tool", OTHER, tags=["v1", "edge"])
    wanted: dict[str, dict[str, Any]] = {
        "all": {},
        "pulls": {"events": ["pull"]},
        "library": {"images": ["docker.io/library/*"]},
        "versions": {"images": ["docker.io/org/tool:v*"]},
        "one": {"images": [f"docker.io/org/tool@{OTHER.digest}"], "events": ["pull"]},
    }
    async with Receiver() as receiver:
        known = [
            {"url": f"{receiver.url}/{name}", "name": name, **one} for name, one in wanted.items()
        ]
        proxy = await start(notifications=known)
        await proxy.get(MANIFEST)
        for ref in ("v1", "edge", OTHER.digest):
            await proxy.get(f"/v2/org/tool/manifests/{ref}")
        await proxy.app.content.evictor.evict(1 << 40)
        found: dict[str, list[str]] = {}

        def sorted_out() -> dict[str, list[str]]:
            found.clear()
            for one in receiver.received:
                event = one.document
                kind = event["type"].removeprefix("dev.millpond.")
                name = one.path.rpartition("/")[2]
                found.setdefault(name, []).append(f"{kind} {event['subject']}")
            return found

        evicted = sorted(f"evicted {digest}" for digest in (IMAGE.digest, OTHER.digest))
        await until(lambda: sum(map(len, sorted_out().values())) >= 7 + 4 + 4 + 3 + 1)
        assert sorted(found["all"]) == sorted([
            f"cached {IMAGE.digest}", f"cached {OTHER.digest}", *evicted,
            f"tag-moved {NAME}:latest",
            "tag-moved docker.io/org/tool:v1", "tag-moved docker.io/org/tool:edge",
        ])  # fmt: skip
        assert found["pulls"] == [
            f"pull {NAME}:latest",
            "pull docker.io/org/tool:v1",
            "pull docker.io/org/tool:edge",
            f"pull docker.io/org/tool@{OTHER.digest}",
        ]
        assert sorted(found["library"]) == sorted(
            [f"cached {IMAGE.digest}", f"tag-moved {NAME}:latest", *evicted]
        )
        assert sorted(found["versions"]) == sorted(["tag-moved docker.io/org/tool:v1", *evicted])
        assert found["one"] == [f"pull docker.io/org/tool@{OTHER.digest}"]


def reloaded(proxy: Proxy, upstream: FakeUpstream, *notifications: dict[str, Any]) -> Settings:
    return Settings.model_validate(
        {
            "storage": {"path": str(proxy.storage)},
            "upstreams": {"docker.io": {"url": upstream.url}},
            "notifications": notifications,
        }
    )


async def test_a_reload_changes_receivers(
    notify: Notify, receiver: Receiver, upstream: FakeUpstream
) -> None:
    proxy = await notify()
    await proxy.get(MANIFEST)
    await until(lambda: len(receiver.received) == 1)
    async with Receiver() as other:
        known = {"url": other.url, "name": "other", "events": ["tag-moved"]}
        await proxy.app.reload(reloaded(proxy, upstream, known))
        upstream.add("library/app", OTHER, tags=["next"])
        await proxy.get(f"{REPO}/manifests/next")
        await until(lambda: len(other.received) == 1)
        with pytest.raises(ConfigError, match=r"notifications\.0\.secret_file: /nowhere cannot"):
            await proxy.app.reload(reloaded(proxy, upstream, known | {"secret_file": "/nowhere"}))
    assert len(receiver.received) == 1
    await proxy.app.reload(reloaded(proxy, upstream))
    assert not proxy.app.events.wanted(EventKind.TAG_MOVED), "nobody listens any more"


async def test_a_receiver_that_is_gone_gets_nothing_until_the_next_reload(
    notify: Notify, receiver: Receiver, upstream: FakeUpstream
) -> None:
    receiver.answers = [(410, {})]
    proxy = await notify()
    await proxy.get(MANIFEST)
    await until_counted(proxy, notifications_disabled=1)
    upstream.add("library/app", OTHER, tags=["next"])
    await proxy.get(f"{REPO}/manifests/next")
    await until_counted(proxy, disabled=1, notifications_queued=1)
    assert len(receiver.received) == 1
    known = {"url": receiver.url, "name": "ci", "events": ["tag-moved"]}
    await proxy.app.reload(reloaded(proxy, upstream, known))
    await until(lambda: len(receiver.received) == 2)
    first, second = receiver.received
    assert first.id == second.id
    await until_counted(proxy, notifications_disabled=0, notifications_queued=0)


@pytest.mark.parametrize("status", [400, 404, 307])
async def test_an_event_that_is_refused_is_dropped_after_some_attempts(
    notify: Notify, receiver: Receiver, upstream: FakeUpstream, status: int
) -> None:
    receiver.answers = [(status, {"Location": receiver.url})] * delivery.MAX_REFUSALS
    proxy = await notify()
    await proxy.get(MANIFEST)
    await until_counted(proxy, refused=1, notifications_queued=0)
    assert len(receiver.received) == delivery.MAX_REFUSALS, "redirects are not followed"
    upstream.add("library/app", OTHER, tags=["next"])
    await proxy.get(f"{REPO}/manifests/next")
    await until_counted(proxy, notifications_delivered_total=1)


async def test_an_event_that_is_too_old_is_dropped(notify: Notify, receiver: Receiver) -> None:
    receiver.answers = [(500, {})] * 1000
    proxy = await notify(retry_for="100ms")
    await proxy.get(MANIFEST)
    await until_counted(proxy, expired=1, notifications_queued=0)


async def test_a_receiver_that_hangs_delays_neither_pulls_nor_other_receivers(
    start: Start, receiver: Receiver, upstream: FakeUpstream
) -> None:
    receiver.gate.clear()
    async with Receiver() as other:
        hangs = {"url": receiver.url, "name": "hangs", "events": ["pull"], "timeout": "1h"}
        works = {"url": other.url, "name": "works", "events": ["pull"]}
        proxy = await start(notifications=[hangs, works])
        await proxy.get(MANIFEST)
        await until(lambda: len(receiver.received) == 1)
        async with asyncio.timeout(30):
            for _ in range(50):
                assert (await proxy.get(MANIFEST)).status == 200
        await until(lambda: len(other.received) == 51)
        assert len(receiver.received) == 1


async def test_a_timeout_is_a_failure(notify: Notify, receiver: Receiver) -> None:
    receiver.gate.clear()
    proxy = await notify(timeout="50ms")
    await proxy.get(MANIFEST)
    await until(lambda: len(receiver.received) >= 2)
    receiver.gate.set()
    await until_counted(proxy, notifications_delivered_total=1)


async def test_a_token_and_an_authority_of_ones_own(start: Start, tmp_path: Path) -> None:
    made, token = certificate(tmp_path), tmp_path / "token"
    token.write_text("Bearer t0ken\n")
    async with Receiver(tls=made.server) as receiver:
        known = {
            "url": receiver.url,
            "ca_file": str(made.authority),
            "authorization_file": str(token),
            "events": ["tag-moved"],
        }
        proxy = await start(notifications=[known])
        await proxy.get(MANIFEST)
        await until(lambda: len(receiver.received) == 1)
        assert receiver.received[0].headers["Authorization"] == "Bearer t0ken"
        assert "t0ken" not in proxy.log.getvalue()
        assert (await counters(proxy, "localhost"))["notification_failures_total"] == 0


async def test_an_authority_that_is_unknown_is_a_failure(start: Start, tmp_path: Path) -> None:
    async with Receiver(tls=certificate(tmp_path).server) as receiver:
        known = {"url": receiver.url, "name": "ci", "events": ["tag-moved"]}
        proxy = await start(notifications=[known])
        await proxy.get(MANIFEST)
        async with asyncio.timeout(30):
            while not (await counters(proxy))["notification_failures_total"]:
                await asyncio.sleep(0.01)
        assert receiver.received == []


async def test_a_restart_delivers_what_waits(notify: Notify, receiver: Receiver) -> None:
    await receiver.stop()
    proxy = await notify()
    await proxy.get(MANIFEST)
    await until_counted(proxy, notifications_queued=1)
    await proxy.close()
    await receiver.start()
    proxy = await notify()
    await until(lambda: len(receiver.received) == 1)
    await until_counted(proxy, notifications_delivered_total=1, notifications_queued=0)


async def test_a_damaged_file_of_events_costs_only_what_waited(
    notify: Notify, receiver: Receiver, upstream: FakeUpstream
) -> None:
    await receiver.stop()
    proxy = await notify()
    await proxy.get(MANIFEST)
    await until_counted(proxy, notifications_queued=1)
    await proxy.close()
    file = proxy.storage / "index" / "outbox.db"
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(b"no database at all" * 1000)
    await receiver.start()
    proxy = await notify()
    upstream.add("library/app", OTHER, tags=["next"])
    await until(lambda: file.with_suffix(".damaged").exists())
    await proxy.get(f"{REPO}/manifests/next")
    await until(lambda: len(receiver.received) == 1)
    assert receiver.received[0].document["subject"] == f"{NAME}:next"


@pytest.mark.timeout(300)
async def test_what_waits_survives_a_kill(receiver: Receiver, upstream: FakeUpstream) -> None:
    receiver.answers = [(500, {})] * 1000
    known = {"url": receiver.url, "name": "ci", "events": ["tag-moved"]}
    settings = {"notifications": [known]}
    with running(upstream.url, extra=settings) as millpond:
        await asyncio.to_thread(lambda: urlopen(f"{millpond.url}{MANIFEST}", timeout=30).read())
        await until(lambda: len(receiver.received) >= 1)
        millpond.kill()
        receiver.answers.clear()
        taken = len(receiver.received)
        millpond.start()
        await until(lambda: len(receiver.received) > taken)
    assert len({one.id for one in receiver.received}) == 1
    assert receiver.of("tag-moved")[-1]["data"]["to"] == IMAGE.digest
