"""The shipped fake behaves like an engine."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from helix_jobs.engine.fake_engine import FakeEngine, fake_output
from helix_jobs.engine.fake_faults import FakeFaults
from helix_jobs.engine.request import FinishReason, GenerationResult, Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.score_choices import ScoreChoices
from helix_jobs.errors import EngineError, InvalidRequestError, PromptTooLongError
from helix_jobs.token_logprobs import TokenLogprobs

if TYPE_CHECKING:
    from helix_jobs.engine.protocol import EngineProtocol


def request(name: str, prompt: str = "one two three four five six", **fields: object) -> Request:
    return Request(request_id=name, prompt=prompt, sampling_params=SamplingParams(**fields), seed=0)


def drain(engine: EngineProtocol, *requests: Request) -> dict[str, GenerationResult]:
    for one in requests:
        engine.add_request(engine.encode(one))
    ended = {}
    for _ in range(1000):
        if not engine.has_unfinished():
            return ended
        ended |= {result.request_id: result for result in engine.step()}
    pytest.fail("the engine does not come to an end")


def test_it_echoes_words_until_they_or_the_tokens_run_out() -> None:
    ended = drain(
        FakeEngine(),
        request("all"),
        request("cut", max_tokens=4),
        request("on", "a b", max_tokens=5, ignore_eos=True),
        Request(
            request_id="chat",
            messages=({"role": "user", "content": "hello you"},),
            sampling_params=SamplingParams(),
            seed=0,
        ),
    )
    outputs = {name: (result.output_text, result.finish_reason) for name, result in ended.items()}
    assert outputs == {
        "all": ("one two three four five six", FinishReason.STOP),
        "cut": ("one two three four", FinishReason.LENGTH),
        "on": ("a b a b a", FinishReason.LENGTH),
        "chat": ("hello you", FinishReason.STOP),
    }
    assert ended["cut"].output_text == fake_output("one two three four five six", 4)[0]


def test_further_choices_begin_a_word_later_and_all_of_them_end_together() -> None:
    engine = FakeEngine(max_batch_size=2)
    ended = drain(engine, request("many", "a b c", n=4, temperature=1.0), request("one", "x y"))
    assert [choice.output_text for choice in ended["many"].choices] == ["a b c", "b c a", "c a b", "a b c"]
    assert [choice.choice for choice in ended["many"].choices] == [0, 1, 2, 3]
    assert ended["one"].siblings == ()
    assert (engine.counters().prompt_tokens, engine.counters().completion_tokens) == (5, 14)


def test_abort_and_failure_end_all_choices() -> None:
    engine = FakeEngine(max_batch_size=2, depth=0, faults=FakeFaults(fail="bad"))
    engine.add_request(engine.encode(request("many", n=3, temperature=1.0)))
    engine.step()
    assert engine.running() == ["many"]
    engine.abort("many")
    (result,) = engine.step()
    assert {choice.finish_reason for choice in result.choices} == {FinishReason.ABORTED}
    failed = drain(engine, request("bad", "bad one", n=3, temperature=1.0))["bad"]
    assert isinstance(failed.error, EngineError)


def test_figures_agree_with_each_other() -> None:
    engine = FakeEngine(max_batch_size=2, depth=3)
    ended = drain(engine, *(request(str(number)) for number in range(5)))
    counters = engine.counters()
    assert counters.completion_tokens == sum(result.completion_tokens for result in ended.values()) == 30
    assert counters.draft_tokens == sum(result.draft_tokens for result in ended.values())
    assert counters.prompt_tokens == 30
    assert counters.sequence_steps == sum(result.target_steps for result in ended.values())
    assert counters.sequence_steps / counters.steps <= 2
    for result in ended.values():
        assert result.target_steps == 2
        assert result.mean_acceptance_length == 3.0
        assert 0 <= (result.ttft_seconds or 0) <= result.total_seconds


def test_its_run_figures_are_those_of_an_engine_that_drafts() -> None:
    engine = FakeEngine(depth=3, step_seconds=0.001)
    drain(engine, request("a"), request("b", "one"))
    counters = engine.counters()
    # Of a prompt of one word nothing can be drafted; the other two steps' drafts are the first request's.
    assert counters.depth_reasons == {"model": counters.steps}
    assert counters.target_seconds > counters.draft_seconds > 0.0
    assert counters.target_seconds + counters.draft_seconds >= 0.001 * counters.steps
    drain(engine, request("c", "one"))
    assert engine.counters().depth_reasons["off:nothing"] == 1
    plain = FakeEngine(depth=0)
    drain(plain, request("d"))
    assert (plain.counters().depth_reasons, plain.counters().draft_seconds) == ({}, 0.0)
    assert (engine.info.speculation_depth, plain.info.speculation_depth) == (None, 0)


def test_prompts_that_begin_alike_share_whole_blocks() -> None:
    engine = FakeEngine(max_batch_size=1)
    system = " ".join(str(number) for number in range(40))
    ended = drain(engine, request("a", f"{system} a"), request("b", f"{system} b"), request("c", system))
    assert [result.cached_prompt_tokens for result in ended.values()] == [0, 32, 32]
    assert engine.counters().cached_prompt_tokens == 64
    same = " ".join(["word"] * 32)
    ended = drain(engine, request("d", same), request("e", same))
    assert [result.cached_prompt_tokens for result in ended.values()] == [0, 16], "the last token is always computed"


def test_an_abort_comes_out_of_the_next_step() -> None:
    engine = FakeEngine()
    engine.add_request(engine.encode(request("a")))
    engine.abort("a")
    engine.abort("never heard of")
    assert [(result.request_id, result.finish_reason) for result in engine.step()] == [("a", FinishReason.ABORTED)]
    assert not engine.has_unfinished()


def test_faults() -> None:
    faults = FakeFaults(fail="bad", hang="endless", crash="boom")
    engine = FakeEngine(faults=faults)
    ended = drain(engine, request("bad", "a bad one"), request("good"))
    assert isinstance(ended["bad"].error, EngineError)
    assert ended["bad"].finish_reason is None
    assert ended["good"].finish_reason is FinishReason.STOP

    engine.add_request(engine.encode(request("endless", "endless")))
    assert [engine.step() for _ in range(10)] == [[]] * 10
    engine.add_request(engine.encode(request("boom", "boom")))
    with pytest.raises(RuntimeError, match="told to crash"):
        engine.step()


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    with pytest.raises(PromptTooLongError, match="4 tokens"):
        FakeEngine(max_model_len=4).encode(request("long", "a b c d"))


def test_the_environment_sets_it_up() -> None:
    engine = FakeEngine.from_environment({"HELIX_FAKE_FAIL": "x", "HELIX_FAKE_STEP_SECONDS": "0"}, max_batch_size=3)
    assert engine.info.max_batch_size == 3
    assert drain(engine, request("a", "x"))["a"].error is not None


def test_executions_are_counted_in_a_file(tmp_path):
    file = tmp_path / "executions"
    for request_id in ("7.1", "7.2"):
        engine = FakeEngine.from_environment({"HELIX_FAKE_EXECUTIONS": str(file), "HELIX_FAKE_STEP_SECONDS": "0"})
        engine.add_request(engine.encode(request(request_id)))
        while engine.has_unfinished():
            engine.step()
    assert file.read_text() == "7.1\n7.2\n"


def test_it_needs_no_torch() -> None:
    script = "import sys, helix_jobs.engine.fake_engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_it_scores_the_options_of_a_request_and_makes_no_text_for_it() -> None:
    engine = FakeEngine()
    options = ("yes indeed", "no", "maybe")
    asked = [
        replace(request(by, "one two"), score_choices=ScoreChoices(options=options, by=by)) for by in ("sum", "mean")
    ]
    ended = drain(engine, *asked)
    scores = {
        "yes indeed": {"sum": -2.25, "mean": -1.125, "tokens": 2},
        "no": {"sum": -0.5, "mean": -0.5, "tokens": 1},
        "maybe": {"sum": -1.25, "mean": -1.25, "tokens": 1},
    }
    for result in ended.values():
        assert result.scores == scores
        assert (result.output_text, result.finish_reason, result.completion_tokens) == ("no", FinishReason.STOP, 0)
        assert (result.prompt_tokens, result.ttft_seconds, result.draft_tokens) == (2, None, 0)
    assert (engine.counters().completion_tokens, engine.counters().prompt_tokens) == (0, 4)


def test_log_probabilities_stand_where_they_are_asked_for() -> None:
    ended = drain(
        FakeEngine(),
        request("plain"),
        request("answers", "ab c", logprobs=2, n=2, temperature=1.0, prompt_logprobs=0),
        request("scored", "ab c", logprobs=1, echo=True, max_tokens=0),
    )
    assert ended["plain"].logprobs is ended["plain"].prompt_logprobs is None
    first, second = ended["answers"].choices
    assert first.logprobs is not None
    assert second.logprobs is not None
    assert first.prompt_logprobs is not None
    assert second.prompt_logprobs is None
    assert [one.logprob for one in first.logprobs] == [-0.5, -0.25]
    assert [one.alternatives for one in second.logprobs] == [((0, -0.25),), ((1, -0.5),)]
    assert (first.cumulative_logprob, second.output_text) == (-0.75, "c ab")
    assert [one.logprob for one in first.prompt_logprobs] == [None, -0.25]
    scored = ended["scored"]
    assert (scored.output_text, scored.output_token_ids, scored.finish_reason) == ("", (), FinishReason.LENGTH)
    assert scored.logprobs is not None
    assert len(scored.logprobs) == 0
    assert scored.prompt_logprobs is not None
    assert [text.data for text in scored.prompt_logprobs.texts.values()] == [b"ab", b" c"]
    assert TokenLogprobs.from_bytes(scored.prompt_logprobs.to_bytes()).texts == scored.prompt_logprobs.texts


def test_it_knows_its_adapters_by_name() -> None:
    engine = FakeEngine(adapters=("sql",))
    asked = Request(request_id="r", sampling_params=SamplingParams(), seed=0, prompt="a b", adapter="sql")
    assert [result.adapter for result in drain(engine, asked).values()] == ["sql"]
    with pytest.raises(InvalidRequestError, match="adapter: 'fr' is not loaded; give one of sql, or remove the field"):
        engine.encode(replace(asked, adapter="fr"))
