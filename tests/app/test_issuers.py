"""ID tokens of a real issuer, and of issuers that misbehave, through the running proxy."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from proxy.app.issuers import MAX_DOCUMENT, fetch_for
from proxy.core.errors import ConfigError, UpstreamUnavailable
from proxy.settings import Settings
from proxy.settings.access import OIDCIssuer
from tests.access.people import basic, bearer
from tests.fakes.content import image
from tests.fakes.upstream import FakeUpstream
from tests.parts import issuer as issuers
from tests.running import Proxy, Start

PATH = "/v2/acme/app/manifests/latest"
SCOPE = "repository:acme/app:pull"


@pytest.fixture(scope="module")
def issuer() -> Iterator[issuers.Issuer]:
    with issuers.running() as running:
        yield running


@pytest.fixture
async def proxy(
    start: Start, upstream: FakeUpstream, issuer: issuers.Issuer, monkeypatch: pytest.MonkeyPatch
) -> Proxy:
    monkeypatch.setattr("proxy.access.jwks.RETRY_SECONDS", 0.0)
    upstream.add("acme/app", image())
    return await start(access=settings(issuer))


def settings(issuer: issuers.Issuer) -> dict[str, Any]:
    oidc = {
        "issuer": issuer.url,
        "audience": "millpond",
        "user": "ci:{repository}",
        "groups_claim": "groups",
        "algorithms": ["ES256"],
    }
    rules = [
        {"allow": "pull", "images": ["docker.io/acme/**"], "to": ["user:ci:acme/*", "group:dev"]}
    ]
    return {"oidc": [oidc], "rules": rules}


async def status(proxy: Proxy, authorization: str) -> int:
    return (await proxy.get(PATH, Authorization=authorization)).status


async def test_a_job_pulls_with_its_id_token(proxy: Proxy, issuer: issuers.Issuer) -> None:
    token = issuer.id_token(repository="acme/app")
    assert await status(proxy, basic("anything", token)) == 200
    assert await status(proxy, bearer(token)) == 200
    asked = await proxy.get(f"/-/token?scope={SCOPE}", Authorization=basic("x", token))
    own = json.loads(asked.body)
    assert own["scope"] == SCOPE
    assert await status(proxy, bearer(own["token"])) == 200


async def test_other_jobs_do_not(proxy: Proxy, issuer: issuers.Issuer) -> None:
    stranger = issuer.id_token(repository="evil/app")
    assert await status(proxy, bearer(stranger)) == 403
    assert (
        await status(proxy, bearer(issuer.id_token(repository="evil/app", groups=["dev"]))) == 200
    )
    for refused in (
        issuer.id_token(audience="elsewhere", repository="acme/app"),
        issuer.id_token(seconds=-120, repository="acme/app"),
        issuer.id_token(),
        issuer.id_token(repository="acme/app")[:-8] + "AAAAAAAA",
    ):
        assert await status(proxy, bearer(refused)) == 401
        login = await proxy.get("/-/token", Authorization=basic("x", refused))
        assert login.status == 401


async def test_keys_rotate_while_the_proxy_runs(proxy: Proxy, issuer: issuers.Issuer) -> None:
    old = issuer.id_token(repository="acme/app")
    assert await status(proxy, bearer(old)) == 200
    issuer.rotate()
    new = issuer.id_token(repository="acme/app")
    assert await status(proxy, bearer(new)) == 200
    assert await status(proxy, basic("x", old)) == 401  # its key is no longer listed


async def test_the_issuer_may_be_down(proxy: Proxy, issuer: issuers.Issuer) -> None:
    first, second = (issuer.id_token(repository=f"acme/{name}") for name in "ab")
    assert await status(proxy, bearer(first)) == 200
    issuer.stop()
    try:
        assert await status(proxy, bearer(second)) == 200
    finally:
        issuer.start()


async def test_a_reload_keeps_the_keys(
    proxy: Proxy, upstream: FakeUpstream, issuer: issuers.Issuer
) -> None:
    first, second = (issuer.id_token(repository=f"acme/{name}") for name in "ab")
    assert await status(proxy, bearer(first)) == 200
    issuer.stop()
    try:
        access, hub = settings(issuer), {"upstreams": {"docker.io": {"url": upstream.url}}}
        await proxy.app.reload(Settings.model_validate({"access": access, **hub}))
        assert await status(proxy, bearer(second)) == 200
    finally:
        issuer.start()


async def test_a_token_of_ours_ends_with_the_settings_of_its_issuer(
    proxy: Proxy, upstream: FakeUpstream, issuer: issuers.Issuer
) -> None:
    job = basic("x", issuer.id_token(repository="acme/app"))
    token = json.loads((await proxy.get(f"/-/token?scope={SCOPE}", Authorization=job)).body)
    assert await status(proxy, bearer(token["token"])) == 200
    access, hub = settings(issuer), {"upstreams": {"docker.io": {"url": upstream.url}}}
    access["oidc"][0]["require"] = {"repository": "acme/other"}
    await proxy.app.reload(Settings.model_validate({"access": access, **hub}))
    assert await status(proxy, bearer(token["token"])) == 401


async def test_what_is_fetched_is_bounded() -> None:
    async def answer(request: web.Request) -> web.Response:
        match request.path:
            case "/good":
                return web.Response(body=b"{}")
            case "/long":
                return web.Response(body=b"x" * (MAX_DOCUMENT + 1))
            case "/moved":
                return web.Response(status=302, headers={"Location": "/good"})
            case _:
                return web.Response(status=500)

    application = web.Application()
    application.router.add_get("/{page}", answer)
    async with TestServer(application) as server:
        base = str(server.make_url("")).rstrip("/")
        fetch = fetch_for(OIDCIssuer(issuer=base, audience="x"))
        assert await fetch(f"{base}/good") == b"{}"
        for page in ("long", "moved", "broken"):
            with pytest.raises(UpstreamUnavailable):
                await fetch(f"{base}/{page}")
    with pytest.raises(UpstreamUnavailable):
        await fetch(f"{base}/good")


def test_a_wrong_ca_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "none.pem"):
        settings: dict[str, Any] = {"issuer": "https://x.example", "audience": "x"}
        issuer = OIDCIssuer.model_validate(settings | {"ca_file": tmp_path / name})
        with pytest.raises(ConfigError, match=name):
            fetch_for(issuer)


@pytest.mark.parametrize("url", ["http://token.example", "token.example", "https://", "ftp://x"])
def test_an_issuer_is_reached_over_https(url: str) -> None:
    with pytest.raises(ValueError, match="https"):
        OIDCIssuer(issuer=url, audience="x")
