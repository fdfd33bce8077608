"""Webhooks over HTTP: authentication, and their permitted effects."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp.web import BaseRequest

from proxy.core.errors import StorageError
from proxy.services.renewal import Renewal
from proxy.settings import Settings
from proxy.upstream.offline import OfflineMode
from proxy.web.admin import documents, hooks
from proxy.web.admin.body_reader import MAX_BODY, PER_SENDER, READING
from proxy.web.admin.hooks import BURST, MAX_TAGS
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Proxy, Start, until
from tests.services.hooks import payloads
from tests.services.hooks.payloads import SECRET, SENDERS, WRONG, Sender, Sent
from tests.services.test_drop import tree

OLD, NEW = content.image("old"), content.image("new")
REPO, TAG = "acme/app", "1.2"
MANIFEST = f"/v2/{REPO}/manifests/{TAG}"


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream.add(REPO, OLD, TAG)
    monkeypatch.setattr(hooks, "PAUSE", 600.0)  # longer than any test takes


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    return file


@pytest.fixture
def all_hooks(secret_file: Path) -> dict[str, Any]:
    """A hook of each format, under the format's name."""
    formats = {sender.format for sender in SENDERS.values()}
    return {
        name: {"format": name, "secret_file": str(secret_file), "upstream": "docker.io"}
        for name in formats
    }


async def post(proxy: Proxy, hook: str, sent: Sent, method: str = "POST") -> Answer:
    query = f"?token={sent.token}" if sent.token else ""
    url = f"{hooks.PATH}{hook}{query}"
    async with proxy.client.request(
        method, url, data=io.BytesIO(sent.body), headers=sent.headers
    ) as answer:
        return Answer(answer.status, answer.headers, await answer.read())


def outcomes(proxy: Proxy, hook: str) -> dict[str, int]:
    """The deliveries by outcome, as `/metrics` would show them."""
    counted = proxy.app.admin._metrics.hooks[hook].deliveries
    return {name: count for name, count in counted.items() if count}


def lines(proxy: Proxy, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in proxy.log.getvalue().splitlines()]
    return [line for line in found if line["event"] == event]


async def checked(proxy: Proxy, count: int = 1) -> list[str]:
    """The outcomes of the checks that webhooks caused, once there are so many."""
    event = "a reported tag was checked"
    await until(lambda: len(lines(proxy, event)) >= count)
    return [line["outcome"] for line in lines(proxy, event)]


async def held(start: Start, all_hooks: dict[str, Any], **settings: Any) -> Proxy:
    """A proxy that knows the tag, which is fresh for a day."""
    proxy = await start(hooks=all_hooks, freshness={"tag_ttl": "1d"}, **settings)
    assert (await proxy.get(MANIFEST)).status == 200
    return proxy


@pytest.mark.parametrize("sender", SENDERS.values(), ids=SENDERS)
async def test_a_reported_tag_is_checked_at_once(
    start: Start, upstream: FakeUpstream, all_hooks: dict[str, Any], sender: Sender
) -> None:
    proxy = await held(start, all_hooks)
    upstream.retag(REPO, TAG, NEW)
    assert (await proxy.get(MANIFEST)).body == OLD.manifest
    answer = await post(proxy, sender.format, sender.send(REPO, TAG))
    assert (answer.status, json.loads(answer.body)) == (202, {"checking": 1, "ignored": 0})
    assert await checked(proxy) == ["moved"]
    assert (await proxy.get(MANIFEST)).body == NEW.manifest
    assert outcomes(proxy, sender.format) == {"accepted": 1}


@pytest.mark.parametrize("sender", SENDERS.values(), ids=SENDERS)
async def test_a_wrong_secret_is_refused_and_causes_nothing(
    start: Start, upstream: FakeUpstream, all_hooks: dict[str, Any], sender: Sender
) -> None:
    proxy = await held(start, all_hooks)
    upstream.clear()
    answer = await post(proxy, sender.format, sender.send(REPO, TAG, WRONG))
    bare = await post(proxy, sender.format, Sent({}, "", b"{}"))
    assert answer.status == bare.status == 401
    assert answer.body == bare.body, "a missing secret and a wrong one look the same"
    assert outcomes(proxy, sender.format) == {"refused": 2}
    assert not upstream.requests


@pytest.mark.parametrize("sender", SENDERS.values(), ids=SENDERS)
async def test_another_shape_gets_422_with_what_was_expected(
    start: Start, all_hooks: dict[str, Any], sender: Sender
) -> None:
    proxy = await start(hooks=all_hooks)
    for body in (b"", b"nonsense", b'{"object_kind": "issue"}', b"[" * 100_000):
        answer = await post(proxy, sender.format, sender.prove(body, SECRET))
        assert answer.status == 422
        assert b"expected" in answer.body
    assert outcomes(proxy, sender.format) == {"invalid": 4}


REPEATED = {
    "github": ({}, True),
    "harbor, CloudEvents": ({}, True),
    "distribution": ({}, True),
    "gitlab registry": ({}, True),
    "gitlab pipeline": ({"Idempotency-Key": "f5e5f430"}, True),
    "dockerhub": ({}, False),
    "quay": ({}, False),
    "harbor": ({}, False),
}
"""Senders, with further headers, and whether a delivery can be told from another one."""


@pytest.mark.parametrize("name", REPEATED)
async def test_a_replay_is_ignored_for_a_day_or_checks_one_tag_once(
    start: Start, upstream: FakeUpstream, all_hooks: dict[str, Any], name: str, clock: Clock
) -> None:
    proxy, sender = await held(start, all_hooks), SENDERS[name]
    headers, has_id = REPEATED[name]
    sent = sender.send(REPO, TAG)
    sent = sent._replace(headers=sent.headers | headers)
    await post(proxy, sender.format, sent)
    await checked(proxy)
    upstream.clear()
    for _ in range(10):
        assert (await post(proxy, sender.format, sent)).status == 202
    if has_id:
        assert outcomes(proxy, sender.format) == {"accepted": 1, "repeated": 10}
        clock.now += 86_401
        await post(proxy, sender.format, sent)
        assert outcomes(proxy, sender.format)["accepted"] == 2
    assert upstream.count() == 0, "a tag is checked once in some seconds"


async def test_a_replay_to_github_with_another_delivery_id_is_a_replay(
    start: Start, all_hooks: dict[str, Any]
) -> None:
    """The signature does not cover the header."""
    proxy = await held(start, all_hooks)
    body = json.dumps(payloads.github(REPO, TAG)).encode()
    for number in ("1", "2"):
        await post(proxy, "github", payloads.by_github(body, SECRET, number=number))
    assert outcomes(proxy, "github") == {"accepted": 1, "repeated": 1}


async def test_an_old_signature_is_refused(
    start: Start, all_hooks: dict[str, Any], clock: Clock
) -> None:
    proxy = await held(start, all_hooks)
    body = json.dumps(payloads.distribution(REPO, TAG)).encode()
    sent = payloads.by_standard(body, SECRET, clock.now)
    assert (await post(proxy, "distribution", sent)).status == 202
    assert (await post(proxy, "distribution", sent)).body == b'{"repeated": true}'
    clock.now += 301
    assert (await post(proxy, "distribution", sent)).status == 401


async def test_a_ping_of_github_is_answered(start: Start, all_hooks: dict[str, Any]) -> None:
    proxy = await start(hooks=all_hooks)
    body = json.dumps({"zen": "Speak like a human.", "hook_id": 1}).encode()
    assert (await post(proxy, "github", payloads.by_github(body, SECRET, "ping"))).status == 200
    assert (await post(proxy, "github", payloads.by_github(body, WRONG, "ping"))).status == 401


async def test_only_what_is_known_here_is_checked(
    start: Start, upstream: FakeUpstream, all_hooks: dict[str, Any]
) -> None:
    """A sender that knows the secret cannot make us fetch what it likes."""
    upstream.add("acme/other", NEW, "1")
    proxy = await held(start, all_hooks)
    upstream.clear()
    for repo, tag in (("acme/other", "1"), (REPO, "9"), ("ghcr.io/acme/app", "1")):
        answer = await post(proxy, "quay", SENDERS["quay"].send(repo, tag))
        assert (answer.status, json.loads(answer.body)) == (202, {"checking": 0, "ignored": 1})
    assert outcomes(proxy, "quay") == {"ignored": 3}
    assert not upstream.requests


async def test_a_pinned_image_is_fetched_whole_for_the_platforms_held_before(
    start: Start, upstream: FakeUpstream, all_hooks: dict[str, Any]
) -> None:
    platforms = ("linux/amd64", "linux/arm64", "linux/s390x")
    before = content.multi_platform("before", platforms)
    after = content.multi_platform("after", platforms)
    upstream.add(REPO, before, TAG)
    proxy = await start(hooks=all_hooks, pins=[f"{REPO}:{TAG}"])
    for one in before.children[:2]:
        for digest in tree(one):
            kind = "manifests" if digest == one.digest else "blobs"
            await proxy.get(f"/v2/{REPO}/{kind}/{digest}")
    assert (await proxy.get(MANIFEST)).status == 200
    upstream.add(REPO, after, TAG)
    await post(proxy, "quay", SENDERS["quay"].send(REPO, TAG))
    wanted = {after.digest} | tree(after.children[0], after.children[1])
    await until(lambda: wanted <= proxy.held())
    await until(lambda: bool(lines(proxy, "an image was fetched ahead of clients")))
    assert after.children[2].digest not in proxy.held()
    assert proxy.stats["cache"]["warmed_images"] == 1


@pytest.mark.parametrize(
    "chosen", [{"pins": [f"{REPO}:1.*"]}, {"watch": [f"{REPO}:1.*"]}, {"warm": f"{REPO}:1.*"}]
)
async def test_a_new_tag_of_chosen_images_is_fetched(
    start: Start, upstream: FakeUpstream, all_hooks: dict[str, Any], chosen: dict[str, Any]
) -> None:
    if "warm" in chosen:
        chosen = {"warm": [{"images": [chosen["warm"]]}]}
    if "watch" in chosen:
        chosen = {"watch": {"images": chosen["watch"], "every": "30d"}}
    proxy = await start(hooks=all_hooks, **chosen)
    upstream.add(REPO, NEW, "1.3")
    await post(proxy, "quay", SENDERS["quay"].send(REPO, "1.3"))
    await until(lambda: tree(NEW) <= proxy.held())


async def test_a_burst_of_reports_is_one_check(
    start: Start, upstream: FakeUpstream, all_hooks: dict[str, Any]
) -> None:
    proxy = await held(start, all_hooks)
    upstream.clear()
    gate = upstream.hold(method="HEAD", kind="manifest")
    sent = SENDERS["quay"].send(REPO, TAG)
    await post(proxy, "quay", sent)
    await upstream.until(lambda: upstream.count("HEAD") == 1)
    for _ in range(20):
        assert (await post(proxy, "quay", sent)).status == 202
    gate.set()
    await checked(proxy)
    assert upstream.count("HEAD") == 1


async def test_a_hook_has_a_rate(
    start: Start, all_hooks: dict[str, Any], clock: Clock, upstream: FakeUpstream
) -> None:
    proxy = await held(start, all_hooks)
    upstream.hold()
    document = payloads.quay(REPO, TAG)
    sent = payloads.by_url(json.dumps(document).encode(), SECRET)
    for _ in range(int(BURST)):
        assert (await post(proxy, "quay", sent)).status == 202
    answer = await post(proxy, "quay", sent)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
    clock.now += 1
    assert (await post(proxy, "quay", sent)).status == 202
    assert outcomes(proxy, "quay") == {"accepted": BURST + 1, "limited": 1}
    other = SENDERS["dockerhub"].send(REPO, TAG)
    assert (await post(proxy, "dockerhub", other)).status == 202, "another hook has its own"


async def test_a_full_queue_asks_to_retry_and_remembers_nothing(
    start: Start, upstream: FakeUpstream, all_hooks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.services.tag_queue.MAX_WAITING", 0)
    proxy = await held(start, all_hooks)
    sent = SENDERS["github"].send(REPO, TAG)
    answer = await post(proxy, "github", sent)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "10")
    monkeypatch.setattr("proxy.services.tag_queue.MAX_WAITING", 10)
    assert json.loads((await post(proxy, "github", sent)).body)["checking"] == 1


async def test_so_many_tags_of_one_delivery_are_checked(
    start: Start, upstream: FakeUpstream, all_hooks: dict[str, Any]
) -> None:
    proxy = await start(hooks=all_hooks, pins=["acme/**"])
    document = payloads.quay(REPO, TAG)
    document["updated_tags"] = [str(number) for number in range(MAX_TAGS + 5)]
    sent = payloads.by_url(json.dumps(document).encode(), SECRET)
    answer = await post(proxy, "quay", sent)
    assert json.loads(answer.body) == {"checking": MAX_TAGS, "ignored": 5}
    assert lines(proxy, "a webhook names too many tags")[0]["tags"] == MAX_TAGS + 5


async def test_a_large_body_is_refused(start: Start, all_hooks: dict[str, Any]) -> None:
    proxy = await start(hooks=all_hooks)
    for name in ("github", "quay"):
        sender = SENDERS[name]
        answer = await post(proxy, name, sender.prove(b" " * (MAX_BODY + 1), SECRET))
        assert answer.status == 400


class Stalling:
    """Connections that send the head of a webhook and not its body, from chosen addresses."""

    def __init__(self, proxy: Proxy) -> None:
        host, _, port = (proxy.app.address or "").rpartition(":")
        self._server = host, int(port)
        self._writers: list[asyncio.StreamWriter] = []

    async def send(
        self, hook: str, *headers: str, source: str = "127.0.0.1"
    ) -> asyncio.StreamReader:
        where = source, 0
        reader, writer = await asyncio.open_connection(*self._server, local_addr=where)
        lines = f"POST {hooks.PATH}{hook} HTTP/1.1", "Host: a", "Content-Length: 1000", *headers
        writer.write("\r\n".join((*lines, "", "")).encode())
        self._writers.append(writer)
        return reader

    def leave(self) -> None:
        for writer in self._writers:
            writer.close()


async def status(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(30):
        return int((await reader.readline()).split()[1])


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The addresses whose bodies are, or were, read."""
    addresses = []

    async def read_body(request: BaseRequest, limit: int) -> bytes:
        addresses.append(request.remote)
        return await documents.read_body(request, limit)

    monkeypatch.setattr("proxy.web.admin.body_reader.read_body", read_body)
    return addresses


@pytest.mark.parametrize("hook", ["quay", "github", "gitlab", "distribution"])
async def test_a_body_is_not_read_of_a_sender_that_shows_nothing(
    start: Start, all_hooks: dict[str, Any], hook: str
) -> None:
    stalling = Stalling(await start(hooks=all_hooks))
    assert await status(await stalling.send(hook)) == 401
    stalling.leave()


SIGNED = "X-Hub-Signature-256: sha256=" + "0" * 64


async def test_one_address_without_the_secret_takes_only_some_of_the_places(
    start: Start, all_hooks: dict[str, Any], begun: list[str | None]
) -> None:
    proxy = await held(start, all_hooks)
    stalling = Stalling(proxy)
    for _ in range(PER_SENDER):
        await stalling.send("github", SIGNED, source="127.0.0.2")
    await until(lambda: len(begun) == PER_SENDER)
    assert await status(await stalling.send("github", SIGNED, source="127.0.0.2")) == 503
    for name in ("github", "gitlab"):
        sender = next(one for one in SENDERS.values() if one.format == name)
        assert (await post(proxy, name, sender.send(REPO, TAG))).status == 202
    stalling.leave()


async def test_many_addresses_without_the_secret_do_not_stop_those_with_a_token(
    start: Start, all_hooks: dict[str, Any], begun: list[str | None]
) -> None:
    proxy = await held(start, all_hooks)
    stalling = Stalling(proxy)
    for number in range(READING):
        await stalling.send("github", SIGNED, source=f"127.0.0.{2 + number // PER_SENDER}")
    await until(lambda: len(begun) == READING)
    assert (await post(proxy, "github", SENDERS["github"].send(REPO, TAG))).status == 503
    assert (await post(proxy, "quay", SENDERS["quay"].send(REPO, TAG))).status == 202
    stalling.leave()


async def test_a_body_that_does_not_arrive_gives_its_place_back(
    start: Start, all_hooks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.web.admin.body_reader.READ_SECONDS", 0.05)
    proxy = await start(hooks=all_hooks)
    stalling = Stalling(proxy)
    for _ in range(PER_SENDER + 1):
        assert await status(await stalling.send("github", SIGNED)) == 400
    stalling.leave()


async def test_a_body_that_announces_too_much_is_not_read(
    start: Start, all_hooks: dict[str, Any], begun: list[str | None]
) -> None:
    proxy = await start(hooks=all_hooks)
    head = f"POST {hooks.PATH}github HTTP/1.1\r\nHost: a\r\n{SIGNED}\r\n"
    host, _, port = (proxy.app.address or "").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{head}Content-Length: {MAX_BODY + 1}\r\n\r\n".encode())
    assert await status(reader) == 400
    assert not begun
    writer.close()


async def test_a_disk_that_fails_lets_the_sender_try_again(
    start: Start, all_hooks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: object) -> bool:
        raise StorageError("/a/path: bad")

    proxy = await held(start, all_hooks)
    sent = SENDERS["github"].send(REPO, TAG)
    with monkeypatch.context() as broken:
        broken.setattr(Renewal, "is_wanted", failing)
        answer = await post(proxy, "github", sent)
    assert answer.status == 503
    assert b"/a/path" not in answer.body
    assert json.loads((await post(proxy, "github", sent)).body)["checking"] == 1


async def test_unknown_hooks_and_methods(start: Start, all_hooks: dict[str, Any]) -> None:
    proxy = await start(hooks=all_hooks)
    sent = SENDERS["quay"].send(REPO, TAG)
    for name in ("none", "quay/more", "", "QUAY", "..%2fquay"):
        assert (await post(proxy, name, sent)).status == 404
    answer = await post(proxy, "quay", sent, "GET")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")


async def test_without_the_setting_there_are_no_hooks(start: Start) -> None:
    proxy = await start()
    assert (await post(proxy, "quay", SENDERS["quay"].send(REPO, TAG))).status == 404


async def test_an_offline_upstream_is_not_asked(
    start: Start, upstream: FakeUpstream, all_hooks: dict[str, Any]
) -> None:
    proxy = await held(start, all_hooks)
    upstream.clear()
    await switch_offline(proxy, "true")
    assert (await post(proxy, "quay", SENDERS["quay"].send(REPO, TAG))).status == 202
    assert await checked(proxy) == ["skipped"]
    assert not upstream.requests


async def switch_offline(proxy: Proxy, value: str) -> None:
    proxy.app.admin._upstreams["docker.io"].offline.live = OfflineMode(value)


async def test_a_tag_that_is_gone_and_a_registry_that_fails(
    start: Start, upstream: FakeUpstream, all_hooks: dict[str, Any]
) -> None:
    upstream.add("acme/second", OLD, TAG)
    proxy = await held(start, all_hooks)
    assert (await proxy.get(f"/v2/acme/second/manifests/{TAG}")).status == 200
    upstream.remove_tag(REPO, TAG)
    await post(proxy, "quay", SENDERS["quay"].send(REPO, TAG))
    assert await checked(proxy) == ["gone"]
    upstream.fail(500)
    await post(proxy, "quay", SENDERS["quay"].send("acme/second", TAG))
    assert await checked(proxy, 2) == ["gone", "failed"]
    assert (await proxy.get(f"/v2/acme/second/manifests/{TAG}")).status == 200


async def test_a_secret_can_be_replaced_without_a_restart(
    start: Start, all_hooks: dict[str, Any], secret_file: Path
) -> None:
    proxy = await start(hooks=all_hooks)
    old, new = (SENDERS["harbor"].send(REPO, TAG, secret) for secret in (SECRET, WRONG))
    secret_file.write_text(f"{SECRET}\n{WRONG}\n")
    assert [(await post(proxy, "harbor", sent)).status for sent in (old, new)] == [202, 202]
    secret_file.write_text(f"{WRONG}\n")
    assert [(await post(proxy, "harbor", sent)).status for sent in (old, new)] == [401, 202]
    for text in ("", "\n \n"):
        secret_file.write_text(text)
        assert (await post(proxy, "harbor", Sent({"Authorization": ""}, "", b""))).status == 401
    secret_file.unlink()
    assert (await post(proxy, "harbor", new)).status == 401


async def test_a_reload_adds_and_removes_hooks(
    start: Start, upstream: FakeUpstream, all_hooks: dict[str, Any]
) -> None:
    proxy = await held(start, all_hooks)
    sent = SENDERS["github"].send(REPO, TAG)
    assert (await post(proxy, "github", sent)).status == 202
    changed = {"github": all_hooks["github"], "new": all_hooks["quay"]}
    settings = {"upstreams": {"docker.io": {"url": upstream.url}}, "hooks": changed}
    await proxy.app.reload(Settings.model_validate(settings))
    assert (await post(proxy, "quay", SENDERS["quay"].send(REPO, TAG))).status == 404
    assert (await post(proxy, "new", SENDERS["quay"].send(REPO, TAG))).status == 202
    assert json.loads((await post(proxy, "github", sent)).body) == {"repeated": True}


@pytest.mark.parametrize("sender", SENDERS.values(), ids=SENDERS)
async def test_no_secret_is_ever_logged(
    start: Start, all_hooks: dict[str, Any], sender: Sender, tmp_path: Path
) -> None:
    """Neither by the logs, nor the audit log, nor answers, statistics and metrics."""
    audit = tmp_path / "audit.jsonl"
    access = {"audit_file": str(audit), "rules": [{"allow": "pull"}]}
    proxy = await start(hooks=all_hooks, access=access)
    await proxy.get(MANIFEST)
    sent = [
        sender.send(REPO, TAG),
        sender.send(REPO, TAG, WRONG),
        sender.prove(b"nonsense", SECRET),
        sender.send(REPO, TAG)._replace(token=SECRET),
    ]
    said = []
    for one in sent:
        said += [await post(proxy, name, one) for name in (sender.format, "none")]
        said.append(await post(proxy, sender.format, one, "GET"))
    said += [await proxy.get("/metrics"), await proxy.get("/-/stats")]
    await until(lambda: '"denied"' in (audit.read_text() if audit.exists() else ""))
    await proxy.close()
    everything = proxy.log.getvalue() + audit.read_text() + repr([one.body for one in said])
    assert "a webhook was refused" in everything
    assert f"POST {hooks.PATH}{sender.format}" in audit.read_text()
    for secret in (SECRET, WRONG):
        assert secret not in everything
