"""The formats of webhooks: their parsers, and the authentication of their senders."""

from collections.abc import Callable
from typing import Final, NamedTuple

from proxy.core.errors import Unprocessable
from proxy.core.tolerant_json import read_object
from proxy.services.hooks import (
    authentication,
    distribution,
    dockerhub,
    github,
    gitlab,
    harbor,
    quay,
)
from proxy.services.hooks.authentication import SecretCheck
from proxy.services.hooks.delivery import Body, Delivery, Headers, MalformedDelivery


class Format(NamedTuple):
    """One format: its required fields, its parser, and the checks of its senders.

    ``tokens`` need no body, ``signatures`` do; ``signed_in`` is the header that has the signature.
    """

    expected: str
    parse: Callable[[Body], Delivery]
    tokens: tuple[SecretCheck, ...] = ()
    signatures: tuple[SecretCheck, ...] = ()
    signed_in: str = ""


FORMATS: Final = {
    "dockerhub": Format(dockerhub.EXPECTED, dockerhub.parse, (authentication.token_in_url,)),
    "github": Format(
        github.EXPECTED,
        github.parse,
        (),
        (authentication.github_signature,),
        "X-Hub-Signature-256",
    ),
    "quay": Format(
        quay.EXPECTED, quay.parse, (authentication.token_in_url, authentication.authorization)
    ),
    "harbor": Format(harbor.EXPECTED, harbor.parse, (authentication.authorization,)),
    "gitlab": Format(
        gitlab.EXPECTED,
        gitlab.parse,
        (authentication.gitlab_token, authentication.authorization),
        (authentication.standard_signature,),
        "webhook-signature",
    ),
    "distribution": Format(
        distribution.EXPECTED,
        distribution.parse,
        (authentication.authorization,),
        (authentication.standard_signature,),
        "webhook-signature",
    ),
}


def read(name: str, headers: Headers, raw: bytes) -> Delivery:
    """Parse a webhook in a format. Raises ``Unprocessable``."""
    form = FORMATS[name]
    try:
        return form.parse(Body(headers, raw, read_object(raw)))
    except MalformedDelivery:
        problem = f"not a webhook in the format {name}: expected {form.expected}"
        raise Unprocessable(problem) from None
