"""Several sources of one body: their order, which one is rejected, and when the body is public.

``test_sources`` puts the real sources through it.
"""

from collections.abc import AsyncGenerator

import pytest

from proxy.content.fetching import Fetch, SourcesBody, blob_size
from proxy.core.errors import BlobUnknown, UpstreamUnavailable
from proxy.core.names import Digest, Repo, Target, sha256
from proxy.core.sources import Body, Piece, Priority
from proxy.core.sources import Place as Kind

DATA = bytes(range(250)) * 4
DIGEST = sha256(DATA)
TARGET = Target("docker.io", Repo("library/app"))


class Place:
    """A source and its body: breaks off at ``stops`` bytes, or has nothing (``stops`` None)."""

    place = Kind.PEER

    def __init__(
        self,
        stops: int | None,
        *,
        size: int | None = len(DATA),
        is_public: bool = True,
        is_confirmed: bool = True,
    ) -> None:
        self.stops = stops
        self.size = size
        self.is_public = is_public
        self.is_confirmed = is_confirmed
        self.opened_at: list[int] = []
        self.rejected: list[Digest] = []
        self.open_bodies = 0

    async def open(self, target: Target, digest: Digest, offset: int, priority: Priority) -> Body:
        if self.stops is None:
            raise BlobUnknown("not here")
        self.opened_at.append(offset)
        self.open_bodies += 1
        return self

    async def blob_size(self, target: Target, digest: Digest) -> int | None:
        if self.stops is None:
            raise BlobUnknown("not here")
        return self.size

    def reject(self, digest: Digest) -> None:
        self.rejected.append(digest)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        assert self.stops is not None
        for start in range(self.opened_at[-1], self.stops, 100):
            yield Piece(start, DATA[start : min(start + 100, self.stops)])
        if self.stops < len(DATA):
            raise UpstreamUnavailable("broke off")

    async def aclose(self) -> None:
        self.open_bodies = 0


def fetch(*places: Place, size: int | None = None) -> Fetch:
    return Fetch(TARGET, DIGEST, places, size)


async def read(body: SourcesBody) -> bytes:
    found = bytearray(len(DATA))
    async for offset, data in body.pieces():
        found[offset : offset + len(data)] = data
    await body.aclose()
    return bytes(found)


async def test_the_next_source_goes_on_where_the_first_broke_off() -> None:
    first, without, second = Place(350), Place(None), Place(len(DATA))
    body = await SourcesBody.opened(fetch(first, without, second))
    assert await read(body) == DATA
    assert (first.opened_at, second.opened_at) == ([0], [350])
    assert first.open_bodies == second.open_bodies == 0


async def test_the_last_source_that_breaks_off_fails_the_body() -> None:
    body = await SourcesBody.opened(fetch(Place(100), Place(200)))
    with pytest.raises(UpstreamUnavailable):
        await read(body)


async def test_the_error_is_that_of_the_last_source() -> None:
    with pytest.raises(BlobUnknown, match="not here"):
        await SourcesBody.opened(fetch(Place(None)))
    with pytest.raises(BlobUnknown, match="no source has it"):
        await SourcesBody.opened(fetch())
    with pytest.raises(BlobUnknown, match="no source has it"):
        await blob_size(fetch())


@pytest.mark.parametrize(
    ("first", "second", "is_public"),
    [(True, True, True), (True, False, False), (False, True, False)],
)
async def test_a_body_is_public_if_all_that_gave_bytes_are(
    first: bool, second: bool, is_public: bool
) -> None:
    places = Place(100, is_public=first), Place(len(DATA), is_public=second)
    body = await SourcesBody.opened(fetch(*places, Place(len(DATA), is_public=False)))
    await read(body)
    assert body.is_public is is_public


async def test_all_that_gave_bytes_are_blamed_and_no_other() -> None:
    places = Place(None), Place(100), Place(len(DATA)), Place(len(DATA))
    body = await SourcesBody.opened(fetch(*places))
    await read(body)
    body.reject()
    assert [place.rejected for place in places] == [[], [DIGEST], [DIGEST], []]


async def test_a_source_of_another_size_is_passed_over() -> None:
    first, other, silent = Place(100), Place(len(DATA), size=7), Place(len(DATA), size=None)
    body = await SourcesBody.opened(fetch(first, other, silent))
    assert await read(body) == DATA
    assert body.size == len(DATA)
    assert other.open_bodies == 0  # its body is closed again
    with pytest.raises(UpstreamUnavailable, match="another size"):
        await read(await SourcesBody.opened(fetch(Place(100), Place(len(DATA), size=7))))


@pytest.mark.parametrize(
    ("announced", "known", "size"), [(None, 9, 9), (1000, 9, 1000), (None, None, None)]
)
async def test_the_size_is_the_source_s_or_what_manifests_say(
    announced: int | None, known: int | None, size: int | None
) -> None:
    body = await SourcesBody.opened(fetch(Place(len(DATA), size=announced), size=known))
    assert body.size == size
    assert await blob_size(fetch(Place(None), Place(1, size=announced))) == announced
