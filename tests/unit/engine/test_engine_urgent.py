"""Bulk sequences that urgent requests displace give the same tokens as without them, drafts and draws included."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest

from helix_jobs.bounds import INTERACTIVE_PRIORITY
from tests.unit.engine.tiny_models import VOCAB_SIZE, request, tiny_engine, tiny_model

COUNT = 6


@cache
def served(architecture):
    return tiny_model(architecture, seed=3)


def bulk(**params):
    rng = random.Random(5)
    prompts = ([rng.randrange(1, VOCAB_SIZE) for _ in range(5 + 7 * number)] for number in range(COUNT))
    return [request(f"bulk{n}", p, seed=n, max_tokens=24, ignore_eos=True, **params) for n, p in enumerate(prompts)]


def urgent(number, **params):
    rng = random.Random(100 + number)
    asked = request(
        f"u{number}",
        [rng.randrange(1, VOCAB_SIZE) for _ in range(9)],
        seed=number,
        max_tokens=5,
        ignore_eos=True,
        **params,
    )
    return replace(asked, priority=INTERACTIVE_PRIORITY)


def run(engine, requests, arrivals=()):
    """All requests at once, and each of ``arrivals`` while two bulk ones run.

    Returns:
        Id -> tokens, and the ids in the order of their ends.
    """
    for one in requests:
        engine.add_request(one)
    left, results = list(arrivals), []
    while engine.has_unfinished() or left:
        running = engine.running()
        if left and len(running) == 2 and all(name.startswith("bulk") for name in running):
            engine.add_request(left.pop(0))
        results += engine.step()
    engine.check_integrity()
    return {one.request_id: one.output_token_ids for one in results}, [one.request_id for one in results]


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("architecture", "draft"), [("llama", "none"), ("llama", "int8"), ("lfm2", "int8")])
def test_displaced_sequences_give_the_same_tokens(architecture, draft, params):
    model, arrivals = served(architecture), [urgent(number, **params) for number in range(5)]
    alone, _ = run(tiny_engine(model, draft, max_batch_size=8), [*bulk(**params), *arrivals])
    engine = tiny_engine(model, draft, max_batch_size=2, num_blocks=60)
    beside, order = run(engine, bulk(**params), arrivals)
    assert beside == alone
    assert engine.counters().preemptions >= 3, "urgent requests displace bulk work"
    assert order.index("u0") < order.index("bulk2"), "they do not wait for what came before them"


def test_each_choice_of_an_urgent_request_is_urgent():
    engine = tiny_engine(served("llama"), "none", max_batch_size=4)
    for one in bulk():
        engine.add_request(one)
    engine.step()
    engine.add_request(urgent(1, n=2, temperature=1.0))
    engine.step()
    engine.step()
    assert engine.running() == ["u1", "bulk0", "bulk1"]
