"""``helix diff``: in words, as JSON, as lines in a file and as one HTML file in which nothing runs."""

from __future__ import annotations

import json
import re

import pytest

from helix_jobs.storage import claims, publishing
from helix_jobs.storage.records import FinishedJob, ResultRow
from tests.answer_scene import ALL_HOSTILE, HOSTILE
from tests.store_helpers import now
from tests.unit.cli.conftest import METRICS, add_worker


@pytest.fixture
def answered(helix, prompts, database):
    """``answered("a", None)`` is a batch whose jobs said these; None failed."""

    def run(*texts, lines=None):
        lines = lines or [json.dumps({"prompt": f"Question {i}?", "custom_id": f"q{i}"}) for i in range(len(texts))]
        batch = helix("submit", prompts(lines=lines)).stdout.strip()
        with database.write() as c:
            worker = add_worker(c, now())
            for text in texts:
                (job,) = publishing.publishable(c, 1)
                claimed = claims.claim(c, job.id, worker_id=worker, now=now())
                done = FinishedJob(job.id, claimed.lease, worker)
                if text is None:
                    assert claims.finish_failed(c, done, "engine_error", HOSTILE[0], now())
                else:
                    assert claims.finish_succeeded(c, done, [ResultRow(output_text=text, **METRICS)], now())
        return batch

    return run


def test_in_words(helix, answered):
    before = answered("The cat sat.", "same", "x", None, '{"a": 1}')
    after = answered("The dog sat.", "same", None, "y", '{"a": 2}')
    told = helix("diff", before, after).stdout
    assert "5 rows: 1 same, 2 changed, 1 newly failed, 1 newly fixed" in told
    assert "The [-cat-]{+dog+} sat." in told
    assert "a: [-1-] {+2+}" in told
    assert "Field a differs in 1 row" in told
    assert "failed in the second: engine_error, <script>alert(1)</script>" in told
    assert re.search(r"Drafts accepted +75 % +75 %", told)
    only = helix("diff", before, after, "--only", "newly_fixed").stdout
    assert "q3  newly fixed" in only
    assert "q0" not in only
    few = helix("diff", before, after, "--rows", 1).stdout
    assert f"1 of 4 rows shown. All of them: helix diff {before} {after} -o FILE" in few.replace("cli ", "helix ")


def test_both_files_are_kept_apart(helix, answered, tmp_path):
    batch = answered("a")
    place = tmp_path / "d.html"
    result = helix("diff", batch, batch, "--html", place, "-o", place)
    assert result.exit_code == 2
    assert "--html and -o name the same file; give each a file of its own." in result.stderr
    assert not place.exists()


def test_what_is_left_out_is_told_with_the_command_that_has_it(helix, answered, tmp_path):
    before, after = answered("a", "b", "c", "d"), answered("a", "x", None, "y")
    kinds = ("--only", "changed", "--only", "newly_failed")
    told = helix("diff", before, after, *kinds, "--rows", 0, "--html", tmp_path / "d.html").stdout
    command = f"helix diff {before} {after} --only changed --only newly_failed -o FILE"
    assert f"0 of 3 rows shown. All of them: {command}" in told.replace("cli ", "helix ")
    page = (tmp_path / "d.html").read_text(encoding="utf-8")
    assert "No row" not in page
    assert f"3 rows of these kinds not shown; <code>{command}</code>" in page.replace("cli ", "helix ")
    helix("diff", before, after, "--only", "newly_fixed", "--html", tmp_path / "e.html")
    assert "No row is of these kinds." in (tmp_path / "e.html").read_text(encoding="utf-8")


def test_another_prompt_is_told_on_the_page_too(helix, answered, tmp_path):
    before = answered("a", lines=['{"prompt": "One?"}'])
    after = answered("b", lines=['{"prompt": "Two?"}'])
    told = helix("diff", before, after, "--html", tmp_path / "d.html").stdout
    assert "1 row with another outcome had another prompt" in told
    assert "1 row with another outcome had another prompt." in (tmp_path / "d.html").read_text(encoding="utf-8")


def test_for_programs(helix, answered, tmp_path):
    before, after = answered("a", "b"), answered("a", "c")
    value = json.loads(helix("diff", before, after, "--json", "-o", tmp_path / "rows.jsonl").stdout)
    assert value["summary"]["changes"]["changed"] == value["written"] == 1
    (row,) = value["rows"]
    assert (row["change"], row["custom_id"]) == ("changed", "q1")
    assert row["after"]["answers"][0]["output_text"] == "c"
    (line,) = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == row


def test_the_html_file_holds_hostile_answers_as_text(helix, answered, tmp_path):
    lines = [json.dumps({"prompt": text, "custom_id": f"{i}{text}"[:200]}) for i, text in enumerate(HOSTILE)]
    before = answered(*[None] * len(HOSTILE), lines=lines)
    after = answered(*[f"{text} {ALL_HOSTILE}" for text in HOSTILE], lines=lines)
    result = helix("diff", before, after, "--html", tmp_path / "d.html", "--rows", 100)
    assert result.exit_code == 0
    page = (tmp_path / "d.html").read_text(encoding="utf-8")
    tags = set(re.findall(r"<\s*([a-zA-Z!/]+)", page))
    allowed = {"!doctype", "html", "head", "meta", "title", "style", "body", "main", "footer", "h", "p", "dl", "div"}
    allowed |= {"dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "article", "span", "del", "ins", "code"}
    assert {tag.strip("/") for tag in tags} <= allowed
    assert "default-src 'none'" in page
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in page
    assert "\x1b" not in page
    assert "elsewhere.example" in page
    assert not re.search(
        r"(?:href|src|url\()\s*=?\s*['\"]?//", re.sub(r"&[a-z#0-9]+;", "", "".join(re.findall(r"<[^>]+>", page)))
    )


def test_no_such_batch(helix, answered):
    result = helix("diff", answered("a"), "b-none")
    assert result.exit_code == 2
    assert "there is no batch 'b-none'" in result.stderr
