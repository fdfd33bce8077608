"""The dashboard of a running proxy in a real browser."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from playwright.sync_api import Page

from proxy.core.records import Clock
from proxy.runtime.events import EventKind, Fact
from tests.parts import chromium
from tests.parts.chromium import Chromium, Window
from tests.running import Proxy, Start

TOKEN = "s3cret"
T = TypeVar("T")


@dataclass
class Dashboard:
    """A window that shows the dashboard of a proxy."""

    proxy: Proxy
    browser: Chromium
    window: Window

    async def do(self, act: Callable[[Page], T]) -> T:
        """Run a function that uses the page."""
        return await self.browser.do(lambda: act(self.window.page))

    async def show(self, page: str = "") -> None:
        """Open a page of the dashboard, such as ``images``; it is there once it has a heading."""

        def open_it(shown: Page) -> None:
            shown.goto(f"{self.window.origin}/-/#/{page}")
            shown.locator("main h1").wait_for()

        await self.do(open_it)

    async def log_in(self, token: str = TOKEN) -> None:
        """Log in by the form."""

        def fill(page: Page) -> None:
            page.locator("#log").click()
            page.locator("input[name=secret]").fill(token)
            page.locator("#login-submit").click()
            page.get_by_role("button", name="Log out").wait_for()

        await self.do(fill)

    def emit(self, kind: EventKind, subject: str, /, **data: Fact) -> None:
        """Let something happen in the proxy."""
        self.proxy.app.operator_api.events.emit(kind, subject, **data)

    async def see(self, text: str) -> None:
        """Wait until the page shows a text."""
        await self.do(lambda page: page.get_by_text(text).first.wait_for())


Open = Callable[..., Awaitable[Dashboard]]


@pytest.fixture(scope="session")
def browser() -> Iterator[Chromium]:
    with chromium.running() as browser:
        yield browser


@pytest.fixture
def clock() -> Clock:
    """The time of the browser."""
    return time.time


@pytest.fixture
async def open_dashboard(browser: Chromium, start: Start, tmp_path: Path) -> AsyncIterator[Open]:
    """Open windows on proxies whose admin token is known. Whatever they must not do fails."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")

    async def open_one(
        proxy: Proxy | None = None, window: dict[str, Any] | None = None, **settings: Any
    ) -> Dashboard:
        found = proxy or await start(admin={"token_file": str(file)}, **settings)
        origin = f"http://{found.app.address}"
        return Dashboard(found, browser, await browser.open(origin, **window or {}))

    yield open_one
    assert await browser.close_windows() == []


@pytest.fixture
async def dashboard(open_dashboard: Open) -> Dashboard:
    return await open_dashboard()
