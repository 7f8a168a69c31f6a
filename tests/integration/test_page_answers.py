"""A batch's answers on the page, in a real browser: list, search, one answer, and answers that mean harm."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from playwright.sync_api import expect
from sqlalchemy import text

from helix_jobs.api.page import answers, one_answer
from helix_jobs.results.export import result_row
from helix_jobs.storage.answer_records import Effort
from helix_jobs.storage.results import iter_results
from tests.answer_scene import ALL_HOSTILE, HOSTILE, every_kind, hostile_batch
from tests.integration.chromium import faults_of, opened, overflow_of
from tests.integration.http_server import asking, serving
from tests.store_helpers import must_take, register, stored_batch, succeed
from tests.varied_batches import varied_batch_of
from tests.worker_box import Box, make_box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

    from helix_jobs.storage.database import Database
    from tests.worker_box import StartForked

SUN_AND_FAMILY = "\U0001f31e\U0001f469\u200d\U0001f469\u200d\U0001f467"
LINES = 2_100
FOREIGN = (
    "img, iframe, object, main base, main link, meta[http-equiv], main svg, textarea, main script, main style, "
    "a[href^=javascript], form[action*=elsewhere], [onerror], [onload], [data-live]"
)


@dataclass
class Scene:
    box: Box
    database: Database
    address: str
    kinds: str
    hostile: str
    many: str

    def path(self, batch: str, tail: str = "") -> str:
        return f"/batches/{batch}/answers{tail}"


@pytest.fixture(scope="module")
def scene(start_forked: StartForked) -> Iterator[Scene]:
    """A server over a database with three batches."""
    if sys.platform == "win32":
        pytest.skip("no embedded broker on Windows")
    with tempfile.TemporaryDirectory(prefix="hx-") as folder:
        place = Path(folder)
        box = make_box(place / "home", place, redis_url=None, database_url=None, start_forked=start_forked)
        database = box.database()
        kinds, hostile = every_kind(database), hostile_batch(database)
        many = varied_batch_of(database, LINES, answer_bytes=60)
        with serving(box) as address:
            yield Scene(box, database, address, kinds, hostile, many)
        database.dispose()
        box.close()


@pytest.mark.thorough
def test_a_list_is_paged_filtered_and_searched_in_place(scene: Scene, browser: Browser) -> None:
    with opened(browser, scene.address) as (page, seen):
        page.goto(scene.path(scene.many))
        status = page.get_by_role("status")
        expect(status).to_have_text("Lines 1 to 50, 50 jobs of 2,100")
        page.get_by_role("link", name="Next").press("Enter")
        expect(status).to_have_text("Lines 51 to 100, 50 jobs of 2,100")
        expect(page).to_have_url(re.compile(r"after=50$"))
        expect(page.get_by_role("link", name="Next")).to_be_focused()
        page.get_by_label("Show").select_option(label="failed (2)")
        expect(status).to_have_text("Lines 1,000 to 2,000, 2 jobs of 2")
        expect(page.get_by_text("line 2000 cannot be answered")).to_be_visible()
        page.go_back()
        expect(status).to_have_text("Lines 51 to 100, 50 jobs of 2,100")
        page.get_by_label("Search").fill("c1234")
        page.get_by_label("Search").press("Enter")
        expect(page.get_by_text("has exactly this custom id")).to_be_visible()
        expect(status).to_have_text("1 job found, line 1,234")
        page.reload()
        expect(status).to_have_text("1 job found, line 1,234")
        page.goto(scene.path(scene.many, "?order=newest"))
        expect(status).to_have_text("Lines 2,051 to 2,100, 50 jobs of 2,100")
        page.get_by_role("link", name="Last").click()
        expect(status).to_have_text("Lines 1 to 50, 50 jobs of 2,100")
        page.get_by_label("Show").select_option("running")
        expect(status).to_have_text("Nothing found")
        page.get_by_label("Show").select_option("")
        expect(status).to_have_text("Lines 2,051 to 2,100, 50 jobs of 2,100")
        page.goto(scene.path(scene.many, "?line=1500"))
        expect(page.get_by_role("row").nth(1)).to_contain_text("Question 1500")
        assert seen.nothing()


def test_a_batchs_page_begins_the_list(scene: Scene, browser: Browser) -> None:
    with opened(browser, scene.address) as (page, seen):
        page.goto(f"/batches/{scene.many}")
        expect(page.get_by_role("link", name="All 2,100 lines")).to_be_visible()
        expect(page.get_by_role("region", name="Table of answers").get_by_role("row")).to_have_count(9)
        page.get_by_role("link", name="prompt_too_long").click()
        expect(page.get_by_role("status")).to_have_text("Lines 1,000 to 2,000, 2 jobs of 2")
        page.go_back()
        page.get_by_label("Search").fill("about 782")
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_role("status")).to_have_text("1 job found, line 782")
        assert seen.nothing()


@pytest.mark.thorough
def test_a_search_goes_on_by_itself_until_it_has_looked_everywhere(
    scene: Scene, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One slice a page, as in a batch of millions.
    monkeypatch.setattr(answers, "EFFORT", Effort(seconds=0.0, first_slice=300, first_texts=300))
    with opened(browser, scene.address) as (page, seen):
        page.goto(scene.path(scene.many, "?q=Answer+to+line+205"))
        expect(page.get_by_role("status")).to_have_text("11 jobs found")
        expect(page.locator("#look-on")).to_have_count(0)
        expect(page.get_by_role("row")).to_have_count(12)
        page.goto(scene.path(scene.many, "?q=Answer+to+line+205&before=2101"))
        expect(page.get_by_role("status")).to_have_text("10 jobs found, lines 2,050 to 2,059")
        expect(page.get_by_role("link", name="Look on")).to_be_visible()
        page.goto(scene.path(scene.many, "?q=nowhere+at+all"))
        expect(page.get_by_role("status")).to_have_text("Nothing found")
        expect(page.locator("#look-on")).to_have_count(0)
        assert faults_of(page) == []  # no part stands twice
        assert seen.nothing()
    with opened(browser, scene.address, java_script_enabled=False) as (page, seen):
        page.goto(scene.path(scene.many, "?q=Answer+to+line+205"))
        expect(page.get_by_text("Looked through about 300 of 2,100 lines.")).to_be_visible()
        page.get_by_role("link", name="Look on").click()
        # Line 205 is in the first slice, and the second has none.
        expect(page.get_by_text("Looked through about 600 of 2,100 lines.")).to_be_visible()
        expect(page.get_by_role("row")).to_have_count(2)
        assert seen.nothing()


@pytest.mark.thorough
def test_the_neighbours_of_an_answer_are_those_of_the_list_that_led_to_it(
    scene: Scene, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(browser, scene.address) as (page, seen):
        page.goto(scene.path(scene.many, "?mark=thought"))
        page.locator("#line-782").click()
        expect(page).to_have_url(f"{scene.address}{scene.path(scene.many, '/782?mark=thought')}")
        assert faults_of(page) == []
        page.get_by_role("link", name="Next in this list").click()
        expect(page.get_by_role("heading", name="Line 1,559")).to_be_visible()
        page.get_by_role("link", name="Next in this list").click()
        expect(page.get_by_role("status")).to_contain_text("This is the last line of the list")
        expect(page.get_by_role("link", name="Next in this list")).to_have_count(0)
        assert faults_of(page) == []
        for line in ("782", "5"):
            page.get_by_role("link", name="Previous in this list").click()
            expect(page.get_by_role("heading", name=f"Line {line}")).to_be_visible()
        page.get_by_role("link", name="Previous in this list").click()
        expect(page.get_by_role("status")).to_contain_text("This is the first line of the list")
        page.get_by_role("link", name="Back to the list").click()
        expect(page.get_by_role("status")).to_have_text("3 jobs found, lines 5 to 1,559")
        # A search that takes long goes on in the list.
        monkeypatch.setattr(one_answer, "_EFFORT", Effort(seconds=0.0, first_texts=50))
        page.goto(scene.path(scene.many, "/3?q=line+1777"))
        page.get_by_role("link", name="Next in this list").click()
        expect(page.locator("#line-1777")).to_be_visible()
        assert seen.nothing()


@pytest.mark.thorough
def test_the_list_of_a_running_batch_moves(scene: Scene, browser: Browser) -> None:
    register(scene.database, "w1")
    batch_id, ids = stored_batch(scene.database, 3)
    with opened(browser, scene.address) as (page, seen):
        for path in (scene.path(batch_id), f"/batches/{batch_id}"):
            page.goto(path)
            row = page.get_by_role("row").filter(has=page.locator(f"#line-{len(ids)}"))
            expect(row.locator(".badge")).to_have_text("queued")
            page.locator(f"#line-{len(ids)}").focus()
            assert succeed(scene.database, must_take(scene.database, ids.pop()))
            expect(row.locator(".badge")).to_have_text("succeeded")
            expect(page.locator(f"#line-{len(ids) + 1}")).to_be_focused()
        # A search is left alone, as it costs more, and so is a list of what has ended.
        page.goto(scene.path(batch_id, "?q=line"))
        expect(page.locator("[data-poll]")).to_have_count(0)
        page.goto(scene.path(scene.many))
        expect(page.locator("[data-poll]")).to_have_count(0)
        # The last job ends: the page asks no more.
        page.goto(scene.path(batch_id))
        expect(page.locator("[data-poll]")).to_have_count(1)
        assert succeed(scene.database, must_take(scene.database, ids.pop()))
        expect(page.locator("[data-poll]")).to_have_count(0)
        assert seen.nothing()


def test_it_works_without_scripts(scene: Scene, browser: Browser) -> None:
    with opened(browser, scene.address, java_script_enabled=False) as (page, seen):
        page.goto(scene.path(scene.many))
        page.get_by_role("link", name="Next").click()
        expect(page.get_by_role("status")).to_have_text("Lines 51 to 100, 50 jobs of 2,100")
        page.get_by_label("Only").select_option("thought")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("status")).to_have_text("3 jobs found, lines 5 to 1,559")
        page.get_by_role("link", name="782").click()
        expect(page.get_by_text("Let me think about 782")).to_be_visible()
        assert seen.nothing()


def test_one_answer_is_shown_whole(scene: Scene, browser: Browser) -> None:
    with opened(browser, scene.address, permissions=["clipboard-read", "clipboard-write"]) as (page, seen):
        page.goto(scene.path(scene.kinds, "/1"))
        page.get_by_role("link", name="Next").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("Line 2")
        for text in (
            "How is the weather in Zürich?",
            "Basel is missing.",
            "21 degrees in Zürich, and Basel I ask now.",
        ):
            expect(page.get_by_text(text)).to_be_visible()
        expect(page.get_by_text('"city": "Basel"')).to_be_visible()
        expect(page.get_by_text("12345678901234567890")).to_be_visible()
        page.get_by_role("link", name="Answer 2").click()
        expect(page.get_by_text("Warm.")).to_be_visible()
        button = page.get_by_role("region", name="Answer", exact=True).get_by_role("button")
        button.click()
        expect(button).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == f"Warm. {SUN_AND_FAMILY}"
        with page.expect_download() as download:
            page.get_by_role("link", name="Download as JSON").click()
        with scene.database.read() as c:
            stored = next(row for row in iter_results(c, scene.kinds) if (row.line, row.choice) == (2, 1))
        assert json.loads(Path(download.value.path()).read_text()) == result_row(stored)
        page.goto(scene.path(scene.kinds, "/4"))
        expect(page.get_by_text('"name": "Ada",')).to_be_visible()
        page.goto(scene.path(scene.kinds, "/5"))
        expect(page.get_by_text("the model's context 2,048; shorten it")).to_be_visible()
        expect(page.get_by_text("serve a model with a longer context")).to_be_visible()
        page.goto(scene.path(scene.kinds, "/6"))
        expect(page.locator(".tokens .surprising")).to_have_text(" auf")
        expect(page.locator(".tokens .surprising")).to_have_attribute("title", "␣auf: 4.0 %")
        page.get_by_text("Table of 6 tokens").click()
        expect(page.get_by_role("row", name="␣auf 4.0 %")).to_be_visible()
        page.goto(scene.path(scene.kinds, "/9"))
        expect(page.get_by_text("This job waits for a worker.")).to_be_visible()
        assert seen.nothing()


def test_megabytes_are_cut_and_a_link_away(scene: Scene, browser: Browser) -> None:
    with opened(browser, scene.address) as (page, seen):
        page.goto(scene.path(scene.hostile, "/3"))
        expect(page.get_by_text("of 5,100,000. The whole text")).to_be_visible()
        assert len(page.content()) < 500_000
        assert overflow_of(page) <= 0
        assert seen.nothing()
    with asking(scene.address) as client:
        whole = client.get(scene.path(scene.hostile, "/3/text"))
    assert whole.text == "<b>" * 1_700_000
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert whole.headers["x-content-type-options"] == "nosniff"


@pytest.mark.thorough
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_people_can_use_it(scene: Scene, browser: Browser, width: int, scheme: str) -> None:
    paths = [f"/batches/{scene.kinds}", scene.path(scene.kinds), scene.path(scene.kinds, "?q=nothing")]
    paths.append(scene.path(scene.hostile))
    paths += [scene.path(scene.kinds, f"/{line}") for line in (2, 5, 6, 7)] + [scene.path(scene.hostile, "/1")]
    with opened(browser, scene.address, width=width, scheme=scheme) as (page, seen):  # type: ignore[arg-type]
        for path in paths:
            page.goto(path)
            assert faults_of(page) == [], path
            assert overflow_of(page) <= 0, path
        assert seen.nothing()


@pytest.mark.thorough
def test_text_is_text_whatever_it_says(scene: Scene, browser: Browser) -> None:
    """Prompts, answers, thinking, names of tools and tokens, errors, custom ids, metadata, and what is looked for."""
    lines = len(HOSTILE) + 3
    paths = ["", "?order=newest", "?show=failed", *(f"/{line}" for line in range(1, lines + 1))]
    paths += [f"?q={quote(text[:500])}" for text in HOSTILE]
    with opened(browser, scene.address) as (page, seen):
        for path in paths:
            page.goto(scene.path(scene.hostile, path))
            assert page.locator(FOREIGN).count() == 0, path
            # As the browser reads them: a link may have the text of a search among its parameters.
            schemes = page.evaluate(
                "[...document.querySelectorAll('[href], [action]')].map(one => "
                "new URL(one.getAttribute('href') ?? one.getAttribute('action'), document.baseURI).protocol)"
            )
            assert set(schemes) == {"http:"}, path
        page.goto(scene.path(scene.hostile, "/1"))
        written = page.get_by_role("region", name="Answer", exact=True).locator("pre").first.text_content() or ""
        # Every character that can be seen, as it is stored.
        assert written.startswith("\n".join(HOSTILE[:10]))
        assert written.count("\N{REPLACEMENT CHARACTER}") == sum(not c.isprintable() and c != "\n" for c in ALL_HOSTILE)
        page.goto("/")
        assert seen.nothing()


def test_what_no_text_can_hold_is_shown_as_replaced(scene: Scene) -> None:
    """Halves of surrogate pairs and NUL, which a person may have written into a row."""
    values = {"batch": scene.many, "request": '{"prompt":"<i>\\ud800 \\u0000"}', "output": "<b>\0"}
    which = "(SELECT id FROM jobs WHERE batch_id = :batch AND line = 9)"
    with scene.database.write() as c:
        c.execute(text("UPDATE jobs SET request = :request WHERE batch_id = :batch AND line = 9"), values)
        c.execute(text(f"UPDATE results SET output_text = :output WHERE job_id = {which}"), values)  # noqa: S608  (above)
    with asking(scene.address) as client:
        # SQLite's own functions end a text at NUL, so the list's excerpt does.
        for tail, answer in (("?line=9", "&lt;b&gt;<"), ("/9", "&lt;b&gt;\ufffd<")):
            shown = client.get(scene.path(scene.many, tail)).text
            assert "&lt;i&gt;\ufffd \ufffd<" in shown
            assert answer in shown
        assert client.get(scene.path(scene.many, "/9/text?part=prompt")).content == b"<i>? \0"
        assert client.get(scene.path(scene.many, "/9/row")).json()["output_text"] == "<b>\0"


def test_a_key_sees_its_own_answers_alone(scene: Scene) -> None:
    one, two = "a-key-of-some-length", "another-key-of-a-length"
    paths = [scene.path(scene.kinds, tail) for tail in ("", "/2", "/2/text", "/2/row", "?part=rows&found=3")]
    # The batch has no owner: whoever has the only key sees it, and of two nobody.
    for keys, expected in ((one, 200), (f"{one},{two}", 404)):
        with serving(scene.box, api_keys=keys) as address, asking(address, one) as client:
            client.post("/sign-in", data={"key": one, "next": "/"}, headers={"Origin": address})
            assert {client.get(path).status_code for path in paths} == {expected}
        with serving(scene.box, api_keys=keys) as address, asking(address) as client:
            assert {client.get(path).status_code for path in paths} <= {303, 401}


def test_what_is_not_there_is_refused_in_words(scene: Scene) -> None:
    refused = {
        "/10": (404, "has no line 10"),
        "/0": (400, "greater than or equal to 1"),
        "/2?choice=5": (404, "has no answer 5"),
        "/2/text?part=x": (400, "use one of answer"),
        "?show=%3Cscript%3E": (400, "use one of"),
        "?after=x": (400, "begin at the first page"),
    }
    with asking(scene.address) as client:
        for tail, (status, words) in refused.items():
            answer = client.get(scene.path(scene.kinds, tail))
            assert (answer.status_code, words in answer.text) == (status, True), (tail, answer.text[-600:])
        # What is swapped into a page has no frame of its own.
        part = client.get(scene.path(scene.kinds, "?after=x"), headers={"HX-Request": "true"})
        assert part.status_code == 400
        assert part.text.startswith('<p class="notice failed" role="alert">')
        assert "<main" not in part.text
