"""What hostile clients do to everybody else."""

import asyncio
import contextlib
import json
import socket
import ssl
from typing import Any, Final

from tests.attack.arena import EVIL, HONEST, Arena, Scenario, sha256
from tests.attack.hostile import Asked, Wire
from tests.attack.registries import MIB, manifest, serves
from tests.fakes import faults
from tests.fakes.content import OCI_INDEX, OCI_MANIFEST, blob

LOGS: Final = 8 * MIB
"""What the journals of the index may take besides."""


async def ranges(arena: Arena) -> None:
    """`Range` headers of 8 KB that are expensive to parse, 30 at once."""
    digest = arena.good.add_blob(HONEST, blob(10_000, "ranged"))
    path = f"/v2/{HONEST}/blobs/{digest}"
    await arena.ask(path)

    async def ask(wanted: str) -> None:
        got = await arena.ask(path, Range=wanted)
        good = got.status in (200, 206, 400, 416)
        arena.check(good, f"{got.status} for a range {wanted[:20]!r}…")

    for filling in (" ", "\t", ",", " ,", "0-0,", "-", "9", "0-,"):
        for before in ("bytes=", "bytes=1", "bytes=,", "bytes"):
            wanted = before + (filling * 7900)[:7900] + "x"
            await asyncio.gather(*(ask(wanted) for _ in range(30 if filling == " " else 3)))


async def who_do_not_read(arena: Arena) -> None:
    """600 clients ask for a manifest of 3 MB and read nothing."""
    body = json.dumps(manifest(annotations={"x": "y" * (3 * MIB)})).encode()
    serves(arena, body)
    digest = sha256(body)
    path = f"/v2/{EVIL}/team/app/manifests/{digest}"
    first = await arena.ask(path)
    arena.check(first.body == body, f"{first.status} for a manifest that upstream has")
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        for _ in range(600):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", arena.millpond.port))
            await loop.sock_sendall(client, request)
        await asyncio.sleep(2)
        got = await arena.ask(path)
        arena.check(got.body == body, f"{got.status} for those who read")


async def half_requests(arena: Arena) -> None:
    """300 connections that send half a request and wait."""
    writers = [(await arena.connect())[1] for _ in range(300)]
    for number, writer in enumerate(writers):
        writer.write(b"GET /v2/ HTTP/1.1\r\nX: " + b"y" * (number * 20))
    await asyncio.sleep(1)
    got = await arena.ask("/v2/")
    arena.check(got.status == 200, f"{got.status} beside half requests")
    for writer in writers:
        writer.close()


async def random_questions(arena: Arena) -> None:
    """Made-up referrers digests and tags, of a registry that always says yes."""
    body = json.dumps(manifest()).encode()

    async def answer(asked: Asked, wire: Wire) -> None:
        if "/referrers/" in asked.path:
            listing = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
            await wire.document(listing, Content_Type=OCI_INDEX)
        else:
            await wire.reply(200, body, Content_Type=OCI_MANIFEST)

    arena.evil.answer = answer
    few = asyncio.Semaphore(16)

    async def ask(path: str) -> None:
        async with few:
            await arena.ask(f"/v2/{EVIL}/team/app/{path}", Cache_Control="max-age=1000")

    async with asyncio.TaskGroup() as group:
        for number in range(600):
            group.create_task(ask(f"referrers/{sha256(b'%d' % number)}"))
            group.create_task(ask(f"manifests/tag{number}"))
    used = arena.disk_bytes - LOGS
    arena.check(used <= MIB, f"{used >> 10} KiB for a limit of 1024")


async def one_subject(arena: Arena) -> None:
    """10 manifests of 4 MB with one subject: the cache, its index included, stays in its limit."""
    subject = {"mediaType": OCI_MANIFEST, "digest": sha256(b"subject"), "size": 7}
    for number in range(10):
        notes = {"x": "y" * (4 * MIB - 2000), "n": str(number)}
        serves(arena, json.dumps(manifest(subject=subject, annotations=notes)).encode())
        await arena.ask(f"/v2/{EVIL}/team/app/manifests/tag{number}")
    used = arena.disk_bytes - LOGS
    arena.check(used <= 20 * MIB, f"{used >> 20} MB beside a limit of 20")


async def descriptors_run_out(arena: Arena) -> None:
    """240 cold pulls with 256 descriptors: each is answered, none fails in the middle."""
    blobs = {arena.good.add_blob(HONEST, data): data for data in _small_blobs(240)}
    arena.good.fault(faults.delay(0.3), kind="blob")
    async with asyncio.TaskGroup() as group:
        for digest, data in blobs.items():
            group.create_task(_served_or_refused(arena, digest, data))
    served = arena.statuses[200]
    arena.check(served >= 20, f"only {served} of 240 cold pulls succeed: {dict(arena.statuses)}")


async def _served_or_refused(arena: Arena, digest: str, data: bytes) -> None:
    got = await arena.ask(f"/v2/{HONEST}/blobs/{digest}")
    is_served = got.status == 200 and got.body == data
    is_refused = got.status == 503 and "Retry-After" in got.headers
    arena.check(is_served or is_refused, f"{got.status} when descriptors run out")


def _small_blobs(number: int) -> list[bytes]:
    return [blob(2000, f"small {seed}") for seed in range(number)]


async def tls_on_the_plain_port(arena: Arena) -> None:
    """100 TLS hellos: each is answered by a 400, or the client does not fall back to http."""
    hello = _client_hello()
    answers = await asyncio.gather(*(_said(arena, hello) for _ in range(100)))
    unanswered = sum(not answer.startswith(b"HTTP/1.1 400") for answer in answers)
    arena.check(not unanswered, f"{unanswered} of 100 TLS hellos get no answer")


async def _said(arena: Arena, request: bytes) -> bytes:
    """Return what the program answers to bytes before it closes the connection."""
    reader, writer = await arena.connect()
    said = b""
    with contextlib.suppress(OSError):
        writer.write(request)
        async with asyncio.timeout(30):
            while chunk := await reader.read(4096):
                said += chunk
    writer.close()
    return said


def _client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    session = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


async def names_in_statistics(arena: Arena) -> None:
    """Statistics over the network name no repository of a download in progress."""

    async def answer(asked: Asked, wire: Wire) -> None:
        await wire.head(200, ("Content-Length", "100000"))
        while asked.method == "GET":
            await wire.send(bytes(100))
            await asyncio.sleep(0.1)

    arena.evil.answer = answer
    path = f"/v2/{EVIL}/team/very-secret/blobs/{sha256(b'secret')}"
    pull = asyncio.create_task(arena.ask(path))
    seen = ""
    for _ in range(50):
        seen += (await arena.ask("/-/stats")).body.decode()
        seen += (await arena.ask("/metrics")).body.decode()
        if arena.evil.asked:
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    seen += (await arena.ask("/-/stats")).body.decode()
    pull.cancel()
    arena.check(arena.evil.asked, "no download was in progress: nothing is proven")
    arena.check("very-secret" not in seen, "the statistics name the repository of a download")


_SMALL: Final[dict[str, Any]] = {"storage": {"max_size": MIB, "min_free": 0}}
_TWENTY: Final[dict[str, Any]] = {"storage": {"max_size": 20 * MIB, "min_free": 0}}

SCENARIOS: Final = (
    Scenario("ranges", ranges, "Range headers of 8 KB"),
    Scenario("no reading", who_do_not_read, "600 clients that do not read 3 MB"),
    Scenario("half requests", half_requests, "300 connections that never finish a request"),
    Scenario("random questions", random_questions, "made-up digests and tags", _SMALL),
    Scenario("one subject", one_subject, "10 manifests of 4 MB with one subject", _TWENTY),
    Scenario("few descriptors", descriptors_run_out, "240 cold pulls, ulimit 256", open_files=256),
    Scenario("TLS hello", tls_on_the_plain_port, "TLS hellos on the plain port"),
    Scenario("statistics", names_in_statistics, "names of running downloads"),
)
