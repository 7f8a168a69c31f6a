"""A linear memory read and written in chunks equals the memory token by token."""

from __future__ import annotations

import pytest
import torch

from helix_jobs.engine.recurrence.linear_memory import MemoryTokens, advance_memory


def token_by_token(
    state: torch.Tensor, tokens: MemoryTokens, num_kept: int, *, corrects: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    kept, results = state, []
    for place in range(len(tokens)):
        key, value = tokens.keys[:, place], tokens.values[:, place]
        state = state * tokens.decays[:, place].exp()[:, None, None]
        missing = value - torch.einsum("hk,hkv->hv", key, state) if corrects else value
        state = state + tokens.rates[:, place, None, None] * torch.einsum("hk,hv->hkv", key, missing)
        results.append(torch.einsum("hk,hkv->hv", tokens.queries[:, place], state))
        if place + 1 == num_kept:
            kept = state
    return torch.stack(results, dim=1), kept


@pytest.mark.parametrize(
    ("num_tokens", "num_kept"),
    [(1, 1), (1, 0), (5, 0), (5, 3), (5, 5), (64, 64), (65, 64), (70, 64), (70, 66), (130, 130), (150, 130), (150, 20)],
)
@pytest.mark.parametrize("corrects", [True, False])
@pytest.mark.parametrize("decay", [0.01, 1.0, 30.0])
def test_chunks_equal_single_tokens(num_tokens, num_kept, decay, corrects):
    generator = torch.Generator().manual_seed(num_tokens)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(3, *shape, generator=generator)

    tokens = MemoryTokens(
        queries=torch.nn.functional.normalize(numbers(num_tokens, 8), dim=-1),
        keys=torch.nn.functional.normalize(numbers(num_tokens, 8), dim=-1),
        values=numbers(num_tokens, 6),
        rates=numbers(num_tokens).sigmoid(),
        decays=-decay * numbers(num_tokens).abs(),
    )
    state = numbers(8, 6)
    results, kept = advance_memory(state, tokens, num_kept, corrects=corrects)
    expected, expected_state = token_by_token(state, tokens, num_kept, corrects=corrects)
    torch.testing.assert_close(results, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(kept, expected_state, atol=2e-5, rtol=1e-4)
