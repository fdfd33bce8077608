import asyncio
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from proxy.access import jwks, oidc
from proxy.access.jwks import JWKS
from proxy.access.logins import Login
from proxy.access.oidc import Issuer
from proxy.access.principals import Method
from proxy.core.errors import Unauthorized, UpstreamUnavailable
from proxy.settings.access import OIDCIssuer
from tests.access.people import In, dated

URL = "https://token.example"
Documents = dict[str, Any]


def ec_key(kid: str | None = "one") -> tuple[ec.EllipticCurvePrivateKey, Documents]:
    private = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key()))
    return private, public | {"use": "sig"} | ({} if kid is None else {"kid": kid})


class Fake:
    """Documents of an issuer, and a count of how often each is fetched."""

    def __init__(self) -> None:
        self.private, key = ec_key()
        self.documents: dict[str, Documents] = {
            f"{URL}/.well-known/openid-configuration": {"issuer": URL, "jwks_uri": f"{URL}/keys"},
            f"{URL}/keys": {"keys": [key]},
        }
        self.is_up = True
        self.fetched: list[str] = []

    @property
    def keys(self) -> list[Documents]:
        found: list[Documents] = self.documents[f"{URL}/keys"]["keys"]
        return found

    async def fetch(self, url: str) -> bytes:
        self.fetched.append(url)
        await asyncio.sleep(0)
        if not self.is_up or url not in self.documents:
            raise UpstreamUnavailable("down")
        return json.dumps(self.documents[url]).encode()

    def issuer(self, **changes: Any) -> Issuer:
        document = {"issuer": URL, "audience": "millpond", **changes}
        return Issuer(OIDCIssuer.model_validate(document), JWKS(URL, self.fetch))

    def token(self, *, kid: str | None = "one", **changes: Any) -> str:
        claims = {"iss": URL, "aud": "millpond", "sub": "job", "iat": In(0), "exp": In(600)}
        claims = dated(claims | changes)
        headers = {} if kid is None else {"kid": kid}
        return jwt.encode(claims, self.private, "ES256", headers)


@pytest.fixture
def fake() -> Fake:
    return Fake()


async def verify(issuer: Issuer, token: str) -> Login:
    return await oidc.verify([issuer], token)


async def test_claims_make_the_user_and_the_groups(fake: Fake) -> None:
    issuer = fake.issuer(user="ci:{repository}@{run}", groups_claim="teams")
    token = fake.token(repository="acme/app", run=7, teams=["dev", 7, "x" * 300, "ops"])
    login = await verify(issuer, token)
    assert (login.user, login.groups) == ("ci:acme/app@7", {"dev", "ops"})
    assert (login.method, login.credential_id) == (Method.OIDC, URL)
    one = await verify(fake.issuer(groups_claim="teams"), fake.token(teams="dev"))
    assert (one.user, one.groups) == ("job", {"dev"})


@pytest.mark.parametrize(
    "claims", [{}, {"repository": ""}, {"repository": ["a"]}, {"repository": "a\nb"},
               {"repository": "x" * 300}],
)  # fmt: skip
async def test_a_claim_that_cannot_be_a_name_is_refused(fake: Fake, claims: Documents) -> None:
    with pytest.raises(Unauthorized, match="repository"):
        await verify(fake.issuer(user="ci:{repository}"), fake.token(**claims))


async def test_required_claims_must_be_equal(fake: Fake) -> None:
    issuer = fake.issuer(require={"repository_owner_id": "12", "ref_protected": "true"})
    for claims in (
        {"repository_owner_id": "12", "ref_protected": "true"},
        {"repository_owner_id": 12, "ref_protected": True},
    ):
        assert (await verify(issuer, fake.token(**claims))).user == "job"
    for wrong in (
        {"repository_owner_id": "12"},
        {"repository_owner_id": "13", "ref_protected": "true"},
    ):
        with pytest.raises(Unauthorized, match="required claim"):
            await verify(issuer, fake.token(**wrong))


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "other"}, {"aud": ["a", "b"]}, {"aud": None}, {"aud": 7},
        {"iss": f"{URL}/"}, {"iss": "https://evil.example"}, {"iss": None},
        {"exp": In(-61)}, {"exp": None}, {"exp": "soon"}, {"exp": 1e400},
        {"iat": In(3600)}, {"iat": None}, {"nbf": In(3600)}, {"nbf": "x"},
        {"sub": None}, {"kid": "unknown"},
    ],
    ids=str,
)  # fmt: skip
async def test_a_token_that_is_not_for_us_or_not_now_is_refused(
    fake: Fake, changes: Documents
) -> None:
    with pytest.raises(Unauthorized):
        await verify(fake.issuer(), fake.token(**changes))


@pytest.mark.parametrize(
    "changes",
    [{}, {"aud": ["other", "millpond"]}, {"exp": In(-30)}, {"iat": In(30)}, {"nbf": In(30)},
     {"kid": None}],
    ids=str,
)  # fmt: skip
async def test_clocks_may_differ_a_little(fake: Fake, changes: Documents) -> None:
    assert (await verify(fake.issuer(), fake.token(**changes))).user == "job"


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")  # that is the test
async def test_signatures_of_other_kinds_are_refused(fake: Fake) -> None:
    claims = jwt.decode(fake.token(), options={"verify_signature": False})
    fake.keys.append(
        {"kty": "oct", "kid": "hmac", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}
    )
    unsigned = jwt.encode(claims, None, "none", {"kid": "one"})
    body = unsigned.split(".")[1]
    fake.keys[0] |= {"k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}
    secret = b"0123456789abcdef0123456789abcdef"
    stolen, _ = ec_key()
    weak = rsa.generate_private_key(65537, 1024)
    fake.keys.append(
        json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(weak.public_key())) | {"kid": "weak"}
    )
    es384 = ec.generate_private_key(ec.SECP384R1())
    for token in (
        unsigned,
        jwt.encode(claims, secret, "HS256", {"kid": "hmac"}),
        jwt.encode(claims, secret, "HS256", {"kid": "one"}),
        jwt.encode(claims, stolen, "ES256", {"kid": "one"}),
        jwt.encode(claims, es384, "ES384", {"kid": "one"}),
        jwt.encode(claims, weak, "RS256", {"kid": "weak"}),
        f"eyJ.{body}.x",
        "eyJ..",
    ):
        with pytest.raises(Unauthorized):
            await verify(fake.issuer(), token)


async def test_rsa_and_eddsa_work_where_they_are_configured(fake: Fake) -> None:
    private = rsa.generate_private_key(65537, 2048)
    key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key()))
    fake.keys.append(key | {"kid": "rsa", "alg": "RS256"})
    claims = jwt.decode(fake.token(), options={"verify_signature": False})
    token = jwt.encode(claims, private, "RS256", {"kid": "rsa"})
    assert (await verify(fake.issuer(), token)).user == "job"
    with pytest.raises(Unauthorized, match="kind"):
        await verify(fake.issuer(algorithms=["ES256"]), token)


async def test_an_unknown_key_is_looked_for_at_most_every_30_seconds(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(jwks.time, "monotonic", lambda: now)
    issuer = fake.issuer()
    await verify(issuer, fake.token())
    assert len(fake.fetched) == 2
    fake.private, key = ec_key("two")
    fake.documents[f"{URL}/keys"] = {"keys": [key]}
    for _ in range(10):
        with pytest.raises(Unauthorized):
            await verify(issuer, fake.token(kid="two"))
    assert len(fake.fetched) == 2
    now += 30
    results = await asyncio.gather(*(verify(issuer, fake.token(kid="two")) for _ in range(10)))
    assert {login.user for login in results} == {"job"}
    assert len(fake.fetched) == 4


async def test_the_last_keys_go_on_while_the_issuer_is_down(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(jwks.time, "monotonic", lambda: now)
    issuer = fake.issuer()
    await verify(issuer, fake.token())
    fake.is_up = False
    now += jwks.FRESH_SECONDS + 1
    assert (await verify(issuer, fake.token())).user == "job"
    while len(fake.fetched) < 3 or issuer.keys._fetches.is_running("keys"):  # in the background
        await asyncio.sleep(0)
    assert (await verify(issuer, fake.token())).user == "job"
    fake.is_up = True
    fake.private, key = ec_key()
    fake.documents[f"{URL}/keys"] = {"keys": [key]}
    now += 31
    with pytest.raises(Unauthorized):  # not fetched yet
        await verify(issuer, fake.token())
    while len(fake.fetched) < 5 or issuer.keys._fetches.is_running("keys"):
        await asyncio.sleep(0)
    assert (await verify(issuer, fake.token())).user == "job"


@pytest.mark.parametrize(
    "configuration",
    [
        {},
        {"issuer": "https://evil.example", "jwks_uri": f"{URL}/keys"},
        {"issuer": URL},
        {"issuer": URL, "jwks_uri": "http://token.example/keys"},
        {"issuer": URL, "jwks_uri": "file:///etc/passwd"},
        {"issuer": URL, "jwks_uri": f"{URL}/none"},
        {"issuer": URL, "jwks_uri": 7},
    ],
)
async def test_a_configuration_that_is_not_the_issuers_is_not_used(
    fake: Fake, configuration: Documents
) -> None:
    fake.documents[f"{URL}/.well-known/openid-configuration"] = configuration
    for unsafe in ("http://token.example/keys", "file:///etc/passwd"):
        fake.documents[unsafe] = fake.documents[f"{URL}/keys"]
    with pytest.raises(Unauthorized):
        await verify(fake.issuer(), fake.token())


@pytest.mark.parametrize("keys", [[], [7], [{}], [{"kty": "EC", "kid": "one"}], "x"])
async def test_keys_that_are_none_are_not_used(fake: Fake, keys: Any) -> None:
    fake.documents[f"{URL}/keys"] = {"keys": keys}
    with pytest.raises(Unauthorized):
        await verify(fake.issuer(), fake.token())


async def test_two_keys_of_one_id_are_no_key(fake: Fake) -> None:
    fake.keys.append(ec_key()[1])
    with pytest.raises(Unauthorized):
        await verify(fake.issuer(), fake.token())


async def test_oversized_tokens_are_refused_before_they_are_read(fake: Fake) -> None:
    with pytest.raises(Unauthorized, match="too long"):
        await verify(fake.issuer(), fake.token(padding="x" * oidc.MAX_TOKEN))
    assert not fake.fetched
