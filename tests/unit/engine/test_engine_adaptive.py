"""Adaptive depth, lookup and a draft model together: whatever is drafted when, outputs are what they are alone."""

from __future__ import annotations

import functools
import random

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.request import FinishReason, Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.speculation.depth.controller import DepthController, DepthDecision
from helix_jobs.engine.speculation.depth.costs import CostProfile
from helix_jobs.errors import OutOfMemoryError
from tests.crossed import crossed
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import VOCAB_SIZE, loaded, reference_greedy, request, tiny_model

MODEL = tiny_model(seed=3)
SYSTEM = [random.Random(7).randrange(1, VOCAB_SIZE) for _ in range(40)]
MAX_TOKENS = 24
MAX_STEPS = 4000
# Rows of a target step are free and the draft nearly so; or the draft costs as much as the target.
CHEAP = CostProfile(target=((1, 0.01), (512, 0.011)), draft=((1, 0.0001), (512, 0.0002)))
DEAR = CostProfile(target=((1, 0.01), (512, 0.1)), draft=((1, 0.01), (512, 0.1)))


class Whimsical(DepthController):
    """Chooses any source and depth for anybody, so that the draft model falls behind and catches up all the time."""

    def __init__(self, controller, seed):
        self.__dict__.update(controller.__dict__)
        self.rng = random.Random(seed)

    def _decide(self, candidates, _prefill_tokens):
        model, lookup = [], []
        is_on = self.rng.random() < 0.6
        for candidate in candidates:
            found = min(len(candidate.confidence), candidate.ceiling)
            source = self.rng.choice(["none", "model", "lookup"])
            model.append(
                self.rng.randint(0, candidate.ceiling) if is_on and self._can_compute and source == "model" else 0
            )
            lookup.append(self.rng.randint(0, found) if source == "lookup" else 0)
        return DepthDecision(tuple(model), tuple(lookup), "whim")


def adaptive_engine(draft, controller, seed=0, *, num_blocks=400, block_size=4, **config):
    """Costs stay as given: what this machine measures would turn the draft model off for good."""
    engine = Engine(
        loaded(MODEL, draft),
        EngineConfig(speculation=SpeculationConfig(drafters=("lookup",)), **config),
        CacheConfig(num_blocks=num_blocks, block_size=block_size),
        DEAR if controller == "dear" else CHEAP,
    )
    opened(engine).learn_no_costs()
    if controller == "whimsical":
        opened(engine).replace_controller(Whimsical, seed)
    return engine


@functools.cache
def answer(prompt):
    return reference_greedy(MODEL, prompt, MAX_TOKENS)


def prompt_of(rng):
    """One of few, so that transformers is asked once for each; some repeat themselves, for lookup's sake."""
    own = random.Random(rng.randrange(8))
    body = [own.randrange(1, VOCAB_SIZE) for _ in range(own.randrange(1, 10))]
    return (*SYSTEM[: own.choice([0, 5, 16, 30])], *body * own.choice([1, 1, 3]))


@pytest.mark.thorough(fast=2)
@pytest.mark.parametrize("draft", ["same", "int8", "other"])
@pytest.mark.parametrize("controller", ["cheap", "whimsical"])
def test_model_and_lookup_draft_and_change_nothing(draft, controller):
    rng = random.Random(2)
    prompts = [prompt_of(rng) for _ in range(24)]
    engine = adaptive_engine(draft, controller, max_batch_size=6)
    sources = set()
    choose = opened(engine).controller.choose

    def noted(*args):
        decision = choose(*args)
        sources.update(["model"] if any(decision.computed_depths) else [])
        sources.update(["lookup"] if any(decision.found_depths) else [])
        return decision

    opened(engine).controller.choose = noted
    results = engine.generate(request(str(i), p, max_tokens=MAX_TOKENS) for i, p in enumerate(prompts))
    assert [r.output_token_ids for r in results] == [answer(p) for p in prompts]
    # Where the model is always right the controller has no use for lookup.
    assert "model" in sources
    assert "lookup" in sources or (controller, draft) == ("cheap", "same")


HISTORY = {
    "seed": st.integers(0, 2**16),
    "draft": st.sampled_from(["none", "same", "int8", "other"]),
    "controller": st.sampled_from(["cheap", "dear", "whimsical", "whimsical"]),
    "num_blocks": st.integers(16, 60),
    "block_size": st.sampled_from([2, 3, 4]),
    "budget": st.sampled_from([5, 16, 1024]),
    "slots": st.integers(1, 5),
    "aborts": st.dictionaries(st.integers(0, 40), st.integers(0, 11), max_size=4),
    "preemptions": st.sets(st.integers(0, 40), max_size=4),
}


@pytest.mark.thorough
@settings(max_examples=16, deadline=None)
@given(**HISTORY)
def test_any_history_equals_transformers_one_by_one(**history):
    check_history(**history)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(**HISTORY)
def test_many_histories_equal_transformers_one_by_one(**history):
    check_history(**history)


def check_history(*, seed, draft, controller, num_blocks, block_size, budget, slots, aborts, preemptions):
    rng = random.Random(seed)
    engine = adaptive_engine(
        draft,
        controller,
        seed,
        num_blocks=num_blocks,
        block_size=block_size,
        token_budget=budget,
        max_batch_size=slots,
    )
    asked = {str(number): prompt_of(rng) for number in range(12)}
    arriving = list(asked.items())
    results = {}
    step = 0
    while arriving or engine.has_unfinished():
        for name, prompt in arriving[:3]:
            engine.add_request(request(name, prompt, max_tokens=MAX_TOKENS))
        del arriving[:3]
        results.update((r.request_id, r) for r in engine.step())
        engine.check_integrity()
        if step in aborts:
            engine.abort(str(aborts[step]))
        if step in preemptions:
            opened(engine).scheduler.preempt_youngest(1)
        step += 1
        assert step < MAX_STEPS
    assert results.keys() == asked.keys()
    assert opened(engine).is_empty
    for name, result in results.items():
        expected = answer(asked[name])
        if result.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert result.output_token_ids == expected
        else:
            assert result.output_token_ids == expected[: result.completion_tokens]
            assert result.finish_reason is FinishReason.ABORTED or isinstance(result.error, OutOfMemoryError)
    counters = engine.counters()
    event(f"preempted: {counters.preemptions > 0}")
    event(f"rejected: {counters.draft_tokens > counters.accepted_tokens}")
    event(f"shared: {counters.cached_prompt_tokens > 0}")


@pytest.mark.thorough
@pytest.mark.parametrize(("draft", "controller"), crossed(["same", "other"], [("cheap",), ("whimsical",)], 1))
def test_a_seeded_output_is_the_same_alone_and_in_company(draft, controller):
    rng = random.Random(4)
    seeded = [
        Request(
            request_id=f"seeded{i}",
            prompt_token_ids=prompt_of(rng),
            seed=i,
            sampling_params=SamplingParams(max_tokens=16, temperature=(0.7, 1.3)[i % 2], seed=i),
        )
        for i in range(10)
    ]
    company = [request(f"greedy{i}", prompt_of(rng), max_tokens=20) for i in range(20)]
    together = {}
    for number, config in enumerate([{"max_batch_size": 16}, {"max_batch_size": 5, "num_blocks": 50}]):
        engine = adaptive_engine(draft, controller, number, **config)
        mixed = [*company[:10], *seeded, *company[10:]]
        together[number] = {r.request_id: r for r in engine.generate(mixed)}
        assert any(r.draft_tokens for r in together[number].values())
    for one in seeded:
        (alone,) = adaptive_engine(draft, controller, max_batch_size=1).generate([one])
        assert alone.draft_tokens == 0
        for results in together.values():
            assert results[one.request_id].output_token_ids == alone.output_token_ids
