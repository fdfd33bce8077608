"""Untrusted input is parsed in linear time.

Each reader gets hostile shapes of two lengths, the second four times the first. Linear time grows
four times, quadratic time sixteen; the limit lies between, and short times are allowed any growth,
because a busy machine blurs them.
"""

import contextlib
import itertools
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from multidict import CIMultiDict

from proxy.core import manifests
from proxy.core.errors import RegistryError
from proxy.core.names import Digest, parse_digest, parse_path, parse_repo, parse_tag
from proxy.core.policy import cache_directive
from proxy.upstream.auth import read_realm, shares_domain
from proxy.upstream.budget import Budget
from proxy.upstream.headers import content_range, next_link, parse_challenges, retry_after
from proxy.web import ranges, replies

SHORT, LONG = 2000, 8000
"""Characters. aiohttp accepts up to 8190 of a header, and 128 headers."""

LINES = 128
GROWTH = 9.0
BLURRED = 0.002
"""Seconds below which a growth says nothing."""

FAST = 0.1
"""Seconds for all that one answer can bring, on a slow machine. Each bounded reader needs 5 ms."""


def _is_unmodified(value: str) -> None:
    request = SimpleNamespace(headers={"If-None-Match": value})
    exchange = cast("Any", SimpleNamespace(request=request))
    replies.is_unmodified(exchange, Digest("sha256:" + "0" * 64))


READERS: dict[str, Callable[[str], object]] = {
    "WWW-Authenticate": lambda value: parse_challenges([value] * LINES),
    "WWW-Authenticate, one line": lambda value: parse_challenges([f"Bearer {value}"]),
    "Link": lambda value: next_link([value] * LINES),
    "Link, parameters": lambda value: next_link([f"</a>; {value}"] * LINES),
    "Retry-After": lambda value: retry_after({"Retry-After": value}),
    "Content-Range": lambda value: content_range(f"bytes {value}"),
    "RateLimit-Remaining": lambda value: Budget(time.time).note(
        CIMultiDict({"ratelimit-limit": f"100{value}", "ratelimit-remaining": value}), value
    ),
    "Content-Type": manifests.is_media_type,
    "Docker-Content-Digest": lambda value: parse_digest(f"sha256{value}"),
    "realm": lambda value: shares_domain(read_realm(f"https://{value}").host or "", "example.com"),
    "host": lambda value: shares_domain(value, "example.com"),
    "repository": parse_repo,
    "tag": parse_tag,
    "path": lambda value: parse_path(f"/v2/{value}/manifests/{value}"),
    "Range": lambda value: ranges.requested(f"bytes={value}", 1 << 30),
    "Range, unit": lambda value: ranges.requested(f"bytes{value}", 1 << 30),
    "Cache-Control": cache_directive,
    "If-None-Match": _is_unmodified,
}

PIECES = [
    " ", "\t", "a", "0", ",", ";", "=", '"', "\\", "-", "<", ">", "/", ".", "_", ":", "%",
    "a ", "a,", 'a"', "a=", "a= ", 'a="', '"\\', "a-", "a.", "a/", "a__", "<a>,", "<a>; ", ", <",
    "; rel", "0-0,", "0 ,", " -", "ä", "ä.",
]  # fmt: skip
STARTS = ["", "0,", '"']
ENDS = ["!", '"']


def _seconds(read: Callable[[str], object], value: str) -> float:
    """The least time of this thread in several runs: what else runs only adds to it."""
    best = float("inf")
    for _ in range(7):
        begun = time.thread_time()
        with contextlib.suppress(RegistryError, ValueError):
            read(value)
        best = min(best, time.thread_time() - begun)
        if not BLURRED / 4 < best < 10 * FAST:
            break
    return best


def _grows_too_fast(read: Callable[[str], object], long: str, short: str) -> bool:
    """Whether it still does when it is measured again."""
    for _ in range(4):
        seconds = _seconds(read, long)
        if seconds < max(BLURRED, GROWTH * _seconds(read, short)):
            return False
    return True


@pytest.mark.parametrize("name", READERS)
def test_t46_reading_takes_time_that_grows_with_the_length(name: str) -> None:
    read = READERS[name]
    for start, piece, end in itertools.product(STARTS, PIECES, ENDS):
        long = start + piece * (LONG // len(piece)) + end
        short = start + piece * (SHORT // len(piece)) + end
        seconds = _seconds(read, long)
        assert seconds < FAST, (start, piece, end)
        assert seconds < BLURRED or not _grows_too_fast(read, long, short), (start, piece, end)
