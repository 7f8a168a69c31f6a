"""Verification: accept, recover, bonus. Pure functions, independent of models and caches.

After Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", ICML 2023, algorithm 1:

- A *draft token* x, drawn from the draft distribution, is *accepted* with probability
  min(1, target_probs[x] / draft_probs[x]).
- At the first rejection a *recovered token* is drawn from norm(max(0, target_probs - draft_probs)); the drafts after it
  are dropped.
- If every draft token is accepted, a *bonus token* is drawn from the target's distribution after the last of them.

Then each emitted token has exactly the target's distribution, whatever the drafter proposed. For greedy rows both
distributions are one-hot, and the rule reduces to: accept while the draft equals the target's most likely token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.sampling.sampler import sample

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Verdict:
    """The tokens of one sequence in a step: ``num_accepted`` draft tokens, then one recovered or bonus token."""

    num_accepted: int
    token_ids: tuple[int, ...]


def verify_greedy(target_ids: Sequence[int], draft_ids: Sequence[int]) -> Verdict:
    """Verify a greedy row.

    Args:
        target_ids: The target's most likely token at each of the ``K + 1`` positions.
        draft_ids: The ``K`` draft tokens.
    """
    accepted = 0
    while accepted < len(draft_ids) and draft_ids[accepted] == target_ids[accepted]:
        accepted += 1
    return Verdict(accepted, tuple(target_ids[: accepted + 1]))


@dataclass(frozen=True, slots=True)
class SampledRow:
    """One sampled sequence of a step.

    Attributes:
        draft_ids: Its ``K`` draft tokens.
        first_row: Its first row in ``target_probs``; rows ``first_row .. first_row + K`` are its own.
        first_draft_row: The first row in ``draft_probs`` of its tokens behind the forced ones; None for a drafter that
            proposes with certainty (one-hot).
        accept_uniforms: ``K`` numbers in [0, 1).
        final_uniforms: ``K + 1`` numbers in [0, 1), one for the recovered or bonus token at each possible position.
        num_forced: How many of its first draft tokens a grammar forces. They are proposed with certainty.
    """

    draft_ids: Sequence[int]
    first_row: int
    first_draft_row: int | None
    accept_uniforms: Sequence[float]
    final_uniforms: Sequence[float]
    num_forced: int = 0


def verify_sampled(
    rows: Sequence[SampledRow], target_probs: torch.Tensor, draft_probs: torch.Tensor | None
) -> list[Verdict]:
    """Verify the sampled sequences of a step together.

    Args:
        rows: The sequences.
        target_probs: ``[sum of K + 1, vocab_size]`` processed fp32 distributions of the target.
        draft_probs: ``[sum of K - num_forced, vocab_size]`` processed fp32 distributions that the drafts were drawn
            from; None when all drafts are one-hot.
    """
    accepted = [_count_accepted(row, target_probs, draft_probs) for row in rows]
    # [num_rows, vocab_size]
    finals = target_probs[[row.first_row + count for row, count in zip(rows, accepted, strict=True)]]
    for index, (row, count) in enumerate(zip(rows, accepted, strict=True)):
        if count < len(row.draft_ids):
            finals[index] = _residual(finals[index], row, count, draft_probs)
    tokens = sample(finals, [row.final_uniforms[count] for row, count in zip(rows, accepted, strict=True)])
    return [
        Verdict(count, (*row.draft_ids[:count], token))
        for row, count, token in zip(rows, accepted, tokens, strict=True)
    ]


def _count_accepted(row: SampledRow, target_probs: torch.Tensor, draft_probs: torch.Tensor | None) -> int:
    depth = len(row.draft_ids)
    if depth == 0:
        return 0
    ids = torch.tensor(row.draft_ids, dtype=torch.int64)[:, None]
    # each: [K]
    target = target_probs[row.first_row : row.first_row + depth].gather(1, ids)[:, 0].tolist()
    draft = [1.0] * depth
    if row.first_draft_row is not None and draft_probs is not None:
        drawn = draft_probs[row.first_draft_row : row.first_draft_row + depth - row.num_forced]
        draft[row.num_forced :] = drawn.gather(1, ids[row.num_forced :])[:, 0].tolist()
    for position, number in enumerate(row.accept_uniforms):
        # number < target / draft, without the division; a drawn token's draft probability is never 0
        if number * draft[position] >= target[position]:
            return position
    return depth


def _residual(target: torch.Tensor, row: SampledRow, rejected: int, draft_probs: torch.Tensor | None) -> torch.Tensor:
    """norm(max(0, target - draft)), unnormalised; ``[vocab_size]``."""
    if row.first_draft_row is None or draft_probs is None or rejected < row.num_forced:
        residual = target.clone()
        residual[row.draft_ids[rejected]] = 0.0
    else:
        residual = (target - draft_probs[row.first_draft_row + rejected - row.num_forced]).clamp(min=0.0)
    # Equal distributions reject only through rounding; the residual then has no mass, and the target's own is right.
    return residual if float(residual.sum()) > 0.0 else target
