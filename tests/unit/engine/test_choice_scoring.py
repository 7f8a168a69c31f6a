"""Options are scored as transformers would score them, whatever else is in the batch, and a request ends once."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.request import FinishReason, Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.score_choices import ScoreChoices
from helix_jobs.errors import EngineError, InvalidRequestError, PromptTooLongError
from helix_jobs.token_counts import total_tokens
from tests.unit.engine.failing_steps import FaultyStep
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import ALPHABET, reference_logits, request, roughen, tiny_engine, tiny_model

if TYPE_CHECKING:
    from helix_jobs.engine.engine import Engine
    from helix_jobs.engine.request import GenerationResult
    from helix_jobs.engine.schedule.step_plan import Schedule

MODEL = tiny_model(seed=3)
# Its layers carry states, which a sequence can begin with where one was kept.
RECURRENT_MODEL = roughen(tiny_model("lfm2", seed=3))
OPTIONS = ("yes", "no", "may be", "a", "yes!", "nobody knows it at all")


def scored(name: str, prompt: str | None = None, *, by: Any = "sum", options: Any = OPTIONS, **fields: Any) -> Request:
    return Request(
        request_id=name,
        prompt=prompt,
        seed=1,
        sampling_params=SamplingParams(),
        score_choices=ScoreChoices(options=options, by=by),
        **fields,
    )


def ids_of(text: str) -> list[int]:
    return [ALPHABET.index(character) + 2 for character in text]


def reference(prompt: str, option: str, model: Any = MODEL) -> list[float]:
    before, behind = ids_of(prompt), ids_of(option)
    rows = torch.log_softmax(reference_logits(model, before + behind), dim=1)[len(before) - 1 : -1]
    return [float(row[token]) for row, token in zip(rows, behind, strict=True)]


def check(result: GenerationResult, prompt: str, by: str = "sum", options: Any = OPTIONS, model: Any = MODEL) -> None:
    assert result.error is None
    assert result.finish_reason is FinishReason.STOP
    assert result.scores is not None
    assert list(result.scores) == list(options)
    for option in options:
        logprobs, score = reference(prompt, option, model), result.scores[option]
        assert score["tokens"] == len(logprobs) == len(option)
        assert score["sum"] == pytest.approx(sum(logprobs), abs=1e-3)
        assert score["mean"] == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-3)
    best = max(options, key=lambda option: result.scores[option][by])
    assert (result.output_text, result.output_token_ids) == (best, tuple(ids_of(best)))
    assert result.prompt_tokens == len(prompt)


def made_up(length: int, seed: int = 2) -> str:
    return "".join(random.Random(seed).choices(ALPHABET, k=length))


def finish(engine: Engine) -> list[GenerationResult]:
    results = []
    while engine.has_unfinished():
        results += engine.step()
    return results


@pytest.mark.thorough(fast=3)
@pytest.mark.parametrize(
    ("length", "config"),
    [
        (1, {}),
        (9, {"draft": "other"}),
        (60, {"token_budget": 7}),
        (60, {"max_batch_size": 2}),
        (60, {"num_blocks": 30, "max_batch_size": 6}),
    ],
)
def test_scores_are_transformers_own(length: int, config: dict[str, Any]) -> None:
    engine = tiny_engine(MODEL, **{"draft": "none", "depth": 0, **config})
    prompt = made_up(length)
    plain = [request(f"p{i}", ids_of(made_up(20, i)), max_tokens=8, ignore_eos=True) for i in range(3)]
    alone = engine.generate(plain)
    by_sum, *beside, by_mean = engine.generate([scored("sum", prompt), *plain, scored("mean", prompt, by="mean")])
    check(by_sum, prompt)
    check(by_mean, prompt, "mean")
    assert [one.output_token_ids for one in beside] == [one.output_token_ids for one in alone]
    engine.check_integrity()
    assert opened(engine).is_empty


def test_the_mean_favours_no_short_option() -> None:
    engine = tiny_engine(MODEL, "none", depth=0)
    prompts = [made_up(12, seed) for seed in range(8)]
    by_sum = engine.generate(scored(f"s{i}", prompt) for i, prompt in enumerate(prompts))
    by_mean = engine.generate(scored(f"m{i}", prompt, by="mean") for i, prompt in enumerate(prompts))
    lengths = [sum(len(one.output_text) for one in results) for results in (by_sum, by_mean)]
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize("model", [MODEL, RECURRENT_MODEL], ids=["llama", "lfm2"])
def test_the_prompt_is_computed_once(model: Any) -> None:
    engine = tiny_engine(model, "none", depth=0, max_batch_size=4)
    prompt, options = made_up(41), OPTIONS[::-1]
    schedule, computed = opened(engine).scheduler.schedule, []

    def counting() -> Schedule:
        made = schedule()
        computed.extend(one.num_tokens for one in made.prefills)
        return made

    opened(engine).scheduler.schedule = counting  # type: ignore[method-assign]
    (result,) = engine.generate([scored("a", prompt, options=options)])
    check(result, prompt, options=options, model=model)
    assert result.cached_prompt_tokens == 0
    # The other options begin with the full blocks before the prompt's last token.
    rest = 41 - 40
    assert sum(computed) == len(prompt) + sum(map(len, OPTIONS)) + rest * (len(OPTIONS) - 1)


def test_counters_count_what_the_results_count() -> None:
    engine = tiny_engine(MODEL, "none", depth=0, max_batch_size=4)
    prompt = made_up(41)
    plain = request("plain", ids_of(made_up(20, 5)), max_tokens=8, ignore_eos=True)
    results = engine.generate([scored("a", prompt), plain, scored("b", made_up(9, 4), options=("yes", "no"))])
    results += engine.generate([scored("again", prompt)])
    assert [one.prompt_tokens for one in results] == [41, 20, 9, 41]
    assert results[-1].cached_prompt_tokens == 40
    # The model emits no tokens of options, not those of the best one either.
    assert [one.completion_tokens for one in results] == [0, 8, 0, 0]
    assert [bool(one.output_text) for one in results if one.scores is not None] == [True] * 3
    counters, total = engine.counters().tokens(), total_tokens([one.tokens for one in results]).tokens()
    assert counters["completion_tokens"] == 8
    assert counters == total


def test_a_request_that_fails_counts_its_prompt_alone() -> None:
    engine = tiny_engine(MODEL, "none", depth=0, max_batch_size=2)
    engine.add_request(engine.encode(scored("a", made_up(20))))
    engine.step()
    engine.abort("a")
    assert [one.completion_tokens for one in finish(engine)] == [0]
    assert (engine.counters().prompt_tokens, engine.counters().completion_tokens) == (20, 0)


@pytest.mark.thorough
def test_many_options_keep_to_the_rows_that_a_step_may_score() -> None:
    engine = tiny_engine(MODEL, "none", depth=0, max_batch_size=8)
    opened(engine).limit_scored_rows(5)
    options = tuple(made_up(1 + seed % 9, seed) for seed in range(256))
    options = tuple(dict.fromkeys(options))
    (result,) = engine.generate([scored("a", "which one? ", options=options)])
    check(result, "which one? ", options=options)
    engine.check_integrity()


def test_options_continue_a_chats_generation_prompt() -> None:
    engine = tiny_engine(MODEL, "none", depth=0)
    (result,) = engine.generate([scored("a", messages=({"role": "user", "content": "hi"},))])
    check(result, "u.hi!a.")


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_an_abort_ends_all_options(steps: int) -> None:
    """Before the first option, in the middle of it, and in the middle of the others."""
    engine = tiny_engine(MODEL, "none", depth=0, max_batch_size=2)
    opened(engine).limit_scored_rows(1)
    engine.add_request(engine.encode(scored("a", made_up(20), options=("yes", "no", "perhaps"))))
    for _ in range(steps):
        assert engine.step() == []
        assert engine.running() in (["a"], []), "between the first option and the others nothing runs"
    with pytest.raises(InvalidRequestError, match="already in the engine"):
        engine.add_request(engine.encode(scored("a", "b")))
    engine.abort("a")
    (result,) = finish(engine)
    assert (result.request_id, result.finish_reason, result.scores) == ("a", FinishReason.ABORTED, None)
    assert not engine.has_unfinished()
    engine.check_integrity()
    assert opened(engine).is_empty


@pytest.mark.parametrize("option", [0, 3])
def test_an_option_that_fails_fails_its_request_alone(option: int) -> None:
    engine = tiny_engine(MODEL, "none", depth=0, max_batch_size=4)
    opened(engine).replace_step(FaultyStep, RuntimeError("a kernel's fault"), poison=f"bad/{option}")
    bad, good = engine.generate([scored("bad", made_up(20)), scored("good", made_up(30))])
    assert isinstance(bad.error, EngineError)
    assert (bad.request_id, bad.finish_reason, bad.scores) == ("bad", None, None)
    check(good, made_up(30))
    engine.check_integrity()


def test_prompt_and_option_must_fit_the_context() -> None:
    engine = tiny_engine(MODEL, "none", depth=0, max_model_len=64)
    (fits,) = engine.generate([scored("a", made_up(60), options=("abc",))])
    check(fits, made_up(60), options=("abc",))
    with pytest.raises(PromptTooLongError, match="64 tokens"):
        engine.encode(scored("a", made_up(60), options=("abc", "abcd")))


def test_the_same_scores_as_an_echo() -> None:
    """What lm-evaluation-harness would compute from ``echo`` and ``logprobs``."""
    engine = tiny_engine(MODEL, "none", depth=0)
    prompt = made_up(17)
    (result,) = engine.generate([scored("a", prompt)])
    assert result.scores is not None
    for option in OPTIONS:
        asked = request(option, ids_of(prompt + option), max_tokens=1, echo=True, logprobs=1)
        (echoed,) = engine.generate([asked])
        assert echoed.prompt_logprobs is not None
        logprobs = [one.logprob or 0.0 for one in echoed.prompt_logprobs]
        assert sum(logprobs[len(prompt) :]) == pytest.approx(result.scores[option]["sum"], abs=1e-4)


def test_options_share_their_prompt_where_a_draft_with_a_window_keeps_up():
    """Nothing is drafted for options, so that what they share need not have been through the draft model."""
    model = roughen(tiny_model("mistral", seed=3, sliding_window=24))
    engine = tiny_engine(model, "same", depth=4, max_batch_size=8)
    prompt = made_up(60)
    engine.add_request(engine.encode(scored("s", prompt)))
    (result,) = finish(engine)
    check(result, prompt, model=model)
    assert engine.counters().steps == 2, "the first option with the prompt, then the others side by side"
