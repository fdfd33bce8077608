import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import bcrypt
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.access import own_tokens
from proxy.access.authenticator import Authenticator
from proxy.access.callers import Callers
from proxy.access.credentials import Basic, Bearer, parse
from proxy.access.failures import LONGEST_DELAY, PER_ADDRESS, PER_USER
from proxy.access.htpasswd import parse as parse_users
from proxy.access.keys import Keys
from proxy.access.own_tokens import OwnTokens
from proxy.access.principals import Method
from proxy.access.sources import Sources, open_sources
from proxy.core.errors import Overloaded, TooManyFailures, Unauthorized
from proxy.settings.access import Access
from tests.access.people import In, basic, bearer, dated, replace, write_token, write_users
from tests.fakes.content import image
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

PATH = "/v2/team/secret/manifests/latest"
SCOPE = "repository:team/secret:pull"
RULES = [{"allow": "pull", "images": ["docker.io/team/**"], "to": ["user:ann", "group:dev"]}]


def no_issuer(_: object) -> Any:
    raise AssertionError("there are no issuers")


class Files:
    """Users and tokens on the disk, and what reads them."""

    def __init__(self, folder: Path) -> None:
        self.users, self.tokens = folder / "htpasswd", folder / "tokens"
        write_users(self.users, ann="secret")
        self.robot = write_token(self.tokens, "robot", "dev")
        self.keys = Keys(folder / "keys.json")
        self.own = OwnTokens(self.keys, 300)
        self.authenticator = Authenticator(self.sources(), self.own, Callers())

    def settings(self) -> dict[str, Any]:
        return {"htpasswd_file": str(self.users), "tokens_file": str(self.tokens)}

    def sources(self) -> Sources:
        return open_sources(Access.model_validate(self.settings()), no_issuer)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setattr("proxy.runtime.watched_file.CHECK_SECONDS", 0.0)
    return Files(tmp_path)


async def user(files: Files, authorization: str) -> str | None:
    return (await files.authenticator.identify(authorization, "10.0.0.1", None)).user


async def test_passwords_and_tokens_say_who_a_client_is(files: Files) -> None:
    identify = files.authenticator.identify
    ann = await identify(basic("ann", "secret"), "10.0.0.1", None)
    assert (ann.user, ann.method, ann.address) == ("ann", Method.PASSWORD, "10.0.0.1")
    for sent in (basic("whoever", files.robot), bearer(files.robot), basic("", files.robot)):
        robot = await identify(sent, None, None)
        assert (robot.user, robot.groups, robot.method) == ("robot", {"dev"}, Method.TOKEN)
        assert robot.credential_id == "robot"


@pytest.mark.parametrize(
    "sent",
    [
        basic("ann", "wrong"),
        basic("bob", "secret"),
        basic("ann", ""),
        basic("robot", "robot"),
        basic("ann", "mp_" + "x" * 32),
        bearer("mp_" + "x" * 32),
        bearer("secret"),
        bearer("x" * 16000),
        basic("ann", "s" * 73),
        "Digest x",
    ],
)
async def test_wrong_credentials_are_refused(files: Files, sent: str) -> None:
    with pytest.raises(Unauthorized):
        await files.authenticator.identify(sent, None, None)
    assert files.authenticator.recognise(files.authenticator.seal(sent), None, None) is None


async def test_a_password_is_hashed_once_in_five_minutes(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = count_hashes(monkeypatch)
    sent = basic("ann", "secret")
    assert files.authenticator.recognise(files.authenticator.seal(sent), None, None) is None
    for _ in range(5):
        assert await user(files, sent) == "ann"
    found = files.authenticator.recognise(files.authenticator.seal(sent), "10.0.0.9", None)
    assert found is not None
    assert (found.user, found.address, len(hashed)) == ("ann", "10.0.0.9", 1)
    now = time.time()
    monkeypatch.setattr("proxy.access.logins.time.time", lambda: now + 301)
    assert files.authenticator.recognise(files.authenticator.seal(sent), None, None) is None
    assert await user(files, sent) == "ann"
    assert len(hashed) == 2


async def test_concurrent_logins_share_one_hash(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:

    hashed = count_hashes(monkeypatch)
    await asyncio.gather(*(user(files, basic("ann", "secret")) for _ in range(20)))
    assert len(hashed) == 1


@pytest.mark.parametrize("name", ["ann", "nobody"])
async def test_unknown_users_cost_one_hash_like_known_ones(
    files: Files, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hashed = count_hashes(monkeypatch)
    with pytest.raises(Unauthorized):
        await user(files, basic(name, "wrong"))
    assert len(hashed) == 1


async def test_a_client_that_failed_too_often_costs_no_hash(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.access.failures.FIRST_DELAY", 0.0)
    monkeypatch.setattr("proxy.access.failures.LONGEST_DELAY", 0.0)
    hashed = count_hashes(monkeypatch)
    for number in range(PER_USER + 5):
        with pytest.raises(Unauthorized):
            await user(files, basic("ann", f"wrong{number}"))
    assert len(hashed) == PER_USER
    assert LONGEST_DELAY < 30


async def test_a_token_is_good_whoever_failed_under_its_user_name(files: Files) -> None:
    log_in = files.authenticator.log_in
    for number in range(PER_ADDRESS):
        with pytest.raises((Unauthorized, TooManyFailures)):
            await log_in(Basic("token", f"mp_wrong{number}"), "10.0.0.1")
        with pytest.raises((Unauthorized, TooManyFailures)):
            await log_in(Basic(f"user{number}", "mp_wrong"), "10.0.0.1")
    with pytest.raises(TooManyFailures):
        await log_in(Basic("ann", "secret"), "10.0.0.1")
    assert await log_in(Basic("token", files.robot), "10.0.0.1") is not None


async def test_a_token_under_the_name_of_a_user_forgets_no_failures(files: Files) -> None:
    log_in = files.authenticator.log_in
    for number in range(PER_USER):
        with pytest.raises(Unauthorized):
            await log_in(Basic("ann", f"wrong{number}"), None)
        assert await log_in(Basic("ann", files.robot), None) is not None
    with pytest.raises(TooManyFailures):
        await log_in(Basic("ann", "wrong"), None)


async def test_a_login_forgets_the_failures_before_it(files: Files) -> None:
    log_in = files.authenticator.log_in
    for _ in range(2):
        for _ in range(PER_USER - 1):
            with pytest.raises(Unauthorized):
                await log_in(Basic("ann", "wrong"), None)
        write_users(files.users, ann="secret")  # so that the password is hashed again
        assert (await log_in(Basic("ann", "secret"), None)) is not None


async def test_hashes_in_progress_are_bounded(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.access.authenticator.MAX_WAITING", 0)
    with pytest.raises(Overloaded):
        await user(files, basic("ann", "secret"))
    assert await user(files, bearer(files.robot)) == "robot"


async def test_a_changed_password_counts_at_once(files: Files) -> None:
    old = basic("ann", "secret")
    assert await user(files, old) == "ann"
    write_users(files.users, ann="other", bob="new")
    assert files.authenticator.recognise(files.authenticator.seal(old), None, None) is None
    with pytest.raises(Unauthorized):
        await user(files, old)
    assert await user(files, basic("ann", "other")) == "ann"
    assert await user(files, basic("bob", "new")) == "bob"


async def test_a_file_that_became_invalid_changes_nothing(files: Files) -> None:
    for damage in ("ann:plain\n", None):
        if damage is None:
            files.users.unlink()
        else:
            replace(files.users, damage)
        assert await user(files, basic("ann", "secret")) == "ann"
        with pytest.raises(Unauthorized):
            await user(files, basic("ann", "plain"))


async def test_a_password_that_is_checked_while_it_changes_is_not_kept(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, check = threading.Event(), threading.Event(), bcrypt.checkpw

    def slow(password: bytes, stored: bytes) -> bool:
        begun.set()
        assert may_end.wait(30)
        return check(password, stored)

    monkeypatch.setattr(bcrypt, "checkpw", slow)
    old = basic("ann", "secret")
    first = asyncio.create_task(user(files, old))
    await asyncio.to_thread(begun.wait, 30)
    write_users(files.users, ann="other")
    assert await user(files, bearer(files.robot)) == "robot"  # the file is read again
    second = asyncio.create_task(user(files, old))
    await asyncio.sleep(0)
    may_end.set()
    assert await first == "ann"
    with pytest.raises(Unauthorized):
        await second
    assert files.authenticator.recognise(files.authenticator.seal(old), None, None) is None


@pytest.mark.parametrize("change", ["user removed", "password", "token", "groups", "expired"])
async def test_our_token_ends_with_the_credential_behind_it(
    files: Files, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_password = change in ("user removed", "password")
    sent = basic("ann", "secret") if by_password else bearer(files.robot)
    await user(files, sent)
    credentials = files.authenticator

    login = await credentials.log_in(parse(sent), None)
    token = bearer(files.own.issue(login, [])[0])
    assert await user(files, token) == ("ann" if by_password else "robot")
    assert credentials.recognise(credentials.seal(token), None, None) is not None
    match change:
        case "user removed":
            write_users(files.users, bob="x")
        case "password":
            write_users(files.users, ann="other")
        case "token":
            write_token(files.tokens, "robot", "dev")
        case "groups":
            text = files.tokens.read_text()
            replace(files.tokens, text.replace("dev", "ops"))
        case "expired":
            write_token(files.tokens, "robot", "dev", seconds=-1)
    assert credentials.recognise(credentials.seal(token), None, None) is None
    with pytest.raises(Unauthorized, match="revoked"):
        await user(files, token)


async def test_a_token_of_ours_does_not_outlive_an_access_token(files: Files) -> None:
    robot = write_token(files.tokens, "robot", "dev", seconds=20)

    login = await files.authenticator.log_in(Bearer(robot), None)
    _, seconds = files.own.issue(login, [])
    assert 1 <= seconds <= 20


def forged(files: Files, **changes: Any) -> str:
    """Return a token of ours with other claims, signed with our key."""
    claims: dict[str, Any] = {
        "iss": "millpond", "sub": "ann", "aud": "millpond", "iat": In(0), "nbf": In(0),
        "exp": In(300), "jti": "x", "access": [], "method": "PASSWORD", "groups": [],
        "credential": "ann", "fingerprint": parse_users(files.users.read_text(), files.users).fingerprint("ann"),
    }  # fmt: skip
    claims |= changes
    key = files.keys.current
    return jwt.encode(
        dated(claims),
        key.private,
        "ES256",
        {"kid": key.kid},
    )


async def test_the_forger_can_make_good_tokens(files: Files) -> None:
    assert await user(files, bearer(forged(files))) == "ann"


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": In(-60)},
        {"exp": None},
        {"nbf": In(3600)},
        {"nbf": None},
        {"iat": In(3600)},
        {"iat": None},
        {"iat": "now"},
        {"aud": "other"},
        {"aud": None},
        {"iss": "other"},
        {"iss": None},
        {"sub": None},
        {"sub": 7},
        {"jti": None},
        {"access": None},
        {"access": "all"},
        {"access": [7]},
        {"access": [{"type": "repository"}]},
        {"method": "SOCKET"},
        {"method": "ADMIN_TOKEN"},
        {"method": "CERTIFICATE"},
        {"method": "nonsense"},
        {"method": None},
        {"fingerprint": None},
        {"fingerprint": "0" * 24},
        {"sub": "bob"},
        {"groups": None},
    ],
    ids=str,
)
async def test_tokens_with_wrong_claims_are_refused(files: Files, changes: dict[str, Any]) -> None:
    """Even with our signature: a claim that is checked twice is checked here once."""
    with pytest.raises(Unauthorized):
        await user(files, bearer(forged(files, **changes)))


def unsigned(token: str, header: dict[str, Any], signature: str = "") -> str:
    encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    return f"{encoded}.{token.split('.')[1]}.{signature}"


async def test_tokens_with_wrong_signatures_are_refused(files: Files, tmp_path: Path) -> None:
    good, kid = forged(files), files.keys.current.kid
    pem = files.keys.current.public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    claims = jwt.decode(good, options={"verify_signature": False})
    other = ec.generate_private_key(ec.SECP256R1())
    head, body, signature = good.split(".")
    another = tmp_path / "another"
    another.mkdir()

    confused = unsigned(good, {"alg": "HS256", "typ": "JWT", "kid": kid})
    mac = hmac.new(pem, confused.rstrip(".").encode(), hashlib.sha256).digest()
    confused += base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
    for token in (
        unsigned(good, {"alg": "none", "typ": "JWT", "kid": kid}),
        unsigned(good, {"alg": "None", "typ": "JWT", "kid": kid}, signature),
        confused,
        jwt.encode(claims, other, "ES256", {"kid": kid}),
        jwt.encode(claims, other, "ES256", {"kid": "unknown"}),
        jwt.encode(claims, other, "ES256"),
        jwt.encode(claims, other, "ES256", {"jwk": json.loads(jwt.algorithms.ECAlgorithm.to_jwk(other.public_key())), "kid": kid}),
        forged(Files(another)),
        f"{head}.{body}.",
        f"{head}.{body}.{signature[:-4]}",
        f"{head}.{body}x.{signature}",
        unsigned(good, {"alg": "ES256", "kid": [kid]}, signature),
        unsigned(good, {"alg": "ES256", "kid": kid, "crit": ["b64"], "b64": False}, signature),
        "eyJ..",
        "eyJhbGciOiJFUzI1NiJ9.e30.x",
    ):  # fmt: skip
        with pytest.raises(Unauthorized):
            await user(files, bearer(token))


async def test_oversized_tokens_are_refused(files: Files) -> None:
    for size in (own_tokens.MAX_TOKEN, 15_000):
        with pytest.raises(Unauthorized):
            await user(files, bearer(forged(files, padding="x" * size)))


async def test_keys_rotate_and_old_ones_verify_for_a_while(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = forged(files)
    files.keys.rotate()
    new = forged(files)
    assert jwt.get_unverified_header(old)["kid"] != jwt.get_unverified_header(new)["kid"]
    assert await user(files, bearer(old)) == await user(files, bearer(new)) == "ann"


async def test_an_anonymous_token_names_nobody(files: Files) -> None:
    entry = {"type": "repository", "name": "a", "actions": ["pull"], "target": "docker.io/a"}
    token, _ = files.own.issue(None, [entry])
    found = await files.authenticator.identify(bearer(token), None, None)
    assert (found.user, found.method, found.scopes) == (None, Method.ANONYMOUS, {"docker.io/a"})


async def test_the_token_endpoint_learns_of_too_many_failures(files: Files) -> None:

    for _ in range(PER_USER):
        with pytest.raises(Unauthorized):
            await files.authenticator.log_in(Basic("ann", "wrong"), None)
    with pytest.raises(TooManyFailures):
        await files.authenticator.log_in(Basic("ann", "secret"), None)
    assert (await files.authenticator.log_in(Basic("robot", files.robot), None)) is not None


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    hashed: list[bytes] = []
    check = bcrypt.checkpw

    def counted(password: bytes, stored: bytes) -> bool:
        hashed.append(stored)
        return check(password, stored)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    return hashed


Guarded = Callable[..., Awaitable[Proxy]]


@pytest.fixture
async def guarded(start: Start, files: Files, upstream: FakeUpstream) -> Proxy:
    upstream.add("team/secret", image())
    return await start(access={**files.settings(), "rules": RULES})


async def test_revocation_reaches_repeated_requests(guarded: Proxy, files: Files) -> None:
    asked = await guarded.get(f"/-/token?scope={SCOPE}", Authorization=basic("x", files.robot))
    sent = bearer(json.loads(asked.body)["token"])
    for _ in range(4):
        assert (await guarded.get(PATH, Authorization=sent)).status == 200
    page = (await guarded.get("/metrics")).body.decode()
    assert "millpond_prepared_answers_total 0.0" not in page
    write_token(files.tokens, "another", "dev")
    refused = await guarded.get(PATH, Authorization=sent)
    async with asyncio.timeout(30):  # a repeated request is looked at ten times a second
        while refused.status == 200:
            refused = await guarded.get(PATH, Authorization=sent)
    assert refused.status == 401
    assert "revoked" in refused.body.decode()


async def test_no_secret_is_logged(guarded: Proxy, files: Files) -> None:
    for sent in (basic("ann", "secret"), basic("ann", "wr0ng"), bearer(files.robot)):
        await guarded.get(PATH, Authorization=sent)
        await guarded.get("/-/token", Authorization=sent)
    await until(lambda: guarded.log.getvalue().count("team/secret") >= 2)
    logged = guarded.log.getvalue()
    for secret in (files.robot, "wr0ng", basic("ann", "secret").split()[1]):
        assert secret not in logged


_schemes = st.sampled_from(["Basic ", "Bearer ", "basic", "Bearer eyJ", "Basic Og", "", "\t"])
_text = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"))
_bytes = st.binary(max_size=200).map(lambda raw: base64.b64encode(raw).decode())
_parts = st.lists(
    st.one_of(_bytes, st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5)).map(
        lambda document: base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()
    )),
    min_size=1, max_size=4,
).map(".".join)  # fmt: skip


async def test_any_authorization_gets_an_answer_that_is_no_error_of_ours(
    guarded: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.access.failures.LONGEST_DELAY", 0.0)
    tried: list[str] = []

    @given(st.builds(str.__add__, _schemes, st.one_of(_text, _bytes, _parts)))
    @settings(max_examples=300, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    def collect(value: str) -> None:
        tried.append(value)

    collect()
    for value in tried:
        for path in (PATH, "/-/token", f"/-/token?scope={SCOPE}", "/-/stats", "/-/api/v1/pins"):
            status = await raw_status(guarded, path, value)
            assert status in (200, 400, 401, 403, 429), (path, value)


async def raw_status(proxy: Proxy, path: str, authorization: str) -> int:
    """Send the header's bytes as they are: a client library refuses many of them."""

    assert proxy.app.address is not None
    host, _, port = proxy.app.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n"
        writer.write(head.encode("latin-1") + b"Connection: close\r\n\r\n")
        answer = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    return int(answer.split(b" ", 2)[1])
