"""The page of ``helix serve`` in a real browser, with a real server, worker, broker and database."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest
from playwright.sync_api import expect

from helix_jobs.api.page import events
from tests.integration.chromium import faults_of, opened, overflow_of
from tests.integration.http_server import serving
from tests.worker_box import Box, make_box, prompts, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

    from tests.worker_box import StartForked

KEY, OTHER = "a-key-of-some-length", "another-key-of-a-length"
BEGINNINGS = {"JSON lines": b'{"job_id"', "CSV": b"job_id,", "Parquet": b"PAR1", "OpenAI": b'{"id"'}
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


@pytest.mark.thorough
def test_nothing_yet(embedded_box: Box, browser: Browser) -> None:
    with serving(embedded_box) as address, opened(browser, address) as (page, seen):
        page.goto("/")
        expect(page.get_by_text("No worker is running")).to_be_visible()
        expect(page.get_by_text("No batches yet")).to_be_visible()
        assert faults_of(page) == []
        page.get_by_role("link", name="Batches").click()
        expect(page.get_by_role("heading", name="Batches")).to_be_visible()
        expect(page.get_by_text("No batches yet")).to_be_visible()
        batch_id = embedded_box.submit("the first of all")  # a list that somebody looks at has it at once
        expect(page.locator(f"#row-{batch_id}")).to_be_visible()
        expect(page.get_by_text("No batches yet")).to_have_count(0)
        assert seen.nothing()


def test_progress_moves_without_a_reload(kept_box: Box, address: str, browser: Browser) -> None:
    with opened(browser, address) as (page, seen):
        page.goto("/")
        expect(page.get_by_text("fake-target")).to_be_visible()
        batch_id = kept_box.submit(*prompts(3))
        row = page.locator(f"#row-{batch_id}")
        expect(row).to_contain_text("3 of 3")
        expect(row.locator(".badge.done").filter(visible=True)).to_have_text("done")
        row.get_by_role("link").focus()
        kept_box.submit("one more")  # the markup is brought up to date around the focus
        expect(page.locator("tr[id^=row-]")).to_have_count(2)
        expect(row.get_by_role("link")).to_be_focused()
        assert seen.nothing()


@pytest.mark.thorough(fast=1)
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


@pytest.mark.thorough
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_the_interface_is_shown_without_the_internet(kept_box: Box, browser: Browser, width: int, scheme: str) -> None:
    with (
        serving(kept_box, api_keys=KEY) as address,
        opened(browser, address, width=width, scheme=scheme) as (page, seen),  # type: ignore[arg-type]
    ):
        page.route(lambda url: not url.startswith(f"{address}/"), lambda route: route.abort())
        page.goto("/docs")
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        expect(page).to_have_url(f"{address}/docs")
        expect(page.get_by_text("/v1/chat/completions", exact=True)).to_be_visible()
        assert overflow_of(page) <= 0
        ask_for_models(page, KEY)
        expect(page.locator(".live-responses-table")).to_contain_text("fake-target")
        page.goto("/docs")  # it keeps no key
        expect(page.get_by_text("/v1/models", exact=True)).to_be_visible()
        ask_for_models(page, None)
        expect(page.locator(".live-responses-table")).to_contain_text("invalid_api_key")
        seen.errors = [text for text in seen.errors if "401" not in text]
        assert seen.nothing()


def ask_for_models(page: Page, key: str | None) -> None:
    """Ask with the viewer's own buttons."""
    if key is not None:
        page.get_by_role("button", name="Authorize").click()
        page.get_by_label("Value").fill(key)
        page.get_by_role("button", name="Apply credentials").click()
        page.get_by_role("button", name="Close", exact=True).click()
    page.get_by_text("/v1/models", exact=True).click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder for files to submit."""
    return tmp_path


def write(file: Path, *lines: object) -> Path:
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file


@pytest.mark.thorough
def test_a_dropped_file_becomes_a_batch_whose_answers_are_downloaded(
    address: str, browser: Browser, files: Path
) -> None:
    good = write(files / "tickets.jsonl", *({"prompt": f"ticket {n}"} for n in range(8)))
    with opened(browser, address) as (page, seen):
        page.goto("/submit")
        assert faults_of(page) == []
        drop(page, good)
        expect(page).to_have_url(re.compile("/batches/b-"))
        expect(page.get_by_role("heading", name="tickets.jsonl")).to_be_visible()
        expect(page.get_by_text("8 succeeded", exact=True)).to_be_visible()
        for label, begins in (
            ("JSON lines", b'{"job_id"'),
            ("CSV", b"job_id,"),
            ("Parquet", b"PAR1"),
            ("OpenAI", b'{"id"'),
        ):
            page.get_by_label("Format").select_option(label=next(one for one in labels(page) if one.startswith(label)))
            with page.expect_download() as download:
                page.get_by_role("button", name="Download").click()
            content = Path(download.value.path()).read_bytes()
            assert content.startswith(begins)
            assert label == "Parquet" or content.count(b"\n") == 8 + (label == "CSV")
        page.reload()
        expect(page.get_by_role("img", name="Tokens per second")).to_be_visible()
        expect(page.get_by_role("img", name="Length of answers")).to_be_visible()
        assert faults_of(page) == []
        assert seen.nothing()


def labels(page: Page) -> list[str]:
    return page.get_by_label("Format").locator("option").all_inner_texts()


def drop(page: Page, file: Path) -> None:
    """Drop a file on the form, as from a file manager."""
    carried = page.evaluate_handle(
        """([text, name]) => {
            const carried = new DataTransfer();
            carried.items.add(new File([text], name));
            return carried;
        }""",
        [file.read_text(), file.name],
    )
    page.locator("#drop").dispatch_event("dragover", {"dataTransfer": carried})
    page.locator("#drop").dispatch_event("drop", {"dataTransfer": carried})


@pytest.mark.thorough
def test_bad_lines_are_shown_as_the_command_shows_them(
    kept_box: Box, address: str, browser: Browser, files: Path
) -> None:
    bad = write(files / "bad.jsonl", {"prompt": "fine"}, {"promt": "x"}, "{", *([{"prompt": "x", "n": "two"}] * 30))
    said = kept_box.run(sys.executable, "submit.py", str(bad)).stderr
    with opened(browser, address) as (page, seen):
        page.goto("/submit")
        page.get_by_label("Drop a file here").set_input_files(bad)
        page.get_by_label("Drop a file here").focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Correct the file, and submit it again")).to_be_visible()
        rows = page.locator("tbody tr").all()
        assert len(rows) == 3
        for row in rows:
            for cell in row.locator("td").all_inner_texts():
                assert cell in said
        assert "(and so in 29 more lines)" in rows[2].inner_text()
        assert faults_of(page) == []
        page.goto("/")
        expect(page.get_by_role("row", name="bad.jsonl")).to_contain_text("refused")
        assert seen.nothing()


@pytest.mark.parametrize("has_scripts", [True, False])
def test_a_file_too_large_is_refused_in_words(
    kept_box: Box, browser: Browser, files: Path, *, has_scripts: bool
) -> None:
    large = write(files / "large.jsonl", "x" * 1_030_000)
    with (
        serving(kept_box, max_upload_mb=1) as address,
        opened(browser, address, java_script_enabled=has_scripts) as (page, seen),
    ):
        page.goto("/submit")
        page.get_by_label("Drop a file here").set_input_files(large)
        page.get_by_role("button", name="Submit").click()
        expect(page.get_by_text("is larger than 1.0 MB")).to_be_visible()
        assert not seen.dialogs


@pytest.mark.thorough
def test_a_batch_is_cancelled_and_tried_again(embedded_box: Box, browser: Browser) -> None:
    batch_id = embedded_box.submit(*prompts(3))
    with serving(embedded_box) as address, opened(browser, address) as (page, seen):
        page.goto(f"/batches/{batch_id}")
        expect(page.get_by_text("3 queued", exact=True)).to_be_visible()
        page.locator("#cancel summary").press("Enter")
        page.get_by_role("button", name="Cancel the batch").click()
        expect(page.get_by_text("3 cancelled", exact=True)).to_be_visible()
        page.get_by_role("button", name="Retry 3 jobs").click()
        expect(page.get_by_text("3 queued", exact=True)).to_be_visible()
        embedded_box.start_worker()
        expect(page.get_by_text("3 succeeded", exact=True)).to_be_visible()
        assert seen.nothing()


@pytest.mark.thorough
def test_a_paused_batch_waits_until_it_is_resumed(kept_box: Box, address: str, browser: Browser) -> None:
    with opened(browser, address) as (page, seen):
        page.goto("/")  # so that the browser is awake before the jobs are
        with kept_box.client() as client:
            batch_id = client.submit([{"prompt": one} for one in prompts(900, words=60)]).batch_id
        page.goto(f"/batches/{batch_id}")
        page.get_by_role("button", name="Pause").click()
        expect(page.locator(".badge.paused")).to_be_visible()
        assert faults_of(page) == []
        expect(page.get_by_text(re.compile("[0-9] running"))).to_have_count(0)
        assert kept_box.states(batch_id)["queued"] > 100
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_text("900 succeeded", exact=True)).to_be_visible()
        expect(page.get_by_role("button", name="Pause")).to_have_count(0)
        assert seen.nothing()


def test_it_works_without_scripts(kept_box: Box, address: str, browser: Browser, files: Path) -> None:
    good = write(files / "plain.jsonl", {"prompt": "one"})
    with opened(browser, address, java_script_enabled=False) as (page, seen):
        page.goto("/submit")
        page.get_by_label("Drop a file here").set_input_files(good)
        page.get_by_role("button", name="Submit").click()
        expect(page.get_by_text("1 succeeded", exact=True)).to_be_visible()  # the page asks again by itself
        expect(page.get_by_role("heading", name="plain.jsonl")).to_be_visible()
        assert seen.nothing()


@pytest.mark.thorough
def test_names_are_text_whatever_they_hold(kept_box: Box, address: str, browser: Browser, files: Path) -> None:
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202egnp.exe {{ 7*7 }} javascript:alert(3) "
    with kept_box.client() as client:
        batch_id = client.submit(
            [{"prompt": "x"}], name=hostile + "A" * 10_000, metadata={hostile: hostile, "long": "z" * 10_000}
        ).batch_id
    upload = write(files / "<img src=x onerror=alert(4)>.jsonl", {"<svg onload=alert(5)>": 1, "prompt": "x"})
    with opened(browser, address, width=360) as (page, seen):
        page.goto("/submit")
        page.get_by_label("Drop a file here").set_input_files(upload)
        page.get_by_role("button", name="Submit").click()
        expect(page.get_by_text("<svg onload=alert(5)>")).to_be_visible()
        expect(page.get_by_role("heading", name="<img src=x onerror=alert(4)>.jsonl")).to_be_visible()
        for path in (page.url, "/", "/batches", f"/batches/{batch_id}"):
            page.goto(path)
            assert overflow_of(page) <= 0, path
            assert faults_of(page) == [], path
            assert page.locator("main img, main script, main svg[onload]").count() == 0
            assert "\u202e" not in page.content()
            assert "49" not in page.locator("h1").inner_text()
        expect(page.get_by_role("heading", level=1)).to_contain_text("<script>alert(1)</script>")
        assert seen.nothing()


def test_nobody_sees_what_is_anothers(kept_box: Box, files: Path) -> None:
    own = kept_box.submit("of the command line")
    with (
        serving(kept_box, api_keys=f"{KEY},{OTHER}") as address,
        signed_in(address, KEY) as me,
        signed_in(address, OTHER) as you,
    ):
        sent = me.post("/submit", files={"file": ("mine.jsonl", b'{"prompt": "x"}\n')}, data={"purpose": "batch"})
        mine = sent.headers["location"]
        wait_until(lambda: me.get(mine).status_code == 303, "its lines are not accepted")
        accepted = me.get(mine).headers["location"]
        assert me.get(accepted).status_code == 200
        assert "mine.jsonl" in me.get("/").text
        assert "mine.jsonl" not in you.get("/").text
        for path in (mine, accepted, f"{accepted}/download", f"/events?view=batch&ids={accepted.split('/')[-1]}"):
            assert you.get(path).status_code == 404, path
        for action in ("cancel", "retry", "pause", "resume"):
            assert you.post(f"{accepted}/{action}").status_code == 404
        for both in (me, you):
            assert both.get(f"/batches/{own}").status_code == 404
            assert own not in both.get("/batches").text
    with serving(kept_box, api_keys=KEY) as address, signed_in(address, KEY) as me:
        assert me.get(f"/batches/{own}").status_code == 200
        assert me.get(accepted).status_code == 200


@contextmanager
def signed_in(address: str, key: str) -> Iterator[httpx2.Client]:
    """A client with a session, as a browser has it."""
    with httpx2.Client(base_url=address, headers={"Origin": address}, timeout=60) as client:
        answer = client.post("/sign-in", data={"key": key})
        assert answer.status_code == 303, answer.text
        yield client


def test_other_sites_change_nothing_and_a_session_is_none_for_the_api(kept_box: Box) -> None:
    with serving(kept_box, api_keys=KEY) as address, signed_in(address, KEY) as client:
        page = f"/batches/{kept_box.submit('x')}"
        for origin in ("https://evil.example", "null", ""):
            for path in ("/submit", f"{page}/cancel", f"{page}/retry", f"{page}/pause", "/sign-out", "/sign-in"):
                answer = client.post(path, headers={"Origin": origin})
                assert answer.status_code == 403, (origin, path)
        assert client.get("/batches").status_code == 200
        assert client.get("/v1/batches").status_code == 401
        bearer = {"Authorization": f"Bearer {KEY}"}
        client.cookies.clear()
        assert client.get("/batches", headers=bearer).status_code == 303
        assert client.get("/events", headers=bearer).status_code == 401
        assert client.get("/", headers={"HX-Request": "true"}).status_code == 401
        for path in ("/", "/sign-in", "/static/page.css", "/nothing-of-it"):
            policy = client.get(path).headers.get("content-security-policy", "")
            assert ("default-src 'none'" in policy) == (path != "/nothing-of-it")


def test_streams_are_few_and_end_with_the_server(kept_box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_STREAMS", 2)
    with serving(kept_box) as address, httpx2.Client(base_url=address, timeout=60) as client, ExitStack() as stack:
        streams = [stack.enter_context(client.stream("GET", "/events")).iter_lines() for _ in range(2)]
        for lines in streams:
            assert next(lines).startswith("data: ")
        refused = client.get("/events")
        assert refused.status_code == 503
        assert "reload" in refused.text
