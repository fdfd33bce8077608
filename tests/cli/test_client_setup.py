"""`millpond client`: which Millpond the files are for, and what is written where."""

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.access.people import write_users
from tests.cli.command import beside, on_terminal, refused, run
from tests.fakes.tls import certificate
from tests.running import Proxy, Start

DAEMON = Path("etc/docker/daemon.json")


def config(folder: Path, **settings: Any) -> str:
    file = folder / "config.yaml"
    file.write_text(json.dumps(settings))
    return str(file)


def test_the_settings_say_address_and_registries(tmp_path: Path) -> None:
    file = config(tmp_path, listen="0.0.0.0:5001", upstreams={"lab": {"url": "http://10.0.0.5"}})
    done = run("client", "containerd", "--config", file)
    assert done.returncode == 0, done
    assert '[host."http://127.0.0.1:5001"]' in done.stdout
    assert "# /etc/containerd/certs.d/lab/hosts.toml" in done.stdout
    assert "systemctl restart containerd" in done.stdout


def test_one_registry_may_be_named(tmp_path: Path) -> None:
    file = config(tmp_path)
    done = run("client", "k3s", "--config", file, "--upstream", "ghcr.io", "--json")
    document = json.loads(done.stdout)
    [written] = document["files"]
    assert written["path"] == "/etc/rancher/k3s/registries.yaml"
    assert "ghcr.io" in written["content"]
    assert "quay.io" not in written["content"]
    assert document["commands"] == ["systemctl restart k3s"]
    refused(run("client", "k3s", "--config", file, "--upstream", "nope"), "--upstream", "nope")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mosaic",), ("mosaic",)),
        (("docker", "--address", "cache.example"), ("--address", "https://")),
        (("docker", "--address", "http://a/b"), ("--address", "only")),
        (("docker", "--user", "ann"), ("--password-file",)),
        (("docker", "--address", "http://127.0.0.1:9"), ("refused", "--upstream")),
        (("docker", "--ca-file", "/dev/null"), ("--ca-file", "certificate")),
        (("kaniko", "--check"), ("kaniko", "container")),
        (("helm", "--check"), ("--image",)),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(run("client", *arguments), *words)


def test_a_certificate_has_a_name_that_only_the_operator_knows(tmp_path: Path) -> None:
    tls = {"cert_file": "/nowhere/cert.pem", "key_file": "/nowhere/key.pem"}
    file = config(tmp_path, listen="0.0.0.0:443", tls=tls)
    refused(run("client", "docker", "--config", file), "--address")
    address = ("--address", "https://cache.example")
    done = run("client", "docker", "--config", file, *address)
    assert "https://cache.example" in done.stdout


async def test_an_address_is_asked_for_its_registries_and_a_login(
    start: Start, tmp_path: Path
) -> None:
    users = tmp_path / "htpasswd"
    write_users(users, ann="secret")
    access = {"htpasswd_file": str(users), "anonymous": False}
    proxy = await start(access=access, upstreams={"lab": {"url": "http://10.0.0.5"}})
    address = ("--address", f"http://{proxy.app.address}")
    done = await beside("client", "podman", *address)
    assert done.returncode == 0, done
    assert f'location = "{proxy.app.address}/lab"' in done.stdout
    assert f"podman login --tls-verify=false {proxy.app.address}" in done.stdout
    refused(await beside("client", "podman", *address, "--upstream", "nope"), "nope", "lab")


async def test_an_address_that_asks_for_no_login(proxy: Proxy) -> None:
    done = await beside("client", "podman", "--address", f"http://{proxy.app.address}")
    assert "login" not in done.stdout


@pytest.mark.parametrize("name", ["../../../root/x", 'a"]\nserver = "b', "", "a/b"])
async def test_a_server_cannot_choose_what_is_written(tmp_path: Path, name: str) -> None:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.json_response({"upstreams": {name: {}}})

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = ("--address", f"http://127.0.0.1:{runner.addresses[0][1]}")
        root = ("--write", "--yes", "--root", str(tmp_path))
        refused(await beside("client", "containerd", *address, *root), "not a host name")
    finally:
        await runner.cleanup()
    assert not [*tmp_path.iterdir()]


def test_an_authority_and_a_login_are_written_and_the_login_is_not_shown(tmp_path: Path) -> None:
    certificate(tmp_path)
    secret = tmp_path / "password"
    secret.write_text("mp_secret\n")
    root = tmp_path / "root"
    root.mkdir()
    words = ("client", "k3s", "--config", config(tmp_path), "--address", "https://cache.example")
    words += ("--user", "ci", "--password-file", str(secret))
    words += ("--ca-file", str(tmp_path / "authority.pem"))
    shown = run(*words)
    assert "-----BEGIN CERTIFICATE-----" in shown.stdout
    done = run(*words, "--write", "--yes", "--root", str(root))
    assert done.returncode == 0, done
    for output in (shown, done):
        assert "mp_secret" not in output.stdout + output.stderr
    file = root / "etc/rancher/k3s/registries.yaml"
    assert "mp_secret" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    authority = (root / "etc/rancher/k3s/millpond-ca.crt").read_text()
    assert authority == (tmp_path / "authority.pem").read_text()


def test_a_file_is_merged_after_a_diff_and_kept(tmp_path: Path) -> None:
    place = tmp_path / DAEMON
    place.parent.mkdir(parents=True)
    place.write_text('{\n    "dns": ["10.0.0.1"]\n}\n')
    words = ("client", "docker", "--config", config(tmp_path), "--write", "--root", str(tmp_path))
    done = run(*words, "--yes")
    assert done.returncode == 0, done
    assert '+    "registry-mirrors": [' in done.stdout
    assert json.loads(place.read_text())["dns"] == ["10.0.0.1"]
    [backup] = place.parent.glob("daemon.json.bak-*")
    assert backup.read_text() == '{\n    "dns": ["10.0.0.1"]\n}\n'
    again = run(*words, "--yes")
    assert (again.returncode, again.stdout) == (0, "nothing to change\n")
    assert len(list(place.parent.iterdir())) == 2


def test_a_file_that_cannot_be_parsed_stays(tmp_path: Path) -> None:
    place = tmp_path / DAEMON
    place.parent.mkdir(parents=True)
    place.write_text('{\n  "dns" = 1\n}\n')
    words = ("client", "docker", "--config", config(tmp_path), "--write", "--root", str(tmp_path))
    refused(run(*words, "--yes"), str(place), "line 2, column 9")
    assert [each.name for each in place.parent.iterdir()] == ["daemon.json"]


def test_without_a_terminal_nothing_is_written_unasked(tmp_path: Path) -> None:
    words = ("client", "docker", "--config", config(tmp_path), "--write", "--root", str(tmp_path))
    done = run(*words)
    assert done.returncode != 0
    assert not (tmp_path / DAEMON).exists()


@pytest.mark.parametrize("answer", ["y", "n"])
async def test_a_person_is_asked(tmp_path: Path, answer: str) -> None:
    words = ("client", "docker", "--config", config(tmp_path), "--write", "--root", str(tmp_path))
    async with on_terminal(*words) as terminal:
        await terminal.shows("Write these files?")
        assert not (tmp_path / DAEMON).exists()
        terminal.type(f"{answer}\n")
    assert (tmp_path / DAEMON).exists() == (answer == "y")
    assert terminal.process.returncode == (0 if answer == "y" else 1)
