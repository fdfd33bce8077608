import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.challenge import (
    MAX_CHALLENGES,
    MAX_CHARACTERS,
    MAX_LINES,
    MAX_PARAMETERS,
    Challenge,
    parse_challenges,
)

HUB = (
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
    'scope="repository:library/nginx:pull",error="insufficient_scope"'
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            HUB,
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:library/nginx:pull",
                        "error": "insufficient_scope",
                    },
                )
            ],
        ),
        ('BASIC Realm="a \\"b\\" c"', [("basic", {"realm": 'a "b" c'})]),
        (
            'Negotiate, Bearer realm=https://x/t , service = s',
            [("negotiate", {}), ("bearer", {"realm": "https://x/t", "service": "s"})],
        ),
        ('Basic realm="x", Bearer realm="y"', [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        ('Bearer realm="https://nvcr.io/proxy_auth",scope=""', [("bearer", {"realm": "https://nvcr.io/proxy_auth", "scope": ""})]),
        ("Basic", [("basic", {})]),
        ("Negotiate YII/abc+==, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ('Bearer realm="https://x/t, Basic realm=y', [("bearer", {})]),
        ('Bearer realm="a"service="s"', [("bearer", {"realm": "a", "service": "s"})]),
        ('"Basic realm=x", Bearer realm=y', [("bearer", {"realm": "y"})]),
        ("", []),
        ('"="', []),
    ],
)  # fmt: skip
def test_challenges(line: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges([line]) == [Challenge(scheme, p) for scheme, p in expected]


def test_several_header_lines() -> None:
    assert [c.scheme for c in parse_challenges(['Basic realm="x"', HUB])] == ["basic", "bearer"]


def test_t46_no_more_is_read_than_the_bounds_allow() -> None:
    assert len(parse_challenges(["Basic"] * 1000)) == MAX_LINES
    assert len(parse_challenges(["Basic, " * 1000])) == MAX_CHALLENGES
    parameters = ", ".join(f"p{n}=x" for n in range(1000))
    [challenge] = parse_challenges([f"Basic {parameters}"])
    assert list(challenge.parameters) == [f"p{n}" for n in range(MAX_PARAMETERS)]
    long = f'Basic realm="{"x" * MAX_CHARACTERS}"'
    assert [c.scheme for c in parse_challenges([HUB, long, HUB])] == ["bearer"]


@given(st.lists(st.text(max_size=200), max_size=3))
def test_anything_is_survived(lines: list[str]) -> None:
    parse_challenges(lines)


words = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,10}", fullmatch=True)


@given(words, st.dictionaries(words.map(str.lower), st.text('ab \\",=/:', max_size=20), max_size=5))
def test_what_is_quoted_comes_back(scheme: str, parameters: dict[str, str]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    line = f"{scheme} " + ", ".join(f"{k}={quoted(v)}" for k, v in parameters.items())
    assert parse_challenges([line]) == [Challenge(scheme.lower(), parameters)]
