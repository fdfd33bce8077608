"""``millpond doctor`` as a process: its output, its exit status, and a running server."""

import json
from pathlib import Path

import pytest
import yaml

from tests.app.doctor.checking import OTHERS
from tests.cli.command import beside, refused, run
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.parts.process import free_port
from tests.running import Proxy

SECRET = "a-secret-of-alice"


def config(folder: Path, url: str, listen: str = "127.0.0.1:0", **hub: object) -> str:
    file = folder / "config.yaml"
    document = {
        "listen": listen,
        "storage": {"path": str(folder / "cache")},
        "upstreams": {"docker.io": {"url": url, **hub}, **OTHERS},
        "patience": {"retries": 0},
    }
    file.write_text(yaml.safe_dump(document))
    return str(file)


async def test_all_is_well(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.add("library/app", content.image(1))
    done = await beside(
        "doctor", "docker.io", "--image", "app", "--config", config(tmp_path, upstream.url)
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "docker.io"
    assert "  ok       /v2/             /v2/ answers 200: no login is needed for it" in lines
    assert not any("to do:" in line for line in lines)


async def test_a_failure_says_what_to_do(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.users = {"alice": "another"}
    file = config(tmp_path, upstream.url, username="alice", password=SECRET)
    done = await beside("doctor", "--config", file)
    assert (done.returncode, done.stderr) == (1, "")
    [at] = [at for at, line in enumerate(done.stdout.splitlines()) if "failed   login" in line]
    assert "to do: correct the credentials" in done.stdout.splitlines()[at + 1]
    told = json.loads((await beside("doctor", "--json", "--config", file)).stdout)
    assert told["ok"] is False
    [login] = [one for one in told["checks"] if one["check"] == "login"]
    assert set(login) == {"subject", "check", "status", "detail", "remedy", "seconds"}
    assert (login["subject"], login["status"]) == ("docker.io", "failed")
    assert SECRET not in done.stdout + json.dumps(told)


async def test_the_server_may_be_running(
    tmp_path: Path, proxy: Proxy, upstream: FakeUpstream
) -> None:
    assert proxy.app.address is not None
    file = config(tmp_path, upstream.url, proxy.app.address)
    done = await beside("doctor", "--json", "--config", file)
    [port] = [one for one in json.loads(done.stdout)["checks"] if one["check"] == "port"]
    assert (port["status"], done.returncode) == ("ok", 0)
    assert f"answers at {proxy.app.address}" in port["detail"]


def test_flags_are_those_of_serve(tmp_path: Path) -> None:
    port = free_port()
    done = run(
        *("doctor", "--json", "--offline", "--config", config(tmp_path, "http://127.0.0.1:1")),
        *("--listen", f"127.0.0.1:{port}", "--storage", str(tmp_path / "elsewhere")),
    )
    found = {one["check"]: one for one in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0
    assert f"127.0.0.1:{port} is free" in found["port"]["detail"]
    assert f"{tmp_path}/elsewhere is not there yet" in found["permissions"]["detail"]
    assert "offline: true" in found["dns"]["detail"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), ("nowhere: not a configured upstream", "docker.io")),
        (("--image", "elsewhere.example/app"), ("not a configured upstream",)),
        (("--image", "sha256:" + "0" * 64), ("name the repository too",)),
        (("--listen", "here"), ("--listen", "not an address")),
    ],
)
def test_what_is_wrong_with_the_settings_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    file = config(tmp_path, "http://127.0.0.1:1")
    refused(run("doctor", *arguments, "--config", file), *words)
