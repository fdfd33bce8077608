"""What the tests of the fake itself ask for, and how."""

import aiohttp

from tests.fakes import content

NAME = "library/alpine"
BLOB = content.blob(200_000)
DIGEST = content.digest(BLOB)
OTHER = content.digest(b"other")


def manifest(reference: str = "latest") -> str:
    return f"/v2/{NAME}/manifests/{reference}"


def blob(digest: str = DIGEST) -> str:
    return f"/v2/{NAME}/blobs/{digest}"


async def fetch(
    session: aiohttp.ClientSession, path: str, method: str = "GET", **headers: str
) -> tuple[aiohttp.ClientResponse, bytes]:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    async with session.request(method, path, headers=named, allow_redirects=False) as response:
        return response, await response.read()


async def until_broken(response: aiohttp.ClientResponse) -> tuple[bytes, Exception | None]:
    got = bytearray()
    try:
        async for piece in response.content.iter_any():
            got += piece
    except (aiohttp.ClientError, ConnectionError) as problem:
        return bytes(got), problem
    return bytes(got), None
