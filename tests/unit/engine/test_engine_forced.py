"""What a grammar forces is drafted ahead of any guess, in one step with it, and changes no output at any depth."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.sampling import verification
from helix_jobs.engine.speculation.depth.controller import DepthDecision
from tests.unit.engine.g_test import SIGNIFICANT, g_test
from tests.unit.engine.grammar_models import (
    CONSTRAINTS,
    GrammarLogits,
    constrained,
    grammar_engine,
    json_model,
    json_tokenizer,
    reference,
)
from tests.unit.engine.opened_engine import opened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.engine import Engine
    from helix_jobs.engine.speculation.depth.plan import DraftCandidate

MAX_TOKENS = 60
# Free letters between forced ones.
LETTERS = Constraint("regex", "Q[abc]QQ[abc]Q")


def drafts_of(engine: Engine) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The forced tokens of each turn that the engine will verify, and the guess behind them."""
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    opened(engine).watch_verified(lambda turns: seen.extend((turn.forced, turn.draft.token_ids) for turn in turns))
    return seen


def choose_any(engine: Engine, seed: int) -> None:
    """Depths as the rest of a batch might lead to: any cut of what is found, and any number to compute behind it."""
    rng = random.Random(seed)
    controller = opened(engine).controller

    def choose(candidates: Sequence[DraftCandidate], prefill_tokens: int) -> DepthDecision:
        del prefill_tokens
        computed = [rng.choice([0, rng.randint(0, one.computed_ceiling)]) for one in candidates]
        found = [
            one.num_forced if depth else rng.randint(0, len(one.confidence))
            for one, depth in zip(candidates, computed, strict=True)
        ]
        return DepthDecision(tuple(computed), tuple(found), "any")

    controller.choose = choose  # type: ignore[method-assign]


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(
    ("draft", "drafters"), [("none", ("lookup",)), ("same", ()), ("other", ("lookup",)), ("same on the device", ())]
)
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_guess_goes_on_behind_what_is_forced(draft: str, drafters: tuple[str, ...], *, adaptive: bool) -> None:
    engine = grammar_engine(draft.partition(" ")[0], depth=8, drafters=drafters, adaptive=adaptive, max_batch_size=4)
    if adaptive:
        choose_any(engine, 3)
    if draft.endswith("device"):
        opened(engine).make_waits_dear()
    seen = drafts_of(engine)
    requests = [
        constrained(f"{kind} {i}", CONSTRAINTS[kind], max_tokens=MAX_TOKENS)
        for i in range(2)
        for kind in ("person", "spaced", "regex")
    ]
    results = engine.generate(requests)
    wanted = [reference(json_model(), CONSTRAINTS[k], max_tokens=MAX_TOKENS) for k in ("person", "spaced", "regex")]
    assert [r.output_token_ids for r in results] == wanted * 2
    assert any(forced and guess for forced, guess in seen)
    counters = engine.counters()
    assert counters.forced_tokens == sum(len(forced) for forced, _ in seen)
    assert counters.accepted_forced_tokens == counters.forced_tokens, "what is forced is accepted"
    assert counters.draft_tokens == sum(len(forced) + len(guess) for forced, guess in seen)
    engine.check_integrity()


def test_drafters_learn_from_their_own_part_alone() -> None:
    engine = grammar_engine("same", depth=8)
    seen: list[tuple[int, int]] = []
    opened(engine).drafter.observe = lambda _, drafted, accepted: seen.append((drafted, accepted))  # type: ignore[method-assign]
    engine.generate([constrained("one", CONSTRAINTS["person"], max_tokens=MAX_TOKENS)])
    counters = engine.counters()
    assert counters.forced_tokens > 0
    assert sum(drafted for drafted, _ in seen) == counters.draft_tokens - counters.forced_tokens
    assert sum(accepted for _, accepted in seen) == counters.accepted_tokens - counters.accepted_forced_tokens


@lru_cache(maxsize=1)
def letter_probs() -> dict[str, float]:
    """The exact distribution of the texts that ``LETTERS`` allows."""
    prompt = json_tokenizer().encode("Ann is 12")
    grammar = GrammarLogits(LETTERS, len(prompt))
    probs: Counter[str] = Counter()
    waiting: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while waiting:
        ids, mass = waiting.pop()
        text = json_tokenizer().decode(ids)
        if text.count("Q") == 4:
            probs[text] += mass
            continue
        with torch.no_grad():
            logits = json_model()(torch.tensor([[*prompt, *ids]])).logits[0, -1]
        row = torch.softmax((logits / 3.0).masked_fill(~grammar.mask(ids), float("-inf")), 0)
        waiting += [((*ids, token), mass * float(row[token])) for token in row.nonzero()[:, 0].tolist()]
    assert abs(sum(probs.values()) - 1) < 1e-5
    return dict(probs)


def letter_fit(draft: str, trials: int = 600) -> float:
    engine = grammar_engine(draft, depth=3, max_batch_size=64)
    seen = drafts_of(engine)
    results = engine.generate(constrained(str(i), LETTERS, seed=i, temperature=3.0) for i in range(trials))
    assert any(forced and guess for forced, guess in seen)
    counts, probs = Counter(result.output_text for result in results), letter_probs()
    assert counts.keys() <= probs.keys()
    return g_test([counts[text] for text in probs], list(probs.values()))


@pytest.mark.thorough
def test_sampled_outputs_behind_forced_tokens_have_the_masked_distribution() -> None:
    assert letter_fit("other") > SIGNIFICANT


@pytest.mark.thorough
def test_the_test_of_the_distribution_sees_a_residual_of_another_row(monkeypatch: pytest.MonkeyPatch) -> None:
    residual = verification._residual

    def shifted(target: torch.Tensor, row: Any, rejected: int, draft_probs: Any) -> torch.Tensor:
        return residual(target, row, rejected, draft_probs.roll(1, 0))

    monkeypatch.setattr(verification, "_residual", shifted)
    assert letter_fit("other") < SIGNIFICANT


@pytest.mark.thorough
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_seeded_output_is_the_same_with_forced_drafts_of_any_cut_and_without(seed: int) -> None:
    kinds = {**CONSTRAINTS, "letters": LETTERS}
    asked = [
        constrained(f"{kind} {i}", one, f"number {i}", seed=i, max_tokens=30, temperature=(0.8, 2.0)[i % 2], **shaping)
        for kind, one in kinds.items()
        for i, shaping in enumerate(({}, {"top_p": 0.9}, {"repetition_penalty": 1.3}))
    ]
    asked = [replace(one, sampling_params=replace(one.sampling_params, seed=one.seed)) for one in asked]
    plain = grammar_engine("none", depth=0, max_batch_size=1).generate(asked)
    engine = grammar_engine("same", drafters=("lookup",), adaptive=True, max_batch_size=5)
    choose_any(engine, seed)
    seen = drafts_of(engine)
    company = [constrained(f"plain {i}", None, f"number {i}", max_tokens=9) for i in range(6)]
    together = engine.generate([*asked, *company])[: len(asked)]
    assert [r.output_token_ids for r in together] == [r.output_token_ids for r in plain]
    assert sum(r.draft_tokens for r in together) == sum(r.accepted_tokens for r in together) > 20
    assert len({len(forced) for forced, _ in seen}) > 3, "many lengths were drafted"
