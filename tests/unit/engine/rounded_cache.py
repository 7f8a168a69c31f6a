"""transformers with keys and values of 8 bits: what the int8 cache has to equal, without any code of the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """Each row of ``[..., width]`` in steps of a 127th of its largest number."""
    scales = rows.abs().amax(dim=-1, keepdim=True) / 127
    return torch.where(scales == 0, rows, torch.round(rows / scales) * scales)


class RoundedCache(DynamicCache):
    """Keys and values are rounded as they are stored, and attended to as they are stored."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
        return super().update(rounded(key_states), rounded(value_states), *rest, **kwargs)


@torch.no_grad()
def rounded_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> torch.Tensor:
    """transformers' logits over such a cache, ``[len(token_ids), vocab_size]``."""
    ids = torch.tensor([list(token_ids)])
    return model(input_ids=ids, past_key_values=RoundedCache(config=model.config), use_cache=True).logits[0]


def rounded_beside(model: PreTrainedModel, prompt: Sequence[int], output: Sequence[int]) -> tuple[int, ...]:
    """transformers' greedy choice at each place of an output, from one pass over prompt and output over such a cache.

    It equals the output only if greedy generation gives that output: by induction, token by token.
    """
    return tuple(rounded_logits(model, [*prompt, *output])[len(prompt) - 1 : -1].argmax(dim=-1).tolist())
