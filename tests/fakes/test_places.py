"""A registry below a path, and token servers that refuse by 403."""

import aiohttp
import pytest

from tests.fakes import content
from tests.fakes.auth import Dialect
from tests.fakes.pulling import fetch
from tests.fakes.upstream import FakeUpstream

BASE = "/artifactory/api/docker/repo"


async def test_all_is_below_the_base_path() -> None:
    async with FakeUpstream(base_path=BASE) as upstream:
        upstream.add("library/app", content.image(), tags=["a", "b"])
        assert upstream.url.endswith(BASE)
        async with aiohttp.ClientSession() as session:
            for path, status in ((BASE, 200), ("", 404)):
                url = f"{upstream.url.removesuffix(BASE)}{path}/v2"
                assert (await fetch(session, f"{url}/"))[0].status == status
                found, _ = await fetch(session, f"{url}/library/app/manifests/a")
                assert found.status == status
            listed, _ = await fetch(session, f"{upstream.url}/v2/library/app/tags/list?n=1")
            assert listed.headers["Link"].startswith(f"<{BASE}/v2/library/app/tags/list?")
            upstream.auth.scheme = "bearer"
            token, _ = await fetch(session, f"{upstream.url}/v2/token")
            assert token.status == 200
        assert [request.path for request in upstream.token_requests] == [f"{BASE}/v2/token"]


@pytest.mark.parametrize(("dialect", "status"), [("hub", 401), ("ghcr", 403), ("gitlab", 403)])
async def test_bad_credentials(
    upstream: FakeUpstream, session: aiohttp.ClientSession, dialect: Dialect, status: int
) -> None:
    upstream.auth.dialect = dialect
    wrong = aiohttp.encode_basic_auth("alice", "wrong")
    answer, _ = await fetch(session, f"{upstream.token_url}/token", Authorization=wrong)
    assert answer.status == status
