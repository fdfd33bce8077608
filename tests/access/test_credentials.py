import base64

import pytest

from proxy.access.credentials import MAX_LENGTH, Basic, Bearer, parse
from proxy.core.errors import Unauthorized


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


@pytest.mark.parametrize("nothing", [None, "", "  ", "Basic Og==", "basic  Og=="])
def test_without_credentials_a_client_is_anonymous(nothing: str | None) -> None:
    assert parse(nothing) is None


@pytest.mark.parametrize(
    ("value", "credentials"),
    [
        (f"Basic {encoded('ann:secret')}", Basic("ann", "secret")),
        (f"BASIC {encoded('ann:with:colons')}", Basic("ann", "with:colons")),
        (f"Basic {encoded('ann:')}", Basic("ann", "")),
        (f"Basic {encoded(':only')}", Basic("", "only")),
        (f"Basic {encoded('jürgen:paßwort')}", Basic("jürgen", "paßwort")),
        ("Bearer a.b.c", Bearer("a.b.c")),
        ("bearer  x ", Bearer("x")),
    ],
)
def test_basic_and_bearer_are_read(value: str, credentials: Basic | Bearer) -> None:
    assert parse(value) == credentials


@pytest.mark.parametrize(
    "value",
    [
        "Basic",
        "Basic !!!",
        "Basic YQ",
        f"Basic {encoded('no colon')}",
        "Basic " + encoded(b"\xff\xfe:x"),
        "Basic " + encoded("a\0b:c"),
        "Basic " + encoded("a:b\nc"),
        f"Basic {encoded('u' * 257 + ':x')}",
        "Bearer",
        "Bearer a b",
        "Bearer \udcff",
        "Negotiate abc",
        "Bearer " + "x" * MAX_LENGTH,
        "Basic \udcff",
    ],
)
def test_malformed_credentials_are_refused(value: str) -> None:
    with pytest.raises(Unauthorized):
        parse(value)


def test_no_secret_is_shown() -> None:
    shown = repr((Basic("ann", "geheim"), Bearer("geheim")))
    assert "geheim" not in shown
    assert "ann" in shown
