"""PackedInt8Linear: a linear layer over weights in blocks whose activations are rounded to bytes, block by block.

The weights stay in the blocks of their file. Activations are rounded in blocks of 32 neighbours, symmetrically, each
with a float32 scale (ggml's ``Q8_0`` does the same with a float16). So a product sums whole numbers of eight bits,
which processors multiply fast, and a token's result does not depend on which other tokens share the batch.

Trade-off: rounding activations costs accuracy that ``PackedLinear`` keeps. In return products take a half to a quarter
of the time. A scale of 32 columns loses less than that of ``Int8Linear``, which a whole row shares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.int8_linear import SMALLEST_SCALE
from helix_jobs.engine.weights.level_layouts import FP8, LEVEL_LAYOUTS

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.weights.packed_linear import PackedLinear

BLOCK: Final = 32  # neighbouring activations that share a scale
_LEVELS: Final = 127
# Layouts whose levels are whole numbers of eight bits, by the order of ``kByteLayouts`` in ``packed_int8.cpp``.
BYTE_LAYOUTS: Final = (*BLOCK_LAYOUTS, *(kind for kind in LEVEL_LAYOUTS if not kind.startswith(FP8)))


class PackedInt8Linear:
    """A linear layer over block matrices, with activations rounded to bytes (satisfies ``Linear``).

    Without compiled kernels it decodes the weights and multiplies the rounded activations in float32, which is slow and
    defines what it computes.

    Args:
        exact: The layer with activations as they are; its blocks and its bias are shared. ``serves`` it.
    """

    def __init__(self, exact: PackedLinear) -> None:
        self.exact = exact
        self.in_features = exact.in_features
        self.out_features = exact.out_features

    @staticmethod
    def serves(linear: PackedLinear) -> bool:
        """Whether bytes multiply all blocks of a layer: 8-bit floats and numbers of 16 bits are none."""
        return all(part.layout.kind in BYTE_LAYOUTS for part in linear.parts)

    @property
    def nbytes(self) -> int:
        """See ``Linear``."""
        return self.exact.nbytes

    @property
    def is_fast(self) -> bool:
        """Whether compiled code computes it."""
        return False

    def pack(self) -> None:
        """See ``Linear``: blocks stay as they are."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return self._product(hidden).to(hidden.dtype)

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return self._product(hidden).add_(residual).to(residual.dtype)

    def _product(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[T, out_features]`` float32."""
        product = hidden.new_empty((hidden.shape[0], self.out_features)).float()
        for first, part in self.exact.placed_parts():
            # [T, in_features] in the order in which this part's columns are stored
            ordered = hidden if part.order is None else hidden.index_select(1, part.order)
            rounded = round_in_blocks(ordered)
            if part.order is not None:
                rounded = rounded.new_empty(rounded.shape).index_copy_(1, part.order, rounded)
            for place, weights in part.tiles():
                product[:, first + place.start : first + place.stop] = rounded @ weights.t()
        return product if self.exact.bias is None else product.add_(self.exact.bias)


def round_in_blocks(hidden: torch.Tensor) -> torch.Tensor:
    """``[T, columns]`` rounded to whole numbers of eight bits times the scale of their block, float32.

    The quotient is rounded once, as a fused multiply-add rounds it.
    """
    # [T, blocks, BLOCK]
    blocks = hidden.float().unflatten(1, (-1, BLOCK))
    top = blocks.abs().amax(dim=2, keepdim=True).clamp_(min=SMALLEST_SCALE)
    inverse = top.new_full((), _LEVELS).expand_as(top).div(top)  # torch divides a plain number by way of a reciprocal
    whole = (blocks.double() * inverse.double()).round_().float()
    rounded: torch.Tensor = (whole * (top / _LEVELS)).flatten(1)
    return rounded
