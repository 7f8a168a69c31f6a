"""Every format from the same results: succeeded, failed, cancelled; streamed; atomic."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from helix_jobs.errors import ConfigurationError
from helix_jobs.results.export import COLUMNS, FORMATS, export_results, result_row
from helix_jobs.results.openai import openai_line
from tests.unit.results.job_results import ALL, CANCELLED, CHAT, FAILED, NASTY, SUCCEEDED, T0, export

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.storage.records import JobResult


def test_jsonl_round_trips():
    lines = export("jsonl").split(b"\n")
    assert lines.pop() == b""
    rows = [json.loads(line) for line in lines]
    assert rows == [result_row(result) for result in ALL]
    assert list(rows[0]) == list(COLUMNS)
    assert rows[0]["output_text"] == NASTY
    assert rows[0]["metadata"] == {"k": "\N{GREEK SMALL LETTER PI}"}
    assert rows[0]["finished_at"] == "2026-01-02T03:04:05.678901+00:00"
    assert rows[1]["messages"] == [{"role": "user", "content": "Hi"}]
    assert (rows[2]["state"], rows[2]["error_code"], rows[2]["output_text"]) == ("failed", "prompt_too_long", None)


def test_csv_round_trips():
    rows = list(csv.DictReader(io.StringIO(export("csv").decode(), newline="")))
    assert [row["job_id"] for row in rows] == ["7", "8", "9", "10"]
    assert rows[0]["output_text"] == NASTY
    assert rows[0]["prompt"] == "Say, \n hi"
    assert json.loads(rows[0]["metadata"]) == {"k": "\N{GREEK SMALL LETTER PI}"}
    assert json.loads(rows[1]["messages"]) == [{"role": "user", "content": "Hi"}]
    assert rows[1]["metadata"] == ""
    assert rows[2]["output_text"] == ""
    assert float(rows[0]["tokens_per_second"]) == 2.5


def test_parquet_round_trips():
    table = pq.read_table(io.BytesIO(export("parquet")))
    assert table.column_names == list(COLUMNS)
    rows = table.to_pylist()
    assert rows[0]["output_text"] == NASTY
    assert rows[0]["finished_at"] == T0
    assert rows[0]["acceptance_rate"] == 0.5
    assert rows[3]["state"] == "cancelled"
    assert rows[3]["target_model"] is None


def test_parquet_keeps_its_types_when_no_row_has_a_value():
    both = [export("parquet", [FAILED]), export("parquet", [])]
    expected = pq.read_schema(io.BytesIO(export("parquet", [SUCCEEDED])))
    for data in both:
        assert pq.read_schema(io.BytesIO(data)).equals(expected)


@pytest.mark.parametrize("fmt", ["jsonl", "openai"])
def test_a_json_line_has_one_end_whoever_looks_for_it(fmt: str):
    text = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i \N{GRINNING FACE}"
    written = export(fmt, [replace(CHAT, output_text=text)]).decode()
    (line,) = written.splitlines()
    assert "\N{GRINNING FACE}" in line
    assert text in (json.loads(line).get("output_text"), find_texts(json.loads(line)))


def find_texts(line: dict) -> str | None:
    return line["response"]["body"]["choices"][0]["message"]["content"] if "response" in line else None


def test_an_id_that_is_made_up_is_no_other_lines():
    """Whatever a person called their lines: the batch had no id yet."""
    lines = [replace(SUCCEEDED, line=1, custom_id=None), replace(SUCCEEDED, line=2, custom_id="line-1")]
    assert [openai_line([line])["custom_id"] for line in lines] == ["b-1-line-1", "line-1"]


def test_openai_success_follows_the_batch_output_shape():
    line = json.loads(export("openai", [CHAT]))
    assert line == {
        "id": "batch_req_8",
        "custom_id": "b-1-line-4",
        "response": {
            "status_code": 200,
            "request_id": "req_8",
            "body": {
                "id": "chatcmpl-8",
                "object": "chat.completion",
                "created": int(T0.timestamp()),
                "model": "demo",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": NASTY, "refusal": None},
                        "logprobs": None,
                        "finish_reason": "length",
                    }
                ],
                "usage": {
                    "prompt_tokens": 5,
                    "completion_tokens": 4,
                    "total_tokens": 9,
                    "prompt_tokens_details": {"cached_tokens": 2},
                },
            },
        },
        "error": None,
    }


def test_openai_prompt_lines_answer_as_text_completions():
    body = openai_line([SUCCEEDED])["response"]["body"]
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": NASTY, "logprobs": None, "finish_reason": "stop"}]
    assert openai_line([SUCCEEDED])["custom_id"] == "mine"


@pytest.mark.parametrize(("code", "openai"), [("prompt_too_long", "context_length_exceeded"), ("invalid_request",) * 2])
def test_openai_rejected_requests_have_a_status_and_no_error(code: str, openai: str):
    line = openai_line([replace(FAILED, error_code=code)])
    assert line["error"] is None
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"] == {
        "message": "the prompt has 9000 tokens",
        "type": "invalid_request_error",
        "param": None,
        "code": openai,
    }


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (CANCELLED, "batch_cancelled"),
        (replace(FAILED, error_code="worker_lost"), "worker_lost"),
        (replace(FAILED, error_code="engine_error"), "engine_error"),
        (replace(FAILED, error_code="out_of_memory"), "out_of_memory"),
        (replace(FAILED, error_code="deadline"), "batch_expired"),
    ],
)
def test_openai_unanswered_requests_have_an_error_and_no_response(result: JobResult, code: str):
    line = openai_line([result])
    assert line["response"] is None
    assert line["error"]["code"] == code


def test_openai_requests_that_their_window_cut_off_have_expired():
    assert openai_line([CANCELLED], has_expired=True)["error"]["code"] == "batch_expired"
    assert openai_line([SUCCEEDED], has_expired=True) == openai_line([SUCCEEDED])
    assert openai_line([FAILED], has_expired=True) == openai_line([FAILED])


@pytest.mark.parametrize("fmt", FORMATS)
def test_no_results_make_a_valid_file(fmt: str):
    data = export(fmt, [])
    if fmt == "csv":
        assert data.decode().strip().split(",") == list(COLUMNS)
    elif fmt == "parquet":
        assert pq.read_table(io.BytesIO(data)).num_rows == 0
    else:
        assert data == b""


@pytest.mark.parametrize("fmt", FORMATS)
def test_results_are_written_as_they_come(fmt: str):
    class Sink(io.RawIOBase):
        def __init__(self) -> None:
            self.size = 0

        def writable(self) -> bool:
            return True

        def write(self, data) -> int:
            self.size += len(data)
            return len(data)

    sink = Sink()
    seen = []

    def results():
        for number in range(3000):
            if number == 2500:
                seen.append(sink.size)
            yield replace(SUCCEEDED, job_id=number, output_text=os.urandom(40).hex())

    assert export_results(results(), sink, fmt) == 3000
    assert seen[0] > 40_000


def test_a_path_is_replaced_when_the_file_is_whole(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    path.write_text("old")

    def breaking():
        yield SUCCEEDED
        raise RuntimeError

    with pytest.raises(RuntimeError):
        export_results(breaking(), path, "jsonl")
    assert path.read_text() == "old"
    export_results(ALL, str(path), "jsonl")
    assert path.read_bytes() == export("jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]


@pytest.mark.skipif(sys.platform == "win32", reason="no modes, links or pipes there")
def test_modes_links_and_pipes_are_respected(tmp_path: Path):
    (tmp_path / "plain").touch()
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    export_results(ALL, link, "jsonl")
    assert link.is_symlink()
    assert target.read_bytes() == export("jsonl")
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    export_results(ALL, pipe, "csv")
    reader.join(10)
    assert received == [export("csv")]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"nowhere.*cannot be written"):
        export_results(ALL, tmp_path / "nowhere" / "x.jsonl", "jsonl")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        export_results(ALL, tmp_path, "jsonl")


def test_an_unknown_format_is_refused():
    with pytest.raises(ConfigurationError, match="use one of jsonl, csv, parquet, openai"):
        export_results(ALL, io.BytesIO(), "xml")


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r'pip install -e "\.\[parquet\]"'):
        export_results(ALL, tmp_path / "x.parquet", "parquet")
    assert list(tmp_path.iterdir()) == []


def test_openai_puts_the_choices_of_a_job_into_one_line():
    second = replace(CHAT, choice=1, output_text="Another", prompt_tokens=0, completion_tokens=9, finish_reason="stop")
    lines = [json.loads(line) for line in export_lines("openai", [SUCCEEDED, CHAT, second, FAILED])]
    assert [len((line["response"]["body"]).get("choices", [])) for line in lines] == [1, 2, 0]
    body = lines[1]["response"]["body"]
    assert [(one["index"], one["message"]["content"]) for one in body["choices"]] == [(0, NASTY), (1, "Another")]
    assert body["usage"]["completion_tokens"] == 4 + 9
    assert body["usage"]["prompt_tokens"] == 5


def export_lines(fmt, results):
    stream = io.BytesIO()
    export_results(iter(results), stream, fmt)
    return stream.getvalue().splitlines()
