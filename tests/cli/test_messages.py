"""Error messages of the command name the cause, in one line."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.cli import progress
from proxy.cli.progress import EventLines
from proxy.core.errors import ConfigError
from proxy.storage.directory import Directory
from tests.cli.command import ROOT, beside, refused, run
from tests.fakes.admin import FakeAdmin
from tests.fakes.tls import certificate

HEAVY = {"aiohttp", "pydantic", "uvloop", "yaml", "structlog", "prometheus_client", "diskcache", "aiocache"}  # fmt: skip


# Certificates


async def test_t70_a_certificate_that_is_not_trusted_is_named(tmp_path: Path) -> None:
    made = certificate(tmp_path)
    fake = FakeAdmin({"GET /-/pins": {"pins": [], "bytes": 0, "limit_bytes": 1}})
    async with fake.over_tcp(made.server):
        done = await beside("pins", "--server", fake.url)
        refused(done, fake.url, "certificate is not trusted", "--ca-file FILE")
        assert "Operation not permitted" not in done.stderr
        done = await beside(
            "pins", "--json", "--server", fake.url, "--ca-file", str(made.authority)
        )
        assert done.returncode == 0, done
        plain = await beside("pins", "--server", fake.url.replace("https", "http"))
        refused(plain, fake.url.removeprefix("https"))
    async with FakeAdmin({}).over_tcp() as plain_server:
        done = await beside("pins", "--server", plain_server.url.replace("http", "https"))
        refused(done, "TLS fails")


def test_an_authority_that_cannot_be_read(tmp_path: Path) -> None:
    server = ("pins", "--server", "https://127.0.0.1:9", "--ca-file")
    refused(run(*server, "/none"), "--ca-file: /none cannot be read: No such file")
    (tmp_path / "none.pem").write_text("nothing")
    refused(run(*server, str(tmp_path / "none.pem")), "holds no PEM certificate")
    refused(run("pins", "--ca-file", "/none"), "--ca-file: goes with --server only")


# Usage


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bogus"], "No such command 'bogus'; see millpond --help"),
        (["evct"], "Did you mean 'evict'"),
        (["evict"], "Missing argument 'SIZE'; see millpond evict --help"),
        (["serve", "--bogus"], "No such option: --bogus"),
        (["ls", "--config"], "--config"),
        (["in-use", "/"], "/: cannot be read: Is a directory"),
        (["check", "--config", "/"], "/: cannot be read: Is a directory"),
    ],
)
def test_t70_wrong_usage_is_one_line(arguments: list[str], says: str) -> None:
    refused(run(*arguments), says)


def test_without_arguments_there_is_help() -> None:
    done = run()
    assert done.returncode == 2
    assert "verify" in done.stdout + done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith("millpond:")]


# The environment


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"MILLPOND_STORAGE__MAX_SIZE": "abc"}, "MILLPOND_STORAGE__MAX_SIZE: storage.max_size: "),
        ({"MILLPOND_PINS": "nginx"}, "MILLPOND_PINS: not JSON"),
        ({"MILLPOND_PINS": '["a", 3]'}, "MILLPOND_PINS: pins.1: "),
        ({"MILLPOND_UPSTREAMS": '{"x": {"url": 1}}'}, "MILLPOND_UPSTREAMS: upstreams.x.url: "),
        ({"MILLPOND_STORAGE__HIGH_MARK": "0.1"}, "MILLPOND_STORAGE__HIGH_MARK: storage: low_mark"),
        (
            {"MILLPOND_DEFAULT_UPSTREAM": "no"},
            "MILLPOND_DEFAULT_UPSTREAM: default_upstream: 'no' is",
        ),
        ({"MILLPOND_TLS__CERT_FILE": "/x"}, "MILLPOND_TLS__CERT_FILE: tls.key_file: must be set"),
        (
            {"MILLPOND_UPSTREAMS__LAB__URL": "lab"},
            "MILLPOND_UPSTREAMS__LAB__URL: upstreams.lab.url",
        ),
    ],
)
def test_t70_a_wrong_variable_is_named(variables: dict[str, str], says: str) -> None:
    refused(run("check", **variables), f"millpond: {says}")


# A full disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_t70_a_full_disk_is_called_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(ConfigError, match="the disk is full; make room") as raised:
        Directory(tmp_path)
    assert "may write" not in str(raised.value)


# The first second


@pytest.mark.parametrize("module", ["typer", "rich", "aiohttp", "uvloop", "proxy.app"])
def test_t70_ctrl_c_while_modules_are_imported_has_no_traceback(
    tmp_path: Path, module: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    arguments = ["-h"] if module == "rich" else ["ls", "--storage", str(tmp_path)]
    done = run(*arguments, PYTHONPATH=path)
    assert done.returncode in (-signal.SIGINT, 128 + signal.SIGINT), done
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("arguments", [["-h"], ["--version"], ["verify", "--help"], ["bogus"]])
def test_t70_help_imports_nothing_that_takes_long(arguments: list[str]) -> None:
    script = (
        "import sys, json\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "from proxy.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    imported = set(json.loads(done.stderr.splitlines()[-1]))
    assert "proxy.cli" in imported
    if arguments[0] not in ("-h", "--version"):
        imported.discard("pydantic")  # Typer itself checks a command's arguments with it
    assert not imported & HEAVY
    assert not {name for name in imported if name.startswith("proxy.app")}


def test_a_start_imports_nothing_that_only_other_settings_need(tmp_path: Path) -> None:
    script = (
        "import sys, json, asyncio\n"
        "asyncio.Runner.run = lambda _, work: work.close()\n"
        f"sys.argv[1:] = ['serve', '--storage', {str(tmp_path)!r}]\n"
        "from proxy.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    imported = set(json.loads(done.stderr.splitlines()[-1]))
    assert {"proxy.app.serving", "structlog", "aiohttp"} <= imported
    assert not imported & {"rich", "jwt", "cryptography", "bcrypt", "botocore", "google", "azure"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    done = run("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0, done
    assert "_MILLPOND_COMPLETE" in done.stdout
    variables = {
        "_MILLPOND_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "millpond ver",
        "COMP_CWORD": "1",
    }
    fish = {"_TYPER_COMPLETE_ARGS": "millpond ver", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert "verify" in run(**variables, **fish).stdout


# Progress


def test_t70_progress_is_told_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    lines = EventLines()
    lines.show(b"start", {"event": "start"})
    for half in range(4 * 60 * 2):  # four minutes of two events a second
        now = 1000.0 + half / 2
        lines.show(b"progress", {"event": "progress"})
    lines.show(b"done", {"event": "done"})
    assert capsys.readouterr().out.split() == ["start", *["progress"] * 3, "done"]


async def test_json_on_a_terminal_is_asked_for(tmp_path: Path) -> None:
    done_event = {"event": "done", "blobs": 0, "bytes": 0, "bad": 0, "repaired": 0}
    fake = FakeAdmin({"POST /-/verify": [done_event]})
    async with fake.on_socket(tmp_path / "admin.sock"), asyncio.timeout(30):
        done = await beside("verify", "--json", "--storage", str(tmp_path))
    assert json.loads(done.stdout) == done_event
