"""Makes the archives beside this file: cache directories that the version with layout 2 wrote.

    python -m tests.data.layout2.make

It runs the real program of that version, so it cannot run on a later one. `cache.tar.gz` is from
a program that was stopped. `killed.tar.gz` is the same directory after a second run that ended by
SIGKILL: the journals of its tables are not written back, and its spool holds a partial download.
The JSON file of the same name has the facts that the index of that version finds in the directory.
"""

import asyncio
import gzip
import json
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from aiohttp import ClientError, ClientSession, UnixConnector
from proxy.index.local import FLUSH_SECONDS

from tests.cli.command import beside
from tests.data.layout2 import facts
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.parts.millpond import Millpond
from tests.parts.process import free_port, workdir

HERE = Path(__file__).parent
LAB = "registry.lab"
CREDENTIALS = {"username": "ann", "password": "password-of-ann"}
DAYS = 86400

SHARED = "shared", (300, 400)
"""Images with this seed and these layers differ by their platform, and share their layers."""

GONE = content.image("gone", (150,))
MULTI = content.multi_platform("multi", layers=(200,))
HERE_OF_MULTI = MULTI.children[0]
BASE = content.image(*SHARED)
APP_1, APP_2 = content.image("app 1", (100,)), content.image("app 2", (120,))
APP_3 = content.image(*SHARED, platform="linux/s390x")
DOCKER = content.image("docker", (250,), docker=True)
SHA512 = content.image("sha512", (160,), algorithm="sha512")
DROPPED = content.image("dropped", (170,))
BROKEN = content.image("broken", (180, 190))
AGED = content.index(content.image("aged", ()))
"""Of its tree, only the index is used last: its rows are older than what they mean."""
SIGNATURE = content.artifact(MULTI, "application/vnd.example.signature.v1", payload=b"signature")
SBOM = content.artifact(BASE, annotations={"made-by": "a test"})
PRIVATE = content.image(*SHARED, platform="linux/arm64")
SECRET = content.image("secret", (210,))
LAB_SIGNATURE = content.artifact(PRIVATE, payload=b"signature of the lab")
LAB_REFERRERS = content.index(LAB_SIGNATURE)
LATE = content.image("late", (220,))
STALLED = content.blob(3000, "stalled")
ODD = content.encode(
    {
        "schemaVersion": 2,
        "mediaType": content.OCI_MANIFEST,
        "config": json.loads(BASE.manifest)["config"],
        "layers": [{"mediaType": content.OCI_LAYER, "digest": "sha256:0", "size": -1}],
    }
)
"""A manifest with a descriptor that is not understood."""


@dataclass(frozen=True)
class World:
    """The program, what it pulls from, and those who use it."""

    hub: FakeUpstream
    lab: FakeUpstream
    millpond: Millpond

    async def get(self, path: str, *, fresh: bool = False, status: int = 200) -> bytes:
        """Ask as a client."""
        headers = {"Cache-Control": "no-cache"} if fresh else {}
        async with (
            ClientSession(self.millpond.url) as client,
            client.get(path, headers=headers) as answer,
        ):
            body = await answer.read()
            assert answer.status == status, (path, answer.status, body)
            return body

    async def pull(self, repository: str, tag: str, image: content.Image) -> None:
        """Pull an image as clients do, and all of its content."""
        await self.get(f"/v2/{repository}/manifests/{tag}")
        await self.use(repository, image)

    async def use(self, repository: str, *images: content.Content) -> None:
        """Use manifests by digest, and each of their blobs, one after the other."""
        for image in images:
            await self.get(f"/v2/{repository}/manifests/{image.digest}")
            for digest in image.blobs if isinstance(image, content.Image) else ():
                await self.get(f"/v2/{repository}/blobs/{digest}")
            await asyncio.sleep(0.02)

    async def operate(self, method: str, path: str, body: str | None = None) -> str:
        """Ask as the operator."""
        connector = UnixConnector(str(self.millpond.storage / "admin.sock"))
        async with (
            ClientSession("http://admin", connector=connector) as operator,
            operator.request(method, path, data=body) as answer,
        ):
            said = await answer.text()
            assert answer.status == 200, (path, said)
            return said

    async def command(self, *words: str) -> None:
        """Run the program's own command."""
        done = await beside(*words, "--storage", str(self.millpond.storage))
        assert done.returncode == 0, done


async def main() -> None:
    """Make both archives and both lists of facts."""
    async with _world() as world:
        millpond = world.millpond
        await asyncio.to_thread(millpond.start)
        try:
            await _pull_all(world)
            await _look_after(world)
            await _use_all(world)
            await asyncio.to_thread(millpond.stop)
            await _keep(millpond.storage, "cache")

            await asyncio.to_thread(millpond.start)
            await _change(world)
            await _download_until_killed(world)
            await _keep(millpond.storage, "killed")
        finally:
            await asyncio.to_thread(millpond.kill)


@asynccontextmanager
async def _world() -> AsyncIterator[World]:
    with workdir("layout2") as root:
        async with FakeUpstream() as hub, FakeUpstream() as lab:
            lab.auth.scheme = "basic"
            lab.auth.users = {CREDENTIALS["username"]: CREDENTIALS["password"]}
            lab.behaviour.referrers = False
            settings = {
                "storage": {"max_size": "64MiB", "min_free": 0},
                "upstreams": {LAB: {"url": lab.url, **CREDENTIALS}},
                "pins": ["docker"],
                "prefetch": {"blobs": 0},
            }
            yield World(hub, lab, Millpond(root, hub.url, free_port(), settings))


async def _pull_all(world: World) -> None:
    """Have something of each kind held; what comes first is evicted again."""
    hub = world.hub
    hub.add("library/gone", GONE, "1")
    await world.pull("library/gone", "1", GONE)
    await world.operate("POST", "/-/evict?bytes=1MiB")

    hub.add("library/multi", MULTI, ["1.0", "1.1", "latest"])
    await world.get("/v2/library/multi/manifests/1.0")
    await world.get("/v2/library/multi/manifests/latest")
    await world.use("library/multi", HERE_OF_MULTI)  # the other platform is never pulled
    for tag, app in (("v1", APP_1), ("v2", APP_2), ("v3", APP_3)):
        hub.retag("team/app", "latest", hub.add("team/app", app, tag))
        await world.get("/v2/team/app/manifests/latest", fresh=True)
        await world.get("/v2/team/app/manifests/latest", fresh=True)
        await world.use("team/app", app)
    for name, image in (("base", BASE), ("docker", DOCKER), ("sha512", SHA512)):
        await world.pull(f"library/{name}", "latest", _added(hub, f"library/{name}", image))
    for name, image in (("dropped", DROPPED), ("broken", BROKEN)):
        await world.pull(f"library/{name}", "latest", _added(hub, f"library/{name}", image))
    hub.add("library/aged", AGED)
    await world.get("/v2/library/aged/manifests/latest")
    await world.use(
        "library/aged", *(one for one in AGED.children if isinstance(one, content.Image))
    )
    hub.add_manifest("library/odd", ODD, content.OCI_MANIFEST, ["latest"])
    await world.get("/v2/library/odd/manifests/latest")
    hub.remove_tag("library/dropped", "latest")
    await world.get("/v2/library/dropped/manifests/latest", fresh=True, status=404)
    await _pull_from_lab(world)
    await _list(world)


def _added(hub: FakeUpstream, repository: str, image: content.Image) -> content.Image:
    hub.add(repository, image)
    return image


async def _pull_from_lab(world: World) -> None:
    lab = world.lab
    lab.add("team/private", PRIVATE, "1")
    lab.add("team/secret", SECRET, "1")
    await world.pull(f"{LAB}/team/private", "1", PRIVATE)
    await world.pull(f"{LAB}/team/secret", "1", SECRET)
    lab.add("team/private", LAB_REFERRERS, PRIVATE.digest.replace(":", "-"))
    await world.get(f"/v2/{LAB}/team/private/referrers/{PRIVATE.digest}")
    await world.use(f"{LAB}/team/private", LAB_SIGNATURE)


async def _list(world: World) -> None:
    """List tags and referrers: some as a whole, some in part, one from held content alone."""
    hub = world.hub
    await world.get("/v2/team/app/tags/list")
    await world.get("/v2/library/multi/tags/list?n=2")
    await world.get(f"/v2/{LAB}/team/secret/tags/list")
    hub.add("library/multi", SIGNATURE, [])
    hub.add("library/base", SBOM, [])
    await world.use("library/multi", SIGNATURE)
    await world.use("library/base", SBOM)
    await world.get(f"/v2/library/multi/referrers/{MULTI.digest}")
    await world.get(f"/v2/team/app/referrers/{APP_3.digest}")


async def _look_after(world: World) -> None:
    """Pin, say what is in use, and find a blob damaged."""
    await world.command("pin", "base", f"library/multi@{MULTI.digest}", f"{LAB}/team/*")
    await world.operate("PUT", f"/-/in-use?source=node-1&ttl={7 * DAYS}", "team/app:latest\n")
    digest = BROKEN.layers[0].removeprefix("sha256:")
    with (world.millpond.storage / "blobs" / "sha256" / digest).open("r+b") as file:
        file.write(b"damaged")
    assert '"bad"' in await world.operate("POST", "/-/verify")
    named = world.millpond.storage / "index.json"
    names = [
        "multi:1.0",
        "app:latest",
        "base:",
        "docker:",
        "sha512:",
        "aged:",
        "secret:1",
        "broken:",
    ]
    await _until(lambda: all(name in named.read_text() for name in names))
    await asyncio.sleep(2 * FLUSH_SECONDS)


async def _use_all(world: World) -> None:
    """Use everything once more, in an order that is not the one in which it came."""
    await world.use("library/sha512", SHA512)
    await world.use("library/dropped", DROPPED)
    await world.use(f"{LAB}/team/private", LAB_REFERRERS, LAB_SIGNATURE)
    await world.use("library/docker", DOCKER)
    await world.get(f"/v2/library/odd/manifests/{content.digest(ODD)}")
    await world.use("library/aged", AGED)
    await world.use("team/app", APP_2, APP_1)
    await world.use(f"{LAB}/team/secret", SECRET)
    await world.use("library/base", BASE, SBOM)
    await world.use("team/app", APP_3)
    await world.use(f"{LAB}/team/private", PRIVATE)
    await world.use("library/multi", MULTI, HERE_OF_MULTI, SIGNATURE)
    await world.get(f"/v2/library/broken/manifests/{BROKEN.digest}")
    for digest in (BROKEN.config, BROKEN.layers[1]):
        await world.get(f"/v2/library/broken/blobs/{digest}")


async def _change(world: World) -> None:
    """Learn what the journals alone will know."""
    await world.pull("library/late", "latest", _added(world.hub, "library/late", LATE))
    world.hub.retag("team/app", "latest", APP_1)
    await world.get("/v2/team/app/manifests/latest", fresh=True)
    await world.use("team/app", APP_3, APP_1)  # the check of the tag has used the old one
    await world.get("/v2/library/late/tags/list")
    await world.command("pin", "late")
    await world.command("unpin", f"{LAB}/team/*")
    await world.use("library/sha512", SHA512)
    await asyncio.sleep(2 * FLUSH_SECONDS)


async def _download_until_killed(world: World) -> None:
    """Kill the program while a blob arrives."""
    digest = world.hub.add_blob("library/late", STALLED)
    world.hub.stall(at=1000, kind="blob", reference=digest)
    download = asyncio.create_task(world.get(f"/v2/library/late/blobs/{digest}"))
    spool = world.millpond.storage / "spool"
    await _until(lambda: any(path.read_bytes()[:1] != b"\0" for path in spool.iterdir()))
    await asyncio.to_thread(world.millpond.kill)
    with suppress(ClientError):
        await download


async def _keep(storage: Path, name: str) -> None:
    """Archive a directory, and the facts that a copy of it has."""
    written_at = time.time()
    archive = HERE / f"{name}.tar.gz"
    with (
        gzip.GzipFile(archive, "wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path in sorted(storage.rglob("*")):
            tar.add(path, str(path.relative_to(storage)), recursive=False, filter=_impersonal)
    with tempfile.TemporaryDirectory() as copy:
        with tarfile.open(archive) as tar:
            tar.extractall(copy, filter="tar")
        found = {"written_at": written_at, **await facts.read(Path(copy))}
    _check(found["blobs"])
    (HERE / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def _impersonal(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = int(entry.mtime)
    return entry


def _check(blobs: Sequence[facts.Facts]) -> None:
    """Fail if the order of last use is not unambiguous."""
    times = [blob["used_at"] for blob in blobs]
    assert times == sorted(set(times)), "two pieces have the same last use"


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main())
