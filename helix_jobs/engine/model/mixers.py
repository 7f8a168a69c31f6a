"""Mixers: what mixes a step's tokens with earlier ones: attention, a recurrence, or both side by side."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from helix_jobs.engine.attention.backend import AttentionSpec, AttentionStep
    from helix_jobs.engine.model.decoder_layer import DecoderLayer
    from helix_jobs.engine.recurrence.recurrence import Recurrence
    from helix_jobs.engine.recurrence.state_step import StateStep


class Mixers:
    """One step's attention and recurrences, each in the order of its layers.

    Args:
        step: The step's attention.
        recurrent: Its recurrences; None for a model without.
        spec: The model's attention.
    """

    def __init__(self, step: AttentionStep, recurrent: StateStep | None, spec: AttentionSpec) -> None:
        self._step = step
        self._recurrent = recurrent
        self._spec = spec
        self._attentions = itertools.count()
        self._recurrences = itertools.count()

    def mix(self, layer: DecoderLayer, given: torch.Tensor) -> torch.Tensor:
        """From what the layer's first product yields to what its second reads, each ``[T, ...]``."""
        if layer.recurrence is None:
            return self._attended(layer, given)
        if not layer.attention_width:
            return self._advanced(layer.recurrence, given)
        qkv, given = given.split((layer.attention_width, given.shape[1] - layer.attention_width), dim=1)
        return torch.cat((self._attended(layer, qkv), self._advanced(layer.recurrence, given)), dim=1)

    def _attended(self, layer: DecoderLayer, qkv: torch.Tensor) -> torch.Tensor:
        """Attention's result, ``[T, num_heads * value_width]``; times the sigmoid of its gate, if it has one."""
        index = next(self._attentions)
        if not layer.has_gate:
            return self._step.attend(index, qkv)
        width = self._spec.num_heads if layer.gates_heads else self._spec.width(index)
        qkv, gate = qkv.split((qkv.shape[1] - width, width), dim=1)
        attended = self._step.attend(index, qkv)
        if not layer.gates_heads:
            return attended * torch.sigmoid(gate)
        # [T, num_heads, value_width]
        by_head: torch.Tensor = attended.unflatten(1, (width, -1))
        return (by_head * torch.sigmoid(gate).unsqueeze(-1)).flatten(1)

    def _advanced(self, recurrence: Recurrence, given: torch.Tensor) -> torch.Tensor:
        assert self._recurrent is not None, "a model with recurrent layers has states"
        return self._recurrent.advance(next(self._recurrences), recurrence, given)
