"""The dashboard in a real browser, on a running proxy with real pulls."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from proxy.runtime.events import EventKind
from tests.access.people import write_users
from tests.fakes import content
from tests.fakes.registry import RateLimit
from tests.fakes.upstream import FakeUpstream
from tests.parts.chromium import PHONE, WAIT
from tests.parts.process import free_port
from tests.running import Proxy, until
from tests.web.admin.dashboard.conftest import TOKEN, Dashboard, Open

APP = "docker.io/library/app:latest"
HOSTILE = "<img src=x onerror=alert(1)>"
PAGES = {"overview": "", "images": "images", "image": f"image/{APP}", "activity": "activity"}
LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"color_scheme": "light", "viewport": PHONE, "has_touch": True},
}
expect.set_options(timeout=WAIT)


async def pull(proxy: Proxy, name: str, image: content.Image, tag: str = "latest") -> None:
    """Pull an image as a client does."""
    assert (await proxy.get(f"/v2/{name}/manifests/{tag}")).status == 200
    for digest in image.blobs:
        assert (await proxy.get(f"/v2/{name}/blobs/{digest}")).status == 200
    await proxy.settled()


# Who sees what


async def test_everybody_sees_numbers_without_names_and_how_to_log_in(
    dashboard: Dashboard, upstream: FakeUpstream
) -> None:
    upstream.behaviour.rate_limit = RateLimit(limit=100, remaining=37)
    image = upstream.add("library/app", content.image(1))
    await pull(dashboard.proxy, "app", image)
    await dashboard.show()

    def look(page: Page) -> None:
        expect(page).to_have_title("Overview · Millpond")
        row = page.get_by_role("row").filter(has_text="docker.io")
        expect(row).to_contain_text("up")
        expect(row).to_contain_text("closed")
        expect(row).to_contain_text(re.compile(r"3\d of 100 left, refills \d\d:\d\d"))
        expect(row).to_contain_text(re.compile(r"\d+ ms"))
        expect(page.locator(".tile").filter(has_text="Cache")).to_contain_text("4 files")
        for name in ("Hit ratio", "Bytes saved"):
            expect(page.get_by_role("img", name=name)).to_be_visible()
        expect(page.get_by_text("visible to administrators")).to_be_visible()
        expect(page.get_by_role("button", name="Log in")).to_have_count(2)
        assert "library/app" not in page.content()

    await dashboard.do(look)


async def test_log_in_and_out_with_the_admin_token(dashboard: Dashboard) -> None:
    await dashboard.show("images")

    def log_in(page: Page) -> None:
        page.get_by_role("button", name="Log in").last.click()
        dialog = page.get_by_role("dialog", name="Log in")
        secret = dialog.get_by_role("textbox", name="Admin token")
        expect(secret).to_be_focused()
        secret.fill("wrong")
        secret.press("Enter")
        expect(dialog.get_by_role("alert")).to_have_text("This is not the admin token.")
        secret.fill(TOKEN)
        secret.press("Enter")
        expect(dialog).to_be_hidden()
        expect(page.get_by_role("searchbox", name="Search")).to_be_visible()

    await dashboard.do(log_in)
    kept = "[{...sessionStorage}, {...localStorage}, document.cookie, location.href]"

    def reload_and_log_out(page: Page) -> None:
        session, local, cookie, address = page.evaluate(kept)
        assert session["millpond-authorization"] == f"Bearer {TOKEN}"
        assert TOKEN not in json.dumps([local, cookie, address])
        page.reload()
        expect(page.get_by_role("searchbox", name="Search")).to_be_visible()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_text("visible to administrators")).to_be_visible()
        assert TOKEN not in json.dumps(page.evaluate(kept))

    await dashboard.do(reload_and_log_out)


async def test_log_in_with_user_and_password(open_dashboard: Open, tmp_path: Path) -> None:
    users = write_users(tmp_path / "users", ann="wonderland", bob="builder")
    rules = [{"allow": "admin", "to": ["user:ann"]}, {"allow": "pull"}]
    dashboard = await open_dashboard(access={"htpasswd_file": str(users), "rules": rules})
    await dashboard.show()

    def log_in(page: Page) -> None:
        page.locator("#log").click()
        page.get_by_label("User and password").check()
        for user, password in (("bob", "builder"), ("ann", "wrong"), ("ann", "wonderland")):
            page.get_by_label("User", exact=True).fill(user)
            page.get_by_label("Password", exact=True).fill(password)
            page.locator("#login-submit").click()
            if password != "wonderland":
                expect(page.get_by_role("alert")).to_contain_text("may not administer")
        expect(page.locator("#who")).to_have_text("ann")

    await dashboard.do(log_in)


# What an operator sees and does


async def test_an_operator_pulls_pins_and_drops_an_image(
    dashboard: Dashboard, upstream: FakeUpstream
) -> None:
    index = upstream.add("library/app", content.multi_platform(1))
    held = {index.digest, *index.blobs}
    await dashboard.show("images")
    await dashboard.log_in()

    def pull_it(page: Page) -> None:
        expect(page.get_by_text("This cache holds no image yet.")).to_be_visible()
        page.get_by_label("Image", exact=True).fill("app")
        page.get_by_role("button", name="Pull").click()
        job = page.get_by_role("row").filter(has_text="pull")
        expect(job).to_contain_text("done")
        page.get_by_role("link", name="Images").click()
        page.get_by_role("searchbox", name="Search").fill("ap")
        page.get_by_role("link", name=APP).click()
        expect(page).to_have_title(f"{APP} · Millpond")

    await dashboard.do(pull_it)
    assert held <= dashboard.proxy.held()

    def look_and_pin(page: Page) -> None:
        expect(page.get_by_text("served from the cache", exact=True)).to_be_visible()
        page.locator("summary").filter(has_text="linux/arm64").click()
        expect(page.get_by_role("table", name="Layers of linux/arm64")).to_be_visible()
        page.get_by_role("button", name="Pin").click()
        expect(page.get_by_role("button", name="Unpin")).to_be_visible()
        expect(page.locator("#notice")).to_contain_text("is pinned")
        page.get_by_role("button", name="Drop").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()

    await dashboard.do(look_and_pin)
    assert held <= dashboard.proxy.held()

    def unpin_and_drop(page: Page) -> None:
        page.get_by_role("button", name="Unpin").click()
        expect(page.get_by_role("button", name="Pin", exact=True)).to_be_visible()
        page.get_by_role("button", name="Drop").click()
        dialog = page.get_by_role("dialog", name=f"Drop {APP}?")
        expect(dialog).to_contain_text("1 image")
        dialog.get_by_role("button", name="Drop").click()
        expect(page.locator("#notice")).to_contain_text("Dropping")
        expect(page.get_by_role("button", name="Drop")).to_have_count(0)

    await dashboard.do(unpin_and_drop)
    await until(lambda: not held & dashboard.proxy.held())
    dashboard.window.forgive("status of 404")  # the image is gone


async def test_refresh_shows_where_a_tag_has_moved(
    dashboard: Dashboard, upstream: FakeUpstream
) -> None:
    first = upstream.add("library/app", content.image(1))
    await pull(dashboard.proxy, "app", first)
    second = content.image(2)
    upstream.retag("library/app", "latest", second)
    await dashboard.show(f"image/{APP}")
    await dashboard.log_in()

    def refresh(page: Page) -> None:
        page.get_by_role("button", name="Refresh").click()
        expect(page.locator("#notice")).to_contain_text(second.digest[:19])
        history = page.get_by_role("table", name="Digests that the tag pointed to")
        expect(history.get_by_role("row")).to_have_count(3)
        expect(history).to_contain_text(first.digest[:19])

    await dashboard.do(refresh)


async def test_downloads_and_events_appear_as_they_happen(
    dashboard: Dashboard, upstream: FakeUpstream
) -> None:
    image = upstream.add("library/app", content.image(1, layers=(300_000,)))
    await dashboard.show()
    await dashboard.log_in()
    await dashboard.see("None yet.")
    assert (await dashboard.proxy.get("/v2/app/manifests/latest")).status == 200
    release = upstream.stall(100_000, kind="blob")
    path = f"/v2/app/blobs/{image.layers[0]}"
    async with dashboard.proxy.client.get(path) as one, dashboard.proxy.client.get(path) as other:

        def watch(page: Page) -> None:
            item = page.locator(".downloads li").filter(has_text="docker.io/library/app")
            expect(item).to_contain_text("of 293 KiB, 2 readers")
            expect(item.get_by_role("progressbar")).to_have_attribute("max", "300000")

        await dashboard.do(watch)
        release.set()
        await one.read()
        await other.read()

    dashboard.emit(EventKind.UPSTREAM_DOWN, "docker.io", cause="it is on fire")

    def after(page: Page) -> None:
        event = page.get_by_role("log").get_by_role("listitem").filter(has_text="upstream-down")
        expect(event).to_contain_text("it is on fire")
        page.reload()  # pulls are counted by image every few seconds
        top = page.get_by_role("table", name="Images with the most pulls")
        expect(top.get_by_role("link", name=APP)).to_be_visible()

    await dashboard.do(after)


async def test_an_upstream_that_fails_is_seen_at_once(
    dashboard: Dashboard, upstream: FakeUpstream
) -> None:
    await dashboard.show()
    await dashboard.see("docker.io")
    upstream.fail(503)
    assert (await dashboard.proxy.get("/v2/app/manifests/latest")).status >= 500

    def look(page: Page) -> None:
        row = page.get_by_role("row").filter(has_text="docker.io")
        expect(row.get_by_text("down")).to_be_visible()
        expect(row.locator('[data-label="Errors"]')).to_have_text("1")

    await dashboard.do(look)


# Connections


async def test_a_hidden_tab_and_a_paused_one_ask_for_nothing(dashboard: Dashboard) -> None:
    await dashboard.show()
    hide = (
        "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }"
    )

    def live(request: object) -> bool:
        return "/api/v1/live" in str(getattr(request, "url", ""))

    def watch(page: Page) -> None:
        page.locator(".dot.live").wait_for()
        for stop, go in (
            (lambda: page.evaluate(hide, True), lambda: page.evaluate(hide, False)),
            (
                page.get_by_role("button", name="Pause").click,
                lambda: page.locator("#pause").click(),
            ),
        ):
            with page.expect_event("requestfailed", live):  # the browser closes it
                stop()
            with page.expect_request(live):
                go()
        expect(page.locator("#connection")).to_have_text("Live")

    await dashboard.do(watch)


async def test_a_server_that_goes_away_and_comes_back(open_dashboard: Open) -> None:
    address = f"127.0.0.1:{free_port()}"
    dashboard = await open_dashboard(listen=address)
    await dashboard.show()
    await dashboard.see("Live")
    await dashboard.proxy.close()
    await dashboard.see("The server does not answer. Trying again …")
    await open_dashboard(listen=address)
    await dashboard.do(lambda page: expect(page.locator("#connection")).to_have_text("Live"))
    dashboard.window.forgive(
        "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED", "ERR_CONNECTION_RESET"
    )


# Texts of others


async def test_what_others_write_is_shown_as_text(
    open_dashboard: Open, upstream: FakeUpstream
) -> None:
    dashboard = await open_dashboard()
    image = upstream.add("library/app", content.image(1))
    evil = content.artifact(image, HOSTILE, annotations={HOSTILE: HOSTILE})
    upstream.add("library/app", evil, "sbom")
    await pull(dashboard.proxy, "app", image)
    await pull(dashboard.proxy, "app", evil, "sbom")
    dashboard.emit(EventKind.DENIED, f"docker.io/bad/{HOSTILE}", client=HOSTILE, because=HOSTILE)
    dashboard.emit(EventKind.CORRUPT, HOSTILE, **{HOSTILE: HOSTILE})
    await dashboard.show("activity")
    await dashboard.log_in()

    def look(page: Page) -> None:
        expect(page.get_by_role("log")).to_contain_text(HOSTILE)
        page.evaluate("name => location.hash = `#/image/${encodeURIComponent(name)}`", HOSTILE)
        expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
        page.evaluate("name => location.hash = `#/image/${name}`", APP)
        expect(page.get_by_role("table", name="Signatures")).to_contain_text(HOSTILE)
        page.evaluate("q => location.hash = `#/images?q=${encodeURIComponent(q)}`", HOSTILE)
        expect(page.get_by_role("searchbox", name="Search")).to_have_value(HOSTILE)
        assert page.locator("main img, main script").count() == 0

    await dashboard.do(look)
    dashboard.window.forgive("status of 400")  # no image has such a name


# For everybody


@pytest.mark.parametrize("look", LOOKS)
async def test_every_page_is_accessible_in_every_look(
    open_dashboard: Open, upstream: FakeUpstream, look: str
) -> None:
    dashboard = await open_dashboard(window=LOOKS[look])
    image = upstream.add("library/app", content.image(1, layers=(3_000_000, 500_000)))
    sbom = upstream.add("library/app", content.artifact(image), "sbom")
    await pull(dashboard.proxy, "app", image)
    await pull(dashboard.proxy, "app", sbom, "sbom")
    dashboard.emit(EventKind.TAG_MOVED, APP, **{"from": sbom.digest, "to": image.digest})
    await dashboard.show()
    await dashboard.see("docker.io")
    await dashboard.do(lambda page: check(dashboard, page, f"{look}-public"))
    await dashboard.log_in()
    for name, path in PAGES.items():
        await dashboard.show(path)

        def check_page(page: Page, name: str = name) -> None:
            ready = {"overview": ".uplot", "activity": ".events"}.get(name, "tbody")
            page.locator("main").locator(ready).first.wait_for()
            if name == "image":
                page.get_by_role("button", name="Pull").click()
                page.locator(".card tbody").wait_for()
            check(dashboard, page, f"{look}-{name}")

        await dashboard.do(check_page)

    def dialogs(page: Page) -> None:
        page.get_by_role("button", name="Log out").click()
        page.locator("#log").click()
        check(dashboard, page, f"{look}-login")

    await dashboard.do(dialogs)


def check(dashboard: Dashboard, page: Page, name: str) -> None:
    """Take a picture; fail if axe-core finds something or if the page is wider than the screen."""
    dashboard.window.screenshot(name)
    assert dashboard.window.violations() == [], name
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"], name


async def test_the_keyboard_alone_is_enough(dashboard: Dashboard, upstream: FakeUpstream) -> None:
    upstream.add("library/app", content.image(1))
    assert (await dashboard.proxy.get("/v2/app/manifests/latest")).status == 200
    await dashboard.show()

    def tab_to(page: Page, name: str) -> None:
        """Press Tab until what has the focus is called so."""
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent").strip() == name:
                return
        raise AssertionError(f"the focus never reaches {name}")

    def type_only(page: Page) -> None:
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the content")).to_be_focused()
        tab_to(page, "Log in")
        page.keyboard.press("Enter")
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Log out")).to_be_visible()
        page.keyboard.press("Shift+Tab")
        page.evaluate("document.activeElement.blur()")
        tab_to(page, "Images")
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        expect(page.get_by_role("searchbox", name="Search")).to_be_visible()
        page.keyboard.press("Tab")
        expect(page.get_by_role("searchbox", name="Search")).to_be_focused()
        page.keyboard.type("app")
        expect(page.get_by_role("link", name=APP)).to_be_visible()
        tab_to(page, APP)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text(APP)
        expect(page.get_by_role("button", name="Pull")).to_be_visible()
        tab_to(page, "Pull")
        page.keyboard.press("Enter")
        expect(page.locator("#notice")).to_contain_text(f"Pulling {APP}.")

    await dashboard.do(type_only)
    await until(lambda: len(dashboard.proxy.held()) == 4)
