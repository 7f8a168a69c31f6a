"""NativeKernels: the compiled kernels as functions of tensors."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

import torch

from helix_jobs.engine.kernels.cpu.build import build_libraries
from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.level_layouts import FLOAT_LAYOUTS, LEVEL_LAYOUTS
from helix_jobs.engine.weights.packed_int8_linear import BYTE_LAYOUTS
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from helix_jobs.engine.kernels.cpu.expert_table import ExpertTable
    from helix_jobs.engine.kernels.cpu.int8_matrix import Int8Matrix
    from helix_jobs.engine.weights.packed_linear import PackedLinear


_NAMES: Final = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_POINTER, _SIZE, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32
# In the library for heads of any size, and in that for heads of one size.
_COMMON_SIGNATURES: Final = {
    "rms_norm": (*[_POINTER] * 3, *[_SIZE] * 2, _FLOAT),
    **dict.fromkeys(("silu", "gelu", "tanh_gelu"), (*[_POINTER] * 2, *[_SIZE] * 2, _INT)),
    "quantize_rows": (*[_POINTER] * 3, *[_SIZE] * 2, _FLOAT, _INT),
    "scale_rows": (*[_POINTER] * 5, *[_SIZE] * 2),
}
_HEAD_SIGNATURES: Final = {
    "rotate_and_store": (*[_POINTER] * 8, *[_SIZE] * 5),
    "paged_attention": (*[_POINTER] * 6, *[_SIZE] * 4, *[_FLOAT] * 2, _SIZE, _POINTER),
    # Of keys and values of 8 bits, with their scales.
    "rotate_and_store_int8": (*[_POINTER] * 10, *[_SIZE] * 5),
    "paged_attention_int8": (*[_POINTER] * 8, *[_SIZE] * 4, *[_FLOAT] * 2, _SIZE, _POINTER),
}


# The place of each layout in ``kLayouts`` of ``decoded_rows.h``, which has the same order.
LAYOUT_NUMBERS: Final = {kind: number for number, kind in enumerate((*BLOCK_LAYOUTS, *LEVEL_LAYOUTS, *FLOAT_LAYOUTS))}
# The same for ``kByteLayouts`` of ``packed_int8.cpp``.
BYTE_LAYOUT_NUMBERS: Final = {kind: number for number, kind in enumerate(BYTE_LAYOUTS)}
# That of dense weights in the kernels' dtype.
PLAIN_LAYOUT: Final = len(LAYOUT_NUMBERS)
LANES: Final = 16
# The width of most models' heads.
COMMON_HEAD_DIM: Final = 64
_BLOCK_OUTPUTS: Final = 32
# As in ``shortage.h``.
_NO_MEMORY: Final = 1


class NativeKernels:
    """Two libraries, for tensors of one dtype on the CPU and heads of one size.

    Every tensor handed in is contiguous; every kernel writes a tensor of its own and keeps no pointer.

    Args:
        common: The library for heads of any size.
        of_heads: The library for heads of ``head_dim``.
        dtype: Of the tensors.
        head_dim: Size of the heads.
        version: Another one for other code: what was found out about one version need not hold for the next.
    """

    name = "compiled"

    def __init__(
        self, common: ctypes.CDLL, of_heads: ctypes.CDLL, dtype: torch.dtype, head_dim: int, version: str = ""
    ) -> None:
        self.dtype = dtype
        self.head_dim = head_dim
        self.version = version
        self._functions: dict[str, Any] = {}
        # All layers of an int8 decoder in one call, see ``NativeInt8Decoder``; and whether that is fast here.
        self.int8_layers = getattr(of_heads, f"int8_layers_{_NAMES[dtype]}")
        _bind(self.int8_layers, (_POINTER, _POINTER, _POINTER), asks_for_memory=True)
        self.has_byte_products = bool(common.has_byte_products())
        self._int8_linear = getattr(common, f"int8_linear_{_NAMES[dtype]}")
        _bind(self._int8_linear, (*[_POINTER] * 4, _SIZE), asks_for_memory=True)
        # Whether the processor multiplies tiles of this dtype, and this process may use them.
        self.has_tiles = dtype is torch.bfloat16 and bool(common.has_tiles())
        self._pack_tiles = common.pack_tiles
        _bind(self._pack_tiles, (*[_POINTER] * 2, *[_SIZE] * 2))
        self._tiled_linear = common.tiled_linear_bfloat16
        _bind(self._tiled_linear, (*[_POINTER] * 5, *[_SIZE] * 3), asks_for_memory=True)
        self._packed_linear = getattr(common, f"packed_linear_{_NAMES[dtype]}")
        _bind(self._packed_linear, (_POINTER, _INT, *[_POINTER] * 4, *[_SIZE] * 4), asks_for_memory=True)
        self._packed_int8_linear = getattr(common, f"packed_int8_linear_{_NAMES[dtype]}")
        _bind(self._packed_int8_linear, (_POINTER, _INT, *[_POINTER] * 4, *[_SIZE] * 4), asks_for_memory=True)
        self._experts = getattr(common, f"experts_{_NAMES[dtype]}")
        _bind(self._experts, (*[_POINTER] * 5, *[_SIZE] * 2), asks_for_memory=True)
        for library, signatures in ((common, _COMMON_SIGNATURES), (of_heads, _HEAD_SIGNATURES)):
            for name, signature in signatures.items():
                function = getattr(library, f"{name}_{_NAMES[dtype]}")
                _bind(function, signature, asks_for_memory=name.startswith("paged_attention"))
                self._functions[name] = function
        self._rms_norm = self._functions["rms_norm"]
        self._quantize_rows = self._functions["quantize_rows"]
        self._scale_rows = self._functions["scale_rows"]

    def paged(self, *, has_scales: bool) -> tuple[Any, Any]:
        """``rotate_and_store`` and ``paged_attention``, for a cache with scales or without.

        ``CompiledStep`` calls them with pointers, so that arguments that a step's layers share are worked out once.
        """
        suffix = "_int8" if has_scales else ""
        return self._functions[f"rotate_and_store{suffix}"], self._functions[f"paged_attention{suffix}"]

    def rms_norm(self, hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """``hidden / rms(hidden) * weight`` over the last dimension."""
        hidden = hidden.contiguous()
        result = torch.empty_like(hidden)
        size = hidden.shape[-1]
        rows = hidden.numel() // size
        self._rms_norm(hidden.data_ptr(), weight.data_ptr(), result.data_ptr(), rows, size, eps)
        return result

    def pack_tiles(self, weight: torch.Tensor) -> torch.Tensor:
        """A bfloat16 weight ``[out_features, in_features]`` as ``tiled_linear`` reads it; where ``has_tiles``.

        ``in_features`` is a multiple of 32.
        """
        weight = weight.contiguous()
        out_features, in_features = weight.shape
        # [out_features rounded up to 32, in_features], in another order
        packed = weight.new_empty((-(-out_features // _BLOCK_OUTPUTS) * _BLOCK_OUTPUTS, in_features))
        self._pack_tiles(weight.data_ptr(), packed.data_ptr(), in_features, out_features)
        return packed

    def tiled_linear(
        self,
        hidden: torch.Tensor,
        packed: torch.Tensor,
        out_features: int,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
    ) -> torch.Tensor:
        """``hidden @ weight.T + bias + residual``, rounded once; a row's bits do not depend on the number of rows.

        Args:
            hidden: ``[T, in_features]``
            packed: From ``pack_tiles``.
            out_features: Outputs of the weight.
            bias: ``[out_features]``
            residual: ``[T, out_features]``
        """
        hidden = hidden.contiguous()
        if residual is not None:
            residual = residual.contiguous()
        rows, in_features = hidden.shape
        result = hidden.new_empty((rows, out_features))
        self._tiled_linear(
            hidden.data_ptr(), packed.data_ptr(), None if bias is None else bias.data_ptr(),
            None if residual is None else residual.data_ptr(), result.data_ptr(), rows, in_features, out_features,
        )  # fmt: skip
        return result

    def activate(self, name: str, inner: torch.Tensor, *, is_gated: bool) -> torch.Tensor:
        """The activation of ``[T, size]``, or ``activation(gate) * up`` of ``[T, gate and up]``.

        Args:
            name: ``silu``, ``gelu`` or ``tanh_gelu``.
            inner: The activation's input.
            is_gated: Whether ``inner`` holds a gate and an up projection.
        """
        inner = inner.contiguous()
        rows, width = inner.shape
        size = width // 2 if is_gated else width
        result = inner.new_empty((rows, size))
        self._functions[name](inner.data_ptr(), result.data_ptr(), rows, size, is_gated)
        return result

    def quantize_rows(self, hidden: torch.Tensor, smallest: float, zero: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Round each row to whole numbers from -127 to 127, plus ``zero``.

        Returns:
            ``[T, size]`` uint8 and the float32 scale of each row, ``[T]``.
        """
        hidden = hidden.contiguous()
        rows, size = hidden.shape
        rounded = torch.empty((rows, size), dtype=torch.uint8)
        scales = torch.empty(rows, dtype=torch.float32)
        self._quantize_rows(
            hidden.data_ptr(), rounded.data_ptr(), scales.data_ptr(), rows, size, smallest, zero
        )  # fmt: skip
        return rounded, scales

    def scale_rows(
        self,
        product: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """``product * scales + bias + residual``, ``[T, size]``, from float32 to ``dtype``, the kernels' own."""
        rows, size = product.shape
        result = torch.empty((rows, size), dtype=dtype)
        self._scale_rows(
            product.data_ptr(), scales.data_ptr(), None if bias is None else bias.data_ptr(),
            None if residual is None else residual.data_ptr(), result.data_ptr(), rows, size,
        )  # fmt: skip
        return result

    def int8_linear(self, hidden: torch.Tensor, matrix: Int8Matrix, residual: torch.Tensor | None) -> torch.Tensor:
        """``hidden @ weight.T + bias + residual``, ``[T, rows]``, each row of ``hidden`` rounded to whole numbers.

        Args:
            hidden: ``[T, columns]``.
            matrix: The weight.
            residual: ``[T, rows]``, or None.
        """
        hidden = hidden.contiguous()
        result = hidden.new_empty((hidden.shape[0], matrix.struct.rows))
        self._int8_linear(
            hidden.data_ptr(), ctypes.byref(matrix.struct), None if residual is None else residual.data_ptr(),
            result.data_ptr(), hidden.shape[0],
        )  # fmt: skip
        return result

    def packed_linear(self, hidden: torch.Tensor, weight: PackedLinear, residual: torch.Tensor | None) -> torch.Tensor:
        """``hidden @ weight.T + bias + residual``, rounded once; a row's bits do not depend on the number of rows.

        Args:
            hidden: ``[T, in_features]``
            weight: Matrices of blocks, with a bias or without.
            residual: ``[T, out_features]``
        """
        return self._of_parts(self._packed_linear, LAYOUT_NUMBERS, hidden, weight, residual)

    def packed_int8_linear(
        self, hidden: torch.Tensor, weight: PackedLinear, residual: torch.Tensor | None
    ) -> torch.Tensor:
        """``packed_linear`` with ``hidden`` rounded to bytes in blocks of 32 columns, see ``PackedInt8Linear``."""
        return self._of_parts(self._packed_int8_linear, BYTE_LAYOUT_NUMBERS, hidden, weight, residual)

    @staticmethod
    def _of_parts(
        kernel: Any,  # noqa: ANN401  (ctypes')
        numbers: Mapping[str, int],
        hidden: torch.Tensor,
        weight: PackedLinear,
        residual: torch.Tensor | None,
    ) -> torch.Tensor:
        """A product of matrices of blocks, part by part, each by a kernel that knows its layout by a number."""
        hidden = hidden.contiguous()
        if residual is not None:
            residual = residual.contiguous()
        rows, size = hidden.shape[0], hidden.itemsize
        result = hidden.new_empty((rows, weight.out_features))
        starts = [None if one is None else one.data_ptr() for one in (weight.bias, residual)]
        reordered, order = hidden, None
        for first, part in weight.placed_parts():
            if part.order is not None and part.order is not order:
                reordered, order = hidden.index_select(1, part.order), part.order
            inputs = hidden if part.order is None else reordered
            bias, before = (None if start is None else start + first * size for start in starts)
            kernel(
                part.data.data_ptr(), numbers[part.layout.kind], inputs.data_ptr(), bias, before,
                result.data_ptr() + first * size, rows, weight.in_features, part.shape[0], weight.out_features,
            )  # fmt: skip
        return result

    def plain_linear(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        """``packed_linear`` of a dense weight ``[out_features, in_features]``; ``in_features`` a multiple of 32."""
        hidden = hidden.contiguous()
        if residual is not None:
            residual = residual.contiguous()
        rows, (out_features, in_features) = hidden.shape[0], weight.shape
        result = hidden.new_empty((rows, out_features))
        self._packed_linear(
            weight.data_ptr(), PLAIN_LAYOUT, hidden.data_ptr(), None if bias is None else bias.data_ptr(),
            None if residual is None else residual.data_ptr(), result.data_ptr(), rows, in_features, out_features,
            out_features,
        )  # fmt: skip
        return result

    def experts(
        self, hidden: torch.Tensor, choice: torch.Tensor, weights: torch.Tensor, table: ExpertTable
    ) -> torch.Tensor:
        """The weighted sum of each token's experts, ``[T, hidden_size]``; a row's bits do not depend on the others.

        Args:
            hidden: ``[T, hidden_size]``
            choice: ``[T, top_k]`` int64, each token's experts in the order of summation.
            weights: ``[T, top_k]`` float32
            table: The experts.
        """
        hidden, choice, weights = hidden.contiguous(), choice.contiguous(), weights.contiguous()
        result = torch.empty_like(hidden)
        self._experts(
            ctypes.byref(table.struct), hidden.data_ptr(), choice.data_ptr(), weights.data_ptr(), result.data_ptr(),
            *choice.shape,
        )  # fmt: skip
        return result


def _bind(function: Any, arguments: Sequence[Any], *, asks_for_memory: bool = False) -> None:  # noqa: ANN401  (ctypes')
    """Declare what a kernel takes and returns: a status if it asks for memory, else nothing."""
    function.argtypes = arguments
    function.restype = _INT if asks_for_memory else None
    if asks_for_memory:
        function.errcheck = _check


def _check(status: int, _function: object, _arguments: object) -> None:
    """Raise what a kernel cannot raise itself.

    Raises:
        MemoryError: The kernel did not get the memory that it asked for; what it was to write is not whole.
    """
    if status == _NO_MEMORY:
        raise MemoryError("there is not enough memory for a step of the compiled kernels")


def load_kernels(folder: Path, dtype: torch.dtype, device: torch.device, head_dim: int) -> NativeKernels:
    """Compile the kernels if need be, and load them.

    Raises:
        ConfigurationError: There are no kernels for this device, dtype or head size, or they cannot be compiled or
            loaded here.
    """
    if device.type != "cpu" or dtype not in _NAMES:
        name = str(dtype).removeprefix("torch.")
        raise ConfigurationError(
            f"compiled kernels are for float32 and bfloat16 on the CPU, not {name} on {device.type}"
        )
    if head_dim % LANES != 0:
        raise ConfigurationError(f"compiled kernels are for heads of a multiple of {LANES}, not of {head_dim}")
    paths = build_libraries(folder, head_dim)
    try:
        common, of_heads = (ctypes.CDLL(str(path)) for path in paths)
        kernels = NativeKernels(common, of_heads, dtype, head_dim, paths[0].stem)
    except (OSError, AttributeError) as error:
        raise ConfigurationError(f"the compiled kernels cannot be loaded ({error}); go on with --no-compile") from error
    return kernels
