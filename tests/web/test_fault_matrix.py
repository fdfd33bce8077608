"""Every fault of an upstream, and the answer to the client: correct, and never an absence.

A row for each fault; each is put to manifests and blobs, cold and with a good copy held, by GET and
by HEAD. Afterwards nothing wrong is stored, nothing is left open, and the next request succeeds.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp import ClientPayloadError

from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.faults import (
    announce,
    body,
    chunked,
    corrupt,
    digest_header,
    gzipped,
    hang_up,
    slow,
    truncate,
)
from tests.fakes.records import Kind
from tests.fakes.tls import certificate
from tests.fakes.upstream import FakeUpstream
from tests.leaks import at_rest, nothing_left, working
from tests.parts.process import free_port
from tests.running import Answer, Proxy, Start, until

REPO = "library/app"
OLD, NEW = content.image(1, layers=(2048,)), content.image(2, layers=(2048,))
[LAYER] = NEW.layers
TAG = f"/v2/{REPO}/manifests/latest"
DIGEST = f"/v2/{REPO}/manifests/{NEW.digest}"
BLOB = f"/v2/{REPO}/blobs/{LAYER}"
BODIES = {TAG: NEW.manifest, DIGEST: NEW.manifest, BLOB: NEW.blobs[LAYER]}
PATHS = {"tag": TAG, "digest": DIGEST, "blob": BLOB}
HASTY = {"connect": "5s", "answer": "600ms", "check": "2s", "idle": "400ms"}
PATIENT = {"connect": "20s", "answer": "20s", "check": "20s", "idle": "20s"}
YEAR = 365 * 86400.0


@dataclass(frozen=True)
class FeedUpdate:
    """What a client is told; `code` None: the content. `ends` False: it breaks off, if it begins."""

    status: int
    code: str | None = None
    ends: bool = True


WHOLE = FeedUpdate(200)
BROKEN = FeedUpdate(200, ends=False)
BAD = FeedUpdate(502, "UNAVAILABLE")
LATE = FeedUpdate(504, "UNAVAILABLE")
LIMITED = FeedUpdate(429, "TOOMANYREQUESTS")
DENIED = FeedUpdate(403, "DENIED")
ABSENT = FeedUpdate(404, "MANIFEST_UNKNOWN")
NO_BLOB = FeedUpdate(404, "BLOB_UNKNOWN")
TOO_LARGE = FeedUpdate(502, "MANIFEST_INVALID")

Spoil = Callable[[FakeUpstream, Kind], object]


@dataclass(frozen=True)
class Fault:
    """One row. `early`: it shows before the body, so that a HEAD meets it too.

    `blind`: upstream's HEAD of a manifest does not tell what it must, so there is a GET instead.
    `lies`: nobody can see that upstream's HEAD is wrong. `by_digest`: what a manifest by digest is
    told, where that differs. `stalls`: it ends by a timeout, so the test has short ones. All other
    rows have long ones: on a loaded machine an answer may take longer than a short one.
    """

    name: str
    spoil: Spoil
    manifest: FeedUpdate
    blob: FeedUpdate
    early: bool = False
    blind: bool = False
    lies: bool = False
    by_digest: FeedUpdate | None = None
    stalls: bool = False

    @property
    def timeouts(self) -> dict[str, str]:
        return HASTY if self.stalls else PATIENT

    def told(self, what: str, method: str) -> FeedUpdate:
        told = self.blob if what == "blob" else self.manifest
        if what == "digest" and self.by_digest is not None:
            told = self.by_digest
        seen = self.early or (self.blind and what != "blob")
        return told if method == "GET" or seen else WHOLE


def effect(*effects: Any) -> Spoil:
    return lambda upstream, kind: upstream.fault(*effects, kind=kind)


def early(name: str, told: FeedUpdate, spoil: Spoil) -> Fault:
    return Fault(name, spoil, told, told, early=True)


def status(code: int, told: FeedUpdate, retry_after: str | int | None = None) -> Fault:
    def spoil(upstream: FakeUpstream, kind: Kind) -> None:
        upstream.fail(code, retry_after, kind=kind)

    after = "" if retry_after is None else f" after {retry_after}"
    return early(f"{code}{after}", told, spoil)


def no_token(code: int, told: FeedUpdate) -> Fault:
    def spoil(upstream: FakeUpstream, _: Kind) -> None:
        upstream.auth.scheme = "bearer"
        upstream.fail(code, kind="token")

    return early(f"token server {code}", told, spoil)


def expired_redirect(upstream: FakeUpstream, kind: Kind) -> None:
    upstream.behaviour.redirects = {kind}
    upstream.behaviour.signature_ttl = -10


def expired_token(upstream: FakeUpstream, _: Kind) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.lifetime = 2
    upstream.revoke_tokens()


def refused_token(upstream: FakeUpstream, _: Kind) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.lifetime = -1


def oversized(upstream: FakeUpstream, kind: Kind) -> None:
    large = content.oversized(8 * 1024 * 1024 + 1)
    upstream.fault(body(large.manifest), digest_header(large.digest), kind=kind, method="GET")


FAULTS = (
    Fault("truncated", effect(truncate(100)), BAD, BROKEN),
    Fault("truncated at once", effect(truncate(0)), BAD, BROKEN),
    Fault("truncated and chunked", effect(chunked(), truncate(100)), BAD, BROKEN, blind=True),
    Fault("reset in the body", effect(truncate(100, reset=True)), BAD, BROKEN),
    Fault("first byte", effect(corrupt(0)), BAD, BROKEN),
    Fault("last byte", effect(corrupt(-1)), BAD, BROKEN),
    Fault("last byte and chunked", effect(chunked(), corrupt(-1)), BAD, BROKEN, blind=True),
    Fault("too long", effect(announce(5)), BAD, BROKEN, lies=True),
    Fault("too short", effect(announce(-5)), BAD, BROKEN, lies=True),
    Fault("login page", effect(body(b"<html>", "text/html")), BAD, BROKEN, lies=True),
    Fault(
        "login page without a digest",
        effect(body(b"<html>", "text/html"), digest_header(None)),
        BAD,
        BROKEN,
        blind=True,
        lies=True,
    ),
    Fault("stalled in the body", lambda u, k: u.stall(100, kind=k), LATE, BROKEN, stalls=True),
    Fault("slow", effect(slow(4000)), WHOLE, WHOLE),
    Fault("chunked", effect(chunked()), WHOLE, WHOLE, blind=True),
    Fault("no digest header", effect(digest_header(None)), WHOLE, WHOLE, blind=True),
    Fault(
        "wrong digest header",
        effect(digest_header(content.digest(b"else"))),
        BAD,
        WHOLE,
        lies=True,
        by_digest=WHOLE,
    ),
    Fault(
        "malformed digest header", effect(digest_header("sha256:none")), WHOLE, WHOLE, blind=True
    ),
    early("gzip though identity was asked", BAD, effect(gzipped())),
    early("hung up", BAD, effect(hang_up())),
    early("reset", BAD, effect(hang_up(reset=True))),
    Fault("stalled", lambda u, k: u.hold(kind=k), LATE, LATE, early=True, stalls=True),
    status(429, LIMITED),
    status(429, LIMITED, 1),
    status(429, LIMITED, "Wed, 21 Oct 2015 07:28:00 GMT"),
    status(429, LIMITED, "soon"),
    status(408, BAD),
    status(500, BAD),
    status(502, BAD),
    status(503, BAD),
    status(503, BAD, 1),
    status(504, BAD),
    status(400, BAD),
    status(302, BAD),  # a redirect to nowhere
    status(401, DENIED),
    status(403, DENIED),
    no_token(500, BAD),
    no_token(429, LIMITED),
    no_token(401, DENIED),
    no_token(403, DENIED),
    early("expired redirect", BAD, expired_redirect),
    early("expired token", WHOLE, expired_token),
    early("token refused at once", DENIED, refused_token),
    Fault("gone", lambda u, k: u.fail(404, kind=k), ABSENT, NO_BLOB, early=True),
)
OVERSIZED = Fault("oversized", oversized, TOO_LARGE, WHOLE)


def each(*faults: Fault) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("fault", faults, ids=[fault.name for fault in faults])


def healed(upstream: FakeUpstream) -> None:
    upstream.heal()
    upstream.auth.scheme = "none"
    upstream.auth.lifetime = None
    upstream.behaviour.redirects = set()
    upstream.behaviour.signature_ttl = 300.0


async def ask(proxy: Proxy, method: str, path: str) -> tuple[FeedUpdate, Answer | None]:
    """Ask, and check what holds for every answer."""
    try:
        answer = await proxy.ask(method, path)
    except ClientPayloadError:
        return BROKEN, None
    assert not {"www-authenticate", "location"} & {name.lower() for name in answer.headers}
    if answer.status == 200:
        asked = path.rpartition("/")[2]
        assert asked == "latest" or answer.headers["Docker-Content-Digest"] == asked
        return WHOLE, answer
    if method == "HEAD":
        assert answer.body == b""
        return FeedUpdate(answer.status), answer
    [error] = json.loads(answer.body)["errors"]
    return FeedUpdate(answer.status, error["code"]), answer


async def assert_whole(proxy: Proxy, path: str) -> None:
    """Once upstream is well again, so are its answers; at the latest after its Retry-After."""

    async def is_whole() -> bool:
        told, answer = await ask(proxy, "GET", path)
        assert told in {WHOLE, LIMITED}
        return answer is not None and answer.body == BODIES[path]

    for _ in range(300):
        if await is_whole():
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{path}: not served though upstream is well")


async def pulled(proxy: Proxy, image: content.Image) -> None:
    """Pull an image in full."""
    assert (await proxy.get(TAG)).body == image.manifest
    for digest, data in image.blobs.items():
        assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body == data
    await proxy.settled()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("what", PATHS)
@each(*FAULTS, OVERSIZED)
async def test_c15_cold(
    start: Start, upstream: FakeUpstream, fault: Fault, what: str, method: str
) -> None:
    if fault is OVERSIZED and what == "blob":
        return
    upstream.add(REPO, NEW)
    async with nothing_left():
        proxy = await start(timeouts=fault.timeouts, freshness={"negative_ttl": 0})
        before = working()
        kind: Kind = "blob" if what == "blob" else "manifest"
        fault.spoil(upstream, kind)
        expected = fault.told(what, method)
        told, answer = await ask(proxy, method, PATHS[what])
        if method == "HEAD":
            assert told == FeedUpdate(expected.status)
        elif expected == BROKEN:
            assert told in {BROKEN, BAD}
        else:
            assert told == expected
        if told == WHOLE and answer is not None and "Content-Length" in answer.headers:
            size = int(answer.headers["Content-Length"])
            assert size == len(BODIES[PATHS[what]]) or (fault.lies and method == "HEAD")
        await at_rest(proxy, before)
        whole = {PATHS[what].rpartition("/")[2].replace("latest", NEW.digest)}
        if method == "GET":
            assert proxy.held() == (whole if told == WHOLE else set())
        else:  # it may have taken a GET to find out
            assert proxy.held() <= whole
        healed(upstream)
        await assert_whole(proxy, PATHS[what])
        await at_rest(proxy, before)
        assert proxy.held() == whole
        await proxy.close()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@each(*FAULTS, OVERSIZED)
async def test_c03_a_good_copy_stands_in_for_a_failure(
    start: Start, upstream: FakeUpstream, clock: Clock, fault: Fault, method: str
) -> None:
    """The tag has moved on when upstream fails: what was pulled before is served, and says so."""
    upstream.add(REPO, OLD)
    async with nothing_left():
        proxy = await start(timeouts=fault.timeouts, freshness={"negative_ttl": 0})
        await pulled(proxy, OLD)
        before = working()
        upstream.add(REPO, NEW)
        clock.advance(YEAR)
        fault.spoil(upstream, "manifest")
        told, answer = await ask(proxy, method, TAG)
        expected = fault.told("tag", method)
        assert answer is not None
        if expected == WHOLE:
            lies = fault.lies and method == "HEAD"
            assert lies or answer.headers["Docker-Content-Digest"] == NEW.digest
            assert "Warning" not in answer.headers
        elif expected in {DENIED, ABSENT, TOO_LARGE}:
            assert told.status == expected.status, "no failure, but an answer"
        else:
            assert told == WHOLE
            assert answer.headers["Docker-Content-Digest"] == OLD.digest
            assert answer.headers["Warning"].startswith('299 - "stale')
        assert (await ask(proxy, "GET", f"/v2/{REPO}/manifests/{OLD.digest}"))[0] == WHOLE
        for digest in OLD.blobs:
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
        await at_rest(proxy, before)
        healed(upstream)
        await assert_whole(proxy, TAG)
        await pulled(proxy, NEW)
        assert proxy.held() == {OLD.digest, NEW.digest, *OLD.blobs, *NEW.blobs}
        await at_rest(proxy, before)
        await proxy.close()


@each(*FAULTS)
async def test_t17_a_blob_that_is_held_asks_nobody(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock, fault: Fault
) -> None:
    upstream.add(REPO, NEW)
    await pulled(proxy, NEW)
    clock.advance(YEAR)
    fault.spoil(upstream, "blob")
    upstream.clear()
    for method in ("GET", "HEAD"):
        told, answer = await ask(proxy, method, BLOB)
        assert told == WHOLE
        assert answer is not None
        assert answer.headers["Content-Length"] == "2048"
    assert not upstream.requests


ONCE = ("truncated", "truncated at once", "truncated and chunked", "reset in the body",
        "stalled in the body", "hung up", "reset", "500", "502", "503", "503 after 1", "504",
        "expired redirect")  # fmt: skip


@pytest.mark.parametrize("what", PATHS)
@each(*(fault for fault in FAULTS if fault.name in ONCE))
async def test_what_fails_once_is_no_failure(
    start: Start, upstream: FakeUpstream, fault: Fault, what: str
) -> None:
    """With the patience that is the default, a client does not even notice."""
    if fault.name == "stalled in the body" and what != "blob":
        return  # that has cost the time there was
    upstream.add(REPO, NEW)
    async with nothing_left():
        proxy = await start(
            timeouts={**HASTY, "answer": "4s"},
            patience={"retries": 2, "resumes": 5, "failures": 5, "cool_down": "30s"},
        )
        before = working()
        kind: Kind = "blob" if what == "blob" else "manifest"
        fault.spoil(upstream, kind)
        if fault.name == "expired redirect":
            upstream.fault(renewed(upstream), kind=kind, times=1)
        for rule in upstream.rules:
            rule.times = 1
        assert (await ask(proxy, "GET", PATHS[what]))[0] == WHOLE
        await at_rest(proxy, before)
        assert len(proxy.held()) == 1
        await proxy.close()


def renewed(upstream: FakeUpstream) -> Any:
    """Let the second redirect have a signature that is good for long enough."""

    def effect(_record: object, reply: Any) -> Any:
        upstream.behaviour.signature_ttl = 300.0
        return reply

    return effect


@pytest.mark.parametrize("what", PATHS)
@pytest.mark.parametrize("retry_after", [None, 17])
async def test_c15_whoever_is_limited_is_told_for_how_long(
    start: Start, upstream: FakeUpstream, what: str, retry_after: int | None
) -> None:
    """Also by the first answer, and where upstream does not say: we know when we ask again."""
    upstream.add(REPO, NEW)
    proxy = await start(patience={"retries": 0, "cool_down": "30s"})
    upstream.fail(429, retry_after)
    for _ in range(3):
        told, answer = await ask(proxy, "GET", PATHS[what])
        assert told == LIMITED
        assert answer is not None
        assert 0 < int(answer.headers["Retry-After"]) <= (retry_after or 30)
    assert len(upstream.requests) == 1


async def test_t15_the_digest_that_was_asked_for_is_the_one_that_is_told(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    """Some registries name the canonical digest, whichever was asked for."""
    image = upstream.add(REPO, content.image(3, algorithm="sha512"))
    upstream.fault(digest_header(content.digest(image.manifest)), kind="manifest")
    for method in ("HEAD", "GET", "HEAD"):
        answer = await proxy.ask(method, f"/v2/{REPO}/manifests/{image.digest}")
        assert answer.status == 200
        assert answer.headers["Docker-Content-Digest"] == image.digest


Address = Literal["untrusted certificate", "plain HTTP on a TLS port", "TLS on a plain port",
                  "no such name", "connection refused"]  # fmt: skip
ADDRESSES: tuple[Address, ...] = Address.__args__  # type: ignore[attr-defined]


@pytest.mark.parametrize("address", ADDRESSES)
async def test_c03_an_upstream_that_cannot_be_reached(
    start: Start, upstream: FakeUpstream, clock: Clock, tmp_path: Path, address: Address
) -> None:
    upstream.add(REPO, OLD)
    secured = FakeUpstream(ssl_context=certificate(tmp_path).server)
    async with secured:
        secured.add(REPO, OLD)
        url = {
            "untrusted certificate": secured.url,
            "plain HTTP on a TLS port": upstream.url.replace("http:", "https:"),
            "TLS on a plain port": secured.url.replace("https:", "http:"),
            "no such name": "http://registry.invalid",
            "connection refused": f"http://127.0.0.1:{free_port()}",
        }[address]
        async with nothing_left():
            await _cold_and_held(start, upstream, clock, url)


async def _cold_and_held(start: Start, upstream: FakeUpstream, clock: Clock, url: str) -> None:
    away = await start(hub={"url": url})
    old = {TAG: OLD.manifest, f"/v2/{REPO}/manifests/{OLD.digest}": OLD.manifest}
    old |= {f"/v2/{REPO}/blobs/{digest}": data for digest, data in OLD.blobs.items()}
    before = working()
    for path in (*old, f"/v2/{REPO}/tags/list", f"/v2/{REPO}/referrers/{OLD.digest}"):
        assert (await ask(away, "GET", path))[0] == BAD
        assert (await ask(away, "HEAD", path))[0] == FeedUpdate(502)
    await at_rest(away, before)
    assert not away.held()
    await away.close()
    well = await start()
    await pulled(well, OLD)
    await well.close()
    away = await start(hub={"url": url})
    clock.advance(YEAR)
    for path, data in old.items():
        for method in ("GET", "HEAD"):
            told, answer = await ask(away, method, path)
            assert told == WHOLE
            assert answer is not None
            assert answer.body == (data if method == "GET" else b"")
            assert ("Warning" in answer.headers) == (path == TAG)
    assert (await ask(away, "GET", DIGEST))[0] == BAD
    await away.close()
    upstream.add(REPO, NEW)
    well = await start()
    await until(lambda: well.stats["cache"]["files"] == len(old) - 1)
    await pulled(well, NEW)
    await well.close()
