"""What a hostile or broken registry does to those who pull through Millpond."""

import asyncio
import itertools
import json
from typing import Any, Final

from tests.attack.arena import EVIL, HONEST, Arena, Scenario, sha256
from tests.attack.hostile import Asked, Wire
from tests.fakes.content import OCI_INDEX, OCI_MANIFEST, blob, image
from tests.fakes.upstream import FakeUpstream

JSON: Final = "application/json"
MIB: Final = 1024**2
SECRET: Final = "sesame-of-millpond"
_NOTHING: Final = sha256(b"")


def manifest(**more: Any) -> dict[str, Any]:
    """A manifest that is right but for what is given."""
    config = {"mediaType": JSON, "digest": _NOTHING, "size": 0}
    return {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []} | more


def serves(arena: Arena, body: bytes, media_type: str = OCI_MANIFEST) -> str:
    """Let the hostile registry answer every request by these bytes; return their digest."""
    digest = sha256(body)

    async def answer(_: Asked, wire: Wire) -> None:
        await wire.reply(200, body, Content_Type=media_type, Docker_Content_Digest=digest)

    arena.evil.answer = answer
    return digest


async def sizes(arena: Arena) -> None:
    """Descriptors whose sizes are no sizes are passed on as they are."""
    for number, size in enumerate((2**64, 2**200, -1, 2**62, 1.5, "12", True, None, 1e400)):
        layer = {"mediaType": JSON, "digest": sha256(b"%d" % number), "size": size}
        body = json.dumps(manifest(layers=[layer])).encode()
        digest = serves(arena, body)
        for reference in (f"tag{number}", digest):
            answer = await arena.ask(f"/v2/{EVIL}/team/app/manifests/{reference}")
            arena.check(answer.body == body, f"size {size}: {answer.status} for a manifest")
    await arena.restart()
    stats = await arena.ask("/-/stats")
    arena.check(stats.status == 200, f"statistics: {stats.status} after a restart")


async def nesting(arena: Arena) -> None:
    """4 MB of small lists in a manifest."""
    body = b'{"schemaVersion":2,"mediaType":"%s","x":[' % OCI_MANIFEST.encode()
    body += b"[]," * ((4 * MIB - len(body) - 10) // 3) + b"[]]}"
    serves(arena, body)
    await _pulled(arena, body, times=3)


async def descriptors(arena: Arena) -> None:
    """70,000 descriptors in an index."""
    lines = (f'{{"digest":"sha256:{number:064x}","size":1}}' for number in range(49_000))
    body = f'{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{",".join(lines)}]}}'
    serves(arena, body.encode(), OCI_INDEX)
    await _pulled(arena, body.encode(), times=3)


async def _pulled(arena: Arena, body: bytes, times: int) -> None:
    digest = sha256(body)
    references = [f"tag{number}" for number in range(times)] + [digest] * times
    for reference in references:
        answer = await arena.ask(f"/v2/{EVIL}/team/app/manifests/{reference}")
        arena.check(answer.body == body, f"{answer.status} for a manifest that upstream has")


async def challenge(arena: Arena) -> None:
    """A 401 with 100 lines of 8 KB in `WWW-Authenticate`."""
    for filling in (",", " ", "a=", 'a="', '"', "\\", "Bearer ", "a,"):
        line = (filling * 8000)[:8000]

        async def answer(_: Asked, wire: Wire, line: str = line) -> None:
            lines = [("WWW-Authenticate", f"Bearer {line}")] * 100
            await wire.head(401, ("Content-Length", "0"), *lines)

        arena.evil.answer = answer
        got = await arena.ask(f"/v2/{EVIL}/team/app/manifests/tag{ord(filling[0])}")
        arena.check(got.status in (403, 502, 504), f"{got.status} for an endless challenge")


async def junk_for_a_digest(arena: Arena) -> None:
    """Another registry sends junk, slowly, for a digest that the honest one has."""
    data = blob(4 * MIB, "wanted")
    digest = arena.good.add_blob(HONEST, data)

    async def answer(asked: Asked, wire: Wire) -> None:
        await wire.head(200, ("Content-Length", str(len(data))))
        for _ in range(400 if asked.method == "GET" else 0):  # 20 seconds
            await wire.send(bytes(8 * 1024))
            await asyncio.sleep(0.05)

    arena.evil.answer = answer
    fooled = asyncio.create_task(arena.ask(f"/v2/{EVIL}/team/app/blobs/{digest}"))
    await asyncio.sleep(0.3)
    try:
        async with asyncio.timeout(15):
            part = await arena.ask(f"/v2/{HONEST}/blobs/{digest}", Range="bytes=0-9999")
            arena.check(part.body == data[:10_000], "a range of another registry's junk")
            whole = await arena.ask(f"/v2/{HONEST}/blobs/{digest}")
            arena.check(whole.body == data, "a download hangs behind another registry's junk")
    except TimeoutError:
        arena.check(None, "a download hangs behind another registry's junk")
    fooled.cancel()


async def unproven_links(arena: Arena) -> None:
    """A public index lists what a private repository holds.

    Everything needs credentials: what comes without them is public, under whatever name.
    """
    arena.good.auth.users = {"a": SECRET}
    arena.good.auth.scheme = "basic"
    private = image("private", (50_000,))
    arena.good.add("team/private", private)
    paths = [f"manifests/{private.digest}", *(f"blobs/{digest}" for digest in private.blobs)]
    for path in paths:
        got = await arena.ask(f"/v2/team/private/{path}")
        arena.check(got.status == 200, f"{got.status} for private content: nothing is proven")
    listing = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [private.descriptor]}
    index = json.dumps(listing).encode()
    layers = [{"mediaType": JSON, "digest": d, "size": len(b)} for d, b in private.blobs.items()]
    child = json.dumps(manifest(layers=layers)).encode()
    arena.good.add_manifest("team/public", index, OCI_INDEX, ["all"])
    arena.good.add_manifest("team/public", child, OCI_MANIFEST, ["one"])
    for tag, body in (("all", index), ("one", child)):
        got = await arena.ask(f"/v2/team/public/manifests/{tag}")
        arena.check(got.body == body, f"{got.status} for a public manifest: nothing is proven")
    for path in paths:
        got = await arena.ask(f"/v2/team/public/{path}")
        arena.check(got.status == 404, f"{got.status} for private content under a public name")


async def endless_referrers(arena: Arena) -> None:
    """Pages of 7 MB, each with a link to the next."""
    await _endless_list(arena, "referrers", _page_of_referrers())
    digest = sha256(b"subject")
    got = await arena.ask(f"/v2/{EVIL}/team/app/referrers/{digest}")
    told = got.status in (429, 502, 504) or (got.status == 200 and "Warning" in got.headers)
    arena.check(told, f"{got.status} without a warning for referrers without end")


async def endless_tags(arena: Arena) -> None:
    """Pages of 7 MB of tags, each with a link to the next."""
    tags = [f"{number:0100}" for number in range(68_000)]
    await _endless_list(arena, "tags", json.dumps({"name": "team/app", "tags": tags}).encode())
    got = await arena.ask(f"/v2/{EVIL}/team/app/tags/list")
    arena.check(got.status in (200, 429, 502, 504), f"{got.status} for tags without end")


def _page_of_referrers() -> bytes:
    entries = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": f"sha256:{number:064x}",
            "size": 1,
            "artifactType": "a/b",
        }
        for number in range(40_000)
    ]
    listing = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return json.dumps(listing).encode()


async def _endless_list(arena: Arena, kind: str, page: bytes) -> None:
    numbers = itertools.count()
    media_type = OCI_INDEX if kind == "referrers" else JSON

    async def answer(asked: Asked, wire: Wire) -> None:
        path = asked.path.partition("?")[0]
        link = f'<{path}?n={next(numbers)}&last=x>; rel="next"'
        await wire.reply(200, page, Content_Type=media_type, Link=link)

    arena.evil.answer = answer


FULL: Final[dict[str, Any]] = {"storage": {"max_size": "64MiB", "min_free": 0}}


async def endless_body(arena: Arena) -> None:
    """A body of unknown length without end."""

    async def answer(asked: Asked, wire: Wire) -> None:
        await wire.head(200, ("Transfer-Encoding", "chunked"))
        while asked.method == "GET":
            await wire.send(b"40000\r\n" + bytes(0x40000) + b"\r\n")

    await _fills_the_cache(arena, answer)


async def false_size(arena: Arena) -> None:
    """A body that claims to be as large as the whole cache, and hardly comes."""

    async def answer(asked: Asked, wire: Wire) -> None:
        await wire.head(200, ("Content-Length", str(63 * MIB)))
        while asked.method == "GET":
            await wire.send(bytes(1024))
            await asyncio.sleep(0.1)

    await _fills_the_cache(arena, answer)


async def _fills_the_cache(arena: Arena, answer: Any) -> None:
    held = {arena.good.add_blob(HONEST, data): data for data in _pieces(50)}
    for digest in held:
        await arena.ask(f"/v2/{HONEST}/blobs/{digest}")
    arena.evil.answer = answer
    clients = [
        asyncio.create_task(arena.ask(f"/v2/{EVIL}/team/app/blobs/{sha256(b'%d' % number)}"))
        for number in range(2)
    ]
    while len(arena.evil.asked) < len(clients):
        await asyncio.sleep(0.02)
    await asyncio.wait(clients, timeout=2)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    directory = arena.millpond.storage / "blobs" / "sha256"
    left = sum((directory / digest.partition(":")[2]).exists() for digest in held)
    arena.check(left >= 0.85 * len(held), f"only {left} of {len(held)} honest blobs are left")


def _pieces(number: int) -> list[bytes]:
    return [blob(MIB, f"piece {seed}") for seed in range(number)]


async def endless_hints(arena: Arena) -> None:
    """Informational answers (1xx) without end."""

    async def answer(_: Asked, wire: Wire) -> None:
        while True:
            await wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 1000)

    arena.evil.answer = answer
    got = await arena.ask(f"/v2/{EVIL}/team/app/manifests/latest")
    arena.check(got.status in (502, 504), f"{got.status} for hints without end")


async def echoed_authorization(arena: Arena) -> None:
    """The registry repeats the `Authorization` that it got in everything that it says."""
    for status in (400, 401, 403, 404, 429, 500):

        async def answer(asked: Asked, wire: Wire, status: int = status) -> None:
            said = asked.headers.get("authorization")
            if said is None:
                await wire.reply(401, WWW_Authenticate='Basic realm="evil"')
                return
            text = json.dumps({"errors": [{"code": "X", "message": said, "detail": said}]})
            await wire.reply(
                status, text.encode(), Content_Type=JSON, Warning=f'299 - "{said}"', X_Said=said
            )

        arena.evil.answer = answer
        got = await arena.ask(f"/v2/{EVIL}/team/app{status}/manifests/latest")
        said = repr(got.headers) + got.body.decode(errors="replace")
        leaked = SECRET in said or "YTpzZXNhbWUt" in said  # base64 of the same
        arena.check(not leaked, f"the client of a {status} reads our credentials")
    sent = any("authorization" in asked.headers for asked in arena.evil.asked)
    arena.check(sent, "the registry never got credentials: nothing is proven")


async def private_redirects(arena: Arena) -> None:
    """A registry with a public name sends us to private addresses: by number and by name."""
    async with FakeUpstream() as inner:
        digest = inner.add_blob("team/app", b"private bytes")
        for host in ("127.0.0.1", "localhost"):
            place = f"{inner.url}/v2/team/app/blobs/{digest}".replace("127.0.0.1", host)

            async def answer(asked: Asked, wire: Wire, place: str = place) -> None:
                if "/blobs/" in asked.path:
                    await wire.reply(307, Location=place)
                else:
                    await wire.reply(404)

            arena.evil.answer = answer
            arena.evil.asked.clear()
            got = await arena.ask(f"/v2/named.test/team/app/blobs/{digest}")
            arena.check(arena.evil.asked, "the registry was never asked: nothing is proven")
            arena.check(not inner.requests, f"a redirect to {host} was followed")
            arena.check(b"private bytes" not in got.body, "private bytes were relayed")


async def endless_error(arena: Arena) -> None:
    """The body of an error has no end."""

    async def answer(_: Asked, wire: Wire) -> None:
        await wire.head(503, ("Transfer-Encoding", "chunked"))
        while True:
            await wire.send(b"40000\r\n" + bytes(0x40000) + b"\r\n")

    arena.evil.answer = answer
    got = await arena.ask(f"/v2/{EVIL}/team/app/manifests/latest")
    arena.check(got.status in (502, 503, 504), f"{got.status} for an error without end")


async def endless_token(arena: Arena) -> None:
    """The answer of the token server has no end."""

    async def answer(asked: Asked, wire: Wire) -> None:
        if not asked.path.startswith("/token"):
            realm = f'Bearer realm="{arena.evil.url}/token",service="evil"'
            await wire.reply(401, WWW_Authenticate=realm)
            return
        await wire.head(200, ("Transfer-Encoding", "chunked"), ("Content-Type", JSON))
        while True:
            await wire.send(b"40000\r\n" + b"a" * 0x40000 + b"\r\n")

    arena.evil.answer = answer
    got = await arena.ask(f"/v2/{EVIL}/team/app/manifests/latest")
    arena.check(got.status in (502, 504), f"{got.status} for a token without end")


_HASTY: Final = {"timeouts": {"answer": "3s", "idle": "5s"}}
_LOGIN: Final = {"upstreams": {EVIL: {"username": "a", "password": SECRET}}}
_NAMED: Final = {"upstreams": {"named.test": {"url": "http://registry.invalid"}}}
_PRIVATE: Final = {"upstreams": {"docker.io": {"username": "a", "password": SECRET}}}

SCENARIOS: Final = (
    Scenario("descriptor sizes", sizes, "sizes of 2^64, -1, 1.5, …", restarts=True),
    Scenario("nested JSON", nesting, "a manifest of 4 MB of lists, six times"),
    Scenario("many descriptors", descriptors, "an index of 49,000 entries, six times"),
    Scenario("challenge", challenge, "100 lines of 8 KB in WWW-Authenticate"),
    Scenario("junk for a digest", junk_for_a_digest, "another registry's junk for our digest"),
    Scenario("unproven links", unproven_links, "an index lists private content", _PRIVATE),
    Scenario("endless referrers", endless_referrers, "pages of 7 MB without end"),
    Scenario("endless tags", endless_tags, "pages of 7 MB without end"),
    Scenario("endless body", endless_body, "a body without end, into a full cache", FULL),
    Scenario("false size", false_size, "a body claims all of the cache", FULL),
    Scenario("endless hints", endless_hints, "1xx answers without end", _HASTY),
    Scenario("endless error", endless_error, "the body of a 503 has no end"),
    Scenario("endless token", endless_token, "a token answer has no end"),
    Scenario("echo", echoed_authorization, "our Authorization in all answers", _LOGIN),
    Scenario("redirects", private_redirects, "to private addresses", _NAMED, evil_is_proxy=True),
)
