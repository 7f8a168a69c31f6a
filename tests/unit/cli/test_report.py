"""``helix report``: one HTML file in which nothing runs and which asks for nothing, whatever the answers hold."""

from __future__ import annotations

import json
import re

import pytest

from helix_jobs.storage import batch_figures, batch_runs
from helix_jobs.storage.workers import finish_run, start_run
from tests.answer_scene import every_kind, hostile_batch
from tests.store_helpers import now
from tests.unit.reports.run_totals import totals

TAGS = {
    *("!doctype", "html", "head", "meta", "title", "style", "body", "main", "footer", "h", "p", "dl", "dt", "dd"),
    *("div", "table", "thead", "tbody", "tr", "th", "td", "article", "span", "em", "figure", "figcaption", "strong"),
    *("svg", "line", "text", "rect", "ul", "li"),
}
# What could load something, or run.
REACHING = re.compile(r"\s(?:href|src|srcset|action|on\w+|style|xlink:href)\s*=", re.IGNORECASE)


def tags(page):
    return re.findall(r"<[^>]*>", page)


def test_it_says_what_was_asked_and_what_came_out(helix, database, tmp_path):
    batch = every_kind(database)
    result = helix("report", batch, "-o", tmp_path / "r.html")
    assert result.exit_code == 0
    assert f"Written: {tmp_path / 'r.html'}" in result.stdout
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for text in (
        "Every kind of answer",
        "Tokens per second",
        "Length of answers, in tokens",
        "Time to the first token",
        "75 % of 64 drafted tokens were accepted.",
        "prompt_too_long",
        "the model&#39;s context 2,048",
        "Der Mond ist aufgegangen",
        "Cut off by max_tokens or the context",
        "And in Basel?",
        "Took longest",
    ):
        assert text in page, text
    assert "7 answers from lines that are evenly spaced" in page
    assert page.count("<title>") > 10  # the page's own, and one for each column


def test_hostile_texts_stay_texts(helix, database, tmp_path):
    batch = hostile_batch(database)
    assert helix("report", batch, "-o", tmp_path / "r.html", "--samples", 50).exit_code == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    names = {re.sub(r"[/<>\d]|\s.*", "", tag, flags=re.DOTALL).lower() for tag in tags(page)}
    assert names <= TAGS
    assert not [tag for tag in tags(page) if REACHING.search(re.sub(r'"[^"]*"', '""', tag))]
    assert "default-src 'none'" in page
    assert not set("\x1b\x07\x08\x7f\u2028\N{RIGHT-TO-LEFT OVERRIDE}\N{LEFT-TO-RIGHT ISOLATE}") & set(page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert len(page) < 1_000_000, "a long answer is cut"


def test_the_engine_s_runs_are_drawn_with_their_reasons(helix, database, submitted, finish, tmp_path):
    batch = submitted(4)
    finish(batch, succeeded=4, draft_tokens=10)
    with database.write() as c:
        run_id = start_run(c, "w1", now())
        finish_run(c, run_id, totals(depth_reasons={"lookup": 30, "off:cost": 10}, energy_joules=1_800.0), now())
        finish_run(c, start_run(c, "w1", now()), totals(), now())
    helix("report", batch, "-o", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for text in (
        "Slots in use, in %",
        "4.0 sequences in a step on average",
        "2.50 tokens a sequence and step",
        "Most often: lookup, in 75 % of the steps.",
        "off, costs too much: 25 % of the steps",
        "0.5 Wh, 4.5 J a token written; the devices of 1 run do not tell",
        "Target model",
    ):
        assert text in page, text


def test_an_estimate_from_a_part_of_the_runs_says_so(helix, database, submitted, finish, *, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_runs, "_MOST", 2)
    batch = submitted(4)
    finish(batch, succeeded=4)
    with database.write() as c:
        for _ in range(4):
            finish_run(c, start_run(c, "w1", now()), totals(), now())
    helix("report", batch, "-o", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "from one of 2 of the 4 runs of its workers" in page
    assert "20 s (76 %)" in page  # of four times 5 s, by two


def test_the_table_of_a_batch_is_told_in_words(helix, home, tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n", encoding="utf-8")
    batch = helix("submit", tmp_path / "t.csv", "--prompt", "{{ a }}").stdout.strip()
    helix("report", batch, "-o", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Rows read" in page
    assert "Default table" not in page


def test_a_batch_that_has_not_begun_has_no_charts(helix, submitted, tmp_path):
    batch = submitted(2)
    assert helix("report", batch).exit_code == 0
    page = (tmp_path / f"{batch}.html").read_text(encoding="utf-8")
    assert "<svg" not in page
    assert "No worker has ended a job of it yet" in page


def test_figures_for_programs(helix, submitted, finish, tmp_path):
    batch = submitted(3)
    finish(batch, succeeded=2, failed=1)
    value = json.loads(helix("report", batch, "-o", tmp_path / "r.html", "--json").stdout)
    figures = value["figures"]
    assert value["path"] == str(tmp_path / "r.html")
    assert figures["completion_tokens"] == [{"tokens": 10, "answers": 2}]
    assert figures["ttft"] == [{"at_most_seconds": 0.1, "answers": 2}]
    assert sum(column["completion_tokens"] for column in figures["over_time"]) == 20
    assert figures["batch"]["errors"] == {"prompt_too_long": 1}


def test_no_such_batch(helix, home):
    result = helix("report", "b-none")
    assert result.exit_code == 2
    assert "there is no batch 'b-none'" in result.stderr


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch):
    monkeypatch.setattr(batch_figures, "_SLICE", 3)
