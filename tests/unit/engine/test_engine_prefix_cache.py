"""Shared prefixes through the real engine: greedy outputs stay transformers' own, and what is shared is reported."""

from __future__ import annotations

import functools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.engine.request import FinishReason
from helix_jobs.engine.speculation.speculative import SpeculativeStep
from helix_jobs.errors import EngineError, OutOfMemoryError
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import VOCAB_SIZE, reference_greedy, request, tiny_engine, tiny_model

MODEL = tiny_model(seed=3)
SYSTEM = [random.Random(7).randrange(1, VOCAB_SIZE) for _ in range(40)]


@functools.cache
def answer(prompt, max_tokens, *, eos=True):
    return reference_greedy(MODEL, prompt, max_tokens, **({} if eos else {"eos_token_id": None}))


def prompts_with(num_shared, count=6, seed=1):
    rng = random.Random(seed)
    return [
        (*SYSTEM[:num_shared], *(rng.randrange(1, VOCAB_SIZE) for _ in range(rng.randrange(1, 12))))
        for _ in range(count)
    ]


def run(engine, prompts, max_tokens=10, prefix="", **params):
    return engine.generate(request(f"{prefix}{i}", p, max_tokens=max_tokens, **params) for i, p in enumerate(prompts))


@pytest.mark.parametrize("draft", ["none", "same", "other"])
def test_a_crowd_computes_its_common_prefix_once(draft):
    prompts = prompts_with(40)
    engine = tiny_engine(MODEL, draft, max_batch_size=4)
    results = run(engine, prompts)
    assert [r.output_token_ids for r in results] == [answer(p, 10) for p in prompts]
    assert [r.cached_prompt_tokens for r in results] == [0, 40, 40, 40, 40, 40]
    assert engine.counters().cached_prompt_tokens == 200
    engine.check_integrity()
    assert opened(engine).is_empty


def test_a_draft_shares_its_part_of_the_prefix_too():
    """A draft equal to the target is right everywhere, unless it reads rows that nobody computed."""
    engine = tiny_engine(MODEL, "same", max_batch_size=4)
    run(engine, prompts_with(40), ignore_eos=True)
    filled = [opened(engine).pool.is_draft_filled(block) for block in opened(engine).pool.prefix_cache.idle_blocks]
    assert sum(filled) >= 10
    results = run(engine, prompts_with(40, seed=2), prefix="again", ignore_eos=True)
    assert all(r.cached_prompt_tokens == 40 for r in results)
    assert all(r.acceptance_rate == 1.0 for r in results)


def test_a_draft_that_starts_late_catches_up_on_shared_blocks(monkeypatch):
    """As with an adaptive depth: prompts are the target's alone, and the draft sees them when it is first asked."""
    engine = tiny_engine(MODEL, "same", max_batch_size=4)
    model = opened(engine).drafter
    propose = model.propose
    monkeypatch.setattr(model, "propose", lambda turns, *_: propose(turns))
    prompts = prompts_with(40)
    results = run(engine, prompts, ignore_eos=True)
    assert [r.output_token_ids for r in results] == [answer(p, 10, eos=False) for p in prompts]
    assert [r.cached_prompt_tokens for r in results] == [0, 40, 40, 40, 40, 40]
    assert all(r.acceptance_rate == 1.0 for r in results)


def test_an_output_is_the_next_prompt_s_prefix():
    engine = tiny_engine(MODEL, "other")
    (first,) = run(engine, [tuple(SYSTEM[:10])], max_tokens=30, ignore_eos=True)
    turn = (*SYSTEM[:10], *first.output_token_ids, 5, 6, 7)
    (second,) = run(engine, [turn], prefix="turn")
    assert second.cached_prompt_tokens == (10 + 30 - 1) // 4 * 4
    assert second.output_token_ids == answer(turn, 10)


def test_rejected_drafts_are_never_shared():
    """The draft is mostly wrong: its tokens' keys and values stand behind every sequence's end, now and then in a
    block that a later prompt would begin with, had they been accepted."""
    engine = tiny_engine(MODEL, "other", block_size=2, depth=6)
    prompts = prompts_with(6, count=8)
    for round_number in range(3):
        results = run(engine, prompts, max_tokens=20, prefix=f"{round_number}-")
        assert [r.output_token_ids for r in results] == [answer(p, 20) for p in prompts]
    assert all(r.cached_prompt_tokens == (r.prompt_tokens - 1) // 2 * 2 for r in results)


def test_a_stop_string_leaves_only_what_stands_in_the_cache():
    engine = tiny_engine(MODEL, "same")
    (whole,) = run(engine, [tuple(SYSTEM[:9])], max_tokens=30, ignore_eos=True)
    stop = whole.output_text[11:13]
    (cut,) = run(engine, [tuple(SYSTEM[:9])], max_tokens=30, prefix="cut", ignore_eos=True, stop=(stop,))
    assert cut.output_text == whole.output_text[: whole.output_text.index(stop)]
    engine.check_integrity()
    turn = (*SYSTEM[:9], *whole.output_token_ids[:20], 3)
    (after,) = run(engine, [turn], prefix="after")
    assert after.output_token_ids == answer(turn, 10)


def test_what_is_not_finite_leaves_the_cache_and_spares_who_shares_with_it():
    model = tiny_model(seed=3)
    model.model.embed_tokens.weight[30] = float("nan")
    system = [t for t in SYSTEM if t != 30][:24]
    good = [request(f"good{i}", [*system, 3 + i, 4], max_tokens=12, stop_token_ids=(30,)) for i in range(4)]
    alone = [tiny_engine(model, "none", eos=()).generate([g])[0].output_token_ids for g in good]
    engine = tiny_engine(model, "same", eos=(), max_batch_size=4, token_budget=16)
    bad = [request(f"bad{i}", [*system, 30, 4, *system[:9]], max_tokens=9) for i in range(2)]
    results = engine.generate([good[0], bad[0], good[1], bad[1], *good[2:]])
    for result, expected in zip((*results[:1], results[2], *results[4:]), alone, strict=True):
        assert result.error is None
        assert result.output_token_ids == expected
    for result in (results[1], results[3]):
        assert isinstance(result.error, EngineError)
        assert "not finite" in str(result.error)
    engine.check_integrity()


class FailsNowAndThen(SpeculativeStep):
    """Computes a step of several requests, then fails before it is committed."""

    def __init__(self, step):
        self.__dict__.update(step.__dict__)
        self.number = 0

    def _commit(self, turns):
        self.number += 1
        if self.number in {2, 3, 9, 14, 20} and len(turns) > 1:
            raise RuntimeError("out of memory")
        return super()._commit(turns)


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("draft", ["none", "other"])
def test_steps_that_fail_half_way_leave_nothing_wrong_in_the_cache(draft):
    engine = tiny_engine(MODEL, draft, max_batch_size=4)
    opened(engine).replace_step(FailsNowAndThen)
    prompts = prompts_with(40, count=8)
    results = run(engine, prompts, max_tokens=16)
    assert [r.output_token_ids for r in results] == [answer(p, 16) for p in prompts]
    assert engine.counters().preemptions > 0
    engine.check_integrity()


@pytest.mark.thorough
def test_a_small_pool_evicts_and_preempts_and_changes_nothing():
    prompts = [*prompts_with(40), *prompts_with(0, seed=5), *prompts_with(24, seed=6)]
    engine = tiny_engine(MODEL, "other", num_blocks=30, max_batch_size=6)
    results = run(engine, prompts, max_tokens=40)
    assert [r.output_token_ids for r in results] == [answer(p, 40) for p in prompts]
    assert engine.counters().preemptions > 0
    assert any(r.cached_prompt_tokens for r in results)


@pytest.mark.thorough
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    draft=st.sampled_from(["none", "same", "other"]),
    lookup=st.booleans(),
    num_blocks=st.integers(14, 60),
    block_size=st.sampled_from([2, 3, 4]),
    budget=st.sampled_from([5, 16, 1024]),
    slots=st.integers(1, 5),
    depth=st.integers(1, 5),
    aborts=st.dictionaries(st.integers(0, 40), st.integers(0, 9), max_size=4),
)
def test_any_history_equals_transformers_one_by_one(
    *, seed, draft, lookup, num_blocks, block_size, budget, slots, depth, aborts
):
    rng = random.Random(seed)
    engine = tiny_engine(
        MODEL,
        draft,
        drafters=["lookup"] if lookup else [],
        num_blocks=num_blocks,
        block_size=block_size,
        depth=depth,
        token_budget=budget,
        max_batch_size=slots,
    )
    asked = {}
    for number in range(10):
        prompt = prompts_with(rng.choice([0, 5, 16, 30]), count=1, seed=rng.randrange(6))[0]
        asked[str(number)] = (prompt, 14)
    arriving = list(asked.items())
    results = {}
    step = 0
    while arriving or engine.has_unfinished():
        for name, (prompt, max_tokens) in arriving[:3]:
            engine.add_request(request(name, prompt, max_tokens=max_tokens))
        del arriving[:3]
        results.update((r.request_id, r) for r in engine.step())
        engine.check_integrity()
        if step in aborts:
            engine.abort(str(aborts[step]))
        step += 1
        assert step < 2000
    assert results.keys() == asked.keys()
    assert opened(engine).is_empty
    for name, result in results.items():
        expected = answer(*asked[name])
        if result.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert result.output_token_ids == expected
        else:
            assert result.output_token_ids == expected[: result.completion_tokens]
            assert result.finish_reason is FinishReason.ABORTED or isinstance(result.error, OutOfMemoryError)
