"""The seam between the engine and whoever drafts: a third drafter is a class and a line in the registry."""

from __future__ import annotations

import functools
import random
from collections import Counter

import pytest

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loading.draft_spec import DraftSpec
from helix_jobs.engine.speculation.depth.controller import DepthDecision
from helix_jobs.engine.speculation.depth.costs import CostProfile
from helix_jobs.engine.speculation.drafters.protocol import Draft
from helix_jobs.engine.speculation.drafters.registry import FINDING
from helix_jobs.errors import ConfigurationError
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import VOCAB_SIZE, loaded, reference_greedy, request, tiny_engine, tiny_model

# Rows of a target step are nearly free.
CHEAP = CostProfile(target=((1, 0.01), (512, 0.011)), draft=((1, 0.0001), (512, 0.0002)))


class RepeatDrafter:
    """Takes it that a sequence goes on with its last token; of every third it does not."""

    name = "repeat"
    made: RepeatDrafter

    def __init__(self):
        RepeatDrafter.made = self
        self.observed, self.forgotten, self.cleared = [], [], []

    def propose(self, turns):
        for turn in turns:
            last = turn.sequence.token_ids[-1]
            if last % 3:
                turn.draft = Draft((last,) * turn.depth, confidence=(0.9,) * turn.depth, is_trusted=last % 2 == 0)

    def observe(self, sequence, num_drafted, num_accepted):
        self.observed.append((sequence.request_id, num_drafted, num_accepted))

    def forget(self, sequence):
        self.forgotten.append(sequence.request_id)

    def clear(self, blocks):
        self.cleared.extend(blocks)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(FINDING, RepeatDrafter.name, RepeatDrafter)


def prompts(count=8, seed=4):
    rng = random.Random(seed)
    return [
        [rng.randrange(1, VOCAB_SIZE) for _ in range(rng.randrange(2, 20))] * rng.randrange(1, 3) for _ in range(count)
    ]


@functools.cache
def answers(count=8):
    """What transformers answers to ``prompts(count)``."""
    target = tiny_model(seed=3)
    return [reference_greedy(target, p, 16) for p in prompts(count)]


@pytest.mark.thorough(fast=3)
@pytest.mark.parametrize("model", ["none", "same", "other"])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("drafters", [("repeat",), ("lookup", "repeat"), ("repeat", "lookup")])
def test_a_third_drafter_changes_no_answer(model, drafters, *, adaptive):
    target, texts = tiny_model(seed=3), prompts()
    engine = Engine(
        loaded(target, model),
        EngineConfig(speculation=SpeculationConfig(adaptive=adaptive, drafters=drafters), max_batch_size=4),
        CacheConfig(num_blocks=400, block_size=4),
        CHEAP,
    )
    greedy = [request(f"g{i}", p, max_tokens=16) for i, p in enumerate(texts)]
    sampled = [request(f"s{i}", p, seed=i, max_tokens=9, temperature=0.8) for i, p in enumerate(texts)]
    results = engine.generate(greedy + sampled)
    assert [r.output_token_ids for r in results[: len(greedy)]] == answers()
    assert all(r.error is None for r in results)
    engine.check_integrity()
    counters, drafter = engine.counters(), RepeatDrafter.made
    assert drafter.observed
    assert all(0 <= accepted <= drafted for _, drafted, accepted in drafter.observed)
    assert sorted(drafter.forgotten) == sorted(r.request_id for r in results)
    assert (engine.info.draft_model or "").startswith(" + ".join(drafters))
    if drafters == ("repeat",) and model == "none":
        assert counters.draft_tokens == sum(drafted for _, drafted, _ in drafter.observed)
        assert counters.accepted_tokens == sum(accepted for _, _, accepted in drafter.observed)
        assert set(counters.depth_reasons) == ({"repeat", "off:nothing"} if adaptive else set())


@pytest.mark.thorough
def test_each_step_is_counted_under_the_drafters_whose_drafts_it_verifies(monkeypatch):
    engine = Engine(
        loaded(tiny_model(seed=3), "other"),
        EngineConfig(speculation=SpeculationConfig(drafters=("lookup",)), max_batch_size=4),
        CacheConfig(num_blocks=400, block_size=4),
        CHEAP,
    )
    rng, expected = random.Random(5), Counter()

    def choose(candidates, prefill_tokens):
        """Any allowed depths; the engine must name them by itself."""
        del prefill_tokens
        found = [rng.randrange(len(one.confidence) + 1) for one in candidates]
        computed = [
            0 if have else rng.randrange(min(one.ceiling, 3) + 1) for one, have in zip(candidates, found, strict=True)
        ]
        if not any(found) and not any(computed):
            reason = name = "off:cost"
        elif rng.random() < 0.1:
            reason = name = "explore"
        else:
            reason, name = "pays", "mixed" if any(found) and any(computed) else "lookup" if any(found) else "model"
        expected[name] += 1
        return DepthDecision(tuple(computed), tuple(found), reason)

    monkeypatch.setattr(opened(engine).controller, "choose", choose)
    texts = prompts(24)
    results = engine.generate([request(str(i), p, max_tokens=16) for i, p in enumerate(texts)])
    assert [r.output_token_ids for r in results] == answers(24)
    assert engine.counters().depth_reasons == expected
    assert set(expected) == {"off:cost", "explore", "lookup", "model", "mixed"}


def test_a_seeded_answer_of_a_third_drafter_is_the_same_in_any_company():
    texts = prompts()
    asked = [request(str(i), p, seed=i, max_tokens=12, temperature=0.9) for i, p in enumerate(texts)]
    config = {"draft": "other", "drafters": ["repeat", "lookup"]}
    together = tiny_engine(tiny_model(seed=3), max_batch_size=8, **config).generate(asked)
    alone = [tiny_engine(tiny_model(seed=3), max_batch_size=1, **config).generate([one])[0] for one in asked]
    assert [r.output_token_ids for r in together] == [r.output_token_ids for r in alone]


def test_blocks_that_are_not_finite_are_cleared_for_every_drafter():
    model = tiny_model(seed=3)
    model.model.embed_tokens.weight[30] = float("nan")
    engine = tiny_engine(model, "same", drafters=["repeat"])
    assert engine.generate([request("a", [3, 30, 4])])[0].error is not None
    assert RepeatDrafter.made.cleared


@pytest.mark.parametrize(
    ("text", "model", "drafters"),
    [
        ("repeat", "none", ("repeat",)),
        ("repeat+lookup", "none", ("repeat", "lookup")),
        ("lookup+repeat+int8", "int8", ("lookup", "repeat")),
        ("repeat+some/model+v2", "some/model+v2", ("repeat",)),
        ("repeat+repeat", "repeat", ("repeat",)),
    ],
)
def test_settings_name_it(text, model, drafters):
    assert DraftSpec.parse(text) == DraftSpec(model, drafters)


def test_a_name_without_a_model_behind_it_is_refused():
    with pytest.raises(ConfigurationError, match=r"give lookup\+repeat, or lookup\+repeat\+int8"):
        DraftSpec.parse("lookup+repeat+")


def test_a_name_that_no_drafter_has_is_refused():
    with pytest.raises(ConfigurationError, match="there is no drafter 'guess'"):
        tiny_engine(drafters=["guess"])
