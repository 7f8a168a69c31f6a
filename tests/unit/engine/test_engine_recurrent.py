"""Models with recurrent layers through the real engine: greedy outputs stay transformers' own, whatever is drafted."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch

from helix_jobs.engine.speculation.speculative import SpeculativeStep
from tests.crossed import crossed
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import (
    RECURRENT,
    VOCAB_SIZE,
    as_loaded,
    greedy_beside,
    reference_greedy,
    reference_logits,
    request,
    roughen,
    tiny_engine,
    tiny_model,
)

# The family whose answers transformers generates token by token. Of the others it says in one pass over each answer
# that it is greedy.
GENERATED = "lfm2"


@functools.cache
def model(family: str) -> Any:
    return roughen(tiny_model(family, seed=3))


def whole(reference: Any, prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    """What transformers generates beyond any end-of-sequence token; the helper cuts such a token at the very end."""
    return reference_greedy(reference, prompt, max_tokens + 1, eos_token_id=None)[:max_tokens]


@functools.cache
def answer(prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    return whole(model(GENERATED), prompt, max_tokens)


def prompts(count: int = 6, shared: int = 0, seed: int = 5, longest: int = 40) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    system = tuple(random.Random(11).randrange(2, VOCAB_SIZE) for _ in range(shared))
    return [(*system, *(rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randrange(1, longest)))) for _ in range(count)]


def run(engine, given, max_tokens=24, **params):
    requests = [
        request(f"r{i}", prompt, max_tokens=max_tokens, ignore_eos=True, **params) for i, prompt in enumerate(given)
    ]
    results = engine.generate(requests)
    engine.check_integrity()
    assert opened(engine).is_empty
    return results


def check(family, engine, given, max_tokens=24):
    results = run(engine, given, max_tokens)
    outputs = [r.output_token_ids for r in results]
    if family == GENERATED:
        expected = [answer(p, max_tokens) for p in given]
    else:
        pairs = zip(given, outputs, strict=True)
        expected = [greedy_beside(model(family), p, o, max_tokens, eos=None) for p, o in pairs]
    assert outputs == expected
    return results


@pytest.fixture(params=RECURRENT)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


DRAFTING = [
    ("none", {"depth": 0, "token_budget": 9}),
    ("none", {"depth": 4, "drafters": ("lookup",)}),
    ("int8", {"depth": 8}),
    ("other", {"depth": 3, "token_budget": 9}),
    ("same", {"depth": 5}),
    ("int8", {"adaptive": True, "drafters": ("lookup",), "token_budget": 9}),
]


# By fours, so that no two families share their four.
@pytest.mark.thorough(fast=2)
@pytest.mark.parametrize(("family", "draft", "settings"), crossed(RECURRENT, DRAFTING, 4), indirect=["family"])
def test_answers_are_the_model_s_own(family, draft, settings):
    engine = tiny_engine(model(family), draft, max_batch_size=4, **settings)
    results = check(family, engine, prompts())
    if draft in ("same", "other") and not settings.get("adaptive"):
        accepted = sum(r.accepted_tokens for r in results)
        drafted = sum(r.draft_tokens for r in results)
        assert drafted > 0
        assert accepted < drafted if draft == "other" else accepted > 0.8 * drafted


@pytest.mark.thorough
def test_a_draft_may_be_recurrent_where_the_target_is_not_and_the_other_way_round(family):
    given = prompts()
    engine = tiny_engine(model(family), as_loaded("plain", tiny_model(seed=3)), max_batch_size=4)
    check(family, engine, given)
    plain = tiny_model(seed=3)
    engine = tiny_engine(plain, as_loaded("recurrent", model(family)), max_batch_size=4)
    assert [r.output_token_ids for r in run(engine, given)] == [whole(plain, p, 24) for p in given]


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("draft", ["none", "int8"])
def test_preempted_sequences_are_computed_again(family, draft):
    engine = tiny_engine(model(family), draft, max_batch_size=6, num_blocks=24)
    check(family, engine, prompts(longest=30), max_tokens=40)
    assert engine.counters().preemptions > 0


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("draft", ["none", "int8"])
def test_requests_that_begin_alike_begin_at_a_snapshot(family, draft):
    engine = tiny_engine(model(family), draft, max_batch_size=2, depth=4 if draft == "int8" else 0)
    results = check(family, engine, prompts(shared=40))
    # The first computes the whole prompt. The second one finds the blocks, and leaves a snapshot where the two part.
    assert [r.cached_prompt_tokens for r in results[-3:]] == [40, 40, 40]


def test_the_same_prompt_again_begins_at_its_last_full_block(family):
    engine = tiny_engine(model(family), "none", depth=0)
    given = prompts(count=1, shared=20)
    (first,) = check(family, engine, given)
    (again,) = run(engine, given)
    assert again.cached_prompt_tokens == (len(given[0]) - 1) // 4 * 4
    assert again.output_token_ids == first.output_token_ids


@pytest.mark.thorough(fast=1)
def test_the_choices_of_a_request_share_its_prompt(family):
    engine = tiny_engine(model(family), "int8", max_batch_size=4)
    (prompt,) = prompts(count=1, shared=25)
    (result,) = run(engine, [prompt], n=4, temperature=1.0)
    alone = tiny_engine(model(family), "int8", max_batch_size=1)
    (one_by_one,) = run(alone, [prompt], n=4, temperature=1.0)
    assert [c.output_token_ids for c in result.choices] == [c.output_token_ids for c in one_by_one.choices]
    assert engine.counters().prompt_tokens == len(prompt)


@pytest.mark.thorough(fast=1)
def test_a_step_that_fails_is_repeated(family, monkeypatch):
    engine = tiny_engine(model(family), "int8", max_batch_size=4)
    verify = SpeculativeStep._verify
    rng, failed = random.Random(1), []

    def failing(self, turns, *args):
        if len(turns) > 1 and rng.random() < 0.4:
            failed.append(len(turns))
            raise torch.OutOfMemoryError
        verify(self, turns, *args)

    monkeypatch.setattr(SpeculativeStep, "_verify", failing)
    check(family, engine, prompts())
    assert len(failed) > 3


@pytest.mark.thorough
@pytest.mark.parametrize("combined", ["qwen3_next", "nemotron_h", "falcon_h1", "lfm2_moe", "jamba"])
def test_states_are_exact_beside_other_parts_of_a_layer(combined, monkeypatch):
    """Drafts, failed steps, preemption and shared prefixes at once."""
    engine = tiny_engine(model(combined), "int8", max_batch_size=4, num_blocks=30, token_budget=9)
    verify = SpeculativeStep._verify
    rng, failed = random.Random(1), []

    def failing(self, turns, *args):
        if len(turns) > 1 and rng.random() < 0.4:
            failed.append(len(turns))
            raise torch.OutOfMemoryError
        verify(self, turns, *args)

    monkeypatch.setattr(SpeculativeStep, "_verify", failing)
    given = prompts(count=5, shared=24, longest=16)
    results = run(engine, given, max_tokens=16)
    for prompt, result in zip(given, results, strict=True):
        logits = reference_logits(model(combined), [*prompt, *result.output_token_ids])
        assert result.output_token_ids == tuple(logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist())
    assert engine.counters().preemptions > 0
    assert 0 < sum(r.accepted_tokens for r in results) < sum(r.draft_tokens for r in results)
    assert max(r.cached_prompt_tokens for r in results) >= 24
    assert len(failed) > 1


@pytest.mark.thorough
def test_a_step_that_fails_before_it_writes_is_repeated_from_the_same_states(family, monkeypatch):
    engine = tiny_engine(model(family), "same", max_batch_size=4, block_size=1, num_blocks=1600)
    target = opened(engine).target
    compute = target.run
    rng, failed = random.Random(1), []

    def failing(*args):
        if len(opened(engine).scheduler.active) > 1 and rng.random() < 0.4:
            failed.append(len(opened(engine).scheduler.active))
            raise torch.OutOfMemoryError
        return compute(*args)

    monkeypatch.setattr(target, "run", failing)
    results = check(family, engine, prompts(), max_tokens=60)
    # Snapshots of others' texts, too, stand behind the tokens that they name.
    longer = [p + r.output_token_ids[:50] for p, r in zip(prompts(), results, strict=True)]
    check(family, engine, longer, max_tokens=8)
    assert len(failed) > 3


@pytest.mark.thorough(fast=1)
def test_with_few_snapshots_the_oldest_go(family):
    engine = tiny_engine(model(family), "none", depth=0, max_batch_size=3, num_snapshots=2)
    for seed in range(3):
        check(family, engine, prompts(shared=16, seed=seed), max_tokens=6)
    none = tiny_engine(model(family), "none", depth=0, max_batch_size=3, num_snapshots=0)
    assert all(r.cached_prompt_tokens == 0 for r in check(family, none, prompts(shared=16), max_tokens=6))
