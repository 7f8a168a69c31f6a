"""Checkpoints of compressed-tensors (github.com/vllm-project/compressed-tensors), as llm-compressor writes them.

``config.json`` lists groups of modules with the form of their weights. Helix goes by what is stored, and refuses a
matrix that no group announces so: which module a group means may depend on patterns and on the modules' classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from helix_jobs.engine.loading.packed_bits import WORD_BITS, unpacked
from helix_jobs.engine.loading.quantized_format import (
    BITS,
    FLOATS,
    Grain,
    QuantizedMatrix,
    Scales,
    parts_of,
    refusal,
)
from helix_jobs.engine.loading.stored_tensor import read_tensor
from helix_jobs.engine.weights.level_layouts import FP8, INT4, INT8, MIDDLES
from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.loading.stored_tensor import StoredTensor

NAME: Final = "compressed-tensors"
# The forms that are read, and the tensor that holds their codes.
_FORMS: Final = {
    "pack-quantized": "weight_packed",
    "int-quantized": "weight",
    "float-quantized": "weight",
    "naive-quantized": "weight",
}
_PARTS: Final = ("weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape")
# What only serves to quantise activations.
_OF_ACTIVATIONS: Final = ("input_scale", "input_zero_point")
_CODES: Final = {"F8_E4M3": FP8, "I8": INT8}
_CODES_OF: Final = {"int 4": INT4, "int 8": INT8, "float 8": FP8}
_SIGNED: Final = torch.int8
# Weights that are stored quantised: before they were compressed tools called them frozen.
_STATUSES: Final = (None, "compressed", "frozen")


@dataclass(frozen=True, slots=True)
class _Scheme:
    """The form of one group's weights.

    Attributes:
        is_packed: Whether codes lie in 32-bit words.
        code: ``INT4``, ``INT8`` or ``FP8``.
        tile: Rows and columns that share a scale, None for all of them.
        is_symmetric: Whether there are no zero points.
        rounds_activations: Whether the format quantises these modules' inputs.
    """

    is_packed: bool
    code: str
    tile: tuple[int | None, int | None]
    is_symmetric: bool
    rounds_activations: bool


class CompressedTensors:
    """The format of one checkpoint (satisfies ``QuantizedFormat``).

    Args:
        name: The model's name as the user gave it.
        settings: What config.json says of the quantisation.

    Raises:
        UnsupportedArchitectureError: It announces something that is not computed.
    """

    name = NAME

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        for key in ("kv_cache_scheme", "transform_config"):
            if settings.get(key):
                raise refusal(name, NAME, f"{key} in config.json")
        sparsity = settings.get("sparsity_config")
        if sparsity and not (isinstance(sparsity, dict) and sparsity.get("format") == "dense"):
            raise refusal(name, NAME, "sparsity_config in config.json")
        if (status := settings.get("quantization_status")) not in _STATUSES:
            raise refusal(name, NAME, f"quantization_status {status!r} in config.json")
        groups = settings.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise refusal(name, NAME, "no config_groups in config.json")
        self._schemes = tuple(_scheme(name, group, settings.get("format")) for group in groups.values())

    @property
    def turns_transposed(self) -> bool:
        """See ``QuantizedFormat``."""
        return False

    @property
    def stores_shapes(self) -> bool:
        """See ``QuantizedFormat``."""
        return any(scheme.is_packed for scheme in self._schemes)

    @property
    def rounds_activations(self) -> bool:
        """See ``QuantizedFormat``."""
        return any(scheme.rounds_activations for scheme in self._schemes)

    @property
    def grains(self) -> tuple[Grain, ...]:
        """See ``QuantizedFormat``."""
        return tuple(Grain(one.code, one.tile[1], has_zeros=not one.is_symmetric) for one in self._schemes)

    def matrices(self, name: str, tensors: Mapping[str, StoredTensor]) -> dict[str, QuantizedMatrix]:
        """See ``QuantizedFormat``."""
        found = {}
        for tensor, stored in tensors.items():
            module, _, part = tensor.rpartition(".")
            if part == "weight_packed" or (part == "weight" and stored.kind in _CODES):
                found[module] = self._matrix(name, module, part, tensors)
        return found

    def _matrix(self, name: str, module: str, codes: str, tensors: Mapping[str, StoredTensor]) -> QuantizedMatrix:
        stored, is_packed = tensors[f"{module}.{codes}"], codes == "weight_packed"
        parts = parts_of(tensors, module, (codes, *_PARTS, *_OF_ACTIVATIONS))
        scale = parts.get("weight_scale")
        if len(stored.shape) != 2 or scale is None or len(scale.shape) > 2:  # noqa: PLR2004  (rows and columns)
            raise ModelError(f"model {name}: the parts of {module:.200} do not belong together; fetch the model again")
        shape = _stated_shape(name, module, parts) if is_packed else (stored.shape[0], stored.shape[1])
        for scheme in self._schemes:
            if scheme.is_packed == is_packed and (is_packed or _CODES[stored.kind] == scheme.code):
                matrix = QuantizedMatrix(
                    scheme.code,
                    shape,
                    (scheme.tile[0] or shape[0], scheme.tile[1] or shape[1]),
                    "weight_zero_point" in parts,
                    parts,
                    has_order="weight_g_idx" in parts,
                )
                if _fits(scheme, matrix, codes):
                    return matrix
        raise refusal(
            name, NAME, f"{module} is stored as {stored.kind} with scales {list(scale.shape)}, unlike config.json says"
        )

    def scales(self, subject: str, matrix: QuantizedMatrix, parts: Mapping[str, torch.Tensor]) -> Scales:
        """See ``QuantizedFormat``."""
        rows, columns = matrix.scale_shape
        zeros, groups = parts.get("weight_zero_point"), parts.get("weight_g_idx")
        if zeros is not None and zeros.dtype == torch.int32:  # packed along the rows
            zeros = unpacked(zeros.t(), BITS[matrix.code])[:, :rows].t()
        elif zeros is not None:
            zeros = _unsigned(subject, zeros.reshape(rows, columns), matrix.code)
        if groups is not None and bool((groups < 0).all()):  # there, but not in use
            groups = None
        return Scales(parts["weight_scale"].float().reshape(rows, columns), zeros, groups)

    def codes(self, matrix: QuantizedMatrix, parts: Mapping[str, torch.Tensor], rows: slice) -> torch.Tensor:
        """See ``QuantizedFormat``."""
        if "weight_packed" in parts:
            return unpacked(parts["weight_packed"][rows], BITS[matrix.code])[:, : matrix.shape[1]]
        if matrix.code == FP8:
            return parts["weight"][rows].view(torch.uint8)
        return _unsigned("a weight", parts["weight"][rows], matrix.code)


def _scheme(name: str, group: Any, form: Any) -> _Scheme:  # noqa: ANN401  (a stranger's JSON)
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise refusal(name, NAME, "a group without weights in config.json")
    form = group.get("format") or form
    if not isinstance(form, str) or form not in _FORMS:
        raise refusal(name, NAME, f"format {form!r:.60}")
    if group.get("output_activations"):
        raise refusal(name, NAME, "output_activations in config.json")
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    code, is_packed = _CODES_OF.get(f"{kind} {bits}"), form == "pack-quantized"
    if code is None or (code == FP8 and is_packed) or (code == INT4 and not is_packed) or weights.get("dynamic"):
        raise refusal(name, NAME, f"weights of {bits!r:.20} bits, {kind!r:.20}, as {form}")
    return _Scheme(
        is_packed=is_packed,
        code=code,
        tile=_tile(name, weights),
        is_symmetric=bool(weights.get("symmetric", True)),
        rounds_activations=bool(group.get("input_activations")),
    )


def _tile(name: str, weights: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Rows and columns that share a scale; None for all of them."""
    size, strategy, block = weights.get("group_size"), weights.get("strategy"), weights.get("block_structure")
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if strategy == "tensor":
        return None, None
    if strategy == "channel":
        return 1, None
    if strategy == "group" and type(size) is int and size > 0:
        return 1, size
    if (
        strategy == "block"
        and isinstance(block, list)
        and [type(one) for one in block] == [int, int]
        and min(block) > 0
    ):
        return block[0], block[1]
    raise refusal(name, NAME, f"scales by {strategy!r:.40} of {size!r:.20}")


def _stated_shape(name: str, module: str, parts: Mapping[str, StoredTensor]) -> tuple[int, int]:
    """The shape that a packed matrix has before it is packed, which stands in a tensor of its own."""
    stored = parts.get("weight_shape")
    if stored is None or stored.shape != (2,) or stored.kind not in ("I64", "I32"):
        raise ModelError(f"model {name} lacks the shape of {module:.200}; fetch the model again")
    rows, columns = read_tensor(name, stored).tolist()
    return rows, columns


def _fits(scheme: _Scheme, matrix: QuantizedMatrix, codes: str) -> bool:
    """Whether the tensors are what a scheme stores of such a matrix."""
    rows, columns = matrix.shape
    parts, (scale_rows, scale_columns) = matrix.parts, matrix.scale_shape
    stored, zeros, groups = parts[codes], parts.get("weight_zero_point"), parts.get("weight_g_idx")
    if rows < 1 or columns < 1 or (scheme.tile[0] == 1 and columns % matrix.tile[1]):
        return False
    if scheme.is_packed:
        words = math.ceil(columns * BITS[scheme.code] / WORD_BITS)
        if stored.kind != "I32" or stored.shape != (rows, words):
            return False
    scale = parts["weight_scale"]
    shapes = _scale_shapes(scale_rows, scale_columns)
    if scale.kind not in FLOATS or scale.shape not in shapes:
        return False
    if zeros is None:
        fits = scheme.is_symmetric
    elif zeros.kind == "I32":
        words = math.ceil(scale_rows * BITS[scheme.code] / WORD_BITS)
        fits = scheme.is_packed and zeros.shape == (words, scale_columns)
    else:
        fits = scheme.code != FP8 and zeros.kind == "I8" and zeros.shape in shapes
    return fits and (groups is None or (groups.kind in ("I32", "I64") and groups.shape == (columns,)))


def _scale_shapes(rows: int, columns: int) -> set[tuple[int, ...]]:
    """The shapes in which one number for each tile is stored."""
    shapes: set[tuple[int, ...]] = {(rows, columns)}
    if columns == 1:
        shapes.add((rows,))
        if rows == 1:
            shapes.add(())
    return shapes


def _unsigned(subject: str, values: torch.Tensor, code: str) -> torch.Tensor:
    """Signed whole numbers as codes.

    Raises:
        ModelError: One takes more bits than the code has.
    """
    assert values.dtype == _SIGNED, "checked with the headers"
    made = values.to(torch.int16) + MIDDLES[code]
    if bool(((made < 0) | (made >= 1 << BITS[code])).any()):
        raise ModelError(f"{subject} has whole numbers of more than {BITS[code]} bits; fetch the model again")
    return made.to(torch.uint8)
