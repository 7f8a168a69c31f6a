"""Exported log probabilities: OpenAI's own types parse them, and readers of loglikelihoods find what they look for."""

from __future__ import annotations

import csv
import io
import json
import math
from array import array
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from helix_jobs.errors import UnreadableRowError
from helix_jobs.results import file_writers
from helix_jobs.results.export import result_row
from helix_jobs.results.openai import openai_line
from helix_jobs.token_logprobs import NO_TOKEN, TokenLogprobs, TokenText
from tests.unit.results.job_results import CHAT, SUCCEEDED, export, loglikelihood

TEXTS = {
    1: TokenText(b"<s>", is_special=True),
    2: TokenText(b" Say"),
    3: TokenText(b" hi"),
    4: TokenText("ä".encode()[:1]),
    5: TokenText("ä".encode()[1:]),
    6: TokenText(b"!"),
    7: TokenText(b"</s>", is_special=True),
}


def made(rows: list[list[tuple[int, float]]]) -> bytes:
    width = len(rows[0]) if rows else 1
    ids = [token_id for row in rows for token_id, _ in row]
    values = [value for row in rows for _, value in row]
    return TokenLogprobs(width - 1, array("i", ids), array("f", values), TEXTS).to_bytes()


NOTHING = (NO_TOKEN, math.nan)
PROMPT = made([[(1, math.nan), NOTHING], [(2, -4.0), (3, -0.25)], [(3, -0.125), (3, -0.125)]])
OUTPUT = made([[(4, -0.5), (4, -0.5)], [(5, -math.inf), (6, -0.75)], [(6, -1.5), (3, -0.25)]])
ANSWERED = {"output_text": "ä!", "logprobs": OUTPUT, "cumulative_logprob": -2.0}


def body_of(result: Any) -> dict[str, Any]:
    return json.loads(json.dumps(openai_line([result])))["response"]["body"]


def test_openais_types_parse_a_chat_completion() -> None:
    body = ChatCompletion.model_validate(body_of(replace(CHAT, **ANSWERED)), strict=True)
    (choice,) = body.choices
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    assert [one.token for one in content] == ["\ufffd", "\ufffd", "!"]
    assert b"".join(bytes(one.bytes or ()) for one in content).decode() == choice.message.content == "ä!"
    assert [one.logprob for one in content] == [-0.5, -9999.0, -1.5]
    assert [(one.token, one.logprob) for one in content[1].top_logprobs] == [("!", -0.75)]


def test_openais_types_parse_a_completion() -> None:
    body = Completion.model_validate(body_of(replace(SUCCEEDED, **ANSWERED)), strict=True)
    (choice,) = body.choices
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["bytes:\\xc3", "bytes:\\xa4", "!"]
    assert logprobs.token_logprobs == [-0.5, -9999.0, -1.5]
    assert logprobs.text_offset == [0, 0, 1]
    assert logprobs.top_logprobs == [
        {"bytes:\\xc3": -0.5},
        {"!": -0.75, "bytes:\\xa4": -9999.0},
        {" hi": -0.25, "!": -1.5},
    ]


@pytest.mark.parametrize("prompt", [{"prompt": "Say hi"}, {"prompt_token_ids": [1, 2, 3]}])
def test_an_echo_has_the_prompts_tokens_first(prompt: dict[str, Any]) -> None:
    sampling = {"echo": True, "logprobs": 1, "max_tokens": 1}
    result = replace(SUCCEEDED, **ANSWERED, prompt_logprobs=PROMPT, request={**prompt, "sampling": sampling})
    result = replace(result, logprobs=made([[(6, -0.5), (6, -0.5)]]), output_text="!")
    body = body_of(result)
    (choice,) = body["choices"]
    assert choice["text"] == ("Say hi!" if "prompt" in prompt else " Say hi!")
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["<s>", " Say", " hi", "!"]
    assert logprobs["token_logprobs"] == [None, -4.0, -0.125, -0.5]
    assert logprobs["top_logprobs"] == [None, {" hi": -0.25, " Say": -4.0}, {" hi": -0.125}, {"!": -0.5}]
    start = 0 if "prompt" in prompt else 1
    assert logprobs["text_offset"] == [0, 0, 3 + start, 6 + start]
    assert "prompt_logprobs" not in choice
    assert loglikelihood(body, 1) == (-4.125, False)
    assert loglikelihood(body, 2) == (-0.125, True)
    (parsed,) = Completion.construct(**body).choices  # as the client does: the first of the numbers is null
    assert parsed.text == choice["text"]


def test_an_end_token_is_the_last_entry_of_an_echo() -> None:
    sampling = {"echo": True, "logprobs": 1, "max_tokens": 1}
    request = {"prompt": "Say hi", "sampling": sampling}
    ended = replace(SUCCEEDED, output_text="", logprobs=made([[(7, -0.5), (7, -0.5)]]), request=request)
    body = body_of(replace(ended, prompt_logprobs=PROMPT))
    assert body["choices"][0]["text"] == "Say hi"
    assert body["choices"][0]["logprobs"]["text_offset"] == [0, 0, 3, 6]
    assert loglikelihood(body, 1) == (-4.125, False)


def test_prompt_logprobs_have_vllms_form() -> None:
    request = {**SUCCEEDED.request, "sampling": {"prompt_logprobs": 1}}
    (choice,) = body_of(replace(SUCCEEDED, prompt_logprobs=PROMPT, request=request))["choices"]
    expected = [
        None,
        {
            "2": {"logprob": -4.0, "rank": None, "decoded_token": " Say"},
            "3": {"logprob": -0.25, "rank": 1, "decoded_token": " hi"},
        },
        {"3": {"logprob": -0.125, "rank": 1, "decoded_token": " hi"}},
    ]
    assert choice["prompt_logprobs"] == expected
    assert choice["logprobs"] is None
    chat = body_of(replace(CHAT, prompt_logprobs=PROMPT, request={**CHAT.request, "sampling": {"prompt_logprobs": 1}}))
    assert chat["prompt_logprobs"] == expected
    assert "prompt_logprobs" not in chat["choices"][0]


def test_scores_stand_beside_the_best_option() -> None:
    scores = {"yes": {"sum": -0.5, "mean": -0.5, "tokens": 1}, "no": {"sum": -2.0, "mean": -1.0, "tokens": 2}}
    for result, parse in ((CHAT, ChatCompletion.model_validate), (SUCCEEDED, Completion.model_validate)):
        body = body_of(replace(result, output_text="yes", finish_reason="stop", scores=scores))
        parse(body)
        assert body["choices"][0]["scores"] == scores


def test_columns_have_them_as_json() -> None:
    result = replace(SUCCEEDED, **ANSWERED, prompt_logprobs=PROMPT)
    expected = result_row(result)["logprobs"]
    assert expected[2] == {
        "token": "!",
        "logprob": -1.5,
        "bytes": [33],
        "top_logprobs": [{"token": " hi", "logprob": -0.25, "bytes": [32, 104, 105]}],
    }
    (line,) = map(json.loads, export("jsonl", [result]).splitlines())
    (cells,) = csv.DictReader(io.StringIO(export("csv", [result]).decode(), newline=""))
    (row,) = pq.read_table(io.BytesIO(export("parquet", [result]))).to_pylist()
    assert line["logprobs"] == json.loads(cells["logprobs"]) == json.loads(row["logprobs"]) == expected
    assert json.loads(row["prompt_logprobs"])[0] == {"token": "<s>", "logprob": None, "bytes": [60, 115, 62]} | {
        "top_logprobs": []
    }
    assert float(cells["cumulative_logprob"]) == row["cumulative_logprob"] == -2.0


def test_row_groups_stay_small_however_much_a_row_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_writers, "ROW_GROUP_BYTES", 5000)
    data = export("parquet", [replace(SUCCEEDED, **ANSWERED)] * 12)
    assert pq.ParquetFile(io.BytesIO(data)).num_row_groups > 3
    assert pq.read_table(io.BytesIO(data)).num_rows == 12


def test_damaged_bytes_are_named_by_their_job() -> None:
    with pytest.raises(UnreadableRowError, match="job 7"):
        openai_line([replace(SUCCEEDED, logprobs=b"\x01damaged")])
