"""Each feature of a request on the demo model, as a person meets it: one command, then the files and the database.

``examples/features.jsonl`` has a line for each feature. Beside each the run has the same line without the feature, and
what a test claims of the first must not hold of the second.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jsonschema_rs
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from tokenizers import Tokenizer

from helix_jobs.engine.loading.demo_model import DEMO_DIRECTORY
from tests.acceptance.feature_claims import (
    CLAIMS,
    EXTRACTION,
    FEATURES,
    LAST_TOKENS,
    PREFILL,
    WITHOUT,
    WRITTEN_OUT,
    Row,
)
from tests.acceptance.scene import Scene

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.demo


@pytest.mark.thorough
def test_each_line_of_the_example_has_a_claim() -> None:
    assert FEATURES.keys() - {"plain"} == CLAIMS.keys() | {PREFILL}


@dataclass(frozen=True)
class Finished:
    """A run that has ended: the files that a person takes from it, and the database."""

    jsonl: list[Row]
    csv: list[dict[str, str]]
    openai: dict[str, Row]
    database: Path
    printed: str

    def rows(self, custom_id: str) -> list[Row]:
        return [row for row in self.jsonl if row["custom_id"] == custom_id]

    def body(self, custom_id: str) -> Row:
        response: Row = self.openai[custom_id]["response"]
        assert response["status_code"] == 200, response
        return dict(response["body"])


@pytest.fixture(scope="module")
def tokenizer(demo_home: Path) -> Tokenizer:
    return Tokenizer.from_file(str(demo_home / "models" / DEMO_DIRECTORY / "tokenizer.json"))


def same_in_other_words(tokenizer: Tokenizer) -> list[Row]:
    """Lines whose answers must be those of lines in the example."""
    truncated, prefill = FEATURES["truncated"], FEATURES[PREFILL]
    kept = tokenizer.encode(truncated["prompt"]).ids[-truncated["truncate_prompt_tokens"] :]
    asked, begun = (message["content"] for message in prefill["messages"])
    written = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{begun}"
    )
    return [
        {"custom_id": LAST_TOKENS, "prompt": kept, "max_tokens": truncated["max_tokens"]},
        {"custom_id": WRITTEN_OUT, "prompt": written, "max_tokens": prefill["max_tokens"]},
    ]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config, demo_home: Path, tokenizer: Tokenizer
) -> Finished:
    scene = Scene(tmp_path_factory.mktemp("features"))
    # float32 tells equal answers of different lines from nearly equal ones.
    scene.environment |= {"HELIX_ENGINE": "helix", "HELIX_COMPILE": "off", "HELIX_DTYPE": "float32"}
    scene.home.mkdir(mode=0o700)
    (scene.home / "models").symlink_to(demo_home / "models")
    # What steps cost here is kept between runs of the tests: to measure it takes a quarter of these tests' time.
    assert pytestconfig.cache is not None
    kept, profiles = pytestconfig.cache.mkdir("helix-demo-profiles"), scene.home / "profiles"
    profiles.mkdir(mode=0o700)
    for file in kept.iterdir():
        shutil.copy2(file, profiles)
    others = [claim.taken_out(FEATURES[custom_id]) for custom_id, claim in CLAIMS.items()]
    others += same_in_other_words(tokenizer)
    (scene.clone / "others.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in others), encoding="utf-8")

    def run(command: str, code: int = 0) -> str:
        done = scene.run(command)
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    try:
        # Three lines fail, as they must.
        files = "examples/features.jsonl examples/extract.jsonl others.jsonl"
        printed = run(f"cat {files} | python submit.py - --local --json", code=1)
        batch = shlex.quote(json.loads(printed)["id"])
        lines = run(f"helix results {batch} --failed --format jsonl").splitlines()
        outputs = map(json.loads, run(f"helix results {batch} --failed --format openai").splitlines())
        return Finished(
            jsonl=[json.loads(line) for line in lines],
            csv=list(csv.DictReader(io.StringIO(run(f"helix results {batch} --failed --format csv")))),
            openai={line["custom_id"]: line for line in outputs},
            database=scene.home / "helix.db",
            printed=printed,
        )
    finally:
        scene.close()
        for file in profiles.iterdir():
            shutil.copy2(file, kept)


@pytest.mark.thorough
@pytest.mark.parametrize("custom_id", CLAIMS)
def test_a_feature_shows_and_does_not_without_its_field(finished: Finished, custom_id: str) -> None:
    claim = CLAIMS[custom_id]
    assert claim.holds(finished.rows(custom_id)), finished.rows(custom_id)
    bare = finished.rows(custom_id + WITHOUT)
    assert bare[0]["state"] == "succeeded"
    assert not claim.holds(bare), bare


@pytest.mark.thorough
def test_the_number_of_an_answer_decides_its_random_numbers(finished: Finished) -> None:
    """The first of three answers is the one that the line has alone; the prompt counts once."""
    rows = finished.rows("three-answers")
    (alone,) = finished.rows("three-answers" + WITHOUT)
    assert rows[0]["output_text"] == alone["output_text"]
    assert [row["prompt_tokens"] for row in rows] == [alone["prompt_tokens"], 0, 0]


@pytest.mark.thorough
def test_a_prompts_tokens_have_one_log_probability_in_every_form(finished: Finished) -> None:
    """The token Paris: as a prompt's, echoed, as an option, and as the answer's own by the same distribution."""
    (asked,), (echoed,), (scored,) = map(finished.rows, ("prompt-logprobs", "loglikelihood", "scored-choices"))
    values = [one["logprob"] for one in asked["prompt_logprobs"]]
    assert values[0] is None
    assert [one["logprob"] for one in echoed["prompt_logprobs"]][1:] == pytest.approx(values[1:], abs=1e-4)
    score = scored["scores"][" Paris"]
    assert score == {"sum": pytest.approx(values[-1], abs=1e-4), "mean": score["sum"], "tokens": 1}


@pytest.mark.thorough
def test_a_bias_and_a_list_of_tokens_name_the_demos_own_tokens(tokenizer: Tokenizer) -> None:
    assert {tokenizer.id_to_token(int(name)) for name in FEATURES["logit-bias"]["logit_bias"]} == {"ĠLondon"}
    assert {tokenizer.id_to_token(number) for number in FEATURES["allowed-tokens"]["allowed_token_ids"]} == {
        "Ġyes",
        "Ġno",
    }


@pytest.mark.thorough
def test_a_truncated_prompt_is_its_last_tokens(finished: Finished, tokenizer: Tokenizer) -> None:
    (truncated,), (last,), (whole,) = map(finished.rows, ("truncated", LAST_TOKENS, "truncated" + WITHOUT))
    assert truncated["prompt_tokens"] == last["prompt_tokens"]
    assert truncated["prompt_tokens"] + truncated["dropped_prompt_tokens"] == whole["prompt_tokens"]
    assert whole["prompt_tokens"] == len(tokenizer.encode(truncated["prompt"]).ids)
    assert truncated["output_text"] == last["output_text"]


@pytest.mark.thorough
def test_a_prefilled_answer_is_continued(finished: Finished) -> None:
    """The same as the chat written out, whose last turn is not ended."""
    (prefilled,), (written,) = map(finished.rows, (PREFILL, WRITTEN_OUT))
    assert prefilled["output_text"]
    assert prefilled["output_text"] == written["output_text"]
    assert prefilled["prompt_tokens"] == written["prompt_tokens"]


@pytest.mark.thorough
@pytest.mark.parametrize("custom_id", ["json-schema", "logprobs", PREFILL])
def test_openais_types_parse_a_chat(finished: Finished, custom_id: str) -> None:
    (row,) = finished.rows(custom_id)
    body = ChatCompletion.model_validate(finished.body(custom_id), strict=True)
    (choice,) = body.choices
    assert (choice.message.content, choice.finish_reason) == (row["output_text"], row["finish_reason"])
    assert body.usage is not None
    assert [body.usage.prompt_tokens, body.usage.completion_tokens] == [row["prompt_tokens"], row["completion_tokens"]]
    if custom_id == "logprobs":
        assert choice.logprobs is not None
        content = choice.logprobs.content or []
        assert b"".join(bytes(one.bytes or ()) for one in content).decode() == row["output_text"]
        assert [one.logprob for one in content] == [one["logprob"] for one in row["logprobs"]]


@pytest.mark.thorough
def test_openais_types_parse_completions(finished: Finished) -> None:
    three = Completion.model_validate(finished.body("three-answers"), strict=True)
    rows = finished.rows("three-answers")
    assert [choice.text for choice in three.choices] == [row["output_text"] for row in rows]
    assert three.usage is not None
    assert three.usage.completion_tokens == sum(row["completion_tokens"] for row in rows)

    # Null stands for the prompt's first token, as in OpenAI's API. The types do not say so, and the SDK does not check.
    echoed = Completion.model_construct(**finished.body("loglikelihood"))
    (choice,) = echoed.choices
    assert choice.logprobs is not None
    assert choice.text == "".join(choice.logprobs.tokens or ()) == FEATURES["loglikelihood"]["body"]["prompt"]
    (row,) = finished.rows("loglikelihood")
    assert choice.logprobs.token_logprobs == [one["logprob"] for one in row["prompt_logprobs"]]


@pytest.mark.thorough
def test_openais_two_forms_of_failure(finished: Finished) -> None:
    """A request that is refused has a 400; one whose answer did not count has no response."""
    for custom_id in ("tools", "thinking"):
        line = finished.openai[custom_id]
        (row,) = finished.rows(custom_id)
        assert (line["response"]["status_code"], line["error"]) == (400, None)
        assert line["response"]["body"]["error"]["message"] == row["error_message"]
    refused = finished.openai["not-accepted"]
    assert refused["response"] is None
    assert refused["error"]["code"] == "not_accepted"


@pytest.mark.thorough
def test_the_csv_says_what_the_jsonl_says(finished: Finished) -> None:
    assert len(finished.csv) == len(finished.jsonl)
    for cells, row in zip(finished.csv, finished.jsonl, strict=True):
        assert cells.keys() == row.keys()
        for name in ("custom_id", "state", "output_text", "error_code", "error_message"):
            assert cells[name] == (row[name] or "")
        for name in ("choice", "prompt_tokens", "completion_tokens", "tries", "dropped_prompt_tokens"):
            assert cells[name] == ("" if row[name] is None else str(row[name]))
        for name in ("scores", "logprobs", "prompt_logprobs"):
            assert (json.loads(cells[name]) if cells[name] else None) == (row[name] or None)


@pytest.mark.thorough
def test_sql_has_the_same_answers_and_reasons(finished: Finished) -> None:
    (job,) = finished.rows("plain")
    connection = sqlite3.connect(finished.database)
    answers = connection.execute(
        "SELECT j.custom_id, r.choice, r.output_text, r.is_valid, r.scores FROM results r"
        " JOIN jobs j ON j.id = r.job_id WHERE j.batch_id = ? ORDER BY j.line, r.choice",
        [job["batch_id"]],
    ).fetchall()
    failed = connection.execute(
        "SELECT custom_id, error_code, error_message FROM jobs WHERE batch_id = ? AND state = 'failed' ORDER BY line",
        [job["batch_id"]],
    ).fetchall()
    connection.close()
    answered = [row for row in finished.jsonl if row["output_text"] is not None]
    assert [answer[:3] for answer in answers] == [
        (row["custom_id"], row["choice"], row["output_text"]) for row in answered
    ]
    assert [None if found is None else bool(found) for *_, found, _ in answers] == [row["is_valid"] for row in answered]
    assert [json.loads(found) for *_, found in answers if found is not None] == [
        row["scores"] for row in answered if row["scores"] is not None
    ]
    assert failed == [
        (row["custom_id"], row["error_code"], row["error_message"])
        for row in finished.jsonl
        if row["state"] == "failed"
    ]
    assert [custom_id for custom_id, *_ in failed] == ["not-accepted", "tools", "thinking"]


@pytest.mark.thorough
def test_the_command_tells_what_became_of_the_lines(finished: Finished) -> None:
    said = json.loads(finished.printed)
    assert said["counts"]["failed"] == 3
    assert said["counts"]["succeeded"] == len(FEATURES) + len(EXTRACTION) + len(CLAIMS) + 2 - 3


@pytest.mark.thorough
@pytest.mark.parametrize("custom_id", EXTRACTION)
def test_an_extracted_answer_has_its_form(finished: Finished, custom_id: str) -> None:
    line, (row,) = EXTRACTION[custom_id], finished.rows(custom_id)
    assert (row["state"], row["is_valid"], row["finish_reason"]) == ("succeeded", True, "stop")
    text = row["output_text"]
    if "response_format" in line:
        assert jsonschema_rs.is_valid(line["response_format"]["json_schema"]["schema"], json.loads(text))
    elif "choice" in line["structured_outputs"]:
        assert text in line["structured_outputs"]["choice"]
    else:
        assert re.fullmatch(line["structured_outputs"]["regex"], text)
