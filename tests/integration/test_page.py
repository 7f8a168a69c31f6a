"""The page of ``helix serve`` in a real browser, with a real server, worker, broker and database."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.integration.chromium import faults_of, opened, overflow_of
from tests.integration.http_server import serving
from tests.worker_box import Box, make_box, prompts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

    from tests.worker_box import StartForked

KEY, OTHER = "a-key-of-some-length", "another-key-of-a-length"
SIZES = [pytest.param(1280, id="wide"), pytest.param(360, id="narrow")]


@pytest.fixture(scope="module")
def kept_box(start_forked: StartForked) -> Iterator[Box]:
    """SQLite and the embedded broker, with a worker, for all tests of this module."""
    if sys.platform == "win32":
        pytest.skip("no embedded broker on Windows")
    with tempfile.TemporaryDirectory(prefix="hx-") as folder:
        place = Path(folder)
        box = make_box(place / "home", place, redis_url=None, database_url=None, start_forked=start_forked)
        box.start_worker()
        yield box
        box.close()


@pytest.fixture(scope="module")
def address(kept_box: Box) -> Iterator[str]:
    with serving(kept_box) as found:
        yield found


def test_nothing_yet(embedded_box: Box, browser: Browser) -> None:
    with serving(embedded_box) as address, opened(browser, address) as (page, seen):
        page.goto("/")
        expect(page.get_by_text("No worker is running")).to_be_visible()
        expect(page.get_by_text("No batches yet")).to_be_visible()
        assert faults_of(page) == []
        page.get_by_role("link", name="Batches").click()
        expect(page.get_by_role("heading", name="Batches")).to_be_visible()
        expect(page.get_by_text("No batches yet")).to_be_visible()
        assert seen.nothing()


def test_progress_moves_without_a_reload(kept_box: Box, address: str, browser: Browser) -> None:
    with opened(browser, address) as (page, seen):
        page.goto("/")
        expect(page.get_by_text("fake-target")).to_be_visible()
        batch_id = kept_box.submit(*prompts(3))
        row = page.locator(f"#row-{batch_id}")
        expect(row.get_by_text("done", exact=True)).to_be_visible()
        expect(row).to_contain_text("3 of 3")
        row.get_by_role("link").focus()
        kept_box.submit("one more")  # the markup is brought up to date around the focus
        expect(page.locator("tr[id^=row-]")).to_have_count(2)
        expect(row.get_by_role("link")).to_be_focused()
        assert seen.nothing()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_people_can_use_it(kept_box: Box, address: str, browser: Browser, width: int, scheme: str) -> None:
    kept_box.submit("a word")
    with opened(browser, address, width=width, scheme=scheme) as (page, seen):  # type: ignore[arg-type]
        for path in ("/", "/batches", "/batches/b-none"):
            page.goto(path)
            assert faults_of(page) == [], path
            assert overflow_of(page) <= 0, path
        seen.errors.clear()  # the missing page's status
        assert seen.nothing()


def test_a_key_opens_the_page_and_signing_out_closes_it(kept_box: Box, browser: Browser) -> None:
    with serving(kept_box, api_keys=f"{KEY},{OTHER}") as address, opened(browser, address) as (page, seen):
        page.goto("/batches?before=x")
        expect(page).to_have_url(re.compile(r"/sign-in\?next="))
        assert faults_of(page) == []
        page.get_by_label("API key").fill("none-of-the-keys-at-all")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("none of the server's keys")
        assert faults_of(page) == []
        page.goto("/sign-in?next=//elsewhere.example/")
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        expect(page).to_have_url(f"{address}/")
        (cookie,) = page.context.cookies()
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Strict"
        assert KEY not in cookie["value"]
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("API key")).to_be_visible()
        assert page.context.cookies() == []
        page.context.add_cookies([cookie])
        page.goto("/")
        expect(page.get_by_label("API key")).to_be_visible()
        seen.errors = [text for text in seen.errors if "401" not in text]
        assert seen.nothing()
