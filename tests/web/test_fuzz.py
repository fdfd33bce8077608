"""Whatever is sent to ``/v2/``: no 500, no hang, no file touched outside the store, and it serves on.

Requests are made from the grammar and from garbage, and sent over raw sockets. Seeded: every run
sends the same.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import http_exceptions
from aiohttp.web import RequestPayloadError
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.leaks import at_rest, nothing_left, working
from tests.running import Proxy, Start

IMAGE = content.image(1, layers=(2048,))
[LAYER] = IMAGE.layers
REPO = "library/app"
SECRET = b"what lies beside the store"
BOUNDED = settings(
    max_examples=1500,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),  # shrinking a hang would take minutes
    suppress_health_check=list(HealthCheck),
)
LAST = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
SECONDS = 30.0

# What a client may write

DIGESTS = (
    IMAGE.digest,
    LAYER,
    content.digest(b"none"),
    content.digest(b"none", "sha512"),
    LAYER.upper(),
    "sha256:",
    "sha256:" + "g" * 64,
    "sha256:" + "0" * 63,
    "sha256:../../../secret",
    "sha256:..%2f..%2f..%2fsecret",
    "md5:d41d8cd98f00b204e9800998ecf8427e",
    "sha256-" + LAYER[7:],
    "sha256%3A" + LAYER[7:],
    "a+b:c=",
    ":",
)
ODD = (
    "", ".", "..", "...", "%2e%2e", "%2E%2e%2F", "..%2f..%2f..%2fsecret", "%252e%252e", "%2f", "%5c",
    "..%5c..", "%00", "app%00", "%ff%fe", "%C3%A9", "%E2%80%AE", "%", "%zz", "%u002e", "%0d%0a",
    "%0d%0aX-Injected:1", "%ED%A0%80", "~", "*", ";a=b", "@", "a%20b", "+", "$(id)", "%7b7*7%7d",
    "A" * 300, "a" * 4000, "a/" * 200, "--", "__", "UPPER", "0", "-1", "file:", "localhost:1",
    "127.0.0.1:22", "169.254.169.254", "docker.io", "example.com", "%D9%A3", "%CA%B0",
)  # fmt: skip
RAW = ("é", "\u202e", "\udcff", "{{7*7}}", '"', "<x>", "^", "|", "\x7f", "http://[::1", "x:1", "*",
       "//", "///v2/", "/v2/#a", "/v2/?", "http://x/v2/", "")  # fmt: skip
WORDS = ("v2", "v1", "-", "_catalog", "library", "app", "manifests", "blobs", "tags", "list",
         "referrers", "uploads", "latest", "_oci", "ext", "discover", "token", "metrics", "stats")  # fmt: skip
segment = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(DIGESTS),
    st.sampled_from(ODD),
    st.text(max_size=12).map(lambda text: quote(text, errors="surrogatepass")),
)
likely = st.builds(
    "/v2/{}/{}/{}".format,
    st.one_of(st.just(REPO), st.just("app"), segment),
    st.sampled_from(("manifests", "blobs", "referrers", "tags")),
    st.one_of(st.just("latest"), st.just("list"), st.sampled_from(DIGESTS), segment),
)
free = st.lists(segment, max_size=8).map(lambda parts: "/v2/" + "/".join(parts))
rare = st.one_of(st.lists(segment, max_size=4).map("/".join), st.sampled_from(RAW))
value = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=20),
    st.integers(-(10**20), 10**20).map(str),
)
query = st.lists(
    st.tuples(
        st.sampled_from(("ns", "n", "last", "artifactType", "digest", "x", "")),
        st.one_of(
            st.sampled_from(("docker.io", "127.0.0.1", "1", "0")),
            value.map(lambda text: quote(text, safe="/:%", errors="surrogatepass")),
        ),
    ),
    max_size=3,
).map(lambda pairs: "&".join(f"{name}={text}" for name, text in pairs))
place = st.one_of(st.integers(0, 2100).map(str), st.just(""), value)
spec = st.builds("{}-{}".format, place, place)
edge = st.integers(0, 2100)
ranges = st.one_of(
    st.lists(st.builds("{}-{}".format, edge, edge), min_size=1, max_size=3).map(
        lambda specs: "bytes=" + ",".join(specs)
    ),
    st.lists(spec, max_size=4).map(lambda specs: "bytes=" + ",".join(specs)),
    st.sampled_from(
        (
            "bytes=0-0",
            "bytes=-0",
            "bytes=--1",
            "bytes=0-9,5-14,-1",
            "bytes=" + "0-0," * 300,
            "bytes=",
            "bytes=٣-٤",
            "bytes=9" + "9" * 5000 + "-",
            "BYTES = 1 - 2 ",
            "bytes=0-, -1",
            "octets=1-2",
        )
    ),
    value,
)
quoted = st.one_of(
    st.sampled_from((f'"{LAYER}"', LAYER, "*", f'W/"{IMAGE.digest}"', '"', ",,,", '"a", *')), value
)
HEADERS: dict[str, st.SearchStrategy[str]] = {
    "Host": st.one_of(st.sampled_from(("x", "", ":", "[::1]:5", "ghcr.io", "a" * 3000)), value),
    "Range": ranges,
    "If-Range": quoted,
    "If-None-Match": quoted,
    "If-Modified-Since": value,
    "Accept": st.one_of(st.sampled_from(("*/*", "a/b;q=x", "," * 900)), value),
    "Accept-Encoding": st.sampled_from(("gzip", "zstd;q=1.0, gzip", "identity;q=0", "br")),
    "Cache-Control": st.one_of(
        st.sampled_from(("no-cache", "only-if-cached", "max-age=0", "max-age=x", "=", ",")), value
    ),
    "Authorization": st.one_of(st.sampled_from(("Basic !!!", "Bearer", "Basic YTpi")), value),
    "Cookie": value,
    "Expect": st.sampled_from(("100-continue", "x")),
    "Upgrade": st.sampled_from(("websocket", "h2c")),
    "User-Agent": value,
    "X-Forwarded-Host": value,
}
header = st.sampled_from(sorted(HEADERS)).flatmap(
    lambda name: st.tuples(st.just(name), HEADERS[name])
)
headers = st.lists(
    st.one_of(header, st.tuples(st.just("Range"), ranges)), max_size=4, unique_by=lambda h: h[0]
).map(tuple)
METHODS = ("GET", "GET", "GET", "GET", "GET", "GET", "HEAD", "HEAD", "HEAD", "POST", "PUT", "DELETE",
           "OPTIONS", "TRACE", "PROPFIND")  # fmt: skip


@dataclass(frozen=True)
class Sent:
    """One request that is framed as HTTP wants it, whatever is in it."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]

    def encode(self) -> bytes:
        """Return it as it goes over the wire; what would break the frame is left out."""
        lines = [f"{self.method} {_no(self.target, ' ')} HTTP/1.1"]
        if not any(name == "Host" for name, _ in self.headers):
            lines.append("Host: x")
        lines += [f"{name}: {_no(text)}" for name, text in self.headers]
        return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n"


def _no(text: str, more: str = "") -> str:
    """Return `text` without what ends a line or a word."""
    return "".join(c for c in text if c not in f"\r\n\0{more}" and (c >= " " or c == "\t"))


def _target(parts: tuple[str, str]) -> str:
    path, asked = parts
    return f"{path}?{asked}" if asked else path or "/"


known = st.sampled_from(
    (f"/v2/{REPO}/blobs/{LAYER}", f"/v2/{REPO}/blobs/{LAYER}", f"/v2/{REPO}/manifests/latest",
     f"/v2/app/manifests/{IMAGE.digest}", f"/v2/{REPO}/tags/list", f"/v2/{REPO}/referrers/{LAYER}",
     "/v2/_catalog", "/v2/", "/-/stats", "/metrics")
)  # fmt: skip
path = st.integers(0, 29).flatmap(
    lambda n: rare if n == 0 else known if n < 12 else likely if n < 22 else free
)
target = st.tuples(path, st.one_of(st.just(""), query)).map(_target)
framed = st.builds(
    Sent,
    method=st.sampled_from(METHODS),
    target=target,
    headers=headers,
)


# What the process may do


class Watch:
    """Notes which files the process opens, makes or removes, while it is told to."""

    PATHS: Mapping[str, int] = {  # event → how many of its arguments are paths
        "open": 1, "os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2,
        "os.symlink": 2, "os.truncate": 1, "os.chmod": 1, "os.listdir": 1, "os.scandir": 1,
        "sqlite3.connect": 1,
    }  # fmt: skip

    STORED = re.compile(r"[0-9a-f]{64}|[0-9a-f]{128}|[0-9]+-[0-9a-f]{16}|index\.json(\.new)?")
    """What the store names relative to the descriptor of a directory, which no event tells."""

    def __init__(self) -> None:
        self.touched: list[tuple[str, Path]] = []
        self.is_on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on:
            paths = [
                arg for arg in arguments[: self.PATHS.get(event, 0)] if not isinstance(arg, int)
            ]
            names = [os.fsdecode(path).removeprefix("file:") for path in paths]
            self.touched += [
                (event, Path(os.path.abspath(name)))  # noqa: PTH100 - without following links
                for name in names
                if not self.STORED.fullmatch(name)
            ]

    @contextmanager
    def outside(self, *permitted: Path) -> Iterator[None]:
        """Fail when anything but what lies below these is touched inside."""
        self.touched.clear()
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False
        inside = (any(path.is_relative_to(p) for p in permitted) for _, path in self.touched)
        strange = [
            touched for touched, is_in in zip(self.touched, inside, strict=True) if not is_in
        ]
        assert not strange


NO_HTTP = {RequestPayloadError.__name__} | {
    name
    for name, kind in vars(http_exceptions).items()
    if isinstance(kind, type) and issubclass(kind, http_exceptions.HttpProcessingError)
}  # what the server raises at what it cannot read
WATCH = Watch()  # an audit hook is for life, so there is one
PYTHON = (Path(sys.prefix), Path(sys.base_prefix), Path("/proc/self"))


@pytest.fixture
async def target_proxy(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> AsyncIterator[Proxy]:
    (tmp_path / "secret").write_bytes(SECRET)
    upstream.add(REPO, IMAGE)
    async with nothing_left():
        proxy = await start(catalog=True)
        for path in (f"/v2/{REPO}/manifests/latest", f"/v2/{REPO}/blobs/{LAYER}"):
            assert (await proxy.get(path)).status == 200
        await proxy.settled()
        before = working()
        yield proxy
        for path in (f"/v2/{REPO}/manifests/latest", f"/v2/{REPO}/blobs/{LAYER}"):
            assert (await proxy.get(path)).status == 200
        await at_rest(proxy, before)
        assert {path.name for path in tmp_path.iterdir()} == {"secret", "cache"}
        await proxy.close()
        assert set(failures(proxy)) <= NO_HTTP


def failures(proxy: Proxy) -> list[str]:
    """Return the classes of the exceptions that were logged."""
    lines = (json.loads(line) for line in proxy.log.getvalue().splitlines())
    return [line["exception"][0]["exc_type"] for line in lines if "exception" in line]


async def exchange(proxy: Proxy, data: bytes) -> bytes:
    """Send and return all that comes until the server closes."""
    host, port = proxy.app.address.split(":")
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(data)
            return await reader.read()
        except ConnectionResetError:
            return b""  # it closed with our bytes unread
        finally:
            writer.transport.abort()


STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def answers(said: bytes, methods: list[str]) -> list[int]:
    """Return the statuses of complete answers, one after the other, to requests by `methods`."""
    statuses = []
    for method in methods:
        if not said:
            return statuses
        found = STATUS.match(said)
        assert found, said[:200]
        status = int(found[1])
        head, _, said = said.partition(b"\r\n\r\n")
        if status == 100:
            continue
        statuses.append(status)
        lines = head.lower().split(b"\r\n")[1:]
        lengths = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
        assert b"x-injected" not in head.lower()
        if head.startswith(b"HTTP/1.0 400 "):
            break  # it was no HTTP, so who knows whether it was a HEAD
        if method == "HEAD" or status in {204, 304}:
            continue
        assert len(lengths) == 1, "an answer has one length"
        assert len(said) >= lengths[0], "an answer is whole"
        said = said[lengths[0] :]
    else:
        assert not said, "there are as many answers as requests"
    return statuses


def assert_told(statuses: list[int]) -> None:
    assert not {status for status in statuses if status >= 500 and status not in {502, 504}}, (
        statuses
    )


@BOUNDED
@given(requests=st.lists(framed, min_size=1, max_size=4))
@example([Sent("GET", f"/v2/{REPO}/blobs/sha256:../../../secret", ())])
@example([Sent("GET", f"/v2/{REPO}/blobs/{LAYER}", (("Range", "bytes=٣-٤"),))])
@example([Sent("GET", "/v2/app/manifests/latest?ns=%ff", (("Host", "é"),))])
@example([Sent("GET", "/v2/" + "a/" * 4000 + "tags/list", ())])
async def test_framed_requests(target_proxy: Proxy, tmp_path: Path, requests: list[Sent]) -> None:
    """Several in one go on a connection, and the last of them closes it."""
    data = b"".join(request.encode() for request in requests) + LAST
    with WATCH.outside(tmp_path / "cache", *PYTHON):
        said = await exchange(target_proxy, data)
    assert SECRET not in said
    assert said, "every request has an answer"
    statuses = answers(said, [*(request.method for request in requests), "GET"])
    assert_told(statuses)
    refused = 400 in statuses  # after what is no HTTP the connection is closed
    assert refused or len(statuses) == len(requests) + 1


@settings(BOUNDED, max_examples=500)
@given(data=st.binary(max_size=400), cut=st.integers(0, 400), request=framed)
async def test_half_requests_and_garbage(
    target_proxy: Proxy, tmp_path: Path, data: bytes, cut: int, request: Sent
) -> None:
    """What ends in mid-request, or goes on with anything; then the client hangs up."""
    host, port = target_proxy.app.address.split(":")
    with WATCH.outside(tmp_path / "cache", *PYTHON):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request.encode()[:cut] + data)
        await asyncio.sleep(0.002)
        if cut % 2:
            writer.write_eof()
        else:
            writer.write(b"\r\n\r\n")
        try:
            async with asyncio.timeout(0.01):
                said = await reader.read()
        except (TimeoutError, ConnectionResetError):
            said = b""  # it waits for the rest
        writer.transport.abort()
    assert SECRET not in said
    assert_told([int(status) for status in STATUS.findall(said)])


UNDERSTOOD = (
    b"Content-Length: 5\r\n\r\nhello", b"Content-Length: 5\r\n\r\nhel",
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"X: \xff\xfe\r\n\r\n",
    b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
)  # fmt: skip
REFUSED = (
    b"Content-Length: -1\r\n\r\n", b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"Content-Length: 99999999999999999999\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    b" folded: x\r\n\r\n", b"no colon\r\n\r\n", b": empty\r\n\r\n", b"X: " + b"a" * 20_000 + b"\r\n\r\n",
    b"A: b\r\n" * 500 + b"\r\n", b"X: \x00\r\n\r\n", b"\n\n", b"\r\r\n\n",
)  # fmt: skip
BROKEN_BODIES = (
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"Transfer-Encoding: gzip\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
)  # fmt: skip


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"CONNECT"])
async def test_frames_that_are_wrong(target_proxy: Proxy, tmp_path: Path, method: bytes) -> None:
    """Bodies where none belongs, lengths that lie, headers that are none: each has its answer."""
    served = {200} if method in {b"GET", b"HEAD"} else {400, 405}
    expected = (
        *((frame, served) for frame in UNDERSTOOD),
        *((frame, {400}) for frame in REFUSED),
        *((frame, {400, 405}) for frame in BROKEN_BODIES),  # the head may be answered before
    )
    with WATCH.outside(tmp_path / "cache", *PYTHON):
        for frame, statuses in expected:
            for path in (b"/v2/", f"/v2/{REPO}/blobs/{LAYER}".encode()):
                host, port = target_proxy.app.address.split(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(method + b" " + path + b" HTTP/1.1\r\nHost: x\r\n" + frame)
                async with asyncio.timeout(20):
                    said = await reader.readuntil(b"\r\n\r\n")
                writer.transport.abort()
                [status] = STATUS.findall(said)
                assert int(status) in statuses, (method, path, frame[:100])


async def test_a_request_that_never_ends_holds_up_nobody(target_proxy: Proxy) -> None:
    host, port = target_proxy.app.address.split(":")
    writers = []
    for place in range(50):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"GET /v2/{REPO}/blobs/{LAYER} HTTP/1.1\r\nHost: x\r\nX: "[: 2 + place].encode()
        )
        writers.append(writer)
    async with asyncio.timeout(SECONDS):
        assert (await target_proxy.get(f"/v2/{REPO}/blobs/{LAYER}")).status == 200
    for writer in writers:
        writer.transport.abort()


async def test_many_requests_in_one_go(target_proxy: Proxy) -> None:
    """Each is answered, in order."""
    paths = [f"/v2/{REPO}/blobs/{LAYER}", f"/v2/{REPO}/manifests/latest", "/v2/", "/v2/x/y/z"]
    lines = [f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths] * 50
    said = await exchange(target_proxy, "".join(lines).encode() + LAST)
    assert answers(said, ["GET"] * 201) == [200, 200, 200, 404] * 50 + [200]


async def test_what_is_no_http_is_no_error_of_ours(proxy: Proxy) -> None:
    """Whoever can connect could fill the log with tracebacks."""
    for garbage in (
        b"GET /v2/ HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET * HTTP/1.1\r\n\r\n",
        b"\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    ):
        assert (await exchange(proxy, garbage))[9:13] == b"400 "
    assert not failures(proxy)
    assert '"error"' not in proxy.log.getvalue()


async def test_a_range_in_other_digits_is_no_range(target_proxy: Proxy) -> None:
    """RFC 9110 §14.1.1 means ASCII."""
    request = Sent("GET", f"/v2/{REPO}/blobs/{LAYER}", (("Range", "bytes=٣-٤"),))
    said = await exchange(target_proxy, request.encode() + LAST)
    assert answers(said, ["GET", "GET"]) == [200, 200]
