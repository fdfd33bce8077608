"""The documents match the program: paths, metrics, statistics, log lines, errors, links."""

import ast
import json
import re
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, UnixConnector
from prometheus_client.parser import text_string_to_metric_families

from docs import generate
from proxy.cli import cli
from proxy.core.errors import RegistryError
from proxy.runtime.events import EventKind
from proxy.runtime.metrics import Outcome
from proxy.runtime.part_counters import HookCounters, NotificationCounters, WorkerCounters
from tests.access.company import People
from tests.fakes import content
from tests.fakes.registry import RateLimit
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until
from tests.upstream.credentials.programs import written

ROOT = Path(__file__).resolve().parents[1]
API, OPERATING = "docs/http-api.md", "docs/operating.md"
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
)
LINKING = [*PAGES, "deploy/README.md", "proxy/README.md", "tests/README.md", "benchmarks/README.md"]

CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NAMED_PATH = re.compile(
    r"`((?:proxy|tests|docs|config|deploy|benchmarks)/[\w./-]*[\w/])(?:::\w+)?`"
)
NAME = re.compile(r"`([^`]+)`")

LEVELS = {"debug", "info", "warning", "error", "exception"}
DIALECT = (
    "tell whether",
    "tells whether",
    "what has come",
    "must have come",
    "what has left",
    "is told",
    "are told",
    "was told",
    "lies ready",
    "lie ready",
    "nobody",
    "of its own",
    "of our own",
    "who asks",
    "who has waited",
    "had better",
    "for ever",
    "some time later",
    "in vain",
    "lies here",
    "lie here",
    "what is held",
    "names lead",
    "went:",
    "somebody",
    "anybody",
    "whoever",
    "takes over",
    "for good",
    "knows nothing",
    "goes on with",
    "what it costs",
    "as far as it is",
)
"""Phrases that are no plain English."""


def text(page: str) -> str:
    return (ROOT / page).read_text()


def section(page: str, heading: str) -> str:
    """The text below one heading, up to the next one of any level."""
    _, found, rest = f"\n{text(page)}".partition(f"\n{heading}\n")
    assert found, f"{page} has no {heading!r}"
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    table = re.search(r"(?:^\|.*\n){3,}", section(page, heading), re.MULTILINE)
    assert table, f"{page} has no table below {heading!r}"
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]
    ]


def names(page: str, heading: str) -> set[str]:
    """The names in the first column of a table."""
    return {name for cells in rows(page, heading) for name in NAME.findall(cells[0])}


def source() -> Iterator[ast.AST]:
    """Every node of the source."""
    for file in (ROOT / "proxy").rglob("*.py"):
        yield from ast.walk(ast.parse(file.read_text(), file.name))


def strings() -> Iterator[str]:
    """Every string in the source."""
    for node in source():
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def logged_events() -> Iterator[str]:
    """The event of every line that the source logs."""
    for node in source():
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="log"), attr=level),
                args=[ast.Constant(value=str(event)), *_],
            ) if level in LEVELS:
                yield event


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = LINK.sub("", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


# --- generated parts -------------------------------------------------------------------------


@pytest.mark.parametrize("page", generate.documents(), ids=lambda path: path.name)
def test_the_generated_parts_are_current(page: Path) -> None:
    assert page.read_text() == generate.documents()[page], "run: make docs"


def test_the_measurements_are_found() -> None:
    results = generate.results()
    assert len(results) > 50
    assert any(result.rival == generate.RIVAL for result in results)
    assert {result.reached for result in results} <= {"yes", generate.MISSED, ""}


# --- commands --------------------------------------------------------------------------------


def commands() -> set[str]:
    """The commands as they are typed, without those of a group."""
    single = {
        each.name or each.callback.__name__ for each in cli.registered_commands if each.callback
    }
    return single | {str(group.name) for group in cli.registered_groups}


def test_every_command_is_documented() -> None:
    pages = "".join(text(page) for page in PAGES if page.startswith("docs/"))
    missing = {name for name in commands() if f"millpond {name.replace('_', '-')}" not in pages}
    assert missing == set()


# --- links, names, words ---------------------------------------------------------------------


def resolves(page: str, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    if not target.exists():
        return False
    return not anchor or anchor in map(slug, HEADING.findall(target.read_text()))


@pytest.mark.parametrize("page", LINKING)
def test_relative_links_resolve(page: str) -> None:
    links = [link for link in LINK.findall(CODE.sub("", text(page))) if "://" not in link]
    assert not [link for link in links if not resolves(page, link)]


@pytest.mark.parametrize("page", PAGES)
def test_paths_of_the_repository_exist(page: str) -> None:
    assert not [path for path in NAMED_PATH.findall(text(page)) if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_the_documents_are_in_plain_words(page: str) -> None:
    prose = " ".join(CODE.sub("", text(page)).lower().split())
    assert not [phrase for phrase in DIALECT if re.search(rf"\b{phrase}(?!\w)", prose)]


def test_the_readme_is_short() -> None:
    assert len(text("README.md").splitlines()) <= 160


def test_the_readme_leads_to_every_document() -> None:
    leads = set(LINK.findall(text("README.md")))
    assert {page for page in PAGES if page != "README.md"} <= leads


def test_the_glossary_is_one_page_in_order() -> None:
    terms = [cells[0] for cells in rows("docs/glossary.md", "# Glossary")]
    assert terms == sorted(set(terms), key=str.lower)
    assert len(text("docs/glossary.md").splitlines()) <= 100


def test_every_decision_has_its_parts() -> None:
    _, *entries = re.split(r"^### ", text("docs/decisions.md"), flags=re.MULTILINE)
    assert len(entries) > 20
    for entry in entries:
        title, _, body = entry.partition("\n")
        for part in (r"^\*\d{4}-\d\d-\d\d\.\* \S", r"^\*\*Why:\*\* \S", r"^\*\*Revisit if\*\* \S"):
            assert len(re.findall(part, body, re.MULTILINE)) == 1, (title, part)


def test_the_floors_are_those_that_are_enforced() -> None:
    tools = tomllib.loads(text("pyproject.toml"))["tool"]
    [contract] = [
        contract for contract in tools["importlinter"]["contracts"] if contract["type"] == "layers"
    ]
    enforced = [set(layer.split(" | ")) for layer in contract["layers"] if layer != "__main__"]
    table = rows("CONTRIBUTING.md", "## Find your way")
    assert [set(NAME.findall(cells[0])) for cells in table] == enforced


# --- HTTP ------------------------------------------------------------------------------------


def paths(heading: str) -> dict[str, set[str]]:
    """The paths below a heading, and their methods."""
    return {cells[0].strip("`"): set(cells[1].split(", ")) for cells in rows(API, heading)}


PUBLIC, TRUSTED = paths("## For everybody"), paths("## For the operator")


def test_every_path_is_documented() -> None:
    served = {name for name in strings() if re.fullmatch(r"/-/([a-z][a-z-]*)?", name)}
    assert len(served) > 5
    assert "`/-/token`" in section(API, "### Tokens")  # which is there with access only
    assert served - {"/-/token"} == {path for path in PUBLIC | TRUSTED if path.startswith("/-/")}


async def test_every_route_of_the_admin_api_is_documented(proxy: Proxy) -> None:
    documented = {
        (cells[0].strip("`"), method, cells[2] == "everybody")
        for cells in rows(API, "## Admin API")
        for method in cells[1].split(", ")
    }
    routes = proxy.app.operator_api.api.routes
    assert documented == {(route.path, route.method, route.is_public) for route in routes}


def test_every_operator_path_is_explained() -> None:
    explained = {heading for heading in HEADING.findall(text(API)) if "/-/" in heading}
    assert explained == {f"{way} {path}" for path, ways in TRUSTED.items() for way in ways}


@pytest.fixture
async def operator(proxy: Proxy) -> AsyncIterator[ClientSession]:
    socket = UnixConnector(str(proxy.storage / "admin.sock"))
    async with ClientSession("http://millpond", connector=socket) as session:
        yield session


@pytest.mark.parametrize("path", PUBLIC | TRUSTED)
async def test_every_path_has_the_documented_methods(operator: ClientSession, path: str) -> None:
    async with operator.request("PATCH", path) as answer:
        assert answer.status == 405
        allowed = {method.strip() for method in answer.headers["Allow"].split(",")}
        assert allowed == (PUBLIC | TRUSTED)[path]


async def test_there_are_no_other_paths(operator: ClientSession) -> None:
    async with operator.get("/-/nothing") as answer:
        assert answer.status == 404


@pytest.mark.parametrize(
    ("method", "path"), [(method, path) for path in TRUSTED for method in sorted(TRUSTED[path])]
)
async def test_required_parameters_are_documented(
    operator: ClientSession, method: str, path: str
) -> None:
    required = re.findall(r"^- `(\w+)`: ", section(API, f"### {method} {path}"), re.MULTILINE)
    async with operator.request(method, path) as answer:
        body = await answer.text()
        assert (answer.status == 400) == bool(required), body
        assert all(name in body for name in required)


@pytest.mark.parametrize("path", PUBLIC)
async def test_what_is_for_everybody_needs_no_token(proxy: Proxy, path: str) -> None:
    for method in PUBLIC[path]:
        assert (await proxy.ask(method, path)).status == 200


@pytest.mark.parametrize("path", TRUSTED)
async def test_what_is_for_the_operator_is_refused_to_others(proxy: Proxy, path: str) -> None:
    for method in TRUSTED[path]:
        assert (await proxy.ask(method, path)).status == 403


def failures(cls: type[RegistryError]) -> Iterator[tuple[int, str]]:
    for below in cls.__subclasses__():
        if "code" in vars(below) or "status" in vars(below):
            yield below.status, below.code
        yield from failures(below)


def test_every_error_is_documented() -> None:
    documented = {
        (int(status), code)
        for status, codes, _ in rows(API, "## Errors")
        for code in NAME.findall(codes)
    }
    bases = {(404, "UNKNOWN")}  # absence as such, which is never raised
    assert documented == {(500, "UNKNOWN"), *failures(RegistryError)} - bases


# --- statistics, metrics, logs ---------------------------------------------------------------


@pytest.fixture
async def used(start: Start, upstream: FakeUpstream, tmp_path: Path) -> Proxy:
    """A proxy that has answered, denied, failed, and seen a rate limit and a client that leaves.

    Its credentials expire.
    """
    upstream.auth.scheme = "basic"
    upstream.auth.users = {"alice": "wonderland"}
    helper = written(
        tmp_path / "helper", 'print(\'{"Username": "alice", "Secret": "wonderland"}\')'
    )
    rules = [{"deny": "pull", "images": ["docker.io/bad/**"]}, {"allow": "pull"}]
    policies = [{"max_image_size": 1, "audit": True}]
    proxy = await start(
        identifier=People(),
        access={"rules": rules},
        policies=policies,
        hub={"credentials": {"exec": {"command": [str(helper)]}}},
    )
    await proxy.get("/v2/bad/app/tags/list", Authorization="Bearer bob")
    upstream.behaviour.rate_limit = RateLimit(limit=100, remaining=76)
    image = upstream.add("library/app", content.image(1, layers=(300_000,)))
    blob = f"/v2/app/blobs/{image.layers[0]}"
    for path in ("/v2/", "/v2/app/manifests/latest", "/v2/app/manifests/none"):
        await proxy.get(path)
    release = upstream.stall(100_000, kind="blob")
    async with proxy.client.get(blob) as answer:
        await answer.content.read(1)
        answer.close()
    await until(lambda: '"client_left"' in proxy.log.getvalue())
    release.set()
    await proxy.settled()
    return proxy


async def test_every_metric_is_documented(used: Proxy) -> None:
    used.app.admin._metrics.workers["1"] = WorkerCounters()  # this one has no workers
    used.app.admin._metrics.hooks["hub"] = HookCounters()  # nor hooks
    used.app.admin._metrics.notifications["ci"] = NotificationCounters()
    page = (await used.get("/metrics")).body.decode()
    served = {
        family.name + ("_total" if family.type == "counter" else ""): {
            label for sample in family.samples for label in sample.labels
        }
        - {"le"}
        for family in text_string_to_metric_families(page)
        if family.name.startswith("millpond_")
    }
    documented = {
        cells[0].strip("`"): set(NAME.findall(cells[1])) for cells in rows(OPERATING, "## Metrics")
    }
    assert documented == served


def test_every_event_is_documented() -> None:
    assert names("docs/events.md", "## Kinds") == set(EventKind)
    reasons = NotificationCounters().dropped.keys()
    assert names("docs/events.md", "### Dropped events") == set(reasons)


async def test_every_statistic_is_documented(used: Proxy, upstream: FakeUpstream) -> None:
    image = upstream.add("library/slow", content.image(2, layers=(300_000,)))
    release = upstream.stall(100_000, kind="blob")
    async with used.client.get(f"/v2/slow/blobs/{image.layers[0]}"):
        stats = json.loads((await used.get("/-/stats")).body)
        trusted = used.stats
    release.set()
    assert names(OPERATING, "## Statistics") == set(stats)
    assert names(OPERATING, "### Counters") == set(stats["total"])
    [state] = [rows(OPERATING, "### State of a registry")]
    hub = stats["upstreams"]["docker.io"]
    assert {cells[0].strip("`") for cells in state} == set(hub) - set(stats["total"])
    assert set(hub["rate_limit"]) <= set(
        NAME.findall(section(OPERATING, "### State of a registry"))
    )
    assert names(OPERATING, "### Cache") == set(stats["cache"])
    mentioned = set(NAME.findall(section(OPERATING, "### Downloads")))
    [public], [private] = stats["downloads"], trusted["downloads"]
    limit = trusted["upstreams"]["docker.io"]["rate_limit"]
    assert mentioned - {"rate_limit"} == {*public, *private, *(set(limit) - set(hub["rate_limit"]))}


async def test_every_field_of_the_request_log_is_documented(used: Proxy) -> None:
    lines = map(json.loads, used.log.getvalue().splitlines())
    logged = [line for line in lines if line["event"] == "request"]
    found = {name for line in logged for name, value in line.items() if value is not None}
    assert names(OPERATING, "### The request log") == found - {"event", "level"}


def test_every_event_that_is_documented_is_logged() -> None:
    events = {NAME.findall(cells[0])[0] for cells in rows(OPERATING, "### Events to watch")}
    assert events - set(logged_events()) == set()


def test_every_event_of_the_log_is_documented() -> None:
    assert names("docs/log-events.md", "# All log events") == set(logged_events())


def test_every_outcome_is_documented() -> None:
    assert names(OPERATING, "## Outcomes") == {outcome.value for outcome in Outcome}
