"""Log probabilities of chosen tokens and of the most likely ones, as a pure function of CPU tensors.

They are those of the model's own distribution: the softmax of its logits, before temperature, penalties, cuts and
masks. OpenAI defines its ``logprobs`` so. They do not depend on what was drafted or accepted: each comes from the
target's logits at the token's own position.

Trade-off: whole rows of logits are copied to the host for them. A device could rank them itself and send a few numbers,
but the chosen token of a sampled row is known only on the host, DirectML lacks operators for it, and a device's top-k
puts equal logits, which bfloat16 has often, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.token_logprobs import NO_TOKEN

if TYPE_CHECKING:
    from collections.abc import Sequence

# Logits widened and ranked at once. Their copies then stay far below what a step has in memory anyway.
_MAX_ELEMENTS: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class LogprobRows:
    """Log probabilities at some positions in a row.

    Attributes:
        width: Numbers a position: 1 for its token, and 1 for each alternative.
        token_ids: ``[num_positions * width]``: the position's token, then its alternatives, best first; of equals, the
            lower id first.
        logprobs: Their log probabilities.
    """

    width: int
    token_ids: Sequence[int]
    logprobs: Sequence[float]


def token_logprobs(logits: torch.Tensor, token_ids: Sequence[int], num_alternatives: int) -> LogprobRows:
    """Log probabilities at consecutive positions.

    Args:
        logits: ``[num_positions, vocab_size]`` fp32, as the model gave them. The maximum of each row is finite.
        token_ids: The token that stands behind each position.
        num_alternatives: How many of the most likely tokens are wanted beside it.
    """
    ids: list[int] = []
    values: list[float] = []
    at_once = max(1, _MAX_ELEMENTS // logits.shape[1])
    for start in range(0, len(token_ids), at_once):
        chosen = torch.tensor(token_ids[start : start + at_once], dtype=torch.int64)[:, None]
        # [at_once, vocab_size]
        rows = logits[start : start + at_once]
        logprobs = torch.log_softmax(rows, dim=1)
        best = _most_likely(rows, min(num_alternatives, logits.shape[1]))
        missing = num_alternatives - best.shape[1]
        padding = torch.nn.functional.pad
        ids += torch.cat((chosen, padding(best, (0, missing), value=NO_TOKEN)), dim=1).flatten().tolist()
        found = torch.cat((logprobs.gather(1, chosen), padding(logprobs.gather(1, best), (0, missing))), dim=1)
        values += found.flatten().tolist()
    return LogprobRows(1 + num_alternatives, ids, values)


def _most_likely(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The ids of each row's ``count`` highest logits, ``[num_rows, count]``: as a stable sort has them, but faster."""
    if count == 0:
        return torch.empty((len(logits), 0), dtype=torch.int64)
    # One more than wanted shows whether a logit left out equals the last one taken.
    ids = logits.topk(min(count + 1, logits.shape[1]), dim=1).indices.sort(dim=1).values
    order = logits.gather(1, ids).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order.indices)
    if ids.shape[1] > count:
        for row in (order.values[:, count - 1] == order.values[:, count]).nonzero()[:, 0].tolist():
            ids[row] = logits[row].sort(descending=True, stable=True).indices[: count + 1]
    return ids[:, :count]
