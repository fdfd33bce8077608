"""``check`` refuses the same settings as ``serve``, with the same messages, and changes nothing."""

import json
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

import pytest

from proxy.app.validation import validate_writable
from proxy.core.errors import ConfigError
from proxy.services.bundle.signatures import write_key
from proxy.settings import Settings
from tests.cli.command import ROOT, refused, run
from tests.cli.test_serving import serving
from tests.fakes.tls import certificate

FAULTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a pin that is no name": ('pins: ["Not a name"]', ("pins", "not a repository name")),
    "a pin of another registry": ("pins: [example.com/a]", ("pins", "not a configured upstream")),
    "a size without a unit": ("storage: {path: TMP/c, max_size: 1}", ("storage.max_size", "50GiB")),
    "an empty path": ('storage: {path: ""}', ("storage.path", "not an absolute path")),
    "a relative path": ("storage: {path: cache}", ("storage.path", "not an absolute path")),
    "a path below a file": ("storage: {path: TMP/file/c}", ("TMP/file", "not a directory")),
    "marks": ("storage: {low_mark: 0.9, high_mark: 0.5}", ("low_mark is above high_mark",)),
    "no certificate": ("tls: {cert_file: TMP/no, key_file: TMP/no}", ("tls", "TMP/no")),
    "a certificate that is none": ("tls: {cert_file: TMP/file, key_file: TMP/file}", ("tls", "PEM")),
    "no authority": ("upstreams: {ghcr.io: {tls: {ca_file: TMP/no}}}", ("upstreams.ghcr.io.tls",)),
    "no password": ("upstreams: {ghcr.io: {username: a, password_file: TMP/no}}", ("upstreams.ghcr.io.password_file", "TMP/no cannot be read: No such file")),
    "an empty password": ("upstreams: {ghcr.io: {username: a, password_file: TMP/empty}}", ("password_file", "is empty")),
    "no token": ("admin: {token_file: TMP/no}", ("admin.token_file", "TMP/no cannot be read")),
    "an address elsewhere": ("listen: 192.0.2.1:5000", ("listen: 192.0.2.1:5000", "cannot be listened on")),
    "a fallback that is a file": ("fallback: [TMP/file]", ("fallback: TMP/file is not a directory",)),
    "a relative fallback": ("fallback: [mnt/usb]", ("fallback", "not an absolute path")),
    "an audit log without a directory": ("access: {audit_file: TMP/no/a}", ("access.audit_file: TMP/no is not a directory",)),
    "an audit log that is a directory": ("access: {audit_file: TMP}", ("access.audit_file: TMP is not a regular file",)),
    "no secret of a bucket": ("storage: {bucket: {url: s3://cache, access_key_id: a, secret_access_key_file: TMP/no}}", ("storage.bucket.secret_access_key_file: TMP/no cannot be read",)),
    "an empty secret of a bucket": ("storage: {bucket: {url: s3://cache, access_key_id: a, secret_access_key_file: TMP/empty}}", ("storage.bucket.secret_access_key_file: TMP/empty is empty",)),
    "a bucket that is none": ("storage: {bucket: {url: https://cache.example}}", ("storage.bucket.url", "s3://bucket/prefix")),
    "a key of Google that is none": ("storage: {bucket: {url: gs://cache, secret_access_key_file: TMP/file}}", ("storage.bucket: ", "service account file")),
    "a token that is binary": ("admin: {token_file: TMP/binary}", ("admin.token_file", "not UTF-8")),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("listen: 127.0.0.1:0\n")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    return tmp_path


def written(place: Path, text: str) -> str:
    file = place / "config.yaml"
    text = text.replace("TMP", str(place))
    if "path:" not in text:
        text += f"\nstorage: {{path: {place}/cache}}" if "storage:" not in text else ""
    text = text if "listen:" in text else f"listen: 127.0.0.1:0\n{text}"
    file.write_text(f"{text}\n")
    return str(file)


@pytest.mark.parametrize("fault", FAULTS)
def test_t69_check_refuses_what_serve_refuses(place: Path, fault: str) -> None:
    text, words = FAULTS[fault]
    config = written(place, text)
    before = sorted(place.rglob("*"))
    said = [word.replace("TMP", str(place)) for word in words]
    checked = run("check", "--config", config)
    refused(checked, *said)
    assert sorted(place.rglob("*")) == before
    served = run("serve", "--config", config)
    refused(served, *said)
    assert served.stderr == checked.stderr


@pytest.mark.parametrize("path", ["cache", "cache/below/it"])
def test_t69_check_refuses_a_place_that_this_user_may_not_write(path: str) -> None:
    with TemporaryDirectory() as parent:
        place = Path(parent)
        place.chmod(0o755)
        (place / "cache").mkdir(mode=0o755)
        settings = Settings.model_validate({"storage": {"path": str(place / path)}})
        validate_writable(settings)
        os.seteuid(65534)  # the tests run as root, who may write anywhere
        try:
            with pytest.raises(ConfigError, match="cache cannot be written by this user"):
                validate_writable(settings)
        finally:
            os.seteuid(0)


def test_keys_of_bundles_that_commands_would_refuse_are_warnings(place: Path) -> None:
    config = written(
        place, "bundles: {trusted_keys: [TMP/key.pub, TMP/no, TMP/file], signing_key_file: TMP/key}"
    )
    write_key(place / "key", "lab")
    checked = run("check", "--config", config)
    missing, other = checked.stderr.splitlines()
    assert f"warning: bundles.trusted_keys: {place}/no cannot be read: No such file" in missing
    assert f"warning: bundles.trusted_keys: {place}/file: holds no OpenSSH public key" in other
    assert (checked.returncode, checked.stdout[:4]) == (0, "ok: ")
    (place / "key").write_text("none")
    [*_, last] = run("check", "--config", config).stderr.splitlines()
    assert f"warning: bundles.signing_key_file: {place}/key: no OpenSSH private key" in last


def test_an_old_name_of_a_setting_is_a_warning(place: Path) -> None:
    config = written(place, "prefetch: {at_once: 2}")
    warning = "prefetch.at_once: renamed to prefetch.concurrency; the old name works"
    checked = run("check", "--config", config)
    refused(checked, f"{config}:2: {warning}", status=0)
    assert checked.stdout.startswith("ok: ")
    variable = "MILLPOND_STORAGE__FINISH_FROM"
    checked = run("check", "--json", **{variable: "0.5"})
    refused(checked, f"{variable}: storage.finish_from: renamed to storage.min_co", status=0)
    assert json.loads(checked.stdout) == {"ok": True, "problems": []}
    place.joinpath("oci-layout").touch()
    (place / "cache").mkdir()
    listed = run("ls", "--config", config)
    assert warning in listed.stderr.splitlines()[0]


def test_check_names_every_fault(place: Path) -> None:
    config = written(place, "pins: [A]\nadmin: {token_file: TMP/no}")
    done = run("check", "--config", config)
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
        "pins",
        "admin.token_file",
    ]
    told = json.loads(run("check", "--json", "--config", config).stdout)
    assert (told["ok"], len(told["problems"])) == (False, 2)


def test_check_accepts_certificates_secrets_and_pins_that_are_right(place: Path) -> None:
    made = certificate(place)
    (place / "secret").write_text("s3cret\n")
    config = written(
        place,
        f"tls: {{cert_file: {made.authority}, key_file: TMP/key.pem}}\n"
        f"admin: {{token_file: TMP/secret}}\npins: [app, 'ghcr.io/org/*']\n"
        f"upstreams: {{docker.io: {{username: a, password_file: TMP/secret, tls: {{ca_file: {made.authority}}}}}}}",
    )
    before = sorted(place.rglob("*"))
    done = run("check", "--json", "--config", config)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"ok": True, "problems": []}), done
    assert sorted(place.rglob("*")) == before
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize("path", ["", ".", "cache"])
def test_t69_serve_fills_no_directory_by_mistake(path: str) -> None:
    before = sorted(ROOT.iterdir())
    refused(
        run("serve", "--listen", "127.0.0.1:0", "--storage", path), "--storage", "absolute path"
    )
    refused(run("check", MILLPOND_STORAGE__PATH=path), "MILLPOND_STORAGE__PATH", "absolute path")
    assert sorted(ROOT.iterdir()) == before


def test_a_home_that_is_nowhere_is_one_line() -> None:
    refused(run("check", MILLPOND_STORAGE__PATH="~nobody-of-that-name/c"), "absolute path")


def test_t69_the_banner_tells_what_the_file_system_allows(tmp_path: Path) -> None:
    with serving("--storage", str(tmp_path / "c")) as (process, line):
        assert process.stdout is not None
        banner = line + process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address is not None
        with urlopen(address[0] + "/-/stats") as answer:
            limit: int = json.load(answer)["cache"]["limit_bytes"]
    assert f"up to {limit / 1024**3:.1f}GiB" in banner


def test_t69_a_limit_beyond_the_file_system_is_not_promised(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    size = free.f_blocks * free.f_frsize
    config = written(tmp_path, f"storage: {{path: TMP/c, max_size: {size * 2}}}")
    with serving("--config", config) as (process, _):
        assert process.stdout is not None
        banner = process.stdout.readline()
    assert "the file system has no room for the" in banner
    shown = re.search(r"up to ([\d.]+)([A-Z])iB:", banner)
    assert shown is not None, banner
    units: dict[str, Any] = {"M": 1024**2, "G": 1024**3, "T": 1024**4}
    assert float(shown[1]) * units[shown[2]] <= size
