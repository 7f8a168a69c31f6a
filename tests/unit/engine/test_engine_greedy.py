"""Greedy outputs equal transformers' own at batch 1, token for token, whatever the batch and the draft.

One attention model and one with states are compared with ``generate``. Of the others transformers says in one pass
over each output that it is greedy, instead of one pass a token.
"""

from __future__ import annotations

import functools
import random

import pytest

from helix_jobs.engine.request import FinishReason
from tests.unit.engine.tiny_models import (
    ARCHITECTURES,
    VOCAB_SIZE,
    greedy_beside,
    reference_greedy,
    request,
    tiny_engine,
    tiny_model,
)


def ragged_prompts(seed, count=14):
    rng = random.Random(seed)
    lengths = [1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 60, 7, 40, 100]
    return [[rng.randrange(1, VOCAB_SIZE) for _ in range(length)] for length in lengths[:count]]


PROMPTS = ragged_prompts(11)
BUDGETS = [6 + 2 * i for i in range(len(PROMPTS))]
GENERATED = ("llama", "lfm2")


@functools.cache
def served(architecture="llama"):
    return tiny_model(architecture, seed=3)


@functools.cache
def answers(architecture):
    """What transformers generates for each prompt."""
    return [reference_greedy(served(architecture), p, n) for p, n in zip(PROMPTS, BUDGETS, strict=True)]


def check(architecture, results):
    outputs = [r.output_token_ids for r in results]
    if architecture in GENERATED:
        expected = answers(architecture)
    else:
        model = served(architecture)
        expected = [greedy_beside(model, p, o, n) for p, o, n in zip(PROMPTS, outputs, BUDGETS, strict=True)]
    assert outputs == expected
    assert any(len(set(a)) > 5 for a in outputs), "the reference must not be one token over and over"


def requests():
    return [request(str(i), p, max_tokens=n) for i, (p, n) in enumerate(zip(PROMPTS, BUDGETS, strict=True))]


# Neither verification nor the cache knows the architecture. Each architecture runs once as the target alone, once with
# a draft that is often right, and once in a cache that is too small; every other setting runs on one of them.


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(
    ("architecture", "draft"),
    [*((one, draft) for one in ARCHITECTURES for draft in ("none", "int8")), ("llama", "same"), ("llama", "other")],
)
def test_equals_transformers_over_a_ragged_batch(architecture, draft):
    engine = tiny_engine(served(architecture), draft, max_batch_size=8)
    results = engine.generate(requests())
    check(architecture, results)
    assert all(
        r.finish_reason is (FinishReason.LENGTH if len(r.output_token_ids) == n else FinishReason.STOP)
        for r, n in zip(results, BUDGETS, strict=True)
    )
    engine.check_integrity()
    assert (sum(r.draft_tokens for r in results) > 0) == (draft != "none")


@pytest.mark.thorough(fast=2)
@pytest.mark.parametrize(
    ("architecture", "num_blocks", "token_budget", "block_size"),
    [
        *((one, 46, 16, 4) for one in ARCHITECTURES),
        ("llama", 46, 1024, 4),
        ("llama", 400, 7, 4),
        ("llama", 60, 5, 3),
    ],
)
def test_equals_transformers_with_small_caches_and_chunked_prefill(architecture, num_blocks, token_budget, block_size):
    model = served(architecture)
    engine = tiny_engine(
        model, "int8", num_blocks=num_blocks, block_size=block_size, token_budget=token_budget, max_batch_size=6
    )
    check(architecture, engine.generate(requests()))


def test_a_small_pool_preempts_and_changes_nothing(caplog):
    model = served()
    caplog.set_level("DEBUG", logger="helix_jobs.engine.schedule.scheduler")
    long = [request(str(i), p, max_tokens=50, ignore_eos=True) for i, p in enumerate(PROMPTS[:10])]
    roomy = tiny_engine(model, "int8").generate(long)
    assert "preempted" not in caplog.text
    tight = tiny_engine(model, "int8", num_blocks=34, max_batch_size=8).generate(long)
    assert "preempted" in caplog.text
    assert [r.output_token_ids for r in tight] == [r.output_token_ids for r in roomy]


def test_a_perfect_draft_is_always_accepted():
    results = tiny_engine(served(), "same", max_batch_size=4).generate(requests())
    ended_by_length = [r for r in results if r.finish_reason is FinishReason.LENGTH]
    assert ended_by_length
    assert all(r.acceptance_rate == 1.0 for r in ended_by_length)
    assert all(r.mean_acceptance_length > 2 for r in ended_by_length if r.completion_tokens > 8)


def test_penalised_greedy_equals_transformers():
    model = served()
    engine = tiny_engine(model, "same", max_batch_size=4)
    results = engine.generate(request(str(i), p, max_tokens=20, repetition_penalty=1.7) for i, p in enumerate(PROMPTS))
    expected = [reference_greedy(model, p, 20, repetition_penalty=1.7) for p in PROMPTS]
    assert [r.output_token_ids for r in results] == expected


def test_ignore_eos_and_stop_token_ids():
    model = tiny_model(seed=3)
    prompts = ragged_prompts(5, 8)
    engine = tiny_engine(model, "other")
    free = engine.generate(request(f"free{i}", p, max_tokens=30, ignore_eos=True) for i, p in enumerate(prompts))
    assert all(r.completion_tokens == 30 and r.finish_reason is FinishReason.LENGTH for r in free)
    stops = [r.output_token_ids[9] for r in free]
    stopped = engine.generate(
        request(f"stop{i}", p, max_tokens=30, ignore_eos=True, stop_token_ids=(s,))
        for i, (p, s) in enumerate(zip(prompts, stops, strict=True))
    )
    for whole, cut, stop in zip(free, stopped, stops, strict=True):
        assert cut.output_token_ids == whole.output_token_ids[: whole.output_token_ids.index(stop)]
        assert cut.finish_reason is FinishReason.STOP


def test_the_context_ends_an_output():
    model = tiny_model(seed=3)
    engine = tiny_engine(model, "same", max_model_len=24)
    (result,) = engine.generate([request("a", list(range(1, 21)), max_tokens=100, ignore_eos=True)])
    assert result.completion_tokens == 4
    assert result.finish_reason is FinishReason.LENGTH


def test_a_stop_token_as_first_token_gives_an_empty_output():
    model = tiny_model(seed=3)
    prompt = ragged_prompts(5, 4)[3]
    first = reference_greedy(model, prompt, 1, eos_token_id=None)[0]
    (result,) = tiny_engine(model).generate([request("a", prompt, max_tokens=9, stop_token_ids=(first,))])
    assert result.output_token_ids == ()
    assert result.output_text == ""
    assert result.finish_reason is FinishReason.STOP
    assert result.ttft_seconds is None
