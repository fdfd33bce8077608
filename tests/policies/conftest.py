"""A registry with images, and a key that signs."""

import pytest

from tests.fakes.upstream import FakeUpstream
from tests.policies import signing
from tests.policies.asking import IMAGE, INDEX, OTHER, REPO
from tests.policies.signing import Signer


@pytest.fixture
def signer() -> Signer:
    return signing.p256()


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add(REPO, IMAGE, tags=["latest"])
    upstream.add(REPO, OTHER, tags=["other"])
    upstream.add(REPO, INDEX, tags=["index"])
