"""Each answer and its log line carry an id: the client's own, or a new one."""

import json
from typing import Any

import pytest

from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until
from tests.web.test_audit import prepared

IMAGE = content.image(1, layers=(1000,))
MANIFEST = "/v2/library/app/manifests/latest"


@pytest.fixture
async def proxy(start: Start, upstream: FakeUpstream) -> Proxy:
    upstream.add("library/app", IMAGE)
    return await start()


async def lines(proxy: Proxy, number: int) -> list[dict[str, Any]]:
    """Return the request lines once there are so many."""

    def found() -> list[dict[str, Any]]:
        logged = map(json.loads, proxy.log.getvalue().splitlines())
        return [line for line in logged if line["event"] == "request"]

    await until(lambda: len(found()) == number)
    return found()


@pytest.mark.one_process  # workers relay tags that are fresh by the test's clock only
async def test_each_answer_has_an_id_that_its_line_has_too(proxy: Proxy) -> None:
    paths = [*[MANIFEST] * 5, "/v2/", "/v2/library/app/manifests/none", "/v2/NO/manifests/1"]
    answers = [await proxy.get(path) for path in paths]
    ids = [answer.headers["X-Request-Id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert await prepared(proxy) >= 2
    assert [line["request_id"] for line in await lines(proxy, len(ids))] == ids


@pytest.mark.one_process  # workers relay tags that are fresh by the test's clock only
async def test_the_id_of_a_client_is_kept(proxy: Proxy) -> None:
    for _ in range(5):  # the last ones by the response cache
        answer = await proxy.get(MANIFEST, X_Request_Id="build-7/step.3")
        assert answer.headers["X-Request-Id"] == "build-7/step.3"
    assert await prepared(proxy) >= 2
    assert {line["request_id"] for line in await lines(proxy, 5)} == {"build-7/step.3"}


@pytest.mark.parametrize("sent", ['quo"te', "two words", "back\\slash", "é", "x" * 129, ""])
async def test_an_id_that_may_not_be_logged_as_it_is_gets_replaced(proxy: Proxy, sent: str) -> None:
    for _ in range(4):
        answer = await proxy.get(MANIFEST, X_Request_Id=sent)
        assert len(answer.headers["X-Request-Id"]) == 16
    await lines(proxy, 4)


async def test_other_lines_about_a_request_have_its_id(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.fail(status=500, kind="manifest")
    answer = await proxy.get("/v2/library/other/manifests/1", X_Request_Id="mine")
    assert answer.status == 502
    [failed] = [
        line
        for line in map(json.loads, proxy.log.getvalue().splitlines())
        if line["event"] == "upstream failed"
    ]
    assert failed["request_id"] == "mine"
