"""Int8Linear: a linear layer over int8 weights.

Weights are quantised once, symmetrically, one scale per output row. Activations are quantised on the fly,
symmetrically, one scale per token. Their product is summed exactly in int32, so a token's result does not depend on
which other tokens share the batch: a drafter's proposals stay reproducible.

With AVX512-VNNI oneDNN computes the product, over weights laid out once; without it ``torch._int_mm`` does, which is
slow on a CPU. Compiled kernels have a product for AVX2 alone (``CompiledInt8Linear``). All give the same sums, bit for
bit.

Trade-off: rounding activations too costs accuracy that a weight-only kernel would keep, but an int8 product is faster
than a bf16 one on a CPU, and a draft only affects speed.
"""

from __future__ import annotations

import functools
import logging
from typing import Final

import torch

from helix_jobs.engine.weights.linear import DenseLinear

logger = logging.getLogger(__name__)

_LEVELS: Final = 127
ZERO_POINT: Final = 128  # the unsigned byte that stands for a signed zero
SMALLEST_SCALE: Final = 1e-12  # keeps an all-zero row from dividing by zero
# The zero point of all weights. Trade-off: oneDNN documents one for each row; packs_int8 tries that one does.
_WEIGHTS_ZERO: Final = torch.zeros((), dtype=torch.int64)


class Int8Linear:
    """A linear layer with int8 weights, one float32 scale per output row, and float32 bias (satisfies ``Linear``)."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        # [out_features, in_features], or oneDNN's own layout of it
        self._weight = weight
        # [out_features]
        self._scale = scale
        self._bias = bias
        self._is_packed = False

    @property
    def rows(self) -> torch.Tensor | None:
        """``[out_features, in_features]`` int8; None once packed."""
        return None if self._is_packed else self._weight

    @property
    def scale(self) -> torch.Tensor:
        """``[out_features]`` float32."""
        return self._scale

    @property
    def bias(self) -> torch.Tensor | None:
        """``[out_features]`` float32."""
        return self._bias

    @property
    def nbytes(self) -> int:
        """Memory of weight, scales and bias."""
        vectors = 1 if self._bias is None else 2
        return self.out_features * (self.in_features + vectors * self._scale.itemsize)

    @classmethod
    def from_dense(cls, dense: DenseLinear) -> Int8Linear:
        """Quantise a layer that is not packed. The result shares no memory with it."""
        weight, scale = quantize_rows(dense.weight)
        bias = None if dense.bias is None else dense.bias.to(torch.float32, copy=True)
        return cls(weight, scale.squeeze(1), bias)

    @property
    def is_fast(self) -> bool:
        """Whether this CPU has a fast product for it."""
        return packs_int8()

    def to_dense(self, dtype: torch.dtype) -> DenseLinear:
        """The rounded weights as a dense layer. Only before ``pack``."""
        assert not self._is_packed, "a packed weight cannot be read back"
        weight = (self._weight.float() * self._scale.unsqueeze(1)).to(dtype)
        return DenseLinear(weight, None if self._bias is None else self._bias.to(dtype))

    def pack(self) -> None:
        """Lay the weights out for this CPU, where that is exact; the layer then has to stay on the CPU."""
        if self._is_packed or self._weight.device.type != "cpu":
            return
        if packs_int8():
            self._weight, self._is_packed = _pack(self._weight), True

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return self._product(hidden).to(hidden.dtype)

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return self._product(hidden).add_(residual).to(residual.dtype)

    def _product(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[T, out_features]`` float32."""
        # [T, in_features], [T, 1]
        rows, row_scale = _round_rows(hidden)
        if self._is_packed:
            product = _packed_product(rows, self._weight, self._scale)
        else:
            product = torch._int_mm(rows.to(torch.int8), self._weight.t()).float().mul_(self._scale)  # noqa: SLF001
        product.mul_(row_scale)
        if self._bias is not None:
            product.add_(self._bias)
        return product


def quantize_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each row of ``[rows, columns]`` to int8; return it with its float32 scales ``[rows, 1]``."""
    rounded, scale = _round_rows(values)
    return rounded.to(torch.int8), scale


def _round_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``quantize_rows`` with the whole numbers still in a float32 tensor of their own."""
    exact = values.float()
    scale = exact.abs().amax(dim=1, keepdim=True).clamp_(min=SMALLEST_SCALE).div_(_LEVELS)
    # Not divided in place: float() of a float32 tensor is that tensor.
    return exact.div(scale).round_(), scale


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
    return packed


def _packed_product(rows: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``rows @ weight.T * scale`` in float32. Consumes ``rows``: whole numbers from -127 to 127, as floats."""
    return unsigned_product(rows.add_(ZERO_POINT).to(torch.uint8), packed, scale)


def unsigned_product(unsigned: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``_packed_product`` for whole numbers already shifted by ``ZERO_POINT``."""
    product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        unsigned, 1.0, ZERO_POINT, packed, scale, _WEIGHTS_ZERO, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


@functools.cache
def packs_int8() -> bool:
    """Whether int8 weights are packed here: products of packed ones are fast and exact.

    The CPU's instructions and one trial decide.

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
        return torch.equal(_packed_product(rows, _pack(weight), torch.ones(32)), expected)
    except (RuntimeError, TypeError, AttributeError):  # another release of torch has other operators
        logger.debug("packed int8 products are not available", exc_info=True)
        return False
