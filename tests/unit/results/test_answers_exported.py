"""From a line to OpenAI's output with a real engine between them, without queue and database."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import torch
from openai.types import Completion
from openai.types.chat import ChatCompletion

from helix_jobs.engine.protocol import EngineCounters
from helix_jobs.intake.stored_requests import to_engine_request
from helix_jobs.new_job import NewJob
from helix_jobs.results.openai import openai_line
from helix_jobs.storage.records import JobResult
from helix_jobs.storage.states import JobState
from helix_jobs.worker.engine_run import Generated, Run
from helix_jobs.worker.job_endings import Succeed, decide
from tests.unit.engine.tiny_models import ALPHABET, reference_logits, tiny_engine, tiny_model
from tests.unit.intake.request_lines import read_one
from tests.unit.results.job_results import loglikelihood

if TYPE_CHECKING:
    from helix_jobs.engine.engine import Engine

MODEL = tiny_model(seed=3)
# A random model may write them; no text shows them.
SPECIAL = ("<unk>", "<eos>")
NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine(MODEL, "other")


def body_of(engine: Engine, line: dict[str, Any]) -> dict[str, Any]:
    """What the output line of an input line says."""
    job = read_one(line)
    assert isinstance(job, NewJob), job
    (result,) = engine.generate([to_engine_request(1, job.request)])
    decision = decide(Generated(result, Run(EngineCounters(), 0.0)), info=engine.info, waited_seconds=0.0)
    assert isinstance(decision, Succeed), decision
    blank = dict.fromkeys((field.name for field in fields(JobResult)), None)
    own = {"job_id": 1, "batch_id": "b", "line": 1, "state": JobState.SUCCEEDED, "request": job.request, "tries": 0}
    stored = {**blank, **own, "queued_at": NOW, "finished_at": NOW}
    made = [JobResult(**{**stored, **asdict(row)}) for row in decision.answers]
    return json.loads(json.dumps(openai_line(made), allow_nan=False))["response"]["body"]


def ids_of(text: str) -> list[int]:
    return [ALPHABET.index(character) + 2 for character in text]


def logprobs_of(text: str) -> list[float]:
    """The log probability of each character but the first."""
    ids = ids_of(text)
    rows = torch.log_softmax(reference_logits(MODEL, ids), dim=1)
    return [float(row[token]) for row, token in zip(rows[:-1], ids[1:], strict=True)]


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("as_ids", [True, False])
def test_a_loglikelihood_is_that_of_transformers(engine: Engine, *, as_ids: bool, max_tokens: int) -> None:
    context, continuation = "the sky is", " blue."
    prompt = [ids_of(context + continuation)] if as_ids else context + continuation
    asked = {"model": "m", "temperature": 0, "max_tokens": max_tokens, "logprobs": 1, "seed": 1234, "echo": True}
    body = body_of(engine, {"url": "/v1/completions", "body": {"prompt": prompt, **asked}})
    (choice,) = body["choices"]
    assert choice["text"].startswith(context + continuation)
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert choice["logprobs"]["text_offset"] == list(range(len(choice["logprobs"]["tokens"])))
    expected = logprobs_of(context + continuation)[len(context) - 1 :]
    if max_tokens == 0:
        assert choice["logprobs"]["token_logprobs"][len(context) :] == pytest.approx(expected, abs=1e-4)
    else:
        found, is_greedy = loglikelihood(body, len(context))
        assert found == pytest.approx(sum(expected), abs=1e-3)
        assert not is_greedy


def test_an_end_token_is_not_taken_for_the_continuations_last(engine: Engine) -> None:
    """A model that ends at once: the entry that the reader leaves out is the end token's."""
    text = "the sky is blue."
    asked = {"prompt": text, "max_tokens": 1, "logprobs": 1, "echo": True}
    (after,) = body_of(engine, {"url": "/v1/completions", "body": {**asked, "ignore_eos": True}})["choices"]
    end = ids_of(after["text"][-1])
    body = body_of(engine, {"url": "/v1/completions", "body": {**asked, "stop_token_ids": end}})
    assert body["choices"][0]["text"] == text
    assert loglikelihood(body, 4)[0] == pytest.approx(sum(logprobs_of(text)[3:]), abs=1e-3)


def test_the_clients_types_parse_every_kind_of_answer(engine: Engine) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "ignore_eos": True}
    parsed = ChatCompletion.model_validate(body_of(engine, {**chat, "logprobs": True, "top_logprobs": 3}), strict=True)
    content = parsed.choices[0].logprobs.content
    assert "".join(one.token for one in content if one.token not in SPECIAL) == parsed.choices[0].message.content
    assert all(len(one.top_logprobs) == 3 for one in content)
    line = {"prompt": "hi", "max_tokens": 6, "ignore_eos": True, "logprobs": 2, "temperature": 1.0}
    completion = Completion.model_validate(body_of(engine, line), strict=True)
    tokens = completion.choices[0].logprobs.tokens
    assert "".join(one for one in tokens if one not in SPECIAL) == completion.choices[0].text
    plain = Completion.model_validate(body_of(engine, {"prompt": "hi", "max_tokens": 3}), strict=True)
    assert plain.choices[0].logprobs is None


def test_choices_are_answered_by_the_best(engine: Engine) -> None:
    options = ["yes", "no", "who knows"]
    body = body_of(engine, {"prompt": "is it so? ", "choices": options, "score_by": "mean"})
    (choice,) = body["choices"]
    means = {one: sum(logprobs_of("is it so? " + one)[-len(one) :]) / len(one) for one in options}
    assert {one: score["mean"] for one, score in choice["scores"].items()} == pytest.approx(means, abs=1e-4)
    assert (choice["text"], choice["finish_reason"]) == (max(options, key=lambda one: means[one]), "stop")
    assert body["usage"]["prompt_tokens"] == 10


def test_the_clients_types_parse_several_choices(engine: Engine) -> None:
    asked = {"max_tokens": 6, "temperature": 1.0, "ignore_eos": True, "seed": 7, "n": 3}
    chat = {"messages": [{"role": "user", "content": "hi"}], **asked, "logprobs": True, "top_logprobs": 2}
    parsed = ChatCompletion.model_validate(body_of(engine, chat), strict=True)
    assert [choice.index for choice in parsed.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in parsed.choices}) == 3
    assert all(len(choice.logprobs.content) == 6 for choice in parsed.choices)
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens) == (len("u.hi!a."), 18)


def test_each_choice_echoes_the_prompt_that_was_scored_once(engine: Engine) -> None:
    asked = {"max_tokens": 6, "temperature": 1.0, "ignore_eos": True, "n": 3, "echo": True, "logprobs": 1}
    choices = body_of(engine, {"url": "/v1/completions", "body": {"prompt": "the sky", **asked}})["choices"]
    assert len(choices) == 3
    for choice in choices:
        assert choice["text"].startswith("the sky")
        assert choice["logprobs"]["token_logprobs"][1:7] == pytest.approx(logprobs_of("the sky"), abs=1e-4)
        assert len(choice["logprobs"]["tokens"]) == 13
