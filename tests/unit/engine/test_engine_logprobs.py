"""Log probabilities are those of transformers' logits at each position, whatever was drafted or shared."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helix_jobs.engine.config import EngineConfig
from helix_jobs.engine.model import step_memory
from helix_jobs.engine.request import FinishReason
from helix_jobs.engine.speculation.speculative import SpeculativeStep
from helix_jobs.errors import EngineError
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import VOCAB_SIZE, reference_logits, request, tiny_engine, tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.request import GenerationResult
    from helix_jobs.token_logprobs import TokenLogprobs

MODEL = tiny_model(seed=3)
GREEDY: dict[str, Any] = {}
SAMPLED = {"temperature": 0.8, "top_k": 12}
PENALISED = {"repetition_penalty": 1.4, "presence_penalty": 0.5}
MIXED = {**SAMPLED, **PENALISED}
ENDLESS = {"ignore_eos": True}


def made_up(*lengths: int, seed: int = 1) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(1, VOCAB_SIZE) for _ in range(length)] for length in lengths]


PROMPTS = [*made_up(1, 3, 30), [5, 9, 11, 3] * 8]


def reference(token_ids: Sequence[int]) -> torch.Tensor:
    """``[len(token_ids) - 1, vocab_size]`` log probabilities of the tokens behind each position."""
    return torch.log_softmax(reference_logits(MODEL, token_ids).float(), dim=1)[:-1]


def check(found: TokenLogprobs, token_ids: Sequence[int], logprobs: torch.Tensor, alternatives: int) -> None:
    """``found`` are the log probabilities of ``token_ids``, of which ``logprobs`` has a row each."""
    assert [one.token_id for one in found] == list(token_ids)
    assert found.num_alternatives == alternatives
    for one, row in zip(found, logprobs, strict=True):
        assert one.logprob == pytest.approx(float(row[one.token_id]), abs=1e-4)
        best = row.topk(min(alternatives, VOCAB_SIZE))
        assert [token_id for token_id, _ in one.alternatives] == best.indices.tolist()
        assert [value for _, value in one.alternatives] == pytest.approx(best.values.tolist(), abs=1e-4)


def check_output(result: GenerationResult, prompt: Sequence[int], alternatives: int) -> None:
    output = result.output_token_ids
    assert output
    assert result.logprobs is not None
    rows = reference([*prompt, *output])[len(prompt) - 1 :]
    check(result.logprobs, output, rows, alternatives)
    total = sum(float(row[token]) for row, token in zip(rows, output, strict=True))
    assert result.cumulative_logprob == pytest.approx(total, abs=1e-3)


def check_prompt(found: TokenLogprobs | None, prompt: Sequence[int], alternatives: int) -> None:
    assert found is not None
    first, *_ = found
    assert (first.token_id, first.logprob, first.alternatives) == (prompt[0], None, ())
    behind = type(found)(alternatives, found.token_ids[1 + alternatives :], found.logprobs[1 + alternatives :])
    check(behind, prompt[1:], reference(prompt), alternatives)


@pytest.mark.thorough(fast=2)
@pytest.mark.parametrize("extra", [GREEDY, SAMPLED, PENALISED, MIXED], ids=["greedy", "sampled", "penalised", "both"])
@pytest.mark.parametrize(
    ("draft", "depth", "drafters"),
    [("none", 0, ()), ("other", 4, ()), ("same", 4, ()), ("none", 4, ("lookup",)), ("int8", 4, ("lookup",))],
)
def test_output_logprobs_are_those_of_the_models_own_distribution(
    draft: str, depth: int, drafters: tuple[str, ...], extra: dict[str, Any]
) -> None:
    engine = tiny_engine(MODEL, draft, depth=depth, drafters=drafters, max_batch_size=4)
    common = {"max_tokens": 16, "ignore_eos": True, **extra}
    plain = [request(f"p{i}", prompt, seed=i, **common) for i, prompt in enumerate(PROMPTS)]
    asked = [request(f"l{i}", prompt, seed=i, logprobs=3 * i, **common) for i, prompt in enumerate(PROMPTS)]
    results = engine.generate([one for pair in zip(plain, asked, strict=True) for one in pair])
    if draft != "none" or extra is GREEDY:  # other outputs repeat nothing that lookup could find
        assert (engine.counters().draft_tokens > 0) == (depth > 0)
    for index, prompt in enumerate(PROMPTS):
        without, with_them = results[2 * index : 2 * index + 2]
        assert without.logprobs is None
        assert without.cumulative_logprob is None
        assert with_them.output_token_ids == without.output_token_ids, "asking for them changes no answer"
        check_output(with_them, prompt, 3 * index)
    engine.check_integrity()


def test_preemption_changes_no_logprob() -> None:
    def answers(num_blocks: int) -> list[GenerationResult]:
        engine = tiny_engine(MODEL, "int8", num_blocks=num_blocks, max_batch_size=6)
        common = {"max_tokens": 30, "ignore_eos": True, "logprobs": 2, "prompt_logprobs": 1}
        results = engine.generate(request(str(i), p, seed=i, **common) for i, p in enumerate(PROMPTS))
        assert (engine.counters().preemptions > 0) == (num_blocks < 100)
        engine.check_integrity()
        return results

    for roomy, tight, prompt in zip(answers(400), answers(34), PROMPTS, strict=True):
        assert tight.output_token_ids == roomy.output_token_ids
        check_output(tight, prompt, 2)
        check_prompt(tight.prompt_logprobs, prompt, 1)


@pytest.mark.thorough(fast=4)
@pytest.mark.parametrize("draft", ["none", "other"])
@pytest.mark.parametrize(("token_budget", "scored_rows"), [(1024, 1024), (7, 1024), (1024, 5), (16, 1)])
def test_prompt_logprobs_in_chunks_beside_plain_requests(draft: str, token_budget: int, scored_rows: int) -> None:
    engine = tiny_engine(MODEL, draft, max_batch_size=4, token_budget=token_budget)
    opened(engine).limit_scored_rows(scored_rows)
    common = {"max_tokens": 6, "ignore_eos": True}
    plain = [request(f"p{i}", prompt, seed=i, **common) for i, prompt in enumerate(PROMPTS)]
    asked = [request(f"s{i}", prompt, seed=i, prompt_logprobs=4, **common) for i, prompt in enumerate(PROMPTS)]
    results = engine.generate([one for pair in zip(plain, asked, strict=True) for one in pair])
    for index, prompt in enumerate(PROMPTS):
        without, with_them = results[2 * index : 2 * index + 2]
        assert without.prompt_logprobs is None
        assert with_them.logprobs is None
        assert with_them.output_token_ids == without.output_token_ids
        check_prompt(with_them.prompt_logprobs, prompt, 4)
    assert engine.counters().prompt_tokens == 2 * sum(map(len, PROMPTS))
    engine.check_integrity()


def test_a_step_takes_no_more_rows_than_it_may() -> None:
    engine = tiny_engine(MODEL, "none", depth=0, max_batch_size=4)
    opened(engine).limit_scored_rows(6)
    taken = []
    score = opened(engine).target_pass.score

    def counting(*args: Any) -> Any:
        scores = score(*args)
        taken.append(scores.num_scored)
        return scores

    opened(engine).target_pass.score = counting
    engine.generate(request(str(i), p, max_tokens=2, prompt_logprobs=0) for i, p in enumerate(PROMPTS))
    assert max(taken) == 6
    assert sum(taken) == sum(len(prompt) - 1 for prompt in PROMPTS)


class WidestLogits(TorchDispatchMode):
    """Notes the most rows that any tensor of logits has."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.num_rows = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dim() == 2 and made.shape[1] == self.vocab_size:
            self.num_rows = max(self.num_rows, len(made))
        return made


def test_a_long_prompts_logits_are_never_in_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_memory, "_MAX_SCORED_LOGITS", 16 * 499)
    model = tiny_model(seed=3, vocab_size=499)
    (prompt,) = made_up(200)
    engine = tiny_engine(model, "none", depth=0, max_batch_size=2, token_budget=1024)
    with WidestLogits(499) as widest:
        (result,) = engine.generate([request("a", prompt, max_tokens=2, prompt_logprobs=3)])
    assert result.prompt_logprobs is not None
    assert len(result.prompt_logprobs) == 200
    assert 16 <= widest.num_rows <= 20


@pytest.mark.parametrize(("vocab_size", "budget", "rows"), [(152_000, 2048, 110), (32_000, 256, 256), (1 << 25, 9, 1)])
def test_a_step_scores_as_many_rows_as_its_memory_is_reckoned_for(vocab_size: int, budget: int, rows: int) -> None:
    assert step_memory.scored_rows(vocab_size, EngineConfig(token_budget=budget, max_batch_size=2)) == rows


def test_a_long_scored_prompt_lets_plain_requests_pass() -> None:
    engine = tiny_engine(MODEL, "none", depth=0, max_batch_size=4)
    opened(engine).limit_scored_rows(2)
    (long,) = made_up(100)
    engine.add_request(request("long", long, max_tokens=1, prompt_logprobs=0))
    engine.add_request(request("long too", long[::-1], max_tokens=1, prompt_logprobs=0))
    engine.add_request(request("plain", [3, 4], max_tokens=3, ignore_eos=True))
    ended = []
    while engine.has_unfinished():
        ended += [result.request_id for result in engine.step()]
    assert ended == ["plain", "long", "long too"]


def test_cached_prompts_are_scored_all_the_same_and_shared_afterwards() -> None:
    engine = tiny_engine(MODEL, "other", max_batch_size=2)
    (prompt,) = made_up(41)
    engine.generate([request("warm", prompt, max_tokens=2)])
    (scored,) = engine.generate([request("scored", prompt, max_tokens=2, prompt_logprobs=2)])
    assert scored.cached_prompt_tokens == 0
    check_prompt(scored.prompt_logprobs, prompt, 2)
    other = tiny_engine(MODEL, "none", depth=0, max_batch_size=2)
    (first,) = other.generate([request("first", prompt, max_tokens=0, echo=True, logprobs=1)])
    check_prompt(first.prompt_logprobs, prompt, 1)
    (plain,) = other.generate([request("plain", prompt, max_tokens=2)])
    assert plain.cached_prompt_tokens == 40
    other.check_integrity()


def test_choices_share_a_scored_prompt() -> None:
    (prompt,) = made_up(41)
    engine = tiny_engine(MODEL, "none", depth=0, max_batch_size=8)
    asked = request("a", prompt, max_tokens=4, ignore_eos=True, temperature=1.0, n=5, logprobs=1, prompt_logprobs=2)
    (result,) = engine.generate([asked])
    check_prompt(result.prompt_logprobs, prompt, 2)
    for choice in result.choices:
        check_output(choice, prompt, 1)
    assert [choice.prompt_logprobs for choice in result.siblings] == [None] * 4
    assert [choice.cached_prompt_tokens for choice in result.siblings] == [40] * 4, "they waited for the first"


@pytest.mark.parametrize("length", [1, 2, 33])
def test_no_new_token_scores_the_prompt_alone(length: int) -> None:
    (prompt,) = made_up(length)
    engine = tiny_engine(MODEL, "other")
    (result,) = engine.generate([request("a", prompt, max_tokens=0, echo=True, logprobs=1)])
    assert result.error is None
    assert result.finish_reason is FinishReason.LENGTH
    assert (result.output_token_ids, result.output_text, result.completion_tokens) == ((), "", 0)
    check_prompt(result.prompt_logprobs, prompt, 1)
    assert result.logprobs is not None
    assert len(result.logprobs) == 0
    assert result.cumulative_logprob == 0.0
    assert engine.counters().prompt_tokens == length
    engine.check_integrity()
    assert opened(engine).is_empty


def outputs_of(prompts: Sequence[Sequence[int]], **params: Any) -> list[tuple[int, ...]]:
    asked = (request(str(i), p, max_tokens=30, ignore_eos=True, **params) for i, p in enumerate(prompts))
    return [result.output_token_ids for result in tiny_engine(MODEL, "other").generate(asked)]


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("echo", [False, True])
def test_a_stop_token_has_an_entry_only_with_echo(*, echo: bool) -> None:
    """lm-evaluation-harness leaves out the last entry, which must be that of the one new token."""
    for index, (prompt, output) in enumerate(zip(PROMPTS, outputs_of(PROMPTS), strict=True)):
        stop = output[7]
        engine = tiny_engine(MODEL, "other")
        asked = request(str(index), prompt, max_tokens=30, stop_token_ids=(stop,), logprobs=1, echo=echo, **ENDLESS)
        (result,) = engine.generate([asked])
        shown = output[: output.index(stop)]
        assert result.output_token_ids == shown
        assert result.logprobs is not None
        entries = [*shown, stop] if echo else list(shown)
        rows = reference([*prompt, *shown, stop])[len(prompt) - 1 :]
        check(result.logprobs, entries, rows[: len(entries)], 1)
        expected = sum(float(row[token]) for row, token in zip(rows, shown, strict=False))
        assert result.cumulative_logprob == pytest.approx(expected, abs=1e-3)


def test_a_stop_token_that_stays_has_one_entry() -> None:
    prompt, output = PROMPTS[2], outputs_of(PROMPTS)[2]
    stop = output[5]
    for echo in (False, True):
        asked = request("a", prompt, max_tokens=30, stop_token_ids=(stop,), logprobs=0, echo=echo, **ENDLESS)
        params = replace(asked.sampling_params, include_stop_str_in_output=True)
        (result,) = tiny_engine(MODEL, "same").generate([replace(asked, sampling_params=params)])
        assert result.output_token_ids == output[: output.index(stop) + 1]
        assert result.logprobs is not None
        assert [one.token_id for one in result.logprobs] == list(result.output_token_ids)


def test_tokens_behind_the_beginning_of_a_stop_string_have_no_entry() -> None:
    (prompt,) = made_up(12, seed=4)
    engine = tiny_engine(MODEL, "other")
    (whole,) = engine.generate([request("whole", prompt, max_tokens=20, ignore_eos=True, logprobs=1)])
    text = whole.output_text
    stop = text[6:9]
    place = text.index(stop)
    (cut,) = engine.generate([request("cut", prompt, max_tokens=20, ignore_eos=True, logprobs=1, stop=(stop,))])
    assert cut.output_text == text[:place]
    assert cut.logprobs is not None
    assert whole.logprobs is not None
    assert list(cut.logprobs) == list(whole.logprobs)[:place], "a token is a character here"


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    small = tiny_model(seed=3, vocab_size=14)
    (result,) = tiny_engine(small, "none", depth=0).generate([request("a", [3, 4], max_tokens=2, logprobs=20)])
    assert result.logprobs is not None
    for one in result.logprobs:
        assert len(one.alternatives) == 14
        assert sum(math.exp(value) for _, value in one.alternatives) == pytest.approx(1.0, abs=1e-5)


class SpoiltRows(SpeculativeStep):
    """Makes the prompt rows of the first steps NaN."""

    def __init__(self, step: SpeculativeStep, times: int) -> None:
        self.__dict__.update(step.__dict__)
        download = self._pass.download
        left = [times]

        def spoilt(scores: Any) -> Any:
            made = download(scores)
            if left[0] and len(made.scored):
                left[0] -= 1
                made.scored[-1] = math.nan
            return made

        self._pass.download = spoilt


@pytest.mark.parametrize("times", [1, 2])
def test_prompt_rows_that_are_not_finite_are_computed_again_once(times: int) -> None:
    engine = tiny_engine(MODEL, "none", depth=0)
    opened(engine).replace_step(SpoiltRows, times)
    (prompt,) = made_up(20)
    spoilt, beside = engine.generate(
        [
            request("spoilt", prompt, max_tokens=3, prompt_logprobs=1, logprobs=0, ignore_eos=True),
            request("beside", prompt, max_tokens=3, logprobs=0, ignore_eos=True),
        ]
    )
    check_output(beside, prompt, 0)
    if times == 1:
        check_prompt(spoilt.prompt_logprobs, prompt, 1)
        check_output(spoilt, prompt, 0)
    else:
        assert isinstance(spoilt.error, EngineError)
        assert spoilt.prompt_logprobs is None
    engine.check_integrity()
