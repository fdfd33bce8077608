"""Docker's config.json: keys in their order, helpers, and files that change or are broken."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from proxy.core.errors import CredentialsRejected
from proxy.upstream.credentials import Credential, renewing
from proxy.upstream.credentials.docker_config import HUB, DockerConfig
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Start
from tests.upstream.credentials.programs import counting, runs, written

IMAGE = content.image(1)


def auth(user: str, password: str = "w") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def config(tmp_path: Path, document: object, url: str = "https://ghcr.io") -> DockerConfig:
    file = tmp_path / "config.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return DockerConfig(file, URL(url))


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory in which programs are found by their names."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (["ghcr.io", "ghcr.io/org", "ghcr.io/org/app", "ghcr.io/org/app/x"], "ghcr.io/org/app"),
        (["ghcr.io", "ghcr.io/org", "ghcr.io/orga"], "ghcr.io/org"),
        (["ghcr.io", "ghcr.io/other", "quay.io"], "ghcr.io"),
        (["https://ghcr.io", "https://ghcr.io/v1/"], "https://ghcr.io"),
        (["https://ghcr.io/v1/"], "https://ghcr.io/v1/"),
        (["quay.io", HUB, "ghcr.io:5000"], None),
    ],
)
async def test_the_most_specific_key_decides(
    tmp_path: Path, keys: list[str], chosen: str | None
) -> None:
    source = config(tmp_path, {"auths": {key: auth(key.replace(":", "")) for key in keys}})
    expected = None if chosen is None else Credential(chosen.replace(":", ""), "w")
    assert await source.get("org/app") == expected


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        ([HUB, "docker.io"], HUB),
        ([HUB, "docker.io/library"], "docker.io/library"),
        (["index.docker.io"], "index.docker.io"),
        (["registry-1.docker.io"], "registry-1.docker.io"),
    ],
)
async def test_docker_hub_has_its_own_key(tmp_path: Path, keys: list[str], chosen: str) -> None:
    document = {"auths": {key: auth(key.replace(":", "")) for key in keys}}
    source = config(tmp_path, document, "https://registry-1.docker.io")
    assert await source.get("library/nginx") == Credential(chosen.replace(":", ""), "w")


async def test_a_port_and_a_path_of_the_registry_count(tmp_path: Path) -> None:
    document = {"auths": {"lab:5000/base/app": auth("path"), "lab:5000": auth("host")}}
    source = config(tmp_path, document, "https://lab:5000/base")
    assert await source.get("app") == Credential("path", "w")
    assert await source.get("other") == Credential("host", "w")
    assert await source.get("") == Credential("host", "w")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (auth("alice", "a:b\0\0"), Credential("alice", "a:b")),
        ({"username": "alice", "password": "w"}, Credential("alice", "w")),
        ({**auth("alice"), "identitytoken": "refresh"}, Credential("<token>", "refresh")),
        ({"auth": "", "identitytoken": "refresh"}, Credential("<token>", "refresh")),
    ],
)
async def test_the_forms_of_an_entry(
    tmp_path: Path, entry: dict[str, str], expected: Credential
) -> None:
    assert await config(tmp_path, {"auths": {"ghcr.io": entry}}).get("app") == expected


@pytest.mark.parametrize(
    "entry", [{"auth": "?"}, {"auth": "YWxpY2U="}, {"email": "a@b"}, ["x"], {"auth": "/////w=="}]
)
async def test_an_entry_without_a_login(tmp_path: Path, entry: object) -> None:
    with pytest.raises(CredentialsRejected, match=r"the entry for ghcr\.io needs a login"):
        await config(tmp_path, {"auths": {"ghcr.io": entry}}).get("app")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"auths": "s3cret"'])
async def test_a_broken_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(CredentialsRejected, match="is not a JSON object") as caught:
        await config(tmp_path, text).get("app")
    assert "s3cret" not in caught.value.message


async def test_sections_of_another_kind_are_empty(tmp_path: Path) -> None:
    document = {"auths": [], "credHelpers": 3, "credsStore": ["x"]}
    assert await config(tmp_path, document).get("app") is None


async def test_a_file_that_is_missing_or_changes(tmp_path: Path) -> None:
    source = config(tmp_path, {})
    file = tmp_path / "config.json"
    assert await source.get("app") is None
    file.write_text(json.dumps({"auths": {"ghcr.io": auth("alice")}}))
    assert await source.get("app") == Credential("alice", "w")
    file.unlink()
    with pytest.raises(CredentialsRejected, match="cannot be read"):
        await source.get("app")


def helper(folder: Path, name: str, answers: dict[str, Any]) -> Path:
    """Write a helper that knows the servers of `answers`."""
    body = f"""
found = {answers!r}.get(sent.strip())
if found is None:
    print('credentials not found in native keychain')
    sys.exit(1)
print(json.dumps(found))"""
    return counting(folder / f"docker-credential-{name}", body)


async def test_helpers_are_asked_before_the_file(tmp_path: Path, helpers: Path) -> None:
    one = helper(helpers, "one", {"ghcr.io": {"Username": "one", "Secret": "w"}})
    store = helper(helpers, "store", {HUB: {"Username": "<token>", "Secret": "refresh"}})
    document = {
        "credHelpers": {"ghcr.io": "one"},
        "credsStore": "store",
        "auths": {"ghcr.io": auth("file"), HUB: auth("file"), "quay.io": auth("file")},
    }
    for _ in range(2):
        assert await config(tmp_path, document).get("org/app") == Credential("one", "w")
    hub = config(tmp_path, document, "https://registry-1.docker.io")
    for repository in ("library/nginx", "library/app", ""):
        found = await hub.get(repository)
        assert found is not None
        assert (found.is_identity_token, found.password) == (True, "refresh")
    quay = config(tmp_path, document, "https://quay.io")
    assert await quay.get("app") == Credential("file", "w"), "the helper does not know it"
    assert [json.loads(line) for line in runs(one)] == [[["get"], "ghcr.io\n"]] * 2
    assert [json.loads(line) for line in runs(store)] == [
        [["get"], f"{HUB}\n"],
        [["get"], "quay.io\n"],
    ]


async def test_a_helper_is_asked_again_after_its_login_was_refused(
    tmp_path: Path, helpers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewing, "MIN_LIFE", 0.0)
    source = config(tmp_path, {"credHelpers": {"ghcr.io": "one"}})
    helper(helpers, "one", {"ghcr.io": {"Username": "old", "Secret": "w"}})
    old = await source.get("app")
    assert old == Credential("old", "w")
    one = helper(helpers, "one", {"ghcr.io": {"Username": "new", "Secret": "w"}})
    assert await source.renew("app", Credential("another", "w")) == old
    assert len(runs(one)) == 1
    assert await source.renew("app", old) == Credential("new", "w")
    assert len(runs(one)) == 2


async def test_a_helper_that_fails_does_not_fall_back_to_the_file(
    tmp_path: Path, helpers: Path
) -> None:
    written(helpers / "docker-credential-bad", "print('s3cret'); sys.exit(1)")
    document = {"credHelpers": {"ghcr.io": "bad"}, "auths": {"ghcr.io": auth("file")}}
    with pytest.raises(CredentialsRejected, match="docker-credential-bad ends with status 1"):
        await config(tmp_path, document).get("app")


@pytest.mark.parametrize("name", ["missing", "../evil", ""])
async def test_a_helper_that_is_not_installed(tmp_path: Path, helpers: Path, name: str) -> None:
    written(tmp_path / "evil", "print('{}')")
    source = config(tmp_path, {"credHelpers": {"ghcr.io": name}})
    if name != "missing":
        assert await source.get("app") is None, "not a name"
        return
    with pytest.raises(CredentialsRejected, match="docker-credential-missing cannot be run"):
        await source.get("app")


async def test_a_proxy_sends_each_repository_its_login(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.users = {"alice": "w", "bob": "w"}
    upstream.auth.private = {"team/a": {"alice"}, "team/b": {"bob"}}
    upstream.add("team/a", IMAGE)
    upstream.add("team/b", IMAGE)
    file = tmp_path / "config.json"
    logins = {f"{upstream.host}/team/a": auth("alice"), upstream.host: auth("bob")}
    file.write_text(json.dumps({"auths": logins}))
    proxy = await start(hub={"credentials": {"docker_config": str(file)}})
    assert (await proxy.get("/v2/team/a/manifests/latest")).status == 200
    assert (await proxy.get("/v2/team/b/manifests/latest")).status == 200


async def test_an_identity_token_is_exchanged_at_the_token_server(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.anonymous = False
    upstream.auth.identity_tokens = {"refresh-me-0123": "alice"}
    upstream.auth.private = {"library/app": {"alice"}}
    upstream.add("library/app", IMAGE)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"auths": {upstream.host: {"identitytoken": "refresh-me-0123"}}}))
    proxy = await start(hub={"credentials": {"docker_config": str(file)}})
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200
    [asked] = upstream.token_requests
    assert asked.method == "POST"
    assert dict(asked.form) == {
        "grant_type": "refresh_token",
        "refresh_token": "refresh-me-0123",
        "service": "fake.registry",
        "scope": "repository:library/app:pull",
        "client_id": "millpond",
    }
    assert "Authorization" not in asked.headers
    assert "refresh-me" not in proxy.log.getvalue()


async def test_an_identity_token_is_no_password(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.auth.scheme = "basic"
    upstream.auth.anonymous = False
    upstream.add("library/app", IMAGE)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"auths": {upstream.host: {"identitytoken": "refresh-me-0123"}}}))
    proxy = await start(hub={"credentials": {"docker_config": str(file)}})
    answer = await proxy.get("/v2/app/manifests/latest")
    assert answer.status == 502
    assert b"accepts only passwords" in answer.body
    assert all("Authorization" not in request.headers for request in upstream.requests)
