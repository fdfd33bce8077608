"""The files of the dashboard over HTTP, and their restrictions in a browser."""

import asyncio
import gzip
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from aiohttp import ClientSession, UnixConnector

from proxy.web.admin.dashboard import serving
from tests.parts import chromium
from tests.running import Proxy

STATIC = Path(serving.__file__).parent / "static"
ROOT = Path(__file__).parents[4]
NAMES = sorted(path.name for path in STATIC.iterdir())
OURS = [name for name in NAMES if not name.startswith("uplot")]
LINKED = re.compile(r'(?:href|src)="(static/[^"]+)"')
POLICY = {
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
    "img-src 'self' data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    "require-trusted-types-for 'script'", "trusted-types 'none'",
}  # fmt: skip


async def folder(proxy: Proxy) -> str:
    """Return the path below which all files are."""
    page = (await proxy.get("/-/", Accept_Encoding="identity")).body.decode()
    return "/-/" + LINKED.findall(page)[0].rpartition("/")[0]


async def test_the_page_and_every_file_is_served_with_a_strict_policy(proxy: Proxy) -> None:
    below = await folder(proxy)
    paths = {"/-/": "index.html"} | {f"{below}/{name}": name for name in NAMES}
    paths.pop(f"{below}/index.html")
    for path, name in paths.items():
        answer = await proxy.get(path, Accept_Encoding="identity")
        assert answer.status == 200, path
        assert set(answer.headers["Content-Security-Policy"].split("; ")) == POLICY
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        if name != "index.html":
            assert answer.body == (STATIC / name).read_bytes()


async def test_the_page_links_to_files_that_there_are(proxy: Proxy) -> None:
    page = (await proxy.get("/-/", Accept_Encoding="identity")).body.decode()
    links = LINKED.findall(page)
    assert len(links) >= 5
    for link in links:
        assert (await proxy.get(f"/-/{link}")).status == 200, link


async def test_content_types(proxy: Proxy) -> None:
    below = await folder(proxy)
    kinds = {"app.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}
    for name, kind in kinds.items():
        answer = await proxy.get(f"{below}/{name}")
        assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"


async def test_the_short_path_leads_to_the_page(proxy: Proxy) -> None:
    async with proxy.client.get("/-", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (308, "/-/")


async def test_browsers_keep_files_and_ask_for_the_page_again(proxy: Proxy) -> None:
    page, file = await proxy.get("/-/"), await proxy.get(f"{await folder(proxy)}/app.js")
    assert page.headers["Cache-Control"] == "no-cache"
    assert file.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    again = await proxy.get("/-/", If_None_Match=page.headers["ETag"])
    assert (again.status, again.body) == (304, b"")
    assert again.headers["ETag"] == page.headers["ETag"] != file.headers["ETag"]
    assert (await proxy.get("/-/", If_None_Match='"other"')).status == 200


async def test_compression(proxy: Proxy) -> None:
    path = f"{await folder(proxy)}/uplot.js"
    for accepted, is_compressed in (
        ("gzip, br", True),
        ("*", True),
        ("br;q=1, gzip;q=0.5", True),
        ("gzip;q=0", False),
        ("br", False),
    ):
        answer = await proxy.get(path, Accept_Encoding=accepted)
        assert (answer.headers.get("Content-Encoding") == "gzip") is is_compressed, accepted
        body = gzip.decompress(answer.body) if is_compressed else answer.body
        assert body == (STATIC / "uplot.js").read_bytes()
        assert answer.headers["Vary"] == "Accept-Encoding"


async def test_head_has_no_body(proxy: Proxy) -> None:
    answer = await proxy.head("/-/")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["Content-Length"]) == len((await proxy.get("/-/")).body)


async def test_nothing_can_be_changed(proxy: Proxy) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert (await proxy.ask(method, "/-/")).status == 405


async def test_no_path_leads_out_of_the_package(proxy: Proxy) -> None:
    host, port = proxy.app.address.split(":")
    below = await folder(proxy)
    for name in (
        "", "none.js", "../serving.py", "..%2fserving.py", "%2e%2e/__init__.py", "./app.js",
        "app.js/", "//app.js", "app.js%00", "index.html", "APP.JS", "../../../../etc/passwd",
    ):  # fmt: skip
        done = await raw(host, int(port), f"{below}/{name}")
        assert done.startswith(b"HTTP/1.1 404 "), (name, done[:200])


async def raw(host: str, port: int, path: str) -> bytes:
    """Return the answer to a path that no client tidies up."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()


async def test_an_old_version_of_a_file_is_not_mixed_with_new_ones(proxy: Proxy) -> None:
    assert (await proxy.get("/-/static/0123456789abcdef/app.js")).status == 404
    assert (await proxy.get("/-/static/app.js")).status == 404


async def test_the_admin_socket_serves_it_too(proxy: Proxy) -> None:
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with (
        ClientSession("http://millpond", connector=connector) as session,
        session.get("/-/") as answer,
    ):
        assert answer.status == 200
        assert "<title>Millpond</title>" in await answer.text()


def test_all_files_together_are_small() -> None:
    assert sum((STATIC / name).stat().st_size for name in NAMES) < 150_000


def test_the_page_has_no_code_or_style_of_its_own() -> None:
    page = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", page) == []


@pytest.mark.parametrize("name", [name for name in OURS if name.endswith(".js")])
def test_no_script_writes_html(name: str) -> None:
    text = (STATIC / name).read_text()
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc"
    )
    assert re.findall(forbidden, text) == []


@pytest.mark.parametrize("name", OURS)
def test_no_file_names_another_host(name: str) -> None:
    text = (STATIC / name).read_text().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"\w+://", text) == []


@pytest.mark.parametrize(
    ("ours", "published"),
    [("uplot.js", "dist/uPlot.iife.min.js"), ("uplot.css", "dist/uPlot.min.css"), ("uplot-license.txt", "LICENSE")],
)  # fmt: skip
def test_uplot_is_as_it_was_published(ours: str, published: str) -> None:
    package = chromium.MODULES / "uplot" / published
    assert (STATIC / ours).read_bytes() == package.read_bytes()


def test_the_installed_package_has_every_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "proxy", source / "proxy", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = ["pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True, timeout=110)
    [wheel] = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {f"proxy/web/admin/dashboard/static/{name}" for name in NAMES} <= packed
