"""The alternatives at a position are the most likely tokens, of equals those with lower ids."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.engine.sampling.logprobs import token_logprobs
from helix_jobs.token_logprobs import NO_TOKEN


@given(
    rows=st.lists(st.lists(st.sampled_from([-float("inf"), -2.0, 0.5, 0.5, 3.0]), min_size=7, max_size=7), max_size=4),
    count=st.integers(0, 9),
)
def test_equals_stand_in_the_order_of_their_ids(rows: list[list[float]], count: int) -> None:
    logits = torch.tensor([[1.0, *row] for row in rows], dtype=torch.float32).view(len(rows), 8)
    found = token_logprobs(logits, [3] * len(rows), count)
    assert len(found.token_ids) == len(found.logprobs) == len(rows) * (1 + count)
    for place, row in enumerate(logits.tolist()):
        mine = slice(place * (1 + count), (place + 1) * (1 + count))
        ranked = sorted(range(8), key=lambda token: (-row[token], token))[:count]
        assert list(found.token_ids[mine]) == [3, *ranked, *[NO_TOKEN] * (count - len(ranked))]
        exact = torch.log_softmax(logits[place], dim=0)
        assert list(found.logprobs[mine])[: 1 + len(ranked)] == pytest.approx([float(exact[t]) for t in (3, *ranked)])


def test_many_equals_in_a_large_vocabulary() -> None:
    """As in bfloat16, where many of the best logits are the same; torch's top-k takes them in any order."""
    logits = torch.randn(6, 5000, generator=torch.Generator().manual_seed(1)).mul(4).round().div(4)
    found = token_logprobs(logits, [0] * 6, 20)
    best = torch.tensor(found.token_ids).view(6, 21)[:, 1:]
    assert torch.equal(best, logits.sort(dim=1, descending=True, stable=True).indices[:, :20])
