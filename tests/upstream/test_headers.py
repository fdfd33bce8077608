"""Response headers, as registries write them and as they may be abused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.headers import MAX_LINK, content_range, next_link, retry_after


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
        ("soon", None),
        ("-1", None),
        ("", None),
    ],
)
def test_retry_after(value: str, expected: float | None) -> None:
    assert retry_after({"Retry-After": value}) == expected


@given(st.text(max_size=200))
def test_anything_is_survived(value: str) -> None:
    content_range(value)
    retry_after({"Retry-After": value})
    next_link([value])
