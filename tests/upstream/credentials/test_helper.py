"""A real program that speaks the protocol of Docker's credential helpers."""

import json
from pathlib import Path

import pytest

from proxy.core.errors import CredentialsRejected
from proxy.upstream.credentials import Credential
from proxy.upstream.credentials.helper import ask_helper
from proxy.upstream.credentials.program import Program
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Start
from tests.upstream.credentials.programs import counting, runs, written

IMAGE = content.image(1)


@pytest.mark.parametrize(
    ("answer", "life"),
    [
        ({"ServerURL": "x", "Username": "alice", "Secret": "w"}, None),
        ({"username": "alice", "password": "w"}, None),
        ({"username": "alice", "password": "w", "expires_in": 90}, 90.0),
        ({"username": "alice", "password": "w", "expires_in": "soon"}, None),
    ],
)
async def test_the_forms_of_an_answer(
    tmp_path: Path, answer: dict[str, object], life: float | None
) -> None:
    file = counting(tmp_path / "helper", f"print({json.dumps(answer)!r})")
    issued = await ask_helper(Program((str(file), "get"), {}), "ghcr.io")
    assert issued == (Credential("alice", "w"), life)
    assert [json.loads(line) for line in runs(file)] == [[["get"], "ghcr.io\n"]]


async def test_a_helper_that_knows_no_credential(tmp_path: Path) -> None:
    body = "print('credentials not found in native keychain'); sys.exit(1)"
    file = written(tmp_path / "helper", body)
    assert await ask_helper(Program((str(file),), {}), "ghcr.io") == (None, None)


async def test_a_helper_that_succeeds_must_print_a_login(tmp_path: Path) -> None:
    file = written(tmp_path / "helper", "print('credentials not found in native keychain')")
    with pytest.raises(CredentialsRejected, match="prints no JSON object"):
        await ask_helper(Program((str(file),), {}), "ghcr.io")


@pytest.mark.parametrize(
    "answer",
    [{"Username": "a"}, {"Username": "a", "Secret": ""}, {"Username": 1, "Secret": "w"}, {"a": 1}],
)
async def test_an_answer_without_a_login(tmp_path: Path, answer: dict[str, object]) -> None:
    file = written(tmp_path / "helper", f"print({json.dumps(answer)!r})")
    with pytest.raises(CredentialsRejected, match="prints no user name with a password"):
        await ask_helper(Program((str(file),), {}), "ghcr.io")


async def test_a_proxy_asks_its_program_once_and_shows_no_secret(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.auth.scheme = "basic"
    upstream.auth.anonymous = False
    upstream.auth.users = {"alice": "wonderland"}
    upstream.add("library/app", IMAGE, tags=["a", "b"])
    body = "print(json.dumps({'Username': 'alice', 'Secret': os.environ['WORD']}))"
    file = counting(tmp_path / "helper", body)
    source = {"command": [str(file), "get"], "env": {"WORD": "wonderland"}}
    proxy = await start(hub={"credentials": {"exec": source}})
    for tag in "ab":
        assert (await proxy.get(f"/v2/app/manifests/{tag}")).status == 200
    assert [json.loads(line) for line in runs(file)] == [[["get"], f"{upstream.host}\n"]]
    stats = json.loads((await proxy.get("/-/stats")).body)
    state = stats["upstreams"]["docker.io"]["credentials"]
    assert state["kind"] == "exec"
    assert 500 < state["expires_in_seconds"] <= 600
    metrics = (await proxy.get("/metrics")).body.decode()
    assert 'millpond_upstream_credentials_expire_seconds{upstream="docker.io"} ' in metrics
    assert "wonderland" not in proxy.log.getvalue() + str(stats) + metrics


async def test_a_helper_that_fails_is_the_operators_fault(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.auth.scheme = "basic"
    upstream.auth.anonymous = False
    upstream.add("library/app", IMAGE)
    file = counting(tmp_path / "helper", "print('wonderland'); sys.exit(1)")
    proxy = await start(hub={"credentials": {"exec": {"command": [str(file)]}}})
    for _ in range(3):
        answer = await proxy.get("/v2/app/manifests/latest")
        assert answer.status == 502
        assert b"ends with status 1" in answer.body
    assert len(runs(file)) == 1
    assert "wonderland" not in proxy.log.getvalue()
