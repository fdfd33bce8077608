"""How senders prove that they know the secret."""

import base64

import pytest

from proxy.services.hooks import authentication
from proxy.services.hooks.authentication import (
    LONGEST_AGE,
    SecretCheck,
    SentCredentials,
    is_authentic,
)
from proxy.services.hooks.formats import FORMATS
from tests.services.hooks import payloads
from tests.services.hooks.payloads import SECRET, WRONG, Prove, Sent

NOW = 1_800_000_000.0
BODY = b'{"events": []}'
SIGNING = "whsec_" + base64.b64encode(b"k" * 32).decode()
BEARERS: list[tuple[SecretCheck, Prove]] = [
    (authentication.token_in_url, payloads.by_url),
    (authentication.authorization, payloads.by_authorization),
    (authentication.authorization, payloads.by_plain_authorization),
    (authentication.gitlab_token, payloads.by_gitlab_token),
    (authentication.github_signature, payloads.by_github),
]


def by_standard_now(body: bytes, secret: str) -> Sent:
    return payloads.by_standard(body, secret, NOW)


def shown(sent: Sent, now: float = NOW) -> SentCredentials:
    return SentCredentials(sent.headers, sent.token, sent.body, now)


@pytest.mark.parametrize(("proof", "prove"), BEARERS)
def test_only_the_secret_proves(proof: SecretCheck, prove: Prove) -> None:
    sent = shown(prove(BODY, SECRET))
    assert proof(sent, SECRET.encode())
    assert not proof(sent, WRONG.encode())
    assert not proof(shown(prove(BODY, WRONG)), SECRET.encode())
    assert not proof(SentCredentials({}, "", BODY, NOW), SECRET.encode())


URL, PLAIN, BEARER = payloads.by_url, payloads.by_plain_authorization, payloads.by_authorization
ACCEPTED: dict[str, tuple[Prove, ...]] = {
    "dockerhub": (URL,),
    "github": (payloads.by_github,),
    "quay": (URL, PLAIN, BEARER),
    "harbor": (PLAIN, BEARER),
    "gitlab": (PLAIN, BEARER, payloads.by_gitlab_token, by_standard_now),
    "distribution": (PLAIN, BEARER, by_standard_now),
}


@pytest.mark.parametrize("prove", [*(prove for _, prove in BEARERS), by_standard_now])
@pytest.mark.parametrize("name", FORMATS)
def test_a_format_accepts_only_the_proofs_of_its_senders(name: str, prove: Prove) -> None:
    form = FORMATS[name]
    sent = shown(prove(BODY, SECRET))
    is_accepted = is_authentic(sent, (*form.tokens, *form.signatures), [SECRET.encode()])
    assert is_accepted is (prove in ACCEPTED[name])


def test_a_signature_is_for_one_body() -> None:
    sent = payloads.by_github(BODY, SECRET)._replace(body=BODY + b" ")
    assert not authentication.github_signature(shown(sent), SECRET.encode())


def test_secrets_with_other_characters_are_compared_and_not_refused() -> None:
    sent = SentCredentials({"Authorization": "gruß\udcff"}, "", BODY, NOW)
    assert not authentication.authorization(sent, SECRET.encode())
    assert authentication.authorization(sent, "gruß\udcff".encode("utf-8", "surrogateescape"))


def test_each_of_two_secrets_proves_and_none_does_not() -> None:
    sent = shown(payloads.by_url(BODY, SECRET))
    old, new = WRONG.encode(), SECRET.encode()
    assert is_authentic(
        sent, [authentication.authorization, authentication.token_in_url], [old, new]
    )
    assert not is_authentic(sent, [authentication.token_in_url], [old])
    assert not is_authentic(sent, [authentication.token_in_url], [])
    assert not is_authentic(sent, [], [new])


@pytest.mark.parametrize("secret", [SECRET, SIGNING])
def test_a_standard_signature(secret: str) -> None:
    sent = payloads.by_standard(BODY, secret, NOW)
    assert authentication.standard_signature(shown(sent), secret.encode())
    assert not authentication.standard_signature(shown(sent), WRONG.encode())
    assert not authentication.standard_signature(shown(sent._replace(body=b"{}")), secret.encode())


@pytest.mark.parametrize(("age", "is_fresh"), [(-LONGEST_AGE, True), (LONGEST_AGE, True)])
@pytest.mark.parametrize("more", [0.0, 1.0])
def test_a_standard_signature_is_good_for_minutes(age: float, is_fresh: bool, more: float) -> None:
    sent = payloads.by_standard(BODY, SECRET, NOW)
    late = NOW + age + (more if age > 0 else -more)
    assert authentication.standard_signature(shown(sent, late), SECRET.encode()) is (
        is_fresh and not more
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"webhook-id": "msg_2"},
        {"webhook-timestamp": "1800000001"},
        {"webhook-timestamp": "soon"},
        {"webhook-timestamp": "9" * 400},
        {"webhook-timestamp": "١٨"},
        {"webhook-signature": ""},
    ],
)
def test_a_standard_signature_covers_id_and_time(changed: dict[str, str]) -> None:
    sent = payloads.by_standard(BODY, SECRET, NOW)
    forged = sent._replace(headers=sent.headers | changed)
    assert not authentication.standard_signature(shown(forged), SECRET.encode())


def test_one_of_several_standard_signatures_suffices() -> None:
    """While a key changes, senders sign with both."""
    sent = payloads.by_standard(BODY, SECRET, NOW)
    both = f"v1,AAAA v1a,BBBB {sent.headers['webhook-signature']}"
    twice = sent._replace(headers=sent.headers | {"webhook-signature": both})
    assert authentication.standard_signature(shown(twice), SECRET.encode())
    many = sent._replace(headers=sent.headers | {"webhook-signature": "v1,AAAA " * 10 + both})
    assert not authentication.standard_signature(shown(many), SECRET.encode()), "too many to try"
