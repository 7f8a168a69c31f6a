"""Int8Linear: a linear layer over int8 weights, and the int8 copy of a model that drafts for it.

Weights are quantised once, symmetrically, per output row; activations on the fly, symmetrically, per token. The
product is exact in int32, so one row's result does not depend on the other rows of the batch.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Int8Linear(nn.Module):
    """A linear layer whose weight is int8 with one scale per output row."""

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.out_features, self.in_features = weight.shape

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Int8Linear:
        """Quantise a linear layer; nothing is shared with it."""
        # [out_features, in_features]
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        quantized = torch.round(weight / scale).to(torch.int8)
        return cls(quantized, scale.squeeze(1), None if linear.bias is None else linear.bias.detach().float().clone())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return ``hidden @ weight.T + bias`` in the dtype of ``hidden``."""
        # [num_tokens, in_features]
        rows = hidden.reshape(-1, self.in_features).float()
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        out = torch._int_mm(torch.round(rows / scale).to(torch.int8), self.weight.t()).float()  # noqa: SLF001
        out = out * scale * self.scale
        if self.bias is not None:
            out = out + self.bias
        return out.to(hidden.dtype).reshape(*hidden.shape[:-1], self.out_features)


def quantize_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of the model whose linear layers are int8; embeddings and norms are shared with the original."""
    memo: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, memo)
    for name, module in list(copied.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, Int8Linear.from_linear(module))
    return copied
