"""A real exec plugin, as the kubelet runs them."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from proxy.core.errors import CredentialsRejected
from proxy.upstream.credentials import Credential, kubelet, renewing
from proxy.upstream.credentials.kubelet import VERSION, KubeletPlugin, matches
from proxy.upstream.credentials.program import Program
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Start
from tests.upstream.credentials.programs import counting, runs, written

IMAGE = content.image(1)
REGISTRY = URL("https://lab.example.io:5000")


def answer(auth: object, kind: str = "Registry", **more: Any) -> str:
    document = {
        "apiVersion": VERSION,
        "kind": "CredentialProviderResponse",
        "cacheKeyType": kind,
        "auth": auth,
        **more,
    }
    return f"print({json.dumps(document)!r})"


def plugin(file: Path, body: str, default: float | None = None) -> KubeletPlugin:
    return KubeletPlugin(Program((str(counting(file, body)), "get"), {}), REGISTRY, default)


def login(user: str) -> dict[str, str]:
    return {"username": user, "password": "w"}


@pytest.mark.parametrize(
    ("pattern", "image", "expected"),
    [
        ("ghcr.io", "ghcr.io/app", True),
        ("https://ghcr.io", "ghcr.io/app", True),
        ("*.io", "ghcr.io/app", True),
        ("*", "ghcr.io/app", False),
        ("*.ghcr.io", "ghcr.io/app", False),
        ("*.dkr.ecr.*.amazonaws.com", "1.dkr.ecr.eu-west-1.amazonaws.com/a", True),
        ("sub*.example.io", "sub1.example.io/a", True),
        ("ghcr.io/org", "ghcr.io/org/app", True),
        ("ghcr.io/org", "ghcr.io/other", False),
        ("ghcr.io:443", "ghcr.io/app", False),
        ("ghcr.io:5000", "ghcr.io:5000/app", True),
        ("ghcr.io", "ghcr.io:5000/app", False),
        ("quay.io", "ghcr.io/app", False),
    ],
)
def test_patterns_of_images(pattern: str, image: str, expected: bool) -> None:
    assert matches(pattern, image) is expected


async def test_the_request_and_the_most_specific_answer(tmp_path: Path) -> None:
    auth = {
        "*.example.io:5000": login("host"),
        "lab.example.io:5000/team": login("team"),
        "quay.io": login("other"),
    }
    file = tmp_path / "plugin"
    source = plugin(file, answer(auth, "Image"))
    assert await source.get("team/app") == Credential("team", "w")
    assert await source.get("team/app") == Credential("team", "w")
    assert await source.get("app") == Credential("host", "w")
    images = ["lab.example.io:5000/team/app", "lab.example.io:5000/app"]
    asked = [json.loads(line) for line in runs(file)]
    assert [arguments for arguments, _ in asked] == [["get"], ["get"]]
    assert [json.loads(text) for _, text in asked] == [
        {"apiVersion": VERSION, "kind": "CredentialProviderRequest", "image": image}
        for image in images
    ]


async def test_invented_images_run_few_plugins_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubelet, "MAX_WAITING", 6)
    file, go, log = tmp_path / "plugin", tmp_path / "go", tmp_path / "runs"
    note = f"open({str(log)!r}, 'a').write"
    wait = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    reply = answer({"*.example.io:5000": login("alice")}, "Image")
    source = plugin(file, f"{note}('+')\n{wait}\n{reply}\n{note}('-')")
    asked = [asyncio.create_task(source.get(f"invented-{number % 9}")) for number in range(18)]
    async with asyncio.timeout(30):
        while not log.exists() or len(log.read_text()) < kubelet.MAX_RUNNING:
            await asyncio.sleep(0.01)
        failed, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.to_thread(int, 1)  # other work goes on
    go.touch()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    rejected = [one for one in answers if isinstance(one, CredentialsRejected)]
    assert len(rejected) == 2, "of one image too many, which two requests are for"
    assert "too many images" in rejected[0].message
    assert len(failed) <= 2
    assert answers.count(Credential("alice", "w")) == 16
    assert len(runs(file)) == 8, "requests for one image share a run"
    running = list(itertools.accumulate(1 if it == "+" else -1 for it in log.read_text()))
    assert max(running) == kubelet.MAX_RUNNING


@pytest.mark.parametrize("kind", ["Registry", "Global"])
async def test_an_answer_for_the_registry_is_kept_for_all_images(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "plugin"
    source = plugin(file, answer({"*.example.io:5000": login("alice")}, kind))
    for repository in ("a", "b", "c", "d", ""):
        assert await source.get(repository) == Credential("alice", "w")
    assert len(runs(file)) == 2, "the first answer says how long and for what it holds"


async def test_a_plugin_is_asked_again_after_its_login_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewing, "MIN_LIFE", 0.0)
    file = tmp_path / "plugin"
    source = plugin(file, answer({"lab.example.io:5000": login("old")}, "Image"))
    old = await source.get("app")
    assert old == Credential("old", "w")
    counting(file, answer({"lab.example.io:5000": login("new")}, "Image"))
    assert await source.renew("app", Credential("another", "w")) == old
    assert len(runs(file)) == 1
    assert await source.renew("app", old) == Credential("new", "w")
    assert len(runs(file)) == 2


@pytest.mark.parametrize("auth", [{}, None, "x", {"quay.io": login("a")}, {"*.example.io:5000": 1}])
async def test_no_credential_means_anonymous_access(tmp_path: Path, auth: object) -> None:
    assert await plugin(tmp_path / "plugin", answer(auth)).get("app") is None


@pytest.mark.parametrize(
    ("duration", "default", "expected"),
    [
        ("5m0s", None, 300),
        ("1h30m", 7.0, 5400),
        (None, 900.0, 900),
        (None, None, 600),
        ("0s", 900.0, 60),
        ("1.5h", None, 5400),
        ("soon", 900.0, 900),
        (12, 900.0, 900),
    ],
)
async def test_how_long_an_answer_is_kept(
    tmp_path: Path, duration: object, default: float | None, expected: float
) -> None:
    more = {} if duration is None else {"cacheDuration": duration}
    source = plugin(tmp_path / "plugin", answer({}, **more), default)
    assert source.expires_in is None
    await source.get("app")
    assert source.expires_in == pytest.approx(expected, abs=50)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit(2)", "ends with status 2"),
        ("print('{}')", "prints no JSON object"),
        (answer({}, "Pod"), "prints no CredentialProviderResponse"),
        (answer({}).replace("/v1", "/v1alpha1"), "prints no CredentialProviderResponse"),
    ],
)
async def test_a_plugin_that_misbehaves(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(CredentialsRejected, match=words):
        await plugin(tmp_path / "plugin", body).get("app")


async def test_a_proxy_pulls_with_what_a_plugin_gives(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.auth.scheme = "basic"
    upstream.auth.anonymous = False
    upstream.auth.users = {"AWS": "wonderland"}
    upstream.add("library/app", IMAGE)
    given = {upstream.host: {"username": "AWS", "password": "wonderland"}}
    file = written(tmp_path / "plugin", answer(given))
    settings = {"name": str(file), "args": ["get"], "default_cache_duration": "12h"}
    proxy = await start(hub={"credentials": {"kubelet": settings}})
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200
    assert "wonderland" not in proxy.log.getvalue()
