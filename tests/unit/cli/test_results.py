from __future__ import annotations

import csv
import io
import json

import pyarrow.parquet as pq
import pytest

from helix_jobs.cli.results import FILE_FORMATS
from helix_jobs.results.export import FORMATS


@pytest.fixture
def batch(submitted, finish):
    """Four jobs: two answers, a failure, one still queued."""
    batch = submitted(4)
    finish(batch, succeeded=2, failed=1, text="Zwölf.\nOr \x1b[31mmore.")
    return batch


def test_the_formats_are_the_exports():
    assert FILE_FORMATS == FORMATS


def test_a_pipe_gets_jsonl(helix, batch):
    rows = [json.loads(line) for line in helix("results", batch).stdout.splitlines()]
    assert [(row["line"], row["state"]) for row in rows] == [(1, "succeeded"), (2, "succeeded")]
    assert rows[0]["output_text"] == "Zwölf.\nOr \x1b[31mmore."
    assert helix("results", batch, "--json").stdout == helix("results", batch).stdout


def test_failed_rows_on_request(helix, batch):
    rows = [json.loads(line) for line in helix("results", batch, "--failed").stdout.splitlines()]
    assert [(row["line"], row["error_code"]) for row in rows] == [(1, None), (2, None), (3, "prompt_too_long")]


def test_completion_order(helix, submitted, prompts, finish):
    lines = ['{"prompt": "low"}', '{"prompt": "high", "priority": 9}']
    batch = helix("submit", prompts(lines=lines)).stdout.strip()
    finish(batch, succeeded=2)
    for order, expected in (("line", ["low", "high"]), ("completion", ["high", "low"])):
        rows = helix("results", batch, "--order", order).stdout.splitlines()
        assert [json.loads(row)["prompt"] for row in rows] == expected


def test_the_format_follows_the_name_of_the_file(helix, batch, tmp_path):
    for name in ("out.csv", "out.parquet", "out.jsonl", "out.NDJSON", "out"):
        assert helix("results", batch, "-o", tmp_path / name).exit_code == 0
    assert [row["line"] for row in csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text("utf-8")))] == ["1", "2"]
    assert pq.read_table(tmp_path / "out.parquet").column("line").to_pylist() == [1, 2]
    for name in ("out.NDJSON", "out"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "out.jsonl").read_bytes()


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.zst", "a.tsv", "a.xlsx", "a.html", "a.json", "a.txt"])
def test_a_name_that_says_no_known_format_is_refused_with_those_there_are(helix, batch, tmp_path, name):
    result = helix("results", batch, "-o", tmp_path / name)
    assert result.exit_code == 2
    assert "says no format that Helix writes; name a .jsonl, .csv or .parquet file, or give --format" in result.stderr
    assert not (tmp_path / name).exists()
    assert helix("results", batch, "-o", tmp_path / name, "--format", "jsonl").exit_code == 0


def test_a_file_leaves_standard_output_alone_and_is_counted(helix, batch, tmp_path):
    result = helix("results", batch, "-o", tmp_path / "out.jsonl")
    assert result.stdout == ""
    assert "2 results written to" in result.stderr
    assert "more results will come" in result.stderr
    value = json.loads(helix("results", batch, "-o", tmp_path / "o.csv", "--json").stdout)
    assert value == {"id": batch, "path": str(tmp_path / "o.csv"), "format": "csv", "written": 2}


def test_openai_lines(helix, batch):
    rows = [json.loads(line) for line in helix("results", batch, "--format", "openai", "--failed").stdout.splitlines()]
    assert {"id", "custom_id", "response", "error"} <= set(rows[0])


def test_a_file_that_cannot_be_written_is_a_clear_error(helix, batch, tmp_path):
    result = helix("results", batch, "-o", tmp_path / "no" / "such" / "folder.jsonl")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")


def test_text_is_readable_and_cannot_drive_the_terminal(helix, batch):
    result = helix("results", batch, "--format", "text")
    assert "1  Question 1?\n   Zwölf.\n   Or �[31mmore." in result.stdout
    assert "\x1b" not in result.stdout
    assert f"1 job without an answer. See why with: helix results {batch} --failed" in result.stdout
    failed = helix("results", batch, "--format", "text", "--failed").stdout
    assert failed == "3  Question 3?\n   failed, prompt_too_long: too long by 5 tokens\n\n"


def test_text_shows_calls(helix, submitted, finish):
    batch = submitted(2)
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "look_up", "arguments": '{"river": "\x1b[31mElbe"}'},
    }
    finish(batch, succeeded=1, text="", tool_calls=[call, {"function": "by hand"}])
    finish(batch, succeeded=1, text="I look.", tool_calls=[call])
    shown = helix("results", batch, "--format", "text").stdout
    look_up = 'calls look_up({"river": "�[31mElbe"})'
    assert f"1  Question 1?\n   {look_up}\n   calls ?()\n" in shown
    assert f"2  Question 2?\n   I look.\n   {look_up}\n" in shown
    assert "empty answer" not in shown


def test_text_shows_the_first_answers_of_many(helix, submitted, finish):
    batch = submitted(25)
    assert "No answers so far." in helix("results", batch, "--format", "text").stdout
    finish(batch, succeeded=25)
    result = helix("results", batch, "--format", "text")
    assert f"20 of 25 shown. All of them: helix results {batch} -o FILE" in result.stdout
    assert "Question 20?" in result.stdout
    assert "Question 21?" not in result.stdout


def test_text_counts_answers_beside_jobs(helix, submitted, finish):
    batch = submitted(8)
    finish(batch, succeeded=6, choices=4)
    finish(batch, failed=2)
    shown = helix("results", batch, "--format", "text").stdout
    assert f"20 answers of 5 of 6 jobs shown. All of them: helix results {batch} -o FILE" in shown
    assert "5, choice 3  Question 5?" in shown
    assert "2 jobs without an answer." in shown
    assert " shown." not in helix("results", batch, "--format", "text", "--failed").stdout


def test_text_says_nothing_of_more_where_all_answers_are_shown(helix, submitted, finish):
    batch = submitted(5)
    finish(batch, succeeded=5, choices=4)
    assert " shown." not in helix("results", batch, "--format", "text").stdout


@pytest.mark.parametrize("args", [["--format", "text", "-o", "x"], ["--format", "text", "--json"], ["--format", "xml"]])
def test_combinations_without_sense_are_wrong_usage(helix, batch, args):
    assert helix("results", batch, *args).exit_code == 2


def test_an_unknown_batch_is_wrong_usage(helix):
    assert helix("results", "b-20260101-aaaaaa").exit_code == 2


@pytest.mark.parametrize(
    "command",
    [
        ("results", "b", "-o", ""),
        ("report", "b", "-o", ""),
        ("diff", "a", "b", "--html", ""),
        ("diff", "a", "b", "-o", ""),
        ("submit", "-", "--skip-invalid", "--rejects", ""),
        ("preview", "-", "--template", ""),
        ("bench", "bulk", "--chart", ""),
    ],
)
def test_an_empty_name_of_a_file_is_refused_in_the_same_words_everywhere(helix, command):
    result = helix(*command)
    assert result.exit_code == 2
    assert command[-2] in result.stderr
    assert "is empty; give the name of a file." in result.stderr
