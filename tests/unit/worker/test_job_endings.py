"""What a job's ending comes to: a result, a failure, or nothing that is written."""

from __future__ import annotations

from array import array
from dataclasses import fields, replace
from typing import Any

import pytest

from helix_jobs.engine.fake_engine import FakeEngine
from helix_jobs.engine.request import FinishReason, GenerationResult
from helix_jobs.errors import EngineError, PromptTooLongError
from helix_jobs.storage.records import ResultRow
from helix_jobs.token_logprobs import TokenLogprobs, TokenText
from helix_jobs.worker.engine_run import Generated, RequestFailed
from helix_jobs.worker.job_endings import Fail, Succeed, Unfinished, Withdrawn, decide
from tests.unit.worker.finished_runs import RESULT, RUN


@pytest.mark.parametrize(
    ("ending", "decision"),
    [
        (Withdrawn.LEASE_LOST, Unfinished.DROP),
        (Withdrawn.HANDED_BACK, Unfinished.RELEASE),
        (RequestFailed(PromptTooLongError("too long")), Fail("prompt_too_long", "too long")),
        (Generated(replace(RESULT, finish_reason=FinishReason.ABORTED), RUN), Unfinished.RELEASE),
        (Generated(replace(RESULT, finish_reason=None, error=EngineError("x")), RUN), Fail("engine_error", "x")),
    ],
)
def test_endings_without_a_result(ending: Any, decision: Any) -> None:
    assert decide(ending, info=FakeEngine().info, waited_seconds=1.0) == decision


@pytest.mark.parametrize("is_last", [False, True])
def test_a_job_that_was_computed_when_the_server_was_lost_spends_an_attempt(*, is_last: bool) -> None:
    lost = Generated(replace(RESULT, finish_reason=FinishReason.ABORTED, lost_with_server=True), RUN)
    decision = decide(lost, info=FakeEngine().info, waited_seconds=1.0, is_last_attempt=is_last)
    if not is_last:
        assert decision is Unfinished.GIVE_BACK
        return
    assert isinstance(decision, Fail)
    assert decision.code == "server_lost"
    assert "retry by hand" in decision.message


def test_a_result_row_says_what_was_measured() -> None:
    decision = decide(Generated(RESULT, RUN), info=FakeEngine().info, waited_seconds=10.0)
    assert isinstance(decision, Succeed)
    (row,) = decision.answers
    assert (row.queue_seconds, row.tokens_per_second, row.acceptance_rate) == (10.5, 2.0, 0.75)
    assert (row.completion_tokens, row.mean_acceptance_length, row.cached_prompt_tokens) == (4, 2.0, 1)
    assert row.dropped_prompt_tokens is None
    assert decision.run is RUN
    cut = decide(Generated(replace(RESULT, dropped_prompt_tokens=7), RUN), info=FakeEngine().info, waited_seconds=0.0)
    assert isinstance(cut, Succeed)
    assert cut.answers[0].dropped_prompt_tokens == 7


def test_a_result_row_says_how_keys_and_values_were_kept() -> None:
    for dtype, said in (("auto", "bfloat16"), ("int8", "bfloat16, KV int8")):
        info = replace(FakeEngine().info, dtype="bfloat16", kv_cache_dtype=dtype)
        decision = decide(Generated(RESULT, RUN), info=info, waited_seconds=0.0)
        assert isinstance(decision, Succeed)
        assert decision.answers[0].dtype == said


def test_a_result_row_has_the_parts_of_the_answer() -> None:
    calls = ({"id": "call_1", "type": "function", "function": {"name": "wait", "arguments": "{}"}},)
    result = replace(
        RESULT, finish_reason=FinishReason.TOOL_CALLS, reasoning_text="hm", reasoning_tokens=2, tool_calls=calls
    )
    decision = decide(Generated(result, RUN), info=FakeEngine().info, waited_seconds=0.0)
    assert isinstance(decision, Succeed)
    (row,) = decision.answers
    assert (row.finish_reason, row.reasoning_text, row.reasoning_tokens) == ("tool_calls", "hm", 2)
    assert row.tool_calls == calls


def test_a_result_row_has_every_part_of_the_answer_that_the_table_has() -> None:
    """A part that the engine gives and the table has a column for must not be lost between them."""
    found = TokenLogprobs(0, array("i", [5]), array("f", [-0.5]), {5: TokenText(b"a")})
    parts: dict[str, Any] = {
        "is_valid": True,
        "dropped_prompt_tokens": 7,
        "reasoning_text": "hm",
        "reasoning_tokens": 2,
        "tool_calls": ({"id": "call_1"},),
        "scores": {"yes": {"sum": -1.0}},
        "logprobs": found,
        "prompt_logprobs": found,
    }
    optional = {field.name for field in fields(GenerationResult) if field.default is None}
    assert parts.keys() == optional & {field.name for field in fields(ResultRow)}
    decision = decide(Generated(replace(RESULT, **parts), RUN), info=FakeEngine().info, waited_seconds=0.0)
    assert isinstance(decision, Succeed)
    stored = {name: part.to_bytes() if part is found else part for name, part in parts.items()}
    assert {name: getattr(decision.answers[0], name) for name in parts} == stored


def test_the_prompt_counts_once_among_several_choices() -> None:
    siblings = tuple(replace(RESULT, choice=number, output_text=str(number)) for number in (1, 2))
    decision = decide(Generated(replace(RESULT, siblings=siblings), RUN), info=FakeEngine().info, waited_seconds=0.0)
    assert isinstance(decision, Succeed)
    assert [(row.choice, row.output_text) for row in decision.answers] == [(0, RESULT.output_text), (1, "1"), (2, "2")]
    assert [row.prompt_tokens for row in decision.answers] == [RESULT.prompt_tokens, 0, 0]
    assert [row.completion_tokens for row in decision.answers] == [4, 4, 4]


def test_a_result_row_names_the_adapter_in_the_model_s_place() -> None:
    for adapter, named in (("sql", "sql"), (None, "fake-target")):
        decision = decide(Generated(replace(RESULT, adapter=adapter), RUN), info=FakeEngine().info, waited_seconds=0.0)
        assert isinstance(decision, Succeed)
        assert decision.answers[0].target_model == named
