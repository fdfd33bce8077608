"""The Admin API: authorization, malformed requests, and answers to failures."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from proxy.web.admin.api.routes import PREFIX
from tests.access.company import People
from tests.running import Proxy, Start
from tests.web.admin.api.client import ApiClient, described

TOKEN = {"Authorization": "Bearer secret"}
PUBLIC = {"openapi.json", "session", "stats", "upstreams"}


def operations(client: ApiClient) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path.removeprefix(PREFIX), operation)
        for path, methods in client.description["paths"].items()
        for method, operation in methods.items()
    ]


async def test_only_public_routes_answer_everybody(anybody: ApiClient) -> None:
    for method, path, operation in operations(anybody):
        is_public = operation["security"] == [{}]
        if "text/event-stream" in operation["responses"].get("200", {}).get("content", {}):
            continue
        told = await anybody.ask(method, path.replace("{id}", "x"))
        if is_public:
            assert told.status == 200, path
        else:
            assert (told.status, told.error[0]) == (403, "DENIED"), path
    public = {path for _, path, operation in operations(anybody) if operation["security"] == [{}]}
    assert public >= PUBLIC


async def test_the_admin_token_makes_a_client_the_operator(start: Start, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    proxy = await start(admin={"token_file": str(tmp_path / "token")})
    client = await described(proxy.client)
    assert (await client.ask("GET", "pins")).status == 401
    assert (await client.ask("GET", "pins", headers={"Authorization": "Bearer x"})).status == 401
    assert (await client.ask("GET", "pins", headers=TOKEN)).status == 200


async def test_head_works_wherever_get_does(proxy: Proxy) -> None:
    assert (await proxy.head(PREFIX + "session")).status == 200
    assert (await proxy.head(PREFIX + "pins")).status == 403


async def test_other_paths_and_methods_are_refused(api: ApiClient) -> None:
    assert (await api.ask("GET", "nothing")).status == 404
    assert (await api.ask("GET", "")).status == 404
    told = await api.ask("POST", "session", {})
    assert (told.status, told.error[0]) == (405, "UNSUPPORTED")
    async with api.session.post(PREFIX + "session") as answer:
        assert answer.headers["Allow"] == "GET, HEAD"


async def test_every_reference_of_the_description_leads_to_a_schema(anybody: ApiClient) -> None:
    schemas = anybody.description["components"]["schemas"]
    text = json.dumps(anybody.description)
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) == set(schemas)
    for method, path, operation in operations(anybody):
        if (body := operation.get("requestBody")) is not None:
            name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert schemas[name]["additionalProperties"] is False, (method, path)


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        ({"data": b"{", "headers": {"Content-Type": "application/json"}}, "the body is not JSON"),
        ({"data": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, "not JSON"),
        ({"json": [1]}, "the body is not a JSON object"),
        ({"data": b'{"pin": "a"}'}, "Content-Type: application/json"),
        ({"json": {}}, "pin: Field required"),
        ({"json": {"pin": 1}}, "pin: Input should be a valid string"),
        ({"json": {"pin": "a", "more": 1}}, "more: Extra inputs are not permitted"),
        ({"json": {"pin": "x" * 2000}}, "pin: String should have at most 1024 characters"),
        ({"json": {"pin": "a b"}}, "a b"),
        ({"json": {"pin": "x" * 300_000}}, "at most 262144 bytes"),
        ({"params": {"pin": "a"}}, "parameters belong in the body"),
    ],
)
async def test_a_malformed_body_gets_400_that_says_what_is_wrong(
    api: ApiClient, sent: dict[str, Any], problem: str
) -> None:
    async with api.session.put(PREFIX + "pins", **sent) as answer:
        told = api.checked("PUT", "pins", answer.status, await answer.read())
    assert told.status == 400
    assert problem in told.error[1]
    assert len(told.error[1]) < 1000
    assert (await api.get("pins"))["pins"] == []


async def test_a_malformed_query_gets_400(api: ApiClient) -> None:
    for query in ("pin=a&pin=b", "pin=a&more=1", ""):
        async with api.session.delete(f"{PREFIX}pins?{query}") as answer:
            assert answer.status == 400, query


# --- other sites ------------------------------------------------------------------------------


@pytest.fixture
async def behind_token(start: Start, tmp_path: Path) -> ApiClient:
    (tmp_path / "token").write_text("secret")
    proxy = await start(admin={"token_file": str(tmp_path / "token")})
    return await described(proxy.client)


async def test_our_own_page_changes_something_with_authorization(behind_token: ApiClient) -> None:
    body, client = {"pin": "nginx:1"}, behind_token
    host = str(client.session._base_url).removeprefix("http://").rstrip("/")
    own = {"Origin": f"http://{host}"}
    assert (await client.ask("PUT", "pins", body, headers=own)).status == 401
    for other in ("http://evil.example", "null", "http://[", f"http://{host}.evil.example"):
        told = await client.ask("PUT", "pins", body, headers=TOKEN | {"Origin": other})
        assert told.status == 403, other
    assert (await client.ask("GET", "pins", headers=TOKEN)).document["pins"] == []
    assert (await client.ask("PUT", "pins", body, headers=TOKEN | own)).status == 200
    other = TOKEN | {"Origin": "http://evil.example"}
    assert (await client.ask("GET", "pins", headers=other)).status == 200


async def test_a_web_page_cannot_use_what_a_browser_sends_by_itself(
    start: Start, api: ApiClient
) -> None:
    """Neither the address that a rule names, nor the socket behind another server."""
    told = await api.ask("PUT", "pins", {"pin": "a"}, headers={"Origin": "http://millpond"})
    assert (told.status, told.error[0]) == (403, "DENIED")


async def test_a_network_that_may_administer_is_no_login(start: Start) -> None:
    access = {
        "networks": {"office": ["127.0.0.1/32"]},
        "rules": [{"allow": "admin", "to": ["network:office", "user:ann"]}],
    }
    proxy = await start(access=access, identifier=People())
    client = await described(proxy.client)
    own = {"Origin": str(client.session._base_url).rstrip("/")}
    assert (await client.ask("PUT", "pins", {"pin": "a"})).status == 200
    told = await client.ask("PUT", "pins", {"pin": "b"}, headers=own)
    assert (told.status, told.error[0]) == (403, "DENIED")
    ann = own | {"Authorization": "Bearer ann"}
    assert (await client.ask("PUT", "pins", {"pin": "b"}, headers=ann)).status == 200


# --- the audit log ----------------------------------------------------------------------------


async def test_changes_and_refusals_are_audited(start: Start, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    log = tmp_path / "audit.log"
    proxy = await start(
        admin={"token_file": str(tmp_path / "token")}, access={"audit_file": str(log)}
    )
    client = await described(proxy.client)
    await client.ask("GET", "pins", headers=TOKEN)
    await client.ask("GET", "in-use")
    await client.ask("PUT", "pins", {"pin": "nginx:1"}, headers=TOKEN)
    await client.ask("DELETE", "pins", headers=TOKEN, pin="nginx:2")
    await proxy.close()
    recorded = log.read_text()
    assert f"GET {PREFIX}pins" not in recorded
    assert f"GET {PREFIX}in-use" in recorded
    assert f"PUT {PREFIX}pins" in recorded
    assert f"DELETE {PREFIX}pins" in recorded


async def test_a_wrong_login_is_audited_where_everybody_is_answered(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("secret\n")
    log = tmp_path / "audit.log"
    proxy = await start(
        admin={"token_file": str(tmp_path / "token")}, access={"audit_file": str(log)}
    )
    for sent in ("Bearer guess", "Bearer secret"):
        answer = await proxy.get(PREFIX + "session", Authorization=sent)
        assert answer.status == 200
    assert (await proxy.get(PREFIX + "session")).status == 200
    await proxy.close()
    [line] = map(json.loads, log.read_text().splitlines())
    assert (line["event"], line["outcome"]) == ("login", "denied")
    assert "guess" not in log.read_text()
