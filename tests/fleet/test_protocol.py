import pytest
from multidict import CIMultiDict

from proxy.core.names import Repo, Target, sha256
from proxy.fleet.protocol import CONTENT_HEADER, ContentInfo, ContentRequest

DIGEST = sha256(b"x")
TARGET = Target("localhost:5000", Repo("library/app"))


@pytest.mark.parametrize("offset", [0, 123])
@pytest.mark.parametrize("live", [True, False])
def test_a_question_survives_its_way(offset: int, live: bool) -> None:
    wanted = ContentRequest("blobs", TARGET, DIGEST, offset, live)
    assert ContentRequest.parse(wanted.path) == wanted
    assert ContentRequest.parse(wanted.path + "&of=a+newer+version") == wanted


@pytest.mark.parametrize(
    "path",
    [
        "/-/fleet/blobs/",
        f"/-/fleet/blobs/{DIGEST}",
        f"/-/fleet/tags/{DIGEST}?upstream=x&repository=y",
        f"/-/fleet/blobs/{DIGEST}?upstream=x&repository=y&offset=-1",
        f"/-/fleet/blobs/{DIGEST}?upstream=x&repository=y&offset=1e3",
    ],
)
def test_what_is_no_question_is_not_understood(path: str) -> None:
    assert ContentRequest.parse(path) is None


@pytest.mark.parametrize(
    "info",
    [
        ContentInfo(5, is_public=True, is_confirmed=False),
        ContentInfo(None, is_public=False, is_confirmed=True),
        ContentInfo(0, is_public=False, is_confirmed=True, media_type="application/x+json"),
    ],
)
def test_facts_survive_their_way(info: ContentInfo) -> None:
    assert ContentInfo.parse(CIMultiDict({CONTENT_HEADER: info.header})) == info
    assert ContentInfo.parse(CIMultiDict({CONTENT_HEADER: info.header + ";new=1"})) == info


@pytest.mark.parametrize("header", ["", "public=1", "size=-1", "size=x", f"size={'9' * 30}"])
def test_malformed_facts_are_not_believed(header: str) -> None:
    assert ContentInfo.parse(CIMultiDict({CONTENT_HEADER: header})) is None
