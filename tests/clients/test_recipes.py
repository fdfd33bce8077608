"""The recipes of ``docs/access.md``, with real clients. Only hosts, networks and paths are replaced."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import pytest
import yaml
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from tests.access.people import basic
from tests.clients.conftest import BOT, COMPANY
from tests.fakes import tls
from tests.parts import docker as docker_part
from tests.parts import issuer as issuers
from tests.parts import millpond
from tests.parts.client import PullError
from tests.parts.clients import Clients
from tests.parts.containerd import Containerd
from tests.parts.docker import Docker
from tests.parts.images import OCI, Image
from tests.parts.issuer import Issuer
from tests.parts.process import command, free_port, hermetic, wait_until
from tests.parts.push import Pusher, Recipe, push_image, random_layer
from tests.parts.registry import Registry
from tests.parts.shelf import Shelf
from tests.parts.skopeo import Skopeo

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "access.md").read_text()
HOST = "cache.acme.example"
NODES = "10.20.0.0/16"
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"


def blocks(heading: str) -> list[str]:
    """Return the code blocks of a recipe."""
    _, found, rest = PAGE.partition(f"\n### {heading}\n")
    assert found, f"docs/access.md has no recipe {heading!r}"
    section = re.split(r"^##", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^```\w+\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def filled(block: str, places: dict[str, object]) -> str:
    """Return a block with each of these places replaced; all of them must be there."""
    for old, new in places.items():
        assert old in block, f"{old!r} is not in the recipe:\n{block}"
        block = block.replace(old, str(new))
    return block


def settings(block: str, places: dict[str, object], upstreams: dict[str, str]) -> dict[str, Any]:
    """Return the settings of a recipe, with the URLs of registries replaced."""
    document: dict[str, Any] = yaml.safe_load(filled(block, places))
    urls = {"upstreams": {name: {"url": url} for name, url in upstreams.items()}}
    return millpond.merged(document, urls)


def refused(pull: Callable[[str], str], image: str) -> None:
    with pytest.raises(PullError):
        pull(image)


def shell(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [command("bash"), "-e", "-c", script],
        cwd=folder, env=hermetic(folder) | environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def app(upstream: Registry) -> Image:
    """An image that only the accounts of the company may pull."""
    recipe = Recipe(OCI, [random_layer("recipes", 2000)])
    return push_image(Pusher(upstream), COMPANY, "1.0", recipe)


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(BOT["acme-bot"])
    return file


@pytest.fixture
def containerd(clients: Clients) -> Iterator[Containerd]:
    client = clients["containerd"]
    assert isinstance(client, Containerd)
    yield client
    client.reset()


# --- GitHub Actions --------------------------------------------------------------------------


@dataclass
class Runner:
    """What a job of GitHub Actions has: a URL and a secret, with which it gets an ID token."""

    issuer: Issuer
    claims: dict[str, str] = field(default_factory=dict)

    def environment(self, port: int) -> dict[str, str]:
        return {
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"http://127.0.0.1:{port}/token?api-version=2.0",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-runner",
        }

    @contextmanager
    def running(self) -> Iterator[dict[str, str]]:
        """Serve the URL; give the variables of the job."""
        runner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.headers["Authorization"] == "bearer of-the-runner"
                [audience] = parse_qs(urlsplit(self.path).query)["audience"]
                token = runner.issuer.id_token(audience, **runner.claims)
                body = json.dumps({"count": len(token), "value": token}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
                """Stay silent."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            yield self.environment(server.server_address[1])
            server.shutdown()


def test_jobs_of_github_actions(
    docker: Docker, upstream: Registry, app: Image, password: Path, tmp_path: Path
) -> None:
    config, workflow = blocks("A team with GitHub Actions")
    job = yaml.safe_load(workflow)["jobs"]["test"]
    assert job["permissions"]["id-token"] == "write"
    login, pull = (step["run"] for step in job["steps"])
    ours = {"repository": "acme/app", "repository_owner_id": "1234567"}
    with issuers.running() as issuer:
        places: dict[str, object] = {
            "https://token.actions.githubusercontent.com": issuer.url,
            "/etc/millpond/ghcr-token": password,
        }
        extra = settings(config, places, {"ghcr.io": upstream.url})
        runner = Runner(issuer)
        with millpond.running(upstream.url, 0, extra) as proxy, runner.running() as variables:

            def step(script: str, **claims: str) -> subprocess.CompletedProcess[str]:
                runner.claims = claims
                script = filled(script, {HOST: proxy.address})
                return shell(script, tmp_path, **docker.env | variables)

            assert step(pull).returncode != 0
            for claims in (ours | {"repository_owner_id": "7"}, {"repository": "acme/app"}):
                assert step(login, **claims).returncode != 0
            assert step(login, **ours | {"repository": "other/app"}).returncode == 0
            assert step(pull).returncode != 0
            for script in (login, pull):
                done = step(script, **ours)
                assert done.returncode == 0, done
            assert app.digest in done.stdout
    docker.log_out()


# --- networks --------------------------------------------------------------------------------


@pytest.fixture(params=[NODES, "10.30.0.0/16", None], ids=["nodes", "office", "elsewhere"])
def here(
    upstream: Registry, port: int, password: Path, request: pytest.FixtureRequest
) -> Iterator[str]:
    """The recipe runs, with this machine in the network that is given; None: in none."""
    config, daemon = blocks("Mirrors of Docker Hub by network")
    assert json.loads(daemon).keys() < docker_part.settings(Path(), Path(), "x").keys()
    places: dict[str, object] = {"/etc/millpond/hub-token": password}
    if request.param is not None:
        places[request.param] = "127.0.0.0/8"
    with millpond.running(upstream.url, port, settings(config, places, {})):
        yield request.node.callspec.id


def test_mirrors_of_docker_hub_by_network(
    docker: Docker, here: str, app: Image, shelf: Shelf
) -> None:
    may = {"nodes": [shelf.tiny, app], "office": [shelf.tiny], "elsewhere": []}[here]
    for image in (shelf.tiny, app):
        if image in may:
            assert docker.pull(image.by_tag) == image.digest
        else:
            refused(docker.pull, image.by_tag)


# --- Amazon ECR ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def amazon() -> Iterator[tuple[str, ...]]:
    """An Amazon of our own; gives a command that starts a program with its variables."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
    }
    yield ("env", *(f"{name}={value}" for name, value in variables.items()))
    server.stop()


def test_a_cluster_pulls_from_ecr(
    containerd: Containerd, upstream: Registry, app: Image, amazon: tuple[str, ...]
) -> None:
    config, hosts = blocks("Amazon ECR for a cluster")
    extra = settings(config, {NODES: "127.0.0.0/8"}, {ECR: upstream.url})
    extra["upstreams"][ECR]["credentials"]["aws"] = {"region": "eu-west-1"}  # the URL names it
    before = upstream.tokens.mark()
    with millpond.running(upstream.url, 0, extra, amazon) as proxy:
        containerd.configure(ECR, filled(hosts, {f"https://{HOST}": proxy.url}))
        assert containerd.pull_full(f"{ECR}/{app.by_tag}") == app.digest
    assert "AWS" in {request.user for request in upstream.tokens.since(before)}


# --- passwords and tokens --------------------------------------------------------------------


def test_a_small_team(
    docker: Docker, upstream: Registry, app: Image, password: Path, tmp_path: Path
) -> None:
    config, commands, pulls = blocks("Passwords and tokens for a small team")
    places: dict[str, object] = {
        "/etc/millpond/htpasswd": tmp_path / "htpasswd",
        "/etc/millpond/tokens.yaml": tmp_path / "tokens.yaml",
        "/etc/millpond/ghcr-token": password,
    }
    extra = settings(config, places, {"ghcr.io": upstream.url})
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(extra))
    printed = [_millpond(line, file, given="secret") for line in commands.splitlines()]
    token = printed[-1].split()[-1]
    with millpond.running(upstream.url, 0, extra) as proxy:
        image = f"{proxy.address}/ghcr.io/{app.by_tag}"
        refused(docker.pull, image)
        by_hand = {"--username ann": "--username ann --password-stdin <<< secret"}
        done = shell(filled(pulls, {HOST: proxy.address, **by_hand}), tmp_path, **docker.env)
        assert done.returncode == 0, done
        for user, secret in (("bob", "secret"), ("build", token)):
            docker.forget()
            docker.log_in(proxy.address, user, secret)
            assert docker.pull(image) == app.digest
        docker.log_out()
        statuses = [_status(f"{proxy.url}/-/pins", user) for user in ("ann", "bob")]
        assert statuses == [200, 403]


def _millpond(line: str, config: Path, given: str) -> str:
    """Run a line with the command `millpond`; return what it prints."""
    program, *words = shlex.split(line)
    assert program == "millpond"
    done = subprocess.run(
        [sys.executable, "-m", "proxy", *words],
        cwd=ROOT, env=os.environ | {"MILLPOND_CONFIG": str(config)}, input=given,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    return done.stdout


def _status(url: str, user: str) -> int:
    try:
        asked = Request(url, headers={"Authorization": basic(user, "secret")})
        with urlopen(asked, timeout=30) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


# --- the login of each client ----------------------------------------------------------------


def test_private_images_for_those_who_may_pull_them(
    docker: Docker, upstream: Registry, app: Image, tmp_path: Path
) -> None:
    """A user of the registry pulls, and another client does not, although the image is cached."""
    config, pulls = blocks("Private images for those who may pull them")
    host = f"private.{HOST}"
    extra = settings(config, {host: "localhost"}, {"registry.acme.example": upstream.url})
    with millpond.running(upstream.url, 0, extra) as proxy:
        address = f"localhost:{proxy.address.rpartition(':')[2]}"
        image = f"{address}/{app.by_tag}"
        refused(docker.pull, image)
        login = f"--username acme-bot --password-stdin <<< {BOT['acme-bot']}"
        script = filled(pulls, {host: address, "--username ann": login})
        before = upstream.tokens.mark()
        done = shell(script, tmp_path, **docker.env)
        assert done.returncode == 0, done
        assert "acme-bot" in {request.user for request in upstream.tokens.since(before)}
        with upstream.outage():
            assert docker.pull(image) == app.digest
        docker.log_out()
        refused(docker.pull, image)
        with pytest.raises(PullError):
            docker.log_in(address, "acme-bot", "wrong")


# --- certificates ----------------------------------------------------------------------------


@pytest.fixture
def address() -> Iterator[str]:
    """An address of this machine that is not loopback: for dockerd, loopback is insecure."""
    name, found = f"mpd{os.getpid()}", f"198.18.{os.getpid() % 250}.9"

    def ip(words: str) -> None:
        subprocess.run([command("ip"), *words.split()], check=True, capture_output=True)

    ip(f"link add {name} type veth peer name {name}p")
    try:
        ip(f"addr add {found}/32 dev {name}")
        ip(f"link set {name} up")
        yield found
    finally:
        ip(f"link del {name}")


def test_docker_sends_a_mirror_its_certificate(
    upstream: Registry, shelf: Shelf, address: str, tmp_path: Path
) -> None:
    commands, config, _ = blocks("Client certificates for nodes")
    assert shell(commands, tmp_path).returncode == 0
    server = tmp_path / "server"
    server.mkdir()
    tls.certificate(server, (address, "127.0.0.1"))
    places: dict[str, object] = {
        "/etc/millpond/tls/fullchain.pem": server / "authority.pem",
        "/etc/millpond/tls/key.pem": server / "key.pem",
        "/etc/millpond/clients.pem": tmp_path / "clients.pem",
    }
    port = free_port()
    listening = settings(config, places, {}) | {"listen": f"0.0.0.0:{port}"}
    with millpond.running(upstream.url, port, listening) as proxy:
        mirror = f"{address}:{port}"
        node = tmp_path / "certs.d" / mirror
        node.mkdir(parents=True)
        shutil.copy(server / "authority.pem", node / "ca.crt")
        with docker_part.running(f"https://{mirror}", tmp_path / "certs.d") as stranger:
            refused(stranger.pull, shelf.tiny.by_tag)
        for name in ("client.cert", "client.key"):
            shutil.copy(tmp_path / name, node)
        with docker_part.running(f"https://{mirror}", tmp_path / "certs.d") as known:
            assert known.pull(shelf.tiny.by_tag) == shelf.tiny.digest

        def served() -> list[dict[str, Any]]:
            return [line for line in proxy.events("request") if line["status"] == 200]

        wait_until(lambda: bool(served()), "request lines, which are written a little later")
        assert {line.get("user") for line in served()} == {"node1"}


def test_nodes_with_certificates(
    containerd: Containerd, skopeo: Skopeo, upstream: Registry, shelf: Shelf, tmp_path: Path
) -> None:
    commands, config, hosts = blocks("Client certificates for nodes")
    node, server = tmp_path / "node", tmp_path / "server"
    for folder in (node, server):
        folder.mkdir()
    made = shell(commands, tmp_path)
    assert made.returncode == 0, made
    tls.certificate(server)
    places: dict[str, object] = {
        "/etc/millpond/tls/fullchain.pem": server / "authority.pem",
        "/etc/millpond/tls/key.pem": server / "key.pem",
        "/etc/millpond/clients.pem": tmp_path / "clients.pem",
    }
    for name in ("client.cert", "client.key"):
        shutil.copy(tmp_path / name, node)
    for folder in (node, server):
        shutil.copy(server / "authority.pem", folder / "ca.crt")
    with millpond.running(upstream.url, 0, settings(config, places, {})) as proxy:
        tiny = f"{proxy.address}/{shelf.tiny.by_tag}"
        options = (f"--src-cert-dir={server}", f"--src-cert-dir={node}")
        refused(lambda image: skopeo.pull_by_path(image, options[0]), tiny)
        assert skopeo.pull_by_path(tiny, options[1]) == shelf.tiny.digest
        trusting = filled(hosts, {
            "https://registry-1.docker.io": proxy.url,
            f"https://{HOST}": proxy.url,
            "/etc/millpond-node": node,
        }) + f'  ca = "{server / "authority.pem"}"\n'  # fmt: skip
        containerd.configure("docker.io", re.sub(r"  client = .*\n", "", trusting))
        refused(containerd.pull, shelf.tiny.by_tag)
        containerd.configure("docker.io", trusting)
        assert containerd.pull(shelf.tiny.by_tag) == shelf.tiny.digest
