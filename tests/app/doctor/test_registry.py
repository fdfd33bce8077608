"""One registry, each check seen failing and passing, against fakes and Debian's docker-registry."""

import asyncio
from pathlib import Path
from threading import Event

import pytest

from proxy.app.doctor.registry import WELL_KNOWN, well_known
from proxy.app.doctor.results import Finding, Status, blocking, ok, ran
from proxy.settings import Settings
from proxy.settings.upstreams import BUILT_IN
from tests.app.doctor.checking import Found, checked, says, settings_of
from tests.fakes import content, faults
from tests.fakes.registry import RateLimit
from tests.fakes.upstream import FakeUpstream
from tests.parts import registry as registries
from tests.parts.token_server import Access

SECRET = "a-secret-of-alice"
LOGIN = {"username": "alice", "password": SECRET}


async def seen(
    upstream: FakeUpstream, tmp_path: Path, image: str | None = "app", **hub: object
) -> Found:
    """Check the fake, and see that no result says the password."""
    found = await checked(settings_of(tmp_path, {"url": upstream.url, **hub}), image)
    assert SECRET not in repr(found)
    return found


async def test_a_registry_that_wants_nothing(upstream: FakeUpstream, tmp_path: Path) -> None:
    image = upstream.add("library/app", content.image(1))
    found = await seen(upstream, tmp_path)
    says(found["/v2/"], "ok", "answers 200")
    says(found["clock"], "ok", "agree")
    says(found["anonymous token"], "skipped", "no token")
    says(found["login"], "skipped", "no credentials are configured")
    says(found["head"], "ok", f"library/app:latest is {image.digest}")
    says(found["rate limit"], "skipped", "none")
    says(found["redirect"], "ok", "blobs come from the registry")


async def test_nothing_is_looked_at_without_an_image(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    found = await seen(upstream, tmp_path, image=None)
    says(found["head"], "skipped", "name one with --image")
    says(found["redirect"], "skipped", "name one with --image")
    assert upstream.count("GET", "manifest") == 0


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, ("is no registry", "correct upstreams.docker.io.url")), (503, ("answers 503", "wait"))],
)
async def test_an_address_without_a_registry(
    upstream: FakeUpstream, tmp_path: Path, status: int, words: tuple[str, ...]
) -> None:
    upstream.fail(status, kind="ping")
    found = await seen(upstream, tmp_path)
    says(found["/v2/"], "failed", *words)
    says(found["head"], "skipped", "/v2/ failed")


@pytest.mark.parametrize(
    ("scheme", "words"), [("bearer", "a token of 127.0.0.1"), ("basic", "a user")]
)
async def test_the_challenge(
    upstream: FakeUpstream, tmp_path: Path, scheme: str, words: str
) -> None:
    upstream.auth.scheme = scheme  # type: ignore[assignment]
    says((await seen(upstream, tmp_path))["/v2/"], "ok", "401", words)
    upstream.auth.challenge = "never"
    says((await seen(upstream, tmp_path))["/v2/"], "failed", "no credentials that", "gateway")


@pytest.mark.parametrize(
    ("date", "words"),
    [
        ("Wed, 01 Jan 2020 00:00:00 GMT", "ahead of"),
        ("Wed, 01 Jan 2098 00:00:00 GMT", "behind"),
    ],
)
async def test_a_clock_that_is_wrong(
    upstream: FakeUpstream, tmp_path: Path, date: str, words: str
) -> None:
    upstream.fault(faults.header("Date", date), kind="ping")
    says((await seen(upstream, tmp_path))["clock"], "failed", words, "timedatectl")


async def test_a_registry_without_a_clock(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.fault(faults.header("Date", "soon"), kind="ping")
    says((await seen(upstream, tmp_path))["clock"], "skipped", "says no time")


async def test_a_token_without_credentials(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.users = {"alice": SECRET}
    found = await seen(upstream, tmp_path)
    says(found["anonymous token"], "ok", "a token for repository:library/app:pull")
    upstream.auth.anonymous = False
    found = await seen(upstream, tmp_path)
    says(found["anonymous token"], "failed", "401", "upstreams.docker.io.username")
    found = await seen(upstream, tmp_path, **LOGIN)
    says(found["anonymous token"], "ok", "without credentials:", "401")


@pytest.mark.parametrize("scheme", ["bearer", "basic"])
async def test_a_login(upstream: FakeUpstream, tmp_path: Path, scheme: str) -> None:
    upstream.auth.scheme = scheme  # type: ignore[assignment]
    upstream.auth.users = {"alice": SECRET}
    says((await seen(upstream, tmp_path, **LOGIN))["login"], "ok", "logged in (password)")
    upstream.auth.users = {"alice": "another"}
    found = await seen(upstream, tmp_path, **LOGIN)
    says(found["login"], "failed", "reject", "the credentials (password) of upstreams.docker.io")
    upstream.auth.scheme = "none"
    found = await seen(upstream, tmp_path, **LOGIN)
    says(found["login"], "skipped", "does not ask")


async def test_a_login_whose_source_fails(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.auth.scheme = "basic"
    lost = {"username": "alice", "password_file": str(tmp_path / "no")}
    says((await seen(upstream, tmp_path, **lost))["login"], "failed", "cannot be read")
    found = await seen(upstream, tmp_path, credentials="caller")
    says(found["login"], "skipped", "every client sends its login")


async def test_a_real_registry_and_its_token_server(tmp_path: Path) -> None:
    with registries.running(Access({"alice": SECRET})) as registry:
        right = settings_of(tmp_path, {"url": registry.url, **LOGIN})
        found = await checked(right, "app")
        says(found["/v2/"], "ok", "asks for a token of 127.0.0.1")
        says(found["anonymous token"], "ok", "a token for repository:library/app:pull")
        says(found["login"], "ok", "logged in (password)")
        says(found["head"], "failed", "library/app:latest", "--image")
        wrong = settings_of(
            tmp_path, {"url": registry.url, "username": "alice", "password": "b4d-0ne"}
        )
        found = await checked(wrong, "app")
        says(found["login"], "failed", "the configured credentials are rejected")
        assert "b4d-0ne" not in repr(found)
        registry.tokens.stop()
        found = await checked(right, "app")
        says(found["login"], "failed", "cannot be reached")
        registry.tokens.start()


async def test_a_head_that_fails(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.add("library/app", content.image(1))
    upstream.fault(faults.digest_header(None), kind="manifest", method="HEAD", times=1)
    says((await seen(upstream, tmp_path))["head"], "warning", "no digest", "takes a GET")
    missing = (await seen(upstream, tmp_path, image="app:no"))["head"]
    says(missing, "failed", "app:no", "--image")
    upstream.auth.scheme = "bearer"
    upstream.auth.private = {"library/app": {"alice"}}
    says((await seen(upstream, tmp_path))["head"], "failed", "denies", "set credentials for")


@pytest.mark.parametrize(
    ("remaining", "status", "words"),
    [
        (76, "ok", ("76 of 100 pulls in 6 hours",)),
        (10, "warning", ("10 of 100", "upstreams.docker.io.username")),
        (0, "failed", ("0 of 100", "wait")),
    ],
)
async def test_the_rate_limit(
    upstream: FakeUpstream, tmp_path: Path, remaining: int, status: str, words: tuple[str, ...]
) -> None:
    upstream.add("library/app", content.image(1))
    upstream.behaviour.rate_limit = RateLimit(limit=100, remaining=remaining)
    found = await seen(upstream, tmp_path)
    says(found["rate limit"], status, *words)
    spent = upstream.count("GET", "manifest")
    assert spent == (1 if remaining == 76 else 0)  # by the check of the redirect
    says(found["redirect"], "ok" if spent else "skipped")


async def test_where_blobs_come_from(tmp_path: Path) -> None:
    async with FakeUpstream(cdn_host="127.0.0.2") as upstream:
        upstream.add("library/app", content.multi_platform())
        upstream.behaviour.redirects = {"blob"}
        found = await seen(upstream, tmp_path)
        says(found["redirect"], "ok", "blobs come from 127.0.0.2")
        assert upstream.count("GET", "manifest") == 2
        upstream.fault(faults.status(500), kind="data", times=1)
        found = await seen(upstream, tmp_path)
        says(found["redirect"], "failed", "127.0.0.2 answers 500")
        elsewhere = f"http://127.0.0.2:1/{content.digest(b'')}"
        upstream.fault(faults.redirect(elsewhere), kind="blob")
        found = await seen(upstream, tmp_path)
        says(found["redirect"], "failed", "blobs come from 127.0.0.2", "cannot be reached")


async def test_an_upstream_that_is_offline_is_not_asked(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    found = await seen(upstream, tmp_path, offline=True)
    assert {result.status for result in found.values()} == {Status.SKIPPED}
    assert "offline: true" in found["dns"].detail
    assert not upstream.requests


async def test_a_check_that_takes_too_long_fails() -> None:
    async def late() -> Finding:
        await asyncio.Event().wait()
        return ok("late")

    says(await ran("here", "late", late, 0.01), "failed", "no answer within 0.01 seconds")


async def test_a_check_that_blocks_is_left_behind() -> None:
    released = Event()

    def stuck() -> Finding:
        released.wait(60)
        return ok("late")

    says(await ran("here", "stuck", blocking(stuck), 0.05), "failed", "no answer within")
    released.set()
    says(await ran("here", "free", blocking(stuck)), "ok", "late")


async def test_a_check_that_breaks_off_ends_no_other() -> None:
    def broken() -> Finding:
        raise LookupError("out of the blue")

    says(await ran("here", "broken", blocking(broken)), "failed", "broke off (LookupError)")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("Date", "Mon, 01 Jan 2024 00:00:00 +99999999999999999999", "says no time"),
        ("Age", "nan", "agree about the time"),
        ("Age", "9" * 400, "agree about the time"),
    ],
)
async def test_a_registry_that_says_a_senseless_time(
    upstream: FakeUpstream, tmp_path: Path, name: str, value: str, words: str
) -> None:
    upstream.fault(faults.header(name, value), kind="ping")
    assert words in (await seen(upstream, tmp_path))["clock"].detail


async def test_a_check_that_the_system_fails() -> None:
    def broken() -> Finding:
        raise PermissionError(13, "Permission denied")

    says(await ran("here", "broken", blocking(broken)), "failed", "Permission denied")


def test_well_known_images_are_those_of_the_registries_themselves() -> None:
    assert set(WELL_KNOWN) == set(BUILT_IN)
    upstreams = Settings(upstreams={"quay.io": {"url": "http://10.0.0.1"}}).upstreams  # type: ignore[dict-item]
    assert str(well_known("docker.io", upstreams["docker.io"])) == "library/hello-world:latest"
    assert well_known("quay.io", upstreams["quay.io"]) is None
