"""Models with sliding windows, whose blocks are freed behind them: outputs stay transformers' own beyond a window."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest

from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import (
    VOCAB_SIZE,
    as_loaded,
    greedy_beside_each,
    request,
    roughen,
    tiny_engine,
    tiny_model,
)

SLIDING, FULL = "sliding_attention", "full_attention"
FAMILIES: dict[str, dict[str, Any]] = {
    # Every layer has the window: one section.
    "mistral": {"sliding_window": 9},
    # Three layers with it and one without: four sections.
    "gemma3_text": {"sliding_window": 8, "num_hidden_layers": 4, "layer_types": [SLIDING, SLIDING, FULL, SLIDING]},
    # Sinks and experts, and as many layers with it as without: two sections.
    "gpt_oss": {"sliding_window": 7},
    # Layers of two shapes: two with small heads lie where one with large heads does. The last two read others' keys.
    "gemma4_text": {
        "sliding_window": 7,
        "num_hidden_layers": 6,
        "layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL],
    },
    # Layers of one shape, of which the last read the keys of others.
    "gemma3n_text": {"sliding_window": 7},
    # Convolutions beside attention, with a window and without.
    "lfm3": {"sliding_window": 7},
}
NUM_SECTIONS = {"mistral": 1, "gemma3_text": 4, "gpt_oss": 2, "gemma4_text": 3, "gemma3n_text": 2, "lfm3": 2}


@functools.cache
def model(family: str) -> Any:
    return roughen(tiny_model(family, seed=3, **FAMILIES[family]))


def prompts(count: int = 5, shared: int = 0, longest: int = 50) -> list[tuple[int, ...]]:
    rng = random.Random(5)
    system = tuple(rng.randrange(2, VOCAB_SIZE) for _ in range(shared))
    return [(*system, *(rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randrange(1, longest)))) for _ in range(count)]


def run(engine, given, max_tokens=30, **params):
    results = engine.generate(
        request(f"r{i}", prompt, max_tokens=max_tokens, ignore_eos=True, **params) for i, prompt in enumerate(given)
    )
    engine.check_integrity()
    assert opened(engine).is_empty
    return results


def check(family, engine, given, max_tokens=30):
    results = run(engine, given, max_tokens)
    outputs = [r.output_token_ids for r in results]
    assert outputs == greedy_beside_each(model(family), given, outputs, max_tokens, eos=None)
    return results


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(
    ("draft", "settings"),
    [
        ("none", {"depth": 0, "token_budget": 9}),
        ("same", {"depth": 5}),
        ("other", {"depth": 3}),
        ("int8", {"adaptive": True, "drafters": ("lookup",), "token_budget": 9}),
    ],
)
def test_answers_are_the_model_s_own(family, draft, settings):
    drafting = as_loaded("other", tiny_model(family, seed=99, **FAMILIES[family])) if draft == "other" else draft
    engine = tiny_engine(model(family), drafting, max_batch_size=4, **settings)
    assert len(opened(engine).pool.sections.windows) == NUM_SECTIONS[family]
    results = check(family, engine, prompts())
    if draft == "same":  # the draft keeps up, and sees what it needs
        assert sum(r.accepted_tokens for r in results) > 0.8 * sum(r.draft_tokens for r in results) > 0


@pytest.mark.thorough
def test_a_draft_may_have_no_window_where_the_target_has_one_and_the_other_way_round(family):
    plain = tiny_model(seed=3)
    engine = tiny_engine(model(family), as_loaded("plain", plain), max_batch_size=4)
    check(family, engine, prompts())
    engine = tiny_engine(plain, as_loaded("windows", model(family)), max_batch_size=4)
    outputs = [r.output_token_ids for r in run(engine, prompts())]
    assert outputs == greedy_beside_each(plain, prompts(), outputs, 30, eos=None)


@pytest.mark.thorough(fast=2)
def test_a_pool_holds_what_it_could_not_hold_without_freeing(family):
    """100 tokens are 25 blocks in each section; with windows of at most 9 and steps of 8, one holds at most 5."""
    num_blocks = 5 if family == "mistral" else 25 + 5 * (NUM_SECTIONS[family] - 1)
    engine = tiny_engine(model(family), "same", depth=4, token_budget=8, num_blocks=num_blocks)
    prompt = prompts(count=1, shared=60)[0][:60]
    (result,) = check(family, engine, [prompt], max_tokens=100 - len(prompt))
    assert result.accepted_tokens > 0
    assert engine.counters().preemptions == 0
    assert engine.counters().peak_blocks <= num_blocks < 25 * NUM_SECTIONS[family]


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(("family", "draft", "num_blocks"), [("gemma3_text", "none", 50), ("gpt_oss", "int8", 32)])
def test_preempted_sequences_are_computed_again(family, draft, num_blocks):
    engine = tiny_engine(model(family), draft, max_batch_size=5, num_blocks=num_blocks, token_budget=12)
    check(family, engine, prompts(longest=20), max_tokens=40)
    assert engine.counters().preemptions > 0


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(
    ("family", "settings"), [("mistral", {"adaptive": True}), ("gemma3_text", {"depth": 4}), ("gpt_oss", {"depth": 0})]
)
def test_requests_that_begin_alike_share_that_beginning(family, settings):
    engine = tiny_engine(model(family), "int8" if settings.get("depth") != 0 else "none", max_batch_size=1, **settings)
    given = prompts(count=3, shared=40)
    results = check(family, engine, given)
    assert [r.cached_prompt_tokens for r in results[1:]] == [40] * 2
    (again,) = check(family, engine, given[:1])
    assert again.cached_prompt_tokens == (len(given[0]) - 1) // 4 * 4


@pytest.mark.thorough
def test_the_choices_of_a_request_share_its_prompt():
    family = "gpt_oss"
    (prompt,) = prompts(count=1, shared=25)
    (result,) = run(tiny_engine(model(family), "int8", max_batch_size=4), [prompt], n=4, temperature=1.0)
    (one_by_one,) = run(tiny_engine(model(family), "int8", max_batch_size=1), [prompt], n=4, temperature=1.0)
    assert [c.output_token_ids for c in result.choices] == [c.output_token_ids for c in one_by_one.choices]


def test_a_lagging_draft_is_given_up_before_a_sequence_is_preempted():
    """The second request needs what the first keeps for a draft that has never run; it is drafted no more."""
    family = "gemma3_text"
    engine = tiny_engine(model(family), "int8", adaptive=True, max_batch_size=2, num_blocks=70)
    given = [prompt[:50] for prompt in prompts(count=2, shared=50)]
    check(family, engine, given, max_tokens=20)
    assert engine.counters().preemptions == 0


@pytest.mark.thorough
@pytest.mark.parametrize(("family", "num_blocks"), [("mistral", 18), ("gemma3_text", 60), ("gemma3_text", 90)])
def test_drafts_that_keep_up_go_on_in_a_tight_pool(family, num_blocks):
    """After a step that accepts all, the draft is a token behind. That token's window is not given up for others."""
    windowed = roughen(tiny_model(family, seed=3, **{**FAMILIES[family], "sliding_window": 24}))
    outputs, steps = [], []
    for blocks in (400, num_blocks):
        engine = tiny_engine(windowed, "same", depth=4, max_batch_size=3, num_blocks=blocks, token_budget=8)
        requests = [
            request(f"r{i}", p, max_tokens=40, ignore_eos=True, temperature=1.0, seed=i)
            for i, p in enumerate(prompts(count=6, shared=10))
        ]
        results = engine.generate(requests)
        engine.check_integrity()
        outputs.append([result.output_token_ids for result in results])
        steps.append(sum(result.target_steps for result in results))
    assert outputs[0] == outputs[1]
    assert steps[0] == steps[1]
