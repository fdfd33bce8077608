"""Response headers, as registries write them and as they may be abused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.headers import (
    MAX_CHALLENGE,
    MAX_CHALLENGE_LINES,
    MAX_CHALLENGES,
    MAX_DATE,
    MAX_LINK,
    MAX_LINK_LINES,
    MAX_PARAMETERS,
    Challenge,
    content_range,
    next_link,
    parse_challenges,
    retry_after,
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
        ('Bearer realm="a",REALM="b"', [("bearer", {"realm": "a"})]),
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
    assert len(parse_challenges(["Basic"] * 1000)) == MAX_CHALLENGE_LINES
    assert len(parse_challenges(["Basic, " * 1000])) == MAX_CHALLENGES
    parameters = ", ".join(f"p{n}=x" for n in range(1000))
    [challenge] = parse_challenges([f"Basic {parameters}"])
    assert list(challenge.parameters) == [f"p{n}" for n in range(MAX_PARAMETERS)]
    assert parse_challenges([""] * (MAX_CHALLENGE_LINES - 1) + ["Basic"])
    assert not parse_challenges([""] * MAX_CHALLENGE_LINES + ["Basic"])
    assert parse_challenges(["," * (MAX_CHALLENGE - 5), "Basic"])
    assert not parse_challenges(["," * (MAX_CHALLENGE - 4), "Basic"])
    long = f'Basic realm="{"x" * MAX_CHALLENGE}"'
    assert [c.scheme for c in parse_challenges([HUB, long, HUB])] == ["bearer"]


@given(st.lists(st.text(max_size=200), max_size=3))
def test_any_challenge_is_survived(lines: list[str]) -> None:
    parse_challenges(lines)


words = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,10}", fullmatch=True)


@given(words, st.dictionaries(words.map(str.lower), st.text('ab \\",=/:', max_size=20), max_size=5))
def test_what_is_quoted_comes_back(scheme: str, parameters: dict[str, str]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    line = f"{scheme} " + ", ".join(f"{k}={quoted(v)}" for k, v in parameters.items())
    assert parse_challenges([line]) == [Challenge(scheme.lower(), parameters)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (['</v2/a/tags/list?n=2&last=b>; rel="next"'], "/v2/a/tags/list?n=2&last=b"),
        (["</v2/a/tags/list?last=b>;rel=next"], "/v2/a/tags/list?last=b"),
        (['<https://quay.io/v2/a/tags/list?next_page=x%3D&n=2>; rel="next"'], "https://quay.io/v2/a/tags/list?next_page=x%3D&n=2"),
        (['</a>; rel="prev", </b>; title="x, <y>"; rel="last next"'], "/b"),
        (['</a>; rel="prev"', '</b>; REL = "NEXT"'], "/b"),
        (["</a?x=1,2>; rel=next"], "/a?x=1,2"),
        (['</a>; rel="prev"'], None),
        (["</a>; rel=\"next"], None),
        (["</a"], None),
        (["nothing"], None),
        ([], None),
        ([""] * (MAX_LINK_LINES - 1) + ["</a>; rel=next"], "/a"),
        ([""] * MAX_LINK_LINES + ["</a>; rel=next"], None),
        (["," * (MAX_LINK - 14), "</a>; rel=next"], "/a"),
        (["," * (MAX_LINK - 13), "</a>; rel=next"], None),
        (["<" + "a" * MAX_LINK + ">; rel=next"], None),
    ],
)  # fmt: skip
def test_links(values: list[str], expected: str | None) -> None:
    assert next_link(values) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes 0-9/10", (0, 10, 10)),
        ("bytes 5-9/*", (5, 10, None)),
        ("bytes */10", None),
        ("bytes 0-9", None),
        ("bytes 0-" + "9" * 5000 + "/*", None),
        ("", None),
    ],
)
def test_content_range(value: str, expected: tuple[int, int, int | None] | None) -> None:
    assert content_range(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("120", 120.0),
        ("9" * 8000, 86400.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 01 Jan 2999 00:00:00 GMT", 86400.0),
        (f"{'Thu, 01 Jan 1970 00:00:00 +0000 (':x<{MAX_DATE - 1}})", 0.0),
        (f"{'Thu, 01 Jan 1970 00:00:00 +0000 (':x<{MAX_DATE}})", None),
        ("soon", None),
        ("-1", None),
        ("", None),
    ],
)
def test_retry_after(value: str, expected: float | None) -> None:
    assert retry_after({"Retry-After": value}) == expected


@given(st.text(max_size=200))
def test_any_header_is_survived(value: str) -> None:
    content_range(value)
    retry_after({"Retry-After": value})
    next_link([value])
