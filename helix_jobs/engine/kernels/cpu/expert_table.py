"""ExpertTable: a layer's experts as compiled code reads them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from helix_jobs.engine.kernels.cpu.kernels import LAYOUT_NUMBERS, PLAIN_LAYOUT
from helix_jobs.engine.kernels.cpu.plain_linear import CompiledPlainLinear
from helix_jobs.engine.weights.packed_linear import PackedLinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.weights.linear import Linear

_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
# Matrices in blocks that one product may be made of: a gate and an up projection.
MOST_PARTS: Final = 2
# Activations, by their place in ``experts.cpp``.
ACTIVATION_NUMBERS: Final = {name: number for number, name in enumerate(("silu", "gelu", "tanh_gelu", "clamped"))}


class PartStruct(ctypes.Structure):
    """``ExpertPart`` of ``experts.cpp``."""

    _fields_ = (("data", _POINTER), ("rows", _SIZE), ("layout", _SIZE))


class MatrixStruct(ctypes.Structure):
    """``ExpertMatrix`` of ``experts.cpp``."""

    _fields_ = (("parts", PartStruct * MOST_PARTS), ("bias", _POINTER))


class LayerStruct(ctypes.Structure):
    """``ExpertLayer`` of ``experts.cpp``."""

    _fields_ = (
        *((name, ctypes.POINTER(MatrixStruct)) for name in ("inner", "outer")),
        *((name, _SIZE) for name in ("num_experts", "hidden", "size", "activation")),
        *((name, _FLOAT) for name in ("alpha", "limit")),
    )


@dataclass(frozen=True, slots=True)
class ExpertTable:
    """Experts described for compiled code, and the layers it points into: they must live as long as it is used.

    Attributes:
        struct: The description that compiled code reads.
        kept: The layers that ``struct`` points into.
    """

    struct: LayerStruct
    kept: tuple[Linear, ...]

    @classmethod
    def of(
        cls, inner: Sequence[Linear], outer: Sequence[Linear], activation: str, clamp: tuple[float, float] = (0.0, 0.0)
    ) -> Self:
        """Describe experts.

        Args:
            inner: Each expert's gate and up projection, in blocks or plain; all of one shape.
            outer: Each expert's projection back.
            activation: A key of ``ACTIVATION_NUMBERS``.
            clamp: ``alpha`` and ``limit`` of ``clamped``.
        """
        matrices = [(MatrixStruct * len(side))(*map(_matrix, side)) for side in (inner, outer)]
        struct = LayerStruct(
            *matrices, len(inner), inner[0].in_features, outer[0].in_features, ACTIVATION_NUMBERS[activation], *clamp
        )
        return cls(struct, (*inner, *outer))


def _matrix(linear: Linear) -> MatrixStruct:
    assert isinstance(linear, PackedLinear | CompiledPlainLinear), "no other form is described"
    bias = None if linear.bias is None else linear.bias.data_ptr()
    if isinstance(linear, CompiledPlainLinear):
        parts = [PartStruct(linear.weight.data_ptr(), linear.out_features, PLAIN_LAYOUT)]
    else:
        parts = [
            PartStruct(part.data.data_ptr(), part.shape[0], LAYOUT_NUMBERS[part.layout.kind]) for part in linear.parts
        ]
    return MatrixStruct((PartStruct * MOST_PARTS)(*parts), bias)
