"""Each family's greedy outputs are transformers' own: with drafts, over shared prefixes, and when blocks run out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.engine.model.family_cases import PLAIN_CASES
from tests.unit.engine.tiny_models import EOS, VOCAB_SIZE, batched_reference_logits, request, tiny_engine

if TYPE_CHECKING:
    from tests.unit.engine.model.family_case import Case

SHARED = [(5 * i) % (VOCAB_SIZE - 1) + 1 for i in range(17)]
PROMPTS = [SHARED, [*SHARED, 9, 4], [3], [*SHARED[:12], 7, 7, 30], [*SHARED, 9, 4]]


@pytest.mark.thorough(fast=2)
@pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
def test_an_engine_gives_transformers_tokens(case: Case) -> None:
    model = case.model()
    # Nine blocks a sequence are too many for two sequences at once: the younger ones are preempted.
    engine = tiny_engine(model, "other", drafters=("lookup",), num_blocks=20, max_batch_size=3, token_budget=12)
    results = engine.generate(
        request(str(index), prompt, max_tokens=18, ignore_eos=True) for index, prompt in enumerate(PROMPTS)
    )
    texts = [[*prompt, *result.output_token_ids] for prompt, result in zip(PROMPTS, results, strict=True)]
    expected = batched_reference_logits(model, texts)
    for prompt, result, logits in zip(PROMPTS, results, expected, strict=True):
        assert result.output_token_ids == tuple(logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist())
        assert len(result.output_token_ids) == 18 or EOS in result.output_token_ids
