"""Real clients before a proxy with access configured: they log in, pull, and are refused."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.access.people import basic, write_token, write_users
from tests.clients.conftest import USER
from tests.parts import cri, helm, millpond
from tests.parts import issuer as issuers
from tests.parts.client import LoginClient, PullError
from tests.parts.clients import Clients
from tests.parts.containerd import HOSTS, Containerd
from tests.parts.docker import Docker
from tests.parts.millpond import Millpond
from tests.parts.podman import Podman
from tests.parts.process import free_port, wait_until
from tests.parts.push import Pusher, sha256
from tests.parts.registry import Registry
from tests.parts.shelf import Shelf
from tests.parts.skopeo import Skopeo

WITH_LOGIN = ("docker", "podman", "skopeo")
BY_PATH = (*WITH_LOGIN, "containerd")
HUB = "https://index.docker.io/v1/"
BECAUSE = "SEC-12"
SERVED = ("manifest", 200)


@dataclass(frozen=True)
class Guarded:
    """A proxy in which anybody pulls `tiny`, those who log in `tool`, and nobody `app`."""

    proxy: Millpond
    logins: dict[str, tuple[str, str]]
    users: dict[str, str]

    @property
    def address(self) -> str:
        return self.proxy.address

    def pullers(self) -> set[str | None]:
        """Return the users who got manifests so far, None for anonymous clients.

        Not from the audit log: it has GET alone, and Docker sends HEAD if it has the manifest.
        """
        lines = self.proxy.events("request")
        served = [line for line in lines if (line.get("kind"), line["status"]) == SERVED]
        return {line.get("user") for line in served}


@pytest.fixture(scope="module")
def guarded(
    upstream: Registry, shelf: Shelf, port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("access")
    users, tokens = folder / "htpasswd", folder / "tokens"
    write_users(users, ann="secret", bob="geheim")
    with issuers.running() as issuer:
        logins = {
            "password": ("ann", "secret"),
            "token": ("robot", write_token(tokens, "robot", "dev")),
            "id-token": ("job", issuer.id_token(repository="acme/app")),
        }
        access = {
            "htpasswd_file": str(users),
            "tokens_file": str(tokens),
            "oidc": [
                {"issuer": issuer.url, "audience": "millpond", "user": "ci:{repository}"},
            ],
            "rules": [
                {"deny": "pull", "images": [shelf.app.repository], "because": BECAUSE},
                {"allow": "pull", "images": [shelf.tiny.repository]},
                {
                    "allow": "pull",
                    "images": ["org/**", "ghcr.io/org/**"],
                    "to": ["user:ann", "group:dev", "user:ci:acme/*"],
                },
            ],
        }
        extra = {"access": access, "upstreams": {"ghcr.io": {"url": upstream.url}}}
        with millpond.running(upstream.url, port, extra) as proxy:
            named = {"password": "ann", "token": "robot", "id-token": "ci:acme/app"}
            yield Guarded(proxy, logins, named)


@pytest.fixture
def client(clients: Clients, request: pytest.FixtureRequest) -> Iterator[LoginClient]:
    client = clients[request.param]
    assert isinstance(client, Docker | Containerd | Podman | Skopeo)
    yield client
    client.log_out()


@pytest.fixture
def containerd(clients: Clients) -> Iterator[Containerd]:
    client = clients["containerd"]
    assert isinstance(client, Containerd)
    yield client
    client.reset()


def refusal(pull: Callable[[str], str], image: str) -> str:
    """Return what a client says when it may not pull an image."""
    with pytest.raises(PullError) as caught:
        pull(image)
    return str(caught.value)


# --- by path ---------------------------------------------------------------------------------


@pytest.mark.parametrize("client", BY_PATH, indirect=True)
def test_each_kind_of_login_pulls_by_path(
    client: LoginClient, guarded: Guarded, shelf: Shelf
) -> None:
    tool, app = (f"{guarded.address}/{image.by_tag}" for image in (shelf.tool, shelf.app))
    refusal(client.pull_by_path, tool)
    for kind, (user, password) in guarded.logins.items():
        client.log_in(guarded.address, user, password)
        client.forget()
        assert client.pull_by_path(tool) == shelf.tool.digest
        said = refusal(client.pull_by_path, app)
        if client.name != "containerd":  # it shows the status only
            assert BECAUSE in said
        client.log_out()
        wait_until(lambda user=guarded.users[kind]: user in guarded.pullers(), "the request log")


@pytest.mark.parametrize("client", WITH_LOGIN, indirect=True)
def test_a_login_with_a_wrong_password_fails(client: LoginClient, guarded: Guarded) -> None:
    for user, password in (("bob", "wrong"), ("nobody", "secret"), ("robot", "mp_wrong")):
        with pytest.raises(PullError):
            client.log_in(guarded.address, user, password)


@pytest.mark.parametrize("client", BY_PATH, indirect=True)
def test_anonymous_clients_pull_what_everybody_may(
    client: LoginClient, guarded: Guarded, shelf: Shelf
) -> None:
    tiny, tool, app = (
        f"{guarded.address}/{image.by_tag}" for image in (shelf.tiny, shelf.tool, shelf.app)
    )
    assert client.pull_by_path(tiny) == shelf.tiny.digest
    assert BECAUSE not in refusal(client.pull_by_path, tool), "a login may help"
    is_shown = not isinstance(client, Containerd)
    assert (BECAUSE in refusal(client.pull_by_path, app)) is is_shown


# --- as a mirror -----------------------------------------------------------------------------


def test_docker_sends_a_mirror_its_docker_hub_login_only(
    docker: Docker, guarded: Guarded, shelf: Shelf
) -> None:
    docker.log_in_unchecked(guarded.address, "ann", "secret")
    assert "registry-1.docker.io" in refusal(docker.pull, shelf.tool.by_tag)
    docker.log_in_unchecked(HUB, "ann", "secret")
    assert docker.pull(shelf.tool.by_tag) == shelf.tool.digest
    docker.log_out()


def test_docker_with_any_docker_hub_login_pulls_what_everybody_may(
    docker: Docker, guarded: Guarded, shelf: Shelf
) -> None:
    docker.log_in_unchecked(HUB, "hubuser", "hubpassword")
    assert docker.pull(shelf.tiny.by_tag) == shelf.tiny.digest
    said = refusal(docker.pull, shelf.app.by_tag)
    assert "registry-1.docker.io" in said, "it goes to Docker Hub itself"
    assert BECAUSE not in said
    docker.log_out()


def test_docker_build_sends_a_mirror_its_own_login(
    docker: Docker, guarded: Guarded, shelf: Shelf, tmp_path: Path
) -> None:
    """The BuildKit in dockerd takes the mirror of daemon.json, and the login of that host."""
    (tmp_path / "Dockerfile").write_text(f"FROM {shelf.tool.by_tag}\nLABEL made=here\n")
    docker.log_in_unchecked(HUB, "ann", "secret")
    refusal(lambda _: docker.build(tmp_path), "")
    docker.log_in(guarded.address, "ann", "secret")
    docker.build(tmp_path)
    (tmp_path / "Dockerfile").write_text(f"FROM {guarded.address}/{shelf.tool.by_tag}\n")
    docker.build(tmp_path)
    docker.log_out()


def test_podman_sends_a_mirror_its_own_login(
    podman: Podman, guarded: Guarded, shelf: Shelf
) -> None:
    podman.log_in(guarded.address, "ann", "secret")
    assert podman.pull(shelf.tool.by_tag) == shelf.tool.digest
    assert BECAUSE in refusal(podman.pull, shelf.app.by_tag)
    podman.log_in_unchecked("docker.io", "ann", "secret")
    podman.forget()
    refusal(podman.pull, shelf.tool.by_tag)
    podman.log_in_unchecked(guarded.address, "ann", "wrong")
    assert podman.pull(shelf.tiny.by_tag) == shelf.tiny.digest
    podman.log_out()


def test_containerd_sends_a_mirror_its_login_after_a_challenge(
    containerd: Containerd, guarded: Guarded, shelf: Shelf
) -> None:
    refusal(containerd.pull, shelf.tool.by_tag)
    for user, password in guarded.logins.values():
        containerd.log_in("", user, password)
        containerd.forget()
        assert containerd.pull(shelf.tool.by_tag) == shelf.tool.digest
    containerd.log_in("", "ann", "wrong")
    assert containerd.pull(shelf.tiny.by_tag) == shelf.tiny.digest
    refusal(containerd.pull, shelf.tool.by_tag)


def test_a_token_is_for_the_registry_that_is_mirrored(
    containerd: Containerd, guarded: Guarded, shelf: Shelf
) -> None:
    """The scope of a token request names no registry, and the token endpoint is asked without ns."""
    containerd.configure("ghcr.io", HOSTS.format(mirror=guarded.address))
    containerd.log_in("", "ann", "secret")
    assert containerd.pull_full(f"ghcr.io/{shelf.tool.by_tag}") == shelf.tool.digest


def test_containerd_sends_the_header_in_hosts_toml(
    containerd: Containerd, guarded: Guarded, shelf: Shelf
) -> None:
    """Basic, without a challenge before it."""
    user, password = guarded.logins["token"]
    containerd.configure("docker.io", with_header(guarded.proxy.url, basic(user, password)))
    assert containerd.pull(shelf.tool.by_tag) == shelf.tool.digest
    containerd.configure("docker.io", with_header(guarded.proxy.url, basic(user, "wrong")))
    containerd.forget()
    refusal(containerd.pull, shelf.tool.by_tag)


def with_header(mirror: str, authorization: str) -> str:
    return f"""
server = "{mirror}"
[host."{mirror}"]
  capabilities = ["pull", "resolve"]
  [host."{mirror}".header]
    Authorization = "{authorization}"
"""


def test_a_pull_secret_reaches_the_mirror(guarded: Guarded, shelf: Shelf) -> None:
    """The kubelet sends it without the address of a server; with one, the mirror gets nothing."""
    tiny, tool = (f"docker.io/{image.by_tag}" for image in (shelf.tiny, shelf.tool))
    with cri.running(guarded.address) as kubelet:
        kubelet.pull(tiny, "hubuser", "hubpassword")
        with pytest.raises(PullError):
            kubelet.pull(tool, "hubuser", "hubpassword")
        with pytest.raises(PullError):
            kubelet.pull(tool, "ann", "secret", "https://index.docker.io/v1/")
        for user, password in guarded.logins.values():
            kubelet.pull(tool, user, password)
            kubelet.remove(tool)


def test_a_pull_secret_is_the_login_for_a_registry_that_is_asked_as_its_clients(
    upstream: Registry, shelf: Shelf
) -> None:
    secret = f"docker.io/{shelf.secret.by_tag}"
    right = (USER["username"], USER["password"])
    extra = {"upstreams": {"docker.io": {"credentials": "caller"}}}
    with (
        millpond.running(upstream.url, free_port(), extra) as proxy,
        cri.running(proxy.address) as kubelet,
    ):
        for given in ((), (right[0], "wrong"), (*right, HUB)):
            with pytest.raises(PullError):
                kubelet.pull(secret, *given)
        for _ in range(2):
            kubelet.pull(secret, *right)
            kubelet.remove(secret)
        with pytest.raises(PullError):
            kubelet.pull(secret, right[0], "wrong")
        kubelet.pull(f"docker.io/{shelf.tiny.by_tag}")

        def outcomes() -> set[str]:
            lines = proxy.events("request")
            return {line["outcome"] for line in lines if line.get("status") == 200}

        wait_until(lambda: outcomes() >= {"hit", "miss"}, "request lines of the second pull")
        assert right[1] not in proxy.log()


# --- charts ----------------------------------------------------------------------------------


def test_helm_logs_in_and_pulls_a_chart(guarded: Guarded, upstream: Registry) -> None:
    digest = helm.push_chart(Pusher(upstream), "org/charts/ripple", "1.0.0")
    chart = f"oci://{guarded.address}/org/charts/ripple"
    pull = ("pull", chart, "--version", "1.0.0", "--plain-http", "--destination")
    login = ("registry", "login", guarded.address, "--plain-http", "--password-stdin", "--username")
    with helm.running() as client:
        with pytest.raises(PullError):
            client.run(*pull, str(client.root))
        with pytest.raises(PullError):
            client.run(*login, "ann", given="wrong")
        for kind, (user, password) in guarded.logins.items():
            client.run(*login, user, given=password)
            folder = client.root / kind
            folder.mkdir()
            client.run(*pull, str(folder))
            [packed] = folder.iterdir()
            assert sha256(packed.read_bytes()) == digest
            client.run("registry", "logout", guarded.address)
        with pytest.raises(PullError):
            client.run(*pull, str(client.root))
