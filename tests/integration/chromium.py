"""A real browser for tests of the page: Chromium, driven by Playwright, and what it sees go wrong."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tests.services import missing_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_AXE = Path(__file__).parents[1] / "data" / "axe" / "axe.min.js"
_PATIENCE_MS = 45_000


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Chromium without a window."""
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        missing_service("playwright is not installed")
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        missing_service("no Chromium")
    expect.set_options(timeout=_PATIENCE_MS)  # the usual five seconds are few on a busy machine
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@dataclass
class Seen:
    """What a page did that it must not do.

    Attributes:
        errors: Errors on its console, among them what the Content-Security-Policy refused, and uncaught exceptions.
        dialogs: Dialogs that it opened.
        abroad: Requests to other servers.
    """

    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    abroad: list[str] = field(default_factory=list)

    def nothing(self) -> bool:
        """Whether all went well."""
        assert not self.errors, self.errors
        assert not self.dialogs, self.dialogs
        assert not self.abroad, self.abroad
        return True


@contextmanager
def opened(
    browser: Browser,
    address: str,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
    **options: Any,
) -> Iterator[tuple[Page, Seen]]:
    """A tab of its own, without cookies; paths are those of the server."""
    viewport = {"width": width, "height": height}
    with browser.new_context(base_url=address, viewport=viewport, color_scheme=scheme, **options) as context:
        context.set_default_timeout(_PATIENCE_MS)
        page, seen = context.new_page(), Seen()
        page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("dialog", lambda dialog: (seen.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: None if _is_own(request.url, address) else seen.abroad.append(request.url))
        yield page, seen


def faults_of(page: Page) -> list[str]:
    """What axe finds wrong: the rule, and the element."""
    page.evaluate(_axe())  # the policy of the page holds for its own scripts, not for the browser's driver
    found = page.evaluate("async () => (await axe.run()).violations")
    return [f"{one['id']}: {node['html'][:200]} {node['failureSummary']}" for one in found for node in one["nodes"]]


def overflow_of(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@cache
def _axe() -> str:
    return _AXE.read_text(encoding="utf-8")


def _is_own(url: str, address: str) -> bool:
    return url.startswith((f"{address}/", "data:", "blob:"))
