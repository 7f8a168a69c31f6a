"""Models with recurrent layers under a grammar: what it forces is drafted, and the answer is the one without drafts."""

from __future__ import annotations

import pytest

from tests.unit.engine.grammar_models import CONSTRAINTS, constrained, grammar_engine, json_model, reference
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import RECURRENT

MAX_TOKENS = 60
KINDS = ("person", "spaced", "regex")


@pytest.mark.thorough
@pytest.mark.parametrize("architecture", RECURRENT)
@pytest.mark.parametrize(
    ("draft", "drafters"), [("none", ("lookup",)), ("same", ()), ("other", ("lookup",)), ("same on the device", ())]
)
def test_a_constrained_answer_is_the_one_without_drafts(
    architecture: str, draft: str, drafters: tuple[str, ...]
) -> None:
    engine = grammar_engine(
        draft.partition(" ")[0], architecture=architecture, depth=8, drafters=drafters, max_batch_size=4
    )
    if draft.endswith("device"):
        opened(engine).make_waits_dear()
    seen: list[tuple[int, int]] = []
    opened(engine).watch_verified(
        lambda turns: seen.extend((len(turn.forced), len(turn.draft.token_ids)) for turn in turns)
    )
    results = engine.generate(
        [constrained(f"{kind} {i}", CONSTRAINTS[kind], max_tokens=MAX_TOKENS) for i in range(2) for kind in KINDS]
    )
    model = json_model(architecture=architecture)
    wanted = [reference(model, CONSTRAINTS[kind], max_tokens=MAX_TOKENS) for kind in KINDS]
    assert [result.output_token_ids for result in results] == wanted * 2
    assert any(forced and guess for forced, guess in seen)
    assert max(forced + guess for forced, guess in seen) == 8
    engine.check_integrity()
