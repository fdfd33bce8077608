"""Private images with the client's own login: the real program, real registries, real clients."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.access.people import basic, write_users
from tests.clients.conftest import USER
from tests.clients.test_login import get, token
from tests.parts import millpond, registry
from tests.parts.millpond import Millpond
from tests.parts.process import command, hermetic
from tests.parts.registry import Registry
from tests.parts.shelf import Shelf

CALLER = {"upstreams": {"docker.io": {"credentials": "caller"}}}
PASSWORD = USER["password"]


class Skopeo:
    """skopeo with logins of its own at the proxy."""

    def __init__(self, root: Path, proxy: Millpond) -> None:
        auth = str(root / "auth.json")
        self._root, self._proxy = root, proxy
        self._env = hermetic(root, REGISTRY_AUTH_FILE=auth, _CONTAINERS_ROOTLESS_UID="1")

    def run(self, *arguments: str, given: str = "") -> int:
        done = subprocess.run(
            [command("skopeo"), *arguments],
            env=self._env, input=given, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert PASSWORD not in done.stderr
        return done.returncode

    def log_in(self, password: str) -> int:
        login = ("login", "--tls-verify=false", "--username=alice", "--password-stdin")
        return self.run(*login, self._proxy.address, given=password)

    def log_out(self) -> int:
        return self.run("logout", self._proxy.address)

    def pull(self, reference: str, place: str) -> int:
        source = f"docker://{self._proxy.address}/{reference}"
        copy = ("--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", source)
        return self.run(*copy, f"dir:{self._root / place}")


@pytest.fixture(params=["bearer", "basic"])
def private(
    request: pytest.FixtureRequest, upstream: Registry, shelf: Shelf, tmp_path: Path
) -> Iterator[str]:
    """The URL of a registry with token authentication, and of one with htpasswd."""
    if request.param == "bearer":
        yield upstream.url
        return
    users = write_users(tmp_path / "htpasswd", alice=PASSWORD)
    with registry.with_htpasswd(upstream.storage, users) as url:
        yield url


def test_skopeo_pulls_with_its_own_login(private: str, shelf: Shelf, tmp_path: Path) -> None:
    with millpond.running(private, extra=CALLER) as proxy:
        skopeo, image = Skopeo(tmp_path, proxy), shelf.secret
        assert skopeo.pull(image.by_tag, "nobody") != 0
        assert skopeo.log_in("wrong") != 0
        assert skopeo.log_in(PASSWORD) == 0
        assert skopeo.pull(image.by_tag, "cold") == 0
        assert skopeo.pull(image.by_tag, "warm") == 0
        assert skopeo.log_out() == 0
        assert skopeo.pull(image.by_tag, "logged-out") != 0
        assert skopeo.pull(image.by_digest, "logged-out-too") != 0
        assert skopeo.log_in(PASSWORD) == 0
        proxy.restart()
        assert skopeo.pull(image.by_tag, "after-a-restart") == 0
        log = proxy.log()
        assert PASSWORD not in log
        assert basic("alice", PASSWORD)[6:] not in log
        for path in proxy.storage.rglob("*"):
            if path.is_file():
                assert PASSWORD.encode() not in path.read_bytes(), path
                assert basic("alice", PASSWORD)[6:].encode() not in path.read_bytes(), path


def test_a_mirror_serves_a_login_while_the_registry_is_down(
    upstream: Registry, shelf: Shelf
) -> None:
    """As containerd asks: the challenge, a token for the pull secret, the image."""
    image = shelf.secret
    with millpond.running(upstream.url, extra=CALLER) as proxy:
        path = f"/v2/{image.repository}/manifests/{image.tag}?ns=docker.io"
        status, challenge, _ = get(proxy.url + path)
        assert (status, "ns=docker.io" in challenge) == (401, True)
        alice = token(challenge, basic("alice", PASSWORD))
        assert get(proxy.url + path, alice)[0] == 200
        with upstream.outage():
            assert get(proxy.url + path, alice)[0] == 200
            assert get(proxy.url + path, token(challenge, basic("pusher", "secret")))[0] == 502
            assert get(proxy.url + path, token(challenge, None))[0] in (502, 401)
        _, _, body = get(proxy.url + path, token(challenge, basic("alice", "wrong")))
        assert json.loads(body)["errors"][0]["code"] == "DENIED"
