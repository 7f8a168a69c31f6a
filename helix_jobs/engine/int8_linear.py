"""Int8Linear: a linear layer over int8 weights; and the int8 copy of a model that drafts for it.

Weights are quantised once, symmetrically, one scale per output row. Activations are quantised on the fly,
symmetrically, one scale per token. Their product is summed exactly in int32, so a token's result does not depend on
which other tokens share the batch: a drafter's proposals stay reproducible.

The product itself is ``torch._int_mm``, or, where the CPU has the instructions (AVX512-VNNI), oneDNN's over weights
laid out once: bit for bit the same.

Trade-off: rounding activations too costs accuracy a weight-only kernel would keep, but an int8 product is faster than
a bf16 one on a CPU, and a draft only affects speed.
"""

from __future__ import annotations

import copy
import functools
import logging
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_LEVELS: Final = 127
_ZERO: Final = 128  # where unsigned bytes put the zero of signed ones
_SMALLEST_SCALE: Final = 1e-12  # keeps an all-zero row from dividing by zero
# Linear layers that read the same input, by the names all supported architectures give them.
_SIBLINGS: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Int8Linear(nn.Module):
    """A linear layer with an int8 ``weight`` ``[out_features, in_features]``, a float32 ``scale`` per row and bias.

    ``pack`` replaces ``weight`` by the layout of this CPU's int8 instructions.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self._packed: torch.Tensor | None = None
        self._zeros: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Memory of weight, scales and bias."""
        vectors = 1 if self.bias is None else 2
        return self.out_features * (self.in_features + vectors * self.scale.itemsize)

    def pack(self) -> None:
        """Lay the weights out for this CPU, where that is exact; the layer then has to stay on the CPU."""
        if self._packed is None and self.weight.device.type == "cpu" and _packs_exactly():
            self._packed, self._zeros = _pack(self.weight)
            del self.weight

    @classmethod
    def from_linears(cls, *linears: nn.Linear) -> Int8Linear:
        """Quantise one layer, or several of the same input stacked row on row. Nothing is shared with them."""
        quantized = [quantize_rows(linear.weight.detach()) for linear in linears]
        bias = None
        if any(linear.bias is not None for linear in linears):
            bias = torch.cat([_bias(linear) for linear in linears])
        return cls(torch.cat([q for q, _ in quantized]), torch.cat([s for _, s in quantized]).squeeze(1), bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return ``hidden @ weight.T + bias`` in the dtype of ``hidden``."""
        if hidden.device.type != "cpu":
            return self._forward_dequantized(hidden)
        if hidden.numel() == 0:
            return hidden.new_empty(*hidden.shape[:-1], self.out_features)
        # [num_tokens, in_features], [num_tokens, 1]
        rows, row_scale = _round_rows(hidden.reshape(-1, self.in_features))
        # [num_tokens, out_features]
        if self._packed is not None and self._zeros is not None:
            product = _packed_product(rows, self._packed, self._zeros, self.scale)
        else:
            product = torch._int_mm(rows.to(torch.int8), self.weight.t()).float().mul_(self.scale)  # noqa: SLF001
        product.mul_(row_scale)
        if self.bias is not None:
            product.add_(self.bias)
        return product.to(hidden.dtype).view(*hidden.shape[:-1], self.out_features)

    def _forward_dequantized(self, hidden: torch.Tensor) -> torch.Tensor:
        """Correct everywhere, faster nowhere: other devices restrict int8 products to shapes a small batch misses."""
        weight = self.weight.to(hidden.dtype) * self.scale.to(hidden.dtype).unsqueeze(1)
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        return nn.functional.linear(hidden, weight, bias)


class SiblingProduct(nn.Module):
    """One stacked product for linear layers that read the same input; each takes its columns of it.

    The first sibling called with an input computes for all, and every column is taken once. Between the siblings'
    calls the input must not be changed in place. One thread at a time.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.stacked = Int8Linear.from_linears(*linears)
        self._widths = [linear.out_features for linear in linears]
        self._input: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def take(self, hidden: torch.Tensor, index: int) -> torch.Tensor:
        """Return sibling ``index``'s part of the product of ``hidden``."""
        if hidden is not self._input or index not in self._outputs:
            self._input = hidden
            self._outputs = dict(enumerate(self.stacked(hidden).split(self._widths, dim=-1)))
        output = self._outputs.pop(index)
        if not self._outputs:
            self._input = None  # do not keep activations alive between steps
        return output


class Int8Sibling(nn.Module):
    """Stands where one of several linear layers of the same input stood."""

    def __init__(self, product: SiblingProduct, index: int) -> None:
        super().__init__()
        self.product = product
        self.index = index

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return this layer's part of the shared product."""
        return self.product.take(hidden, self.index)


def quantize_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each row of ``[rows, columns]`` to int8; return it with its float32 scales ``[rows, 1]``."""
    rounded, scale = _round_rows(values)
    return rounded.to(torch.int8), scale


def _round_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``quantize_rows`` with the whole numbers still in a float32 tensor of their own."""
    exact = values.float()
    scale = exact.abs().amax(dim=1, keepdim=True).clamp_(min=_SMALLEST_SCALE).div_(_LEVELS)
    # Not divided in place: float() of a float32 tensor is that tensor.
    return exact.div(scale).round_(), scale


def _pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The packed weight, and the zero points oneDNN wants beside it."""
    packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
    return packed, torch.zeros(len(weight), dtype=torch.int64)


def _packed_product(rows: torch.Tensor, packed: torch.Tensor, zeros: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``rows @ weight.T * scale`` in float32. Consumes ``rows``: whole numbers from -127 to 127, as floats."""
    unsigned = rows.add_(_ZERO).to(torch.uint8)
    product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        unsigned, 1.0, _ZERO, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


@functools.cache
def _packs_exactly() -> bool:
    """Whether packed products are fast and exact here: decided by the CPU's instructions and by one trial.

    Without VNNI oneDNN adds pairs of products in 16 bits, which overflows, or falls back to a loop.
    """
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", None) or getattr(torch.cpu, "_is_avx512_vnni_supported", None)
    if has_vnni is None or not has_vnni():
        return False
    # [4, 64] and [32, 64]: the largest products of both signs
    rows = torch.where(torch.arange(256).view(4, 64) % 3 == 0, -127.0, 127.0)
    weight = torch.where(torch.arange(2048).view(32, 64) % 5 == 0, -127, 127).to(torch.int8)
    expected = (rows.double() @ weight.double().t()).float()
    try:
        return torch.equal(_packed_product(rows, *_pack(weight), torch.ones(32)), expected)
    except (RuntimeError, TypeError, AttributeError):  # operators of another torch release
        logger.debug("packed int8 products are not available", exc_info=True)
        return False


def quantize_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of the model whose linear layers, output head included, are int8.

    Embeddings and norms are the original's own frozen parameters; everything that can be changed (modules, buffers,
    configuration) is a copy, so neither model notices what is done to the other.
    """
    shared: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, shared)
    for parent in list(copied.modules()):
        for names in _SIBLINGS:
            linears = [child for name in names if type(child := getattr(parent, name, None)) is nn.Linear]
            if len(linears) == len(names) and len({linear.in_features for linear in linears}) == 1:
                product = SiblingProduct(linears)
                for index, name in enumerate(names):
                    setattr(parent, name, Int8Sibling(product, index))
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear.from_linears(child))
    for module in copied.modules():
        if isinstance(module, Int8Linear):
            module.pack()
    return copied


def _bias(linear: nn.Linear) -> torch.Tensor:
    bias: torch.Tensor | None = linear.bias
    if bias is None:
        return torch.zeros(linear.out_features, device=linear.weight.device)
    # A copy even when it is float32 already.
    return bias.detach().to(torch.float32, copy=True)
