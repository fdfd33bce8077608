"""The command as a user meets it: a real process, its words and its exit status."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.cli.command import ROOT, refused, run


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "serve", "--listen", "127.0.0.1:0", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_version() -> None:
    assert re.fullmatch(r"millpond \d+\.\d+\.\d+\n", run("--version").stdout)


def test_serve_says_where_it_is_and_stops_cleanly(tmp_path: Path) -> None:
    with serving("--storage", str(tmp_path / "cache")) as (process, line):
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address is not None, line
        banner = line + "".join(process.stdout.readline() for _ in range(5))
        assert f"cache: {tmp_path}/cache, up to " in banner
        assert f'"registry-mirrors": ["{address[0]}"]' in banner
        with urlopen(address[0] + "/v2/") as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "Traceback" not in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_with_status_0(tmp_path: Path, number: signal.Signals) -> None:
    with serving("--storage", str(tmp_path)) as (process, _):
        process.send_signal(number)
        assert process.wait(60) == 0


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--listen", f"127.0.0.1:{port}", "--storage", str(tmp_path))
    refused(done, f"listen: 127.0.0.1:{port}", "in use", "--listen")


def test_a_directory_that_cannot_be_written() -> None:
    refused(run("serve", "--listen", "127.0.0.1:0", "--storage", "/proc/none"), "/proc/none")


def test_a_directory_in_use(tmp_path: Path) -> None:
    with serving("--storage", str(tmp_path)):
        done = run("serve", "--listen", "127.0.0.1:0", "--storage", str(tmp_path))
    refused(done, "in use by another Millpond")


def test_a_bad_setting(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("listen: 127.0.0.1:0\nofline: true\n")
    for command in ("serve", "check"):
        refused(run(command, "-c", str(file)), f"{file}:2: ofline", "did you mean offline?")


def test_a_certificate_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"listen: 127.0.0.1:0\nstorage: {{path: {tmp_path}/c}}\n"
        f"tls: {{cert_file: {file}, key_file: {file}}}\n"
    )
    refused(run("serve", "-c", str(file)), "tls:", "PEM")


def test_a_missing_authority_of_an_upstream(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"listen: 127.0.0.1:0\nstorage: {{path: {tmp_path}/c}}\n"
        "upstreams: {ghcr.io: {tls: {ca_file: /none.pem}}}\n"
    )
    refused(run("serve", "-c", str(file)), "upstreams.ghcr.io.tls")


def test_check_accepts_what_is_right(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"upstreams: {{lab: {{url: http://10.0.0.5:5000}}}}\nstorage: {{path: {tmp_path}/c}}\n"
    )
    done = run("check", "-c", str(file))
    assert (done.returncode, done.stdout) == (0, "ok: 8 upstreams, listening on 127.0.0.1:5000\n")


def test_the_environment_counts(tmp_path: Path) -> None:
    refused(run("check", MILLPOND_LISTEN="nowhere"), "MILLPOND_LISTEN: listen: not an address")
    refused(run("check", MILLPOND_CONFIG="/none.yaml"), "/none.yaml: cannot be read")
