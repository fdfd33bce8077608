"""An upstream that echoes credentials: clients and the log do not get them."""

import base64
import json
import secrets
import time
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest

from proxy.upstream.credentials.caller import Caller, asking_as
from proxy.upstream.redaction import Redactor
from tests.fakes import content
from tests.fakes.faults import Effect
from tests.fakes.records import Record
from tests.fakes.replies import Reply
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Proxy, Start

IMAGE = content.image(1)
USER = {"username": "alice", "password": "wonder/land+1"}
PAIR = f"{USER['username']}:{USER['password']}"
ENCODED = base64.b64encode(PAIR.encode()).decode()
assert "/" not in ENCODED, "it can stand in a media type"
SECRETS = [PAIR, USER["password"], ENCODED, ENCODED.rstrip("="), "token-1", quote(PAIR)]
SPREAD = "\u200b".join(PAIR)
PATHS = [
    "/v2/app/manifests/latest",
    f"/v2/app/manifests/{IMAGE.digest}",
    f"/v2/app/blobs/{IMAGE.layers[0]}",
    "/v2/app/tags/list",
    f"/v2/app/referrers/{IMAGE.digest}",
]


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    upstream.auth.users = {USER["username"]: USER["password"]}
    upstream.auth.anonymous = False


def echo(code: int, form: str = "{value}") -> Effect:
    """An error whose message repeats our credentials: whole, in part, and disguised a little."""

    def effect(record: Record, reply: Reply) -> Reply:
        value = record.headers.get("Authorization", "")
        if not value:
            return reply
        said = form.format(
            value=value, credential=value.partition(" ")[2], pair=PAIR, spread=SPREAD, **USER
        )
        body = json.dumps({"errors": [{"code": "X", "message": said}]}).encode()
        return replace(reply, status=code, body=body)

    return effect


def keeps(proxy: Proxy, answer: Answer) -> None:
    """Neither the answer nor the log nor the statistics hold any form of the credentials."""
    headers = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
    body = answer.body.decode(errors="replace")
    said = f"{body}\n{headers}\n{proxy.log.getvalue()}\n{json.dumps(proxy.stats)}"
    for secret in SECRETS:
        assert secret.lower() not in said.lower(), said


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
@pytest.mark.parametrize("code", [400, 403, 404, 429, 500])
async def test_t51_credentials_in_an_error_are_redacted(
    start: Start, upstream: FakeUpstream, scheme: Any, code: int
) -> None:
    upstream.auth.scheme = scheme
    proxy = await start(hub=USER)
    for path in PATHS:
        rule = upstream.fault(echo(code, "you sent {value}"))
        answer = await proxy.get(path)
        assert rule.used
        keeps(proxy, answer)
        if path == PATHS[0]:
            assert b"you sent [redacted]" in answer.body
        upstream.heal()


@pytest.mark.parametrize(
    "form",
    [
        "{credential}", "{credential}{credential}", "{pair}", "{password}", "{value}\u0000", "{spread}", "x" * 190 + "{value}",
        "{value}" + "x" * 5000, "x{value}x" * 30,
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["basic", "bearer"])
async def test_t51_parts_of_credentials_are_redacted(
    start: Start, upstream: FakeUpstream, form: str, scheme: Any
) -> None:
    upstream.auth.scheme = scheme
    proxy = await start(hub=USER)
    upstream.fault(echo(400, form))
    answer = await proxy.get(PATHS[0])
    assert answer.status == 502
    keeps(proxy, answer)
    for part in (ENCODED[:3], "Bearer", USER["password"][:4], "token-"):
        assert part.encode() not in answer.body


async def test_t51_a_short_password_in_an_error_is_redacted(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "basic"
    upstream.auth.users = {"alice": "qzx"}
    proxy = await start(hub={"username": "alice", "password": "qzx"})
    for said in ("the password qzx is good", "the password q\u200bz\u200bx is good"):
        upstream.heal()
        upstream.fault(echo(400, said))
        answer = await proxy.get(PATHS[0])
        assert b"the password [redacted] is good" in answer.body
    assert "qzx" not in proxy.log.getvalue()


async def test_t51_a_token_server_that_echoes(start: Start, upstream: FakeUpstream) -> None:
    upstream.auth.scheme = "bearer"
    proxy = await start(hub=USER)
    for code in (400, 401, 403, 429, 500):
        rule = upstream.fault(echo(code), kind="token")
        keeps(proxy, await proxy.get(PATHS[0]))
        assert rule.used
        upstream.heal()


async def test_t51_a_challenge_that_echoes_in_the_name_of_a_host(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "bearer"
    proxy = await start(hub=USER)
    assert (await proxy.get(PATHS[0])).status == 200

    def effect(record: Record, reply: Reply) -> Reply:
        token = record.headers.get("Authorization", "Bearer token-1-alice").partition(" ")[2]
        realm = f'Bearer realm="http://{token}.example.com/token"'
        return replace(reply, status=401).with_header("WWW-Authenticate", realm)

    upstream.fault(effect, challenges=True)
    answer = await proxy.get(PATHS[2])
    assert answer.status == 502
    assert b"not trusted" in answer.body
    keeps(proxy, answer)


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
async def test_t51_credentials_in_headers_are_not_passed_on(
    start: Start, upstream: FakeUpstream, scheme: Any
) -> None:
    upstream.auth.scheme = scheme

    def effect(record: Record, reply: Reply) -> Reply:
        value = record.headers.get("Authorization", "").partition(" ")[2].rstrip("=")
        for name, said in {
            "Content-Type": f"application/{value}",
            "Link": f'</v2/library/app/tags/list?last={quote(value, safe="")}>; rel="next"',
            "ratelimit-limit": "100;w=60",
            "ratelimit-remaining": "99;w=60",
            "docker-ratelimit-source": value,
            "WWW-Authenticate": f'Basic realm="{value}"',
            "Warning": f'299 - "{value}"',
            "X-Echo": value,
        }.items():
            reply = reply.with_header(name, said)
        return reply

    upstream.fault(effect)
    proxy = await start(hub=USER)
    for path in PATHS:
        for answer in (await proxy.head(path), await proxy.get(path)):
            keeps(proxy, answer)
    assert (await proxy.get(PATHS[0])).status == 200
    assert "Link" not in (await proxy.get(PATHS[3])).headers


def test_short_passwords_are_kept_out_of_foreign_words_only() -> None:
    redactor = Redactor()
    redactor.remember("Basic " + base64.b64encode(b"me:hub").decode())
    assert redactor.redact("the password hub is wrong") == "the password [redacted] is wrong"
    assert redactor.redact_message("hub answers 403") == "hub answers 403"
    assert not redactor.is_leaked_by("application/hub")
    redactor.remember("Bearer abcdefgh")
    assert redactor.redact_message("got ABCDEFGH") == "got [redacted]"
    assert redactor.is_leaked_by("application/abcdefgh")
    redactor.remember("Basic no base64")
    assert redactor.redact("no base64") == "[redacted]"


@pytest.mark.parametrize("text", ["the İstanbul password", "the i\u0307stanbul password"])
def test_t51_letters_that_change_their_length_in_lower_case(text: str) -> None:
    redactor = Redactor()
    redactor.remember("Basic " + base64.b64encode("me:İstanbul".encode()).decode())
    assert "stanbul" not in redactor.redact("the İstanbul password")
    assert redactor.is_leaked_by(text)


@pytest.mark.parametrize("form", [quote(PAIR), quote(USER["password"], safe=""), ENCODED.lower()])
def test_t51_every_form_is_replaced_as_a_whole(form: str) -> None:
    redactor = Redactor()
    redactor.remember(f"Basic {ENCODED}")
    assert redactor.redact(f"({form})") == "([redacted])"


def test_t51_the_longest_form_is_replaced_first() -> None:
    redactor = Redactor()
    redactor.remember("Basic " + base64.b64encode(b"alice:alice").decode())
    assert redactor.redact("you are alice:alice") == "you are [redacted]"


def test_many_long_tokens_cost_an_error_next_to_nothing() -> None:
    """A pattern for each token took half a second of the loop for every 404."""
    redactor = Redactor()
    for _ in range(128):  # as many as are known, as long as those of Docker Hub
        redactor.remember(f"Bearer {secrets.token_urlsafe(1800)}")
    began = time.process_time()
    for _ in range(20):
        assert redactor.redact_message("docker.io answers 404") == "docker.io answers 404"
    assert time.process_time() - began < 0.5


def test_clients_do_not_learn_which_words_are_in_the_login_of_another() -> None:
    redactor = Redactor()
    with asking_as(Caller("ann")):
        redactor.remember(f"Basic {ENCODED}")
    with asking_as(Caller("bob")):
        assert redactor.redact(f"no {PAIR}") == f"no {PAIR}"
        assert not redactor.is_leaked_by(PAIR)
    with asking_as(Caller("ann")):
        assert redactor.redact(f"no {PAIR}") == "no [redacted]"
