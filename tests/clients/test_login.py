"""The real program with access configured: challenge, login, pull and rules, with real clients."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.access.people import basic, bearer, write_token, write_users
from tests.cli.command import run
from tests.parts import issuer as issuers
from tests.parts import millpond
from tests.parts.millpond import Millpond
from tests.parts.process import command, hermetic, wait_until
from tests.parts.registry import Registry
from tests.parts.shelf import Shelf


@pytest.fixture
def access(tmp_path: Path) -> dict[str, Any]:
    write_users(tmp_path / "htpasswd", ann="secret", bob="geheim")
    return {
        "htpasswd_file": str(tmp_path / "htpasswd"),
        "tokens_file": str(tmp_path / "tokens"),
        "rules": [
            {"allow": "pull", "images": ["**"], "to": ["user:ann", "group:dev", "user:ci:acme/*"]}
        ],
    }


@pytest.fixture
def robot(access: dict[str, Any]) -> str:
    return write_token(Path(access["tokens_file"]), "robot", "dev")


@pytest.fixture
def guarded(upstream: Registry, access: dict[str, Any], robot: str) -> Iterator[Millpond]:
    with millpond.running(upstream.url, extra={"access": access}) as running:
        yield running
        assert robot not in running.log()


def get(url: str, authorization: str | None = None) -> tuple[int, str, bytes]:
    """Return status, challenge and body."""
    headers = {} if authorization is None else {"Authorization": authorization}
    try:
        with urlopen(Request(url, headers=headers), timeout=30) as answer:
            return answer.status, "", answer.read()
    except HTTPError as error:
        return error.code, error.headers.get("WWW-Authenticate", ""), error.read()


def token(challenge: str, authorization: str | None) -> str:
    """Follow a challenge, as clients do."""
    found = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    joint = "&" if "?" in found["realm"] else "?"
    scope = f"&scope={found['scope']}" if "scope" in found else ""
    status, _, body = get(
        f"{found['realm']}{joint}service={found['service']}{scope}", authorization
    )
    assert status == 200, body
    made: str = json.loads(body)["token"]
    return bearer(made)


def test_challenge_token_pull_and_rules(
    guarded: Millpond, shelf: Shelf, access: dict[str, Any], robot: str
) -> None:
    image = shelf.tiny
    url = f"{guarded.url}/v2/{image.repository}/manifests/{image.tag}"
    status, challenge, _ = get(f"{guarded.url}/v2/")
    assert status == 401
    assert challenge.startswith("Bearer ")
    status, challenge, _ = get(url)
    assert status == 401
    for sent in (basic("ann", "secret"), basic("any", robot)):
        assert get(url, token(challenge, sent))[0] == 200
        assert get(url, sent)[0] == 200
        assert get(f"{guarded.url}/v2/", token(challenge, sent))[0] == 200
    assert get(url, token(challenge, basic("bob", "geheim")))[0] == 403
    for nobody in (None, basic("ann", "wrong"), "Basic Og=="):
        assert get(url, token(challenge, nobody))[0] == 401
    good = token(challenge, basic("any", robot))
    assert get(url, good)[0] == 200
    done = run("token", "revoke", "robot", "--file", access["tokens_file"])
    assert done.returncode == 0, done
    wait_until(lambda: get(url, good)[0] == 401, "the revoked token to be refused")


def test_keys_outlive_a_restart(guarded: Millpond, shelf: Shelf) -> None:
    image = shelf.tiny
    url = f"{guarded.url}/v2/{image.repository}/manifests/{image.tag}"
    good = token(get(url)[1], basic("ann", "secret"))
    guarded.restart()
    assert get(url, good)[0] == 200
    assert (guarded.storage / "token-keys.json").stat().st_mode & 0o777 == 0o600


def test_skopeo_logs_in_and_pulls(
    upstream: Registry, shelf: Shelf, access: dict[str, Any], robot: str, tmp_path: Path
) -> None:
    """As a user, with an access token, and with an ID token of a real issuer."""
    image = shelf.tiny
    with issuers.running() as issuer:
        access["oidc"] = [{"issuer": issuer.url, "audience": "millpond", "user": "ci:{repository}"}]
        logins = {
            "ann": "secret",
            "any": robot,
            "job": issuer.id_token(repository="acme/app"),
        }
        with millpond.running(upstream.url, extra={"access": access}) as running:
            auth = tmp_path / "auth.json"
            env = hermetic(tmp_path, REGISTRY_AUTH_FILE=str(auth), _CONTAINERS_ROOTLESS_UID="1")

            def skopeo(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
                return subprocess.run(
                    [command("skopeo"), *arguments],
                    env=env, input=given, capture_output=True, text=True, timeout=60, check=False,
                )  # fmt: skip

            source = f"docker://{running.address}/{image.repository}:{image.tag}"
            for user, password in logins.items():
                login = ("login", "--tls-verify=false", f"--username={user}", "--password-stdin")
                assert skopeo(*login, running.address, given="wrong").returncode != 0
                done = skopeo(*login, running.address, given=password)
                assert done.returncode == 0, done
                copy = ("--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", source)
                copied = skopeo(*copy, f"dir:{tmp_path / user}")
                assert copied.returncode == 0, copied
                assert skopeo("logout", running.address).returncode == 0
                assert skopeo(*copy, f"dir:{tmp_path / 'nobody'}").returncode != 0
