"""QueryFactor: a factor of the queries that grows with their position (Ministral 3, as in Llama 4)."""

from __future__ import annotations

import torch

from helix_jobs.engine.attention.rotary import table_length


class QueryFactor:
    """``1 + beta * log(1 + floor(position / original_context))``, from a table kept on the device.

    Args:
        beta: How fast the factor grows.
        original_context: Positions of the context that the model was first trained with; within it the factor is 1.
        dtype: The model's.
        device: The model's.
    """

    def __init__(self, beta: float, original_context: int, dtype: torch.dtype, device: torch.device) -> None:
        self._beta = beta
        self._original_context = original_context
        self._dtype = dtype
        self._device = device
        # [num_positions, 1, 1]
        self._factors = torch.empty(0)

    def at(self, positions: torch.Tensor, num_positions: int) -> torch.Tensor:
        """The factors of a step's tokens, ``[T, 1, 1]``.

        Args:
            positions: ``[T]`` int64 on the device.
            num_positions: All positions are below it.
        """
        if num_positions > len(self._factors):
            rounds = torch.floor(torch.arange(table_length(num_positions)) / self._original_context)
            factors = 1 + self._beta * torch.log(1 + rounds)
            self._factors = factors.to(self._dtype).view(-1, 1, 1).to(self._device)
        return self._factors.index_select(0, positions)
