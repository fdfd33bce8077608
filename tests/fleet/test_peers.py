"""What a replica believes of another one's answer, over real sockets: little."""

from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from proxy.core.errors import BlobUnknown, UpstreamUnavailable
from proxy.core.manifests import MAX_SIZE
from proxy.core.names import Digest, Repo, Target
from proxy.fleet.peers import NotYet, Peers
from proxy.fleet.protocol import (
    BLOBS,
    CONTENT_HEADER,
    MANIFESTS,
    NOT_YET,
    ContentInfo,
    ContentRequest,
)
from proxy.fleet.signatures import HEADER, Signer
from proxy.runtime.part_counters import FleetCounters
from tests.fakes import content
from tests.fakes.clock import Clock

SECRET, OTHER = b"0123456789abcdef", b"another secret.."
IMAGE = content.image(1)
TARGET = Target("docker.io", Repo("library/app"))
MANIFEST = ContentRequest(MANIFESTS, TARGET, Digest(IMAGE.digest))
BLOB = ContentRequest(BLOBS, TARGET, Digest(IMAGE.layers[0]), live=True)
WHOLE = ContentInfo(
    len(IMAGE.manifest), is_public=True, is_confirmed=True, media_type=IMAGE.media_type
)


@dataclass
class Answers:
    """What the other replica answers, signed with ``secret``."""

    info: ContentInfo = WHOLE
    body: bytes = IMAGE.manifest
    status: int = 200
    secret: bytes | None = SECRET
    more: Mapping[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        headers = {CONTENT_HEADER: self.info.header, **self.more}
        if self.secret is not None:
            signer, proof = Signer(self.secret, "", Clock()), request.headers[HEADER]
            headers[HEADER] = signer.sign_response(proof, self.status, self.info.header)
        response = web.StreamResponse(status=self.status, headers=headers)
        await response.prepare(request)
        with suppress(ConnectionError):  # it may have heard enough
            await response.write(self.body)
        return response


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
async def address(answers: Answers) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_get("/{path:.*}", answers.handle)
    async with TestServer(application) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.fixture
async def peers(clock: Clock) -> AsyncIterator[Peers]:
    peers = Peers(Signer(SECRET, "http://10.0.0.1:5000", clock), FleetCounters())
    yield peers
    await peers.close()


async def test_a_manifest_is_taken_that_is_proven_and_confirmed(peers: Peers, address: str) -> None:
    found = await peers.manifest(address, MANIFEST)
    assert found is not None
    assert (found.body, found.media_type) == (IMAGE.manifest, IMAGE.media_type)
    assert found.is_public


@pytest.mark.parametrize("secret", [None, OTHER], ids=["no proof", "another secret"])
@pytest.mark.parametrize("status", [200, 404, NOT_YET])
async def test_one_that_does_not_prove_itself_is_believed_nothing(
    peers: Peers, address: str, answers: Answers, secret: bytes | None, status: int
) -> None:
    answers.secret, answers.status = secret, status
    for asked in (peers.manifest(address, MANIFEST), peers.open(address, BLOB)):
        with pytest.raises(UpstreamUnavailable, match="does not prove itself"):
            await asked


async def test_a_proof_is_good_for_what_it_says(
    peers: Peers, address: str, answers: Answers
) -> None:
    private = ContentInfo(len(IMAGE.manifest), is_public=False, is_confirmed=False)
    answers.info = private
    answers.more = {CONTENT_HEADER: WHOLE.header}  # somebody in between says more
    with pytest.raises(UpstreamUnavailable, match="does not prove itself"):
        await peers.manifest(address, MANIFEST)


async def test_statuses(peers: Peers, address: str, answers: Answers) -> None:
    answers.status = NOT_YET
    with pytest.raises(NotYet):
        await peers.open(address, BLOB)
    answers.status = 404
    with pytest.raises(BlobUnknown):
        await peers.open(address, BLOB)
    assert not peers.is_skipped(address)


async def test_a_redirect_leads_nowhere(peers: Peers, address: str, answers: Answers) -> None:
    answers.status, answers.more = 302, {"Location": f"{address}/elsewhere"}
    with pytest.raises(BlobUnknown):
        await peers.open(address, BLOB)
    assert not any("elsewhere" in path for path in answers.asked)


async def test_a_manifest_that_is_not_confirmed_for_the_repository_is_not_taken(
    peers: Peers, address: str, answers: Answers
) -> None:
    answers.info = ContentInfo(len(IMAGE.manifest), is_public=True, is_confirmed=False)
    assert await peers.manifest(address, MANIFEST) is None


async def test_a_wrong_manifest_is_reported_and_not_taken(
    peers: Peers, address: str, answers: Answers
) -> None:
    wrong: list[Digest] = []
    peers.on_wrong.append(lambda _, digest, __: wrong.append(digest))
    answers.body = IMAGE.manifest.replace(b"2", b"3")
    assert await peers.manifest(address, MANIFEST) is None
    assert wrong == [IMAGE.digest]


async def test_a_manifest_that_is_too_long_is_not_read(
    peers: Peers, address: str, answers: Answers
) -> None:
    read: list[Digest] = []
    peers.on_wrong.append(lambda _, digest, __: read.append(digest))
    answers.info = ContentInfo(MAX_SIZE + 1, is_public=True, is_confirmed=True, media_type="a/b")
    answers.body = bytes(MAX_SIZE + 1)
    assert await peers.manifest(address, MANIFEST) is None
    assert not read


@pytest.mark.parametrize("size", [len(IMAGE.manifest) + 1, None])
async def test_a_body_that_is_too_short_is_not_complete(
    peers: Peers, address: str, answers: Answers, size: int | None
) -> None:
    answers.info = ContentInfo(size, is_public=True, is_confirmed=True)
    body = await peers.open(address, BLOB)
    if size is None:
        assert b"".join([piece.data async for piece in body.pieces()]) == IMAGE.manifest
        return
    with pytest.raises(UpstreamUnavailable, match="broke off"):
        _ = [piece async for piece in body.pieces()]
    await body.aclose()


async def test_one_that_cannot_be_reached_is_skipped_for_a_while(peers: Peers) -> None:
    nobody = "http://127.0.0.1:1"
    with pytest.raises(UpstreamUnavailable):
        await peers.head(nobody, BLOB)
    assert peers.is_skipped(nobody)


@pytest.mark.parametrize("more", ["/secret?", "?", "/x", "#", "@127.0.0.1:9", " "])
async def test_redis_chooses_no_path(
    peers: Peers, address: str, answers: Answers, more: str
) -> None:
    with pytest.raises(UpstreamUnavailable, match="no address of a replica"):
        await peers.head(address + more, BLOB)
    assert not answers.asked
