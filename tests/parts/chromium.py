"""Debian's Chromium without a window, driven by Playwright in a thread of its own.

Tests run in the loop of the program that the browser talks to, and Playwright's functions block:
a test hands over a function, and waits for it.
"""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    sync_playwright,
)

HERE: Final = Path(__file__).parent
MODULES: Final = HERE / "browser/node_modules"
"""What `tests/parts/install` has installed from npm: axe-core, and uPlot as it was published."""

SCREENSHOTS: Final = HERE.parents[1] / "build/screenshots"
PHONE: Final = {"width": 360, "height": 740}
DESKTOP: Final = {"width": 1280, "height": 900}
WAIT: Final = 30_000  # milliseconds; other tests keep the machine busy

T = TypeVar("T")


@dataclass
class Window:
    """One page of the browser, and what it did that it must not do."""

    page: Page
    origin: str
    problems: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Write down errors, violations of the policy, and requests that go elsewhere."""
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")

    def _request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.origin}/", "data:")):
            self.problems.append(f"asked {request.url}")

    def forgive(self, *parts: str) -> None:
        """Forget problems that a test has made."""
        self.problems[:] = [one for one in self.problems if not any(p in one for p in parts)]

    def violations(self) -> list[str]:
        """Return what axe-core finds against WCAG 2.2 A and AA and its own best practices."""
        found = self.page.evaluate(_axe())
        return [f"{one['id']}: {one['help']}: {json.dumps(one['nodes'])[:600]}" for one in found]

    def screenshot(self, name: str) -> Path:
        """Keep a picture of the whole page."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=path, full_page=True)
        return path


class Chromium:
    """The browser. Start it once: it takes a second."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "chromium")
        self._windows: list[tuple[BrowserContext, Window]] = []
        self._playwright: Any = None
        self._browser: Browser | None = None

    async def do(self, act: Callable[[], T]) -> T:
        """Run a function in the thread of the browser."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, act)

    async def open(self, origin: str, **options: Any) -> Window:
        """Return a new window, with nothing stored in it."""
        return await self.do(lambda: self._open(origin, options))

    def _open(self, origin: str, options: dict[str, Any]) -> Window:
        if self._browser is None:
            self._playwright = sync_playwright().start()
            path = shutil.which("chromium")
            assert path, "chromium is missing: tests/parts/install fetches it"
            self._browser = self._playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox"]
            )
        defaults = {"viewport": DESKTOP, "timezone_id": "UTC", "reduced_motion": "reduce"}
        context = self._browser.new_context(**{**defaults, **options})
        context.set_default_timeout(WAIT)
        window = Window(context.new_page(), origin)
        window.watch()
        self._windows.append((context, window))
        return window

    async def close_windows(self) -> list[str]:
        """Close all windows; return what they did that they must not do."""
        windows, self._windows = self._windows, []
        await self.do(lambda: [context.close() for context, _ in windows])
        return [problem for _, window in windows for problem in window.problems]

    def close(self) -> None:
        """End the browser."""
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _close(self) -> None:
        if self._browser is not None:
            self._browser.close()
            self._playwright.stop()


@contextmanager
def running() -> Iterator[Chromium]:
    """Give the browser, and end it."""
    browser = Chromium()
    try:
        yield browser
    finally:
        browser.close()


@cache
def _axe() -> str:
    """Return an expression: axe-core runs and its findings are the value.

    It is evaluated by the debugger, so the policy of the page need not allow it.
    """
    source = (MODULES / "axe-core/axe.min.js").read_text()
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    run = f"axe.run({{runOnly: {json.dumps(tags)}, resultTypes: ['violations']}})"
    shown = "({id, help, nodes: nodes.map(({html, failureSummary}) => [html, failureSummary])})"
    brief = f"violations.map(({{id, help, nodes}}) => {shown})"
    return f"async () => {{ {source}; const {{violations}} = await {run}; return {brief}; }}"
