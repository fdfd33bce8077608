"""The audit log over HTTP: which requests get a line, with which fields, and without secrets."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector

from proxy.access import limits
from proxy.access.audit_log import Audit
from proxy.access.identity import Certificate
from proxy.access.principals import Method, Principal
from proxy.core.errors import Unauthorized
from proxy.runtime import line_writer
from proxy.runtime.logs import RequestLog
from tests.access.people import basic, write_users
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

IMAGE = content.image(1, layers=(1000,))
[LAYER] = IMAGE.layers
REPO = "/v2/library/app"
MANIFEST = f"{REPO}/manifests/latest"
BLOB = f"{REPO}/blobs/{LAYER}"
SECRET = "s3cr3t-t0ken"
RULES = [
    {"deny": "pull", "images": ["docker.io/library/miner"], "because": "SEC-12"},
    {"allow": "pull", "images": ["docker.io/library/**"]},
    {"allow": "pull", "to": ["user:*"]},
]


@dataclass
class Tokens:
    """Knows one token."""

    def seal(self, authorization: str) -> bytes:
        return authorization.encode()

    def recognise(
        self, credential: bytes | None, address: str | None, certificate: Certificate | None
    ) -> Principal | None:
        if credential is None:
            return Principal(address)
        if credential == f"Bearer {SECRET}".encode():
            return Principal(address, "eve", method=Method.TOKEN, credential_id="ci")
        return None

    async def identify(
        self,
        authorization: str | None,
        address: str | None,
        certificate: Certificate | None,
        upstream: str | None = None,
    ) -> Principal:
        raise Unauthorized("the token is unknown")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def access(file: Path) -> dict[str, Any]:
    return {"rules": RULES, "audit_file": str(file)}


@pytest.fixture
async def proxy(start: Start, upstream: FakeUpstream, access: dict[str, Any]) -> Proxy:
    upstream.add("library/app", IMAGE)
    return await start(access=access, identifier=Tokens())


@pytest.fixture
def lines(file: Path) -> Callable[[], list[dict[str, Any]]]:
    return lambda: [json.loads(line) for line in file.read_text().splitlines()]


Lines = Callable[[], list[dict[str, Any]]]


async def test_each_pull_of_a_manifest_is_one_line(proxy: Proxy, lines: Lines) -> None:
    for _ in range(5):
        await proxy.get(MANIFEST, User_Agent="test/1", X_Request_Id="r1")
    await until(lambda: len(lines()) == 5)
    assert all(line["time"].endswith("Z") for line in lines())
    assert [line["cache"] for line in lines()] == ["miss", *["hit"] * 4]
    shared = {
        "event": "pull",
        "outcome": "allowed",
        "method": "anonymous",
        "address": "127.0.0.1",
        "user_agent": "test/1",
        "upstream": "docker.io",
        "repository": "library/app",
        "reference": "latest",
        "digest": IMAGE.digest,
        "rule": "2: allow pull docker.io/library/** to everybody",
        "status": 200,
        "bytes": len(IMAGE.manifest),
        "request_id": "r1",
    }
    assert [line | shared for line in lines()] == lines()


@pytest.mark.one_process
async def test_the_response_cache_records_the_same_as_the_general_path(
    proxy: Proxy, lines: Lines
) -> None:
    for _ in range(6):
        await proxy.get(MANIFEST, Authorization=f"Bearer {SECRET}")
    await until(lambda: len(lines()) == 6)
    assert await prepared(proxy) > 0
    told = [{k: v for k, v in line.items() if k != "time"} for line in lines()]
    assert told[0] | {"cache": "hit"} == told[-1]
    assert [line["cache"] for line in told] == ["miss", *["hit"] * 5]
    assert told[-1]["user"] == "eve"
    assert (told[-1]["method"], told[-1]["credential_id"]) == ("token", "ci")


async def prepared(proxy: Proxy) -> float:
    """How many requests the response cache has answered."""
    page = (await proxy.get("/metrics")).body.decode()
    return float(page.partition("\nmillpond_prepared_answers_total ")[2].split()[0])


async def test_what_is_no_pull_has_no_line(proxy: Proxy, lines: Lines) -> None:
    await proxy.head(MANIFEST)
    for path in ("/v2/", BLOB, f"{REPO}/tags/list", f"{REPO}/referrers/{IMAGE.digest}", "/-/stats"):
        await proxy.get(path)
    await proxy.get("/v2/not/a//path", Authorization="Bearer wrong")
    await proxy.get(MANIFEST)
    await until(lambda: len(lines()) > 0)
    assert [line["reference"] for line in lines()] == ["latest"]


@pytest.mark.parametrize("path", ["manifests/latest", f"blobs/{LAYER}", "tags/list"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_denial_says_which_rule_and_why(
    proxy: Proxy, lines: Lines, path: str, method: str
) -> None:
    headers = {"Authorization": f"Bearer {SECRET}"}
    answer = await proxy.ask(method, f"/v2/library/miner/{path}", **headers)
    assert answer.status == 403
    await until(lambda: len(lines()) == 1)
    [line] = lines()
    assert (line["event"], line["outcome"], line["status"]) == ("pull", "denied", 403)
    assert line["rule"] == "1: deny pull docker.io/library/miner to everybody"
    assert line["because"] == "SEC-12"
    assert (line["user"], line["repository"]) == ("eve", "library/miner")


@pytest.mark.parametrize("asked", [("GET", MANIFEST), ("HEAD", MANIFEST), ("GET", BLOB)])
async def test_a_policy_on_trial_says_what_it_would_deny(
    start: Start,
    upstream: FakeUpstream,
    access: dict[str, Any],
    lines: Lines,
    asked: tuple[str, str],
) -> None:
    upstream.add("library/app", IMAGE)
    trial = {"name": "trial", "images": ["**"], "deny": True, "audit": True}
    proxy = await start(access=access, policies=[trial])
    for _ in range(4):  # the last of them are known to the response cache
        assert (await proxy.ask(*asked)).status == 200
    await until(lambda: len(lines()) >= 4)
    assert [(line["outcome"], line["policy"]) for line in lines()] == [("would deny", "trial")] * 4
    await proxy.get(f"{REPO}/manifests/absent")
    await until(lambda: len(lines()) == 5)
    assert (lines()[4]["outcome"], lines()[4]["reference"]) == ("failed", "absent")


@pytest.mark.parametrize("path", [MANIFEST, BLOB])
async def test_a_policy_that_denies_is_named(
    start: Start, upstream: FakeUpstream, access: dict[str, Any], lines: Lines, path: str
) -> None:
    upstream.add("library/app", IMAGE)
    policy = {"name": "none", "images": ["**"], "deny": True, "because": "SEC-9"}
    proxy = await start(access=access, policies=[policy])
    for _ in range(3):
        assert (await proxy.get(path)).status == 403
    await until(lambda: len(lines()) >= 3)
    assert [(line["outcome"], line["policy"]) for line in lines()] == [("denied", "none")] * 3
    assert "SEC-9" in lines()[0]["because"]
    assert lines()[0]["rule"].startswith("2: allow")


async def test_what_upstream_denies_is_no_decision_of_ours(
    proxy: Proxy, lines: Lines, upstream: FakeUpstream
) -> None:
    upstream.fail(status=403)
    assert (await proxy.get(f"{REPO}/manifests/other")).status == 403
    await until(lambda: len(lines()) == 1)
    assert (lines()[0]["outcome"], lines()[0].get("policy")) == ("failed", None)


async def test_a_client_that_must_log_in_is_challenged(proxy: Proxy, lines: Lines) -> None:
    assert (await proxy.get("/v2/acme/app/manifests/latest")).status == 401
    await until(lambda: len(lines()) == 1)
    [line] = lines()
    assert (line["event"], line["outcome"], line["status"]) == ("pull", "challenged", 401)


async def test_wrong_credentials_are_a_login_that_failed(proxy: Proxy, lines: Lines) -> None:
    assert (await proxy.get(MANIFEST, Authorization="Bearer wr0ng")).status == 401
    await until(lambda: len(lines()) == 1)
    [line] = lines()
    assert (line["event"], line["outcome"], line["status"]) == ("login", "denied", 401)
    assert line["because"] == "the token is unknown"
    assert "user" not in line


async def test_logins_at_the_token_endpoint(
    start: Start, access: dict[str, Any], lines: Lines, file: Path, tmp_path: Path
) -> None:
    users = write_users(tmp_path / "htpasswd", eve="c0rrect")
    proxy = await start(access=access | {"htpasswd_file": str(users)})
    scope = "/-/token?scope=repository:library/app:pull"
    assert (await proxy.get("/-/token")).status == 200, "anonymous"
    assert (await proxy.get("/-/token", Authorization=basic("eve", "c0rrect"))).status == 200
    assert (await proxy.get("/-/token", Authorization=basic("eve", "wr0ng"))).status == 401
    assert (await proxy.get(scope, Authorization=basic("adam", "hub-t0ken"))).status == 200
    await until(lambda: len(lines()) == 3)
    assert [line["event"] for line in lines()] == ["login"] * 3
    assert [line["outcome"] for line in lines()] == ["allowed", "denied", "denied"]
    assert (lines()[0]["user"], lines()[0]["method"]) == ("eve", "password")
    for secret in ("c0rrect", "wr0ng", "hub-t0ken"):
        assert secret not in file.read_text()


async def test_what_was_allowed_and_failed_says_so(
    proxy: Proxy, lines: Lines, upstream: FakeUpstream
) -> None:
    assert (await proxy.get(f"{REPO}/manifests/absent")).status == 404
    upstream.fail(status=500)
    assert (await proxy.get(f"{REPO}/manifests/other")).status == 502
    await until(lambda: len(lines()) == 2)
    assert [line["outcome"] for line in lines()] == ["failed", "failed"]
    assert [line["status"] for line in lines()] == [404, 502]


async def test_what_a_limit_refused_says_so(
    start: Start, access: dict[str, Any], lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_WAIT", 0.0)
    proxy = await start(access=access | {"limits": {"requests_per_second": 0.01}})
    await proxy.get("/v2/")
    assert (await proxy.get(f"{REPO}/tags/list")).status == 429
    await until(lambda: len(lines()) == 1)
    assert lines()[0]["outcome"] == "limited"


async def test_a_login_that_a_limit_refused_says_so(
    start: Start,
    access: dict[str, Any],
    lines: Lines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_WAIT", 0.0)
    users = write_users(tmp_path / "htpasswd", eve="c0rrect")
    few = {"htpasswd_file": str(users), "limits": {"requests_per_second": 0.01}}
    proxy = await start(access=access | few)
    for status in (200, 429):
        answer = await proxy.get("/-/token", Authorization=basic("eve", "c0rrect"))
        assert answer.status == status
    await until(lambda: len(lines()) == 2)
    assert [(line["event"], line["outcome"], line["status"]) for line in lines()] == [
        ("login", "allowed", 200),
        ("login", "limited", 429),
    ]
    assert lines()[1]["user"] == "eve"


async def test_what_operators_do_and_what_others_try(proxy: Proxy, lines: Lines) -> None:
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with ClientSession("http://millpond", connector=connector) as operator:
        for method, path in (("PUT", "/-/pins?pin=app"), ("POST", "/-/pins"), ("GET", "/-/pins")):
            async with operator.request(method, path) as answer:
                await answer.read()
    assert (await proxy.get("/-/pins")).status in (401, 403)
    await until(lambda: len(lines()) == 4)
    assert [line["event"] for line in lines()] == ["admin"] * 4
    assert [line["outcome"] for line in lines()] == ["allowed", "failed", "allowed", "denied"]
    assert [line["action"] for line in lines()] == [
        "PUT /-/pins", "POST /-/pins", "GET /-/pins", "GET /-/pins"
    ]  # fmt: skip
    assert lines()[0]["reference"] == "pin=app"
    assert lines()[0]["method"] == "socket"


@pytest.mark.parametrize("path", ["/-/stats", "/-/api/v1/stats"])
async def test_a_wrong_login_on_a_page_for_everybody_is_recorded(
    proxy: Proxy, lines: Lines, path: str
) -> None:
    assert (await proxy.get(path)).status == 200
    assert (await proxy.get(path, Authorization="Bearer wrong")).status == 200
    await until(lambda: len(lines()) == 1)
    line = lines()[0]
    assert (line["event"], line["outcome"], line["status"]) == ("login", "denied", 401)
    assert line["because"] == "the token is unknown"


async def test_no_secret_and_no_second_line_gets_in(proxy: Proxy, lines: Lines, file: Path) -> None:
    forged = '{"event":"pull","outcome":"allowed","user":"root"}'
    await proxy.get(MANIFEST, Authorization=f"Bearer {SECRET}", User_Agent=f"x\\n{forged}\u2028")
    await proxy.get(MANIFEST, Authorization="Basic ZXZlOndyMG5n")
    await proxy.get(f"{MANIFEST}?x=%0a{forged.replace(' ', '')}")
    await until(lambda: len(lines()) == 3)
    assert not any(line.get("user") == "root" for line in lines())
    written = file.read_text() + proxy.log.getvalue()
    for secret in (SECRET, "ZXZlOndyMG5n", "wr0ng"):
        assert secret not in written


def logged(proxy: Proxy, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, proxy.log.getvalue().splitlines())
    return [line for line in lines if line["event"] == event]


@pytest.mark.one_process
async def test_without_a_file_the_request_line_of_a_pull_is_its_audit_line(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await start(access={"rules": RULES}, identifier=Tokens())
    for _ in range(6):
        await proxy.get(MANIFEST, Authorization=f"Bearer {SECRET}", X_Request_Id="r1")
    await until(lambda: len(logged(proxy, "request")) == 6)
    assert await prepared(proxy) > 0
    recorded = {
        "audit": "pull",
        "user": "eve",
        "login": "token",
        "credential_id": "ci",
        "rule": "2: allow pull docker.io/library/** to everybody",
        "digest": IMAGE.digest,
        "request_id": "r1",
        "status": 200,
        "client": "127.0.0.1",
    }
    lines = logged(proxy, "request")
    assert [line | recorded for line in lines] == lines
    assert [line["outcome"] for line in lines] == ["miss", *["hit"] * 5]
    assert logged(proxy, "audit") == []


async def test_without_a_file_what_is_no_allowed_pull_has_a_line_of_its_own(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await start(access={"rules": RULES}, identifier=Tokens())
    for path in (BLOB, f"{REPO}/manifests/absent", "/v2/library/miner/manifests/latest"):
        await proxy.get(path, Authorization=f"Bearer {SECRET}")
    await proxy.head(MANIFEST)
    await until(lambda: len(logged(proxy, "request")) == 4)
    await until(lambda: len(logged(proxy, "audit")) == 2)
    assert [line["outcome"] for line in logged(proxy, "audit")] == ["failed", "denied"]
    assert not any("audit" in line for line in logged(proxy, "request"))


@pytest.mark.one_process
@pytest.mark.parametrize("level", ["warning", "error"])
async def test_without_request_lines_the_audit_lines_are_in_the_log_whatever_its_level(
    start: Start, upstream: FakeUpstream, level: str
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await start(access={"rules": RULES}, log={"level": level})
    for _ in range(4):
        await proxy.get(MANIFEST)
    await until(lambda: len(logged(proxy, "audit")) == 4)
    assert await prepared(proxy) > 0
    for line in logged(proxy, "audit"):
        assert (line["audit"], line["outcome"], line["digest"]) == ("pull", "allowed", IMAGE.digest)


async def test_pulls_have_audit_lines_while_request_lines_may_be_dropped(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await start(access={"rules": RULES})
    await proxy.get(MANIFEST)
    monkeypatch.setattr(RequestLog, "is_complete", False)
    for _ in range(4):
        await proxy.get(MANIFEST)
    await until(lambda: len(logged(proxy, "request")) == 5)
    await until(lambda: len(logged(proxy, "audit")) == 4)
    assert sum("audit" in line for line in logged(proxy, "request")) == 1


async def test_without_configured_access_there_is_no_audit_log(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await start()
    await proxy.get(MANIFEST)
    await proxy.close()
    assert '"audit"' not in proxy.log.getvalue()


async def test_everything_is_written_when_the_proxy_stops(
    proxy: Proxy, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_writer, "COLLECT_SECONDS", 60.0)
    for _ in range(20):
        await proxy.get(MANIFEST)
    await proxy.close()
    assert len(lines()) == 20


async def test_requests_wait_while_the_queue_is_nearly_full(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        await proxy.get(MANIFEST)
    monkeypatch.setattr(Audit, "is_nearly_full", True)
    room = asyncio.Event()
    monkeypatch.setattr(Audit, "wait_for_room", lambda _: room.wait())
    waiting = asyncio.create_task(proxy.get(MANIFEST))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    room.set()
    assert (await waiting).status == 200
