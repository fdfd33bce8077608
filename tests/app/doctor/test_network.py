"""The way to a registry, each check seen failing and passing."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from yarl import URL

from proxy.app.doctor.network import Way
from proxy.settings import UpstreamTLS
from tests.app.doctor.checking import checked, says, settings_of
from tests.fakes.tls import certificate
from tests.fakes.upstream import FakeUpstream
from tests.parts.process import free_port

DAY = 86400


def day(offset: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(time.time() + offset * DAY))


@asynccontextmanager
async def over_tls(
    folder: Path, days: tuple[float, float] = (-1, 400), names: tuple[str, ...] = ("127.0.0.1",)
) -> AsyncIterator[tuple[str, UpstreamTLS]]:
    """Give the URL of a registry with such a certificate, and the settings that trust it."""
    made = certificate(folder, names, days)
    async with FakeUpstream(ssl_context=made.server) as upstream:
        yield upstream.url, UpstreamTLS(ca_file=made.authority)


def way(url: str, tls: UpstreamTLS | None = None) -> Way:
    return Way.to("docker.io", URL(url), tls or UpstreamTLS())


async def test_a_name_that_is_found_and_one_that_is_not() -> None:
    says(await way("https://localhost").dns(), "ok", "localhost is", "127.0.0.1")
    lost = await way("https://registry.invalid").dns()
    says(lost, "failed", "registry.invalid is not found", "/etc/resolv.conf")
    odd = await way(f"https://{'a' * 64}.example").dns()
    says(odd, "failed", "is not found", "the name in url")
    says(await way("https://127.0.0.1").dns(), "skipped", "is an address")


async def test_a_port_that_answers_and_one_that_does_not(upstream: FakeUpstream) -> None:
    says(await way(upstream.url).tcp(), "ok", "127.0.0.1 port", "answers in")
    closed = await way(f"http://127.0.0.1:{free_port()}").tcp()
    says(closed, "failed", "cannot be reached", "refused", "firewall")


async def test_what_fails_first_is_all_there_is_to_check(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    found = await checked(settings_of(tmp_path, {"url": url}), "app")
    says(found["tcp"], "failed")
    for name in ("tls", "/v2/", "clock", "login", "head", "redirect"):
        says(found[name], "skipped", "tcp failed")


async def test_a_proxy_is_what_is_connected_to(
    monkeypatch: pytest.MonkeyPatch, upstream: FakeUpstream
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:s3cret@{upstream.host}")
    through = way("https://registry.invalid")
    says(await through.dns(), "skipped", "127.0.0.1 is an address")
    tcp = await through.tcp()
    says(tcp, "ok", "of the proxy answers")
    assert "s3cret" not in repr(tcp)
    says(await through.certificate(), "skipped", "proxy")


@pytest.mark.parametrize(
    ("days", "status", "words"),
    [
        ((-1, 400), "ok", ("is trusted", "valid until", 400)),
        ((-1, 3), "warning", ("expires on", 3, "renew it")),
        ((-30, -2), "failed", ("expired on", -2, "clock says", 0, "renew it")),
        ((3, 30), "failed", ("not valid yet: it begins on", 3, "set this machine's clock")),
    ],
)
async def test_the_dates_of_a_certificate(
    tmp_path: Path, days: tuple[float, float], status: str, words: tuple[str | int, ...]
) -> None:
    async with over_tls(tmp_path, days) as (url, tls):
        dates = (day(word) if isinstance(word, int) else word for word in words)
        says(await way(url, tls).certificate(), status, *dates)


async def test_a_certificate_of_an_unknown_authority(tmp_path: Path) -> None:
    async with over_tls(tmp_path) as (url, _):
        found = await way(url).certificate()
        says(found, "failed", "not trusted: self-signed", "upstreams.docker.io.tls.ca_file")
        blind = await way(url, UpstreamTLS(verify=False)).certificate()
        says(blind, "warning", "not verified", "upstreams.docker.io.tls.verify: true")


async def test_a_certificate_for_another_name(tmp_path: Path) -> None:
    async with over_tls(tmp_path, names=("localhost",)) as (url, tls):
        says(await way(url, tls).certificate(), "failed", "not trusted", "another one")


async def test_no_tls_where_it_is_expected(upstream: FakeUpstream) -> None:
    says(await way(upstream.url).certificate(), "skipped", "http://")
    plain = await way(upstream.url.replace("http:", "https:")).certificate()
    says(plain, "failed", "TLS fails", "scheme and port")


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def test_a_registry_that_accepts_and_says_nothing(tmp_path: Path) -> None:
    server = await asyncio.start_server(_silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        limits = {"answer": "500ms", "idle": "500ms"}
        settings = settings_of(tmp_path, {"url": f"http://127.0.0.1:{port}"}, timeouts=limits)
        found = await checked(settings)
    says(found["tcp"], "ok")
    says(found["/v2/"], "failed", "does not answer in time")
