"""A real S3 server, SeaweedFS, and a bucket of it for each test. Everything stays on loopback."""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store

from tests.parts.process import free_port, wait_until

REGION = "us-east-1"
BUCKET = "cache"
_SERIAL = count()


@dataclass
class Server:
    """A server with one bucket, in which every test has a prefix."""

    argv: list[str]
    endpoint: str
    key: str
    secret: str
    directory: Path
    process: "subprocess.Popen[bytes]" = field(init=False)

    def start(self) -> None:
        """Start it on what it has stored; return when it has a bucket."""
        with (self.directory / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                stdout=log,
                stderr=log,
                env={**os.environ, "GOMEMLIMIT": "512MiB"},
                cwd=self.directory,
                start_new_session=True,
            )
        try:
            wait_until(self._has_bucket, "SeaweedFS", within=90)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()
        self.process.wait()

    def _has_bucket(self) -> bool:
        """Make the bucket; False while the server is not ready."""
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - slow

        assert self.process.poll() is None, (self.directory / "weed.log").read_text()[-2000:]
        try:
            self.client.create_bucket(Bucket=BUCKET)
            self.client.put_object(Bucket=BUCKET, Key="probe", Body=b"x")
        except ClientError as error:
            return "BucketAlready" in str(error)
        except BotoCoreError:
            return False
        return True

    def bucket(self, prefix: str | None = None) -> "TestBucket":
        """Return a prefix that no other test uses."""
        return TestBucket(self, f"{os.getpid()}-{next(_SERIAL)}" if prefix is None else prefix)

    @cached_property
    def client(self) -> Any:
        """A second client, which can do what obstore cannot."""
        import botocore.session  # noqa: PLC0415 - slow
        from botocore.config import Config  # noqa: PLC0415 - slow

        return botocore.session.Session().create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            config=Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1}),
        )

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let the server accept connections and answer nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@dataclass
class TestBucket:
    """A prefix in the bucket, and what the test itself does to its objects."""

    __test__ = False

    server: Server
    prefix: str

    @property
    def store(self) -> S3Store:
        """The objects, past Millpond."""
        server = self.server
        return S3Store(
            BUCKET,
            prefix=self.prefix,
            endpoint=server.endpoint,
            region=REGION,
            access_key_id=server.key,
            secret_access_key=server.secret,
            client_options={"allow_http": True},
        )

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Return ``storage.bucket``."""
        secret = self.server.directory / "secret"
        if not secret.exists():
            secret.write_text(self.server.secret + "\n")
        given = {
            "url": f"s3://{BUCKET}/{self.prefix}",
            "endpoint": self.server.endpoint,
            "region": REGION,
            "access_key_id": self.server.key,
            "secret_access_key_file": str(secret),
        }
        return given | changes

    def objects(self) -> dict[str, int]:
        """Return the digests of all objects and their sizes in bytes."""
        listed = obstore.list(self.store).collect()
        return {
            one["path"].removeprefix("blobs/").replace("/", ":", 1): one["size"] for one in listed
        }

    def read(self, digest: str) -> bytes:
        """Return an object."""
        return bytes(obstore.get(self.store, path(digest)).bytes())

    def card(self, digest: str) -> dict[str, Any]:
        """Return what the metadata of an object says."""
        found = obstore.get(self.store, path(digest)).attributes["millpond"]
        return dict(json.loads(found))

    def put(self, digest: str, data: bytes, card: dict[str, Any] | None = None) -> None:
        """Write an object; without a card, like one that another program has written."""
        attributes = None if card is None else {"millpond": json.dumps(card)}
        obstore.put(self.store, path(digest), data, attributes=attributes)

    def spoil(self, digest: str) -> None:
        """Change one byte of an object, and keep what is said about it."""
        data, card = bytearray(self.read(digest)), self.card(digest)
        data[len(data) // 2] ^= 0xFF
        self.put(digest, bytes(data), card)

    def delete(self, digest: str) -> None:
        """Delete an object."""
        obstore.delete(self.store, path(digest))

    def uploads(self) -> list[str]:
        """Return the keys of uploads that were begun and not completed."""
        found = self.server.client.list_multipart_uploads(Bucket=BUCKET, Prefix=f"{self.prefix}/")
        return [one["Key"] for one in found.get("Uploads", ())]


def path(digest: str) -> str:
    """Return the name of an object."""
    return "blobs/" + digest.replace(":", "/")


@contextmanager
def running(
    directory: Path, host: str = "127.0.0.1", under: Sequence[str] = ()
) -> Iterator[Server]:
    """Run a server until the context ends; `under` starts it on the machine with this address."""
    names = ("s3", "s3.port.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer")
    ports = dict(zip((*names, "filer.grpc"), _free_ports(8), strict=True))
    key, secret = "AK" + secrets.token_hex(8).upper(), secrets.token_urlsafe(24)
    identity = {
        "name": "test",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    command = [
        *(*under, str(Path(sys.executable).with_name("weed")), "server", f"-dir={directory}"),
        *(f"-ip={host}", f"-ip.bind={host}", "-filer", "-s3", f"-s3.config={config}"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
        *("-master.telemetry=false", "-master.volumeSizeLimitMB=512", "-volume.max=64"),
        *("-master.electionTimeout=1s", "-volume.preStopSeconds=0"),
        *(f"-s3.port={ports['s3']}", f"-s3.port.grpc={ports['s3.port.grpc']}"),
        *(f"-master.port={ports['master']}", f"-master.port.grpc={ports['master.grpc']}"),
        *(f"-volume.port={ports['volume']}", f"-volume.port.grpc={ports['volume.grpc']}"),
        *(f"-filer.port={ports['filer']}", f"-filer.port.grpc={ports['filer.grpc']}"),
    ]
    server = Server(command, f"http://{host}:{ports['s3']}", key, secret, directory)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def _free_ports(number: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < number:
        ports.add(free_port())
    return list(ports)
