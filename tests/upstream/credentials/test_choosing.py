"""The settings of credentials, messages of `check`, and renewal after a 401."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.core.errors import ConfigError
from proxy.settings import Settings, Upstream
from proxy.upstream.credentials import renewing
from proxy.upstream.credentials.choosing import check_credentials
from tests.cli.command import run
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Start
from tests.upstream.credentials.programs import counting, runs

IMAGE = content.image(1)
ECR = "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com"


def upstream_with(credentials: object, url: str = "https://ghcr.io", **more: Any) -> Upstream:
    return Upstream.model_validate({"url": url, "credentials": credentials, **more})


@pytest.mark.parametrize(
    ("credentials", "more", "words"),
    [
        ({}, {}, "exactly one source"),
        ({"aws": {}, "google": {}}, {}, "exactly one source"),
        ({"aws": {}}, {"username": "a", "password": "b"}, "exclude each other"),
        ({"exec": {"command": []}}, {}, "names no program"),
        ("anybody", {}, "caller"),
        ({"exec": {"command": ["/bin/x"], "shell": True}}, {}, "shell"),
    ],
)
def test_settings_that_are_wrong(credentials: object, more: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        upstream_with(credentials, **more)


def test_settings_that_are_right() -> None:
    for credentials in ({"aws": {}}, {"google": {}}, {"azure": {}}, "caller"):
        found = upstream_with(credentials)
        assert not found.is_anonymous
        assert (found.caller_ttl, found.caller_stale) == (300, 3600)
    assert upstream_with(None).is_anonymous
    env = {"exec": {"command": ["x"], "env": {"TOKEN": "s3cret"}}}
    assert "s3cret" not in repr(upstream_with(env))


@pytest.mark.parametrize(
    ("credentials", "url", "words"),
    [
        ({"exec": {"command": ["/no/such"]}}, "https://ghcr.io", "/no/such is not a program"),
        ({"kubelet": {"name": "/etc/passwd"}}, "https://ghcr.io", "/etc/passwd is not a program"),
        (
            {"aws": {}},
            "https://ghcr.io",
            r"credentials\.aws: the host name ghcr\.io contains no region",
        ),
    ],
)
def test_what_does_not_work_on_this_machine(credentials: object, url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_credentials("x", upstream_with(credentials, url))


def test_what_works_on_this_machine() -> None:
    shell = shutil.which("sh")
    for credentials, url in (
        ({"exec": {"command": [shell]}}, "https://ghcr.io"),
        ({"kubelet": {"name": "sh"}}, "https://ghcr.io"),
        ({"aws": {}}, ECR),
        ({"aws": {"region": "eu-west-1"}}, "https://ecr.example.com"),
        ({"google": {}}, "https://gcr.io"),
        ({"azure": {}}, "https://acme.azurecr.io"),
        (None, "https://ghcr.io"),
    ):
        check_credentials("x", upstream_with(credentials, url))


@pytest.mark.parametrize("extra", ["aws", "google", "azure"])
def test_a_missing_library_is_one_clear_sentence(
    monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    for name in ("botocore.session", "google.auth.transport.requests", "azure.identity"):
        monkeypatch.setitem(sys.modules, name, None)
    expected = (
        f"upstreams.x.credentials.{extra}: the library for it is not installed; "
        f"install it with: pip install 'millpond[{extra}]'"
    )
    with pytest.raises(ConfigError) as caught:
        check_credentials("x", upstream_with({extra: {}}, ECR))
    assert str(caught.value) == expected


def test_check_and_serve_refuse_what_cannot_work(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    (tmp_path / "empty").touch()
    config.write_text(
        f"listen: 127.0.0.1:0\nstorage: {{path: {tmp_path}/cache}}\nupstreams:\n"
        f"  ghcr.io: {{credentials: {{docker_config: {tmp_path}/none}}}}\n"
        f"  gcr.io: {{credentials: {{google: {{key_file: {tmp_path}/empty}}}}}}\n"
        "  quay.io: {credentials: caller}\n"
    )
    words = (
        f"upstreams.ghcr.io.credentials.docker_config: {tmp_path}/none cannot be read",
        f"upstreams.gcr.io.credentials.google.key_file: {tmp_path}/empty is empty",
    )
    checked, served = (run(command, "--config", str(config)) for command in ("check", "serve"))
    assert (checked.returncode, served.returncode) == (2, 2)
    assert checked.stderr == served.stderr
    for word, line in zip(words, checked.stderr.splitlines(), strict=True):
        assert word in line


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
async def test_a_refused_login_is_renewed_once(
    start: Start,
    upstream: FakeUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: Any,
) -> None:
    monkeypatch.setattr(renewing, "MIN_LIFE", 0.0)
    upstream.auth.scheme = scheme
    upstream.auth.anonymous = False
    upstream.auth.users = {"alice": "first-word"}
    upstream.auth.expires_in = None
    upstream.add("library/app", IMAGE, tags=["a", "b", "c"])
    word = tmp_path / "word"
    word.write_text("first-word")
    body = f"print(json.dumps({{'Username': 'alice', 'Secret': open({str(word)!r}).read()}}))"
    file = counting(tmp_path / "helper", body)
    proxy = await start(hub={"credentials": {"exec": {"command": [str(file)]}}})
    assert (await proxy.get("/v2/app/manifests/a")).status == 200
    upstream.auth.users = {"alice": "second-word"}
    upstream.revoke_tokens()
    word.write_text("second-word")
    assert (await proxy.get("/v2/app/manifests/b")).status == 200
    assert len(runs(file)) == 2
    upstream.auth.users = {"alice": "third-word"}
    upstream.revoke_tokens()
    assert (await proxy.get("/v2/app/manifests/c")).status == 502
    assert len(runs(file)) == 3, "once, not for ever"
    assert "second-word" not in proxy.log.getvalue()


def test_settings_load_from_yaml() -> None:
    document = {"upstreams": {"ghcr.io": {"credentials": {"aws": {}}, "max_bandwidth": "100MB/s"}}}
    found = Settings.model_validate(json.loads(json.dumps(document))).upstreams["ghcr.io"]
    assert found.max_bandwidth == 100_000_000
