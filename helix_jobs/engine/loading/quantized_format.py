"""QuantizedFormat: how one kind of quantised checkpoint stores a matrix as several tensors of safetensors files.

A format says which tensors belong together, and takes their numbers apart into codes, scales and zero points. What it
cannot take apart exactly it refuses by name, before a weight is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.level_layouts import (
    FLOAT_LAYOUTS,
    FP8,
    INT4,
    INT8,
    Levels,
    blocks_of,
    dense_levels,
    level_layout,
)
from helix_jobs.errors import ModelError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from helix_jobs.engine.loading.stored_tensor import StoredTensor
    from helix_jobs.engine.weights.block_layouts import BlockLayout

# The types in which scales are stored, and bits of a code.
FLOATS: Final = ("F32", "F16", "BF16")
BITS: Final = {INT4: 4, INT8: 8, FP8: 8}
ORIGINAL: Final = "use the original weights or a .gguf file"
# Weights that are taken apart at once: what lies in between takes some 10 MB.
_TILE_WEIGHTS: Final = 1 << 20
# The code of E4M3 that is no number, without its sign.
_NO_NUMBER: Final = 0x7F
_ORDER_BYTES: Final = 8
# Bytes of a scale as most files have it.
_STORED_SCALE: Final = 2
# Columns of a group where GPTQ's and AWQ's settings do not say: the default of both.
_GROUP: Final = 128


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A weight that its files store as codes and scales.

    Attributes:
        code: ``INT4``, ``INT8`` or ``FP8``.
        shape: Rows and columns: outputs and inputs of a linear layer.
        tile: Rows and columns of the weights that share a scale.
        has_zeros: Whether zero points are stored.
        parts: Its tensors, by what the format calls them.
        has_order: Whether they say which group each column belongs to.
    """

    code: str
    shape: tuple[int, int]
    tile: tuple[int, int]
    has_zeros: bool
    parts: Mapping[str, StoredTensor]
    has_order: bool = False

    @property
    def layout(self) -> BlockLayout | None:
        """The blocks that it becomes; None if its rows cannot be parted into blocks and it becomes plain numbers."""
        return level_layout(self.code, self.shape[1], self.tile[1], has_zeros=self.has_zeros)

    @property
    def scale_shape(self) -> tuple[int, int]:
        """How many tiles there are of rows, and of columns."""
        rows, columns = (math.ceil(size / tile) for size, tile in zip(self.shape, self.tile, strict=True))
        return rows, columns

    @property
    def order_bytes(self) -> int:
        """The most bytes that the order of its columns takes, where groups are no neighbours."""
        return self.shape[1] * _ORDER_BYTES if self.has_order and self.layout is not None else 0

    @property
    def kind(self) -> str:
        """The name of its blocks, else of its codes."""
        return self.code if self.layout is None else self.layout.kind


@dataclass(frozen=True, slots=True)
class Scales:
    """The small parts of a matrix, one number for each tile, see ``QuantizedMatrix``.

    Attributes:
        scale: ``[tiles of rows, tiles of columns]`` float32.
        zeros: As ``scale``, uint8, or None.
        groups: ``[columns]`` which tile of columns each column belongs to; None if they are neighbours.
    """

    scale: torch.Tensor
    zeros: torch.Tensor | None = None
    groups: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Grain:
    """How finely a format divides matrices, as config.json says.

    Attributes:
        code: ``INT4``, ``INT8`` or ``FP8``.
        width: Columns that share a scale; None for a whole row.
        has_zeros: Whether each scale has a zero point.
    """

    code: str
    width: int | None
    has_zeros: bool

    def growth(self, columns: int) -> float:
        """How many bytes blocks of rows of ``columns`` weights take for each byte of the file."""
        width = self.width or columns
        layout, code_bytes = level_layout(self.code, columns, width, has_zeros=self.has_zeros), BITS[self.code] / 8
        if layout is None:
            return 1.0
        stored = code_bytes + (_STORED_SCALE + (code_bytes if self.has_zeros else 0)) / width
        return layout.nbytes / layout.weights / stored


class QuantizedFormat(Protocol):
    """How checkpoints of one kind store matrices."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def turns_transposed(self) -> bool:
        """Whether a matrix that a module has transposed (GPT-2) is stored as that of a linear layer."""
        ...

    @property
    def stores_shapes(self) -> bool:
        """Whether shapes of matrices are numbers among the weights, so that headers alone do not tell them."""
        ...

    @property
    def rounds_activations(self) -> bool:
        """Whether the format's own programs also quantise what the weights are multiplied with."""

    @property
    def grains(self) -> tuple[Grain, ...]:
        """How finely it divides the matrices of this checkpoint."""

    def matrices(self, name: str, tensors: Mapping[str, StoredTensor]) -> dict[str, QuantizedMatrix]:
        """The quantised matrices by their modules' names; each part is a tensor of ``tensors``.

        Raises:
            UnsupportedArchitectureError: A matrix is stored in a way that is not read.
            ModelError: Its tensors do not belong together.
        """

    def scales(self, subject: str, matrix: QuantizedMatrix, parts: Mapping[str, torch.Tensor]) -> Scales:
        """The small parts, out of the tensors as they are stored.

        Args:
            subject: The model and the matrix, for a message.
            matrix: What the files' headers say of it.
            parts: Its tensors, by what the format calls them.

        Raises:
            ModelError: The numbers are none that the format stores, or can be read in more than one way.
        """

    def codes(self, matrix: QuantizedMatrix, parts: Mapping[str, torch.Tensor], rows: slice) -> torch.Tensor:
        """The codes of some rows, ``[n, columns]`` uint8, see ``level_layouts``. Rows begin at a multiple of 32."""


def assemble(
    subject: str, quantized: QuantizedFormat, matrix: QuantizedMatrix, parts: Mapping[str, torch.Tensor]
) -> torch.Tensor | BlockMatrix:
    """Lay a matrix out in blocks, or as float32 numbers where its rows cannot be parted into blocks.

    Args:
        subject: The model and the matrix, for a message.
        quantized: The format of its checkpoint.
        matrix: What the files' headers say of it.
        parts: Its tensors, by what the format calls them.

    Raises:
        ModelError: Its numbers are none that a matrix can have.
    """
    (rows, columns), (tall, width) = matrix.shape, matrix.tile
    scales, layout = quantized.scales(subject, matrix, parts), matrix.layout
    if not bool(torch.isfinite(scales.scale).all()):
        raise ModelError(f"{subject} has scales that are no numbers; fetch the model again")
    order = None if scales.groups is None else _order(subject, scales.groups, width)
    made = (
        torch.empty((rows, columns))
        if layout is None
        else torch.empty((rows, _row_bytes(layout, columns)), dtype=torch.uint8)
    )
    size = max(32, _TILE_WEIGHTS // columns // 32 * 32)
    for first in range(0, rows, size):
        place = slice(first, min(rows, first + size))
        codes = quantized.codes(matrix, parts, place)
        if matrix.code == "FP8" and bool(((codes & _NO_NUMBER) == _NO_NUMBER).any()):
            raise ModelError(f"{subject} has weights that are no numbers; fetch the model again")
        codes = codes if order is None else codes[:, order]
        tiles = torch.arange(place.start, place.stop) // tall
        zeros = None if scales.zeros is None else scales.zeros[tiles]
        levels = Levels(codes.contiguous(), scales.scale[tiles], zeros, width)
        made[place] = dense_levels(matrix.code, levels) if layout is None else blocks_of(layout, levels)
    if layout is not None:
        return BlockMatrix(layout, made, order)
    if order is None:
        return made
    weights = torch.empty_like(made)
    weights[:, order] = made
    return weights


def plain_layout(tensor: str, stored: StoredTensor) -> BlockLayout | None:
    """The blocks that keep a matrix which is not quantised as it is stored, in 16 bits; None for other tensors."""
    layout = FLOAT_LAYOUTS.get(stored.kind)
    if layout is None or not tensor.endswith(".weight") or len(stored.shape) != 2:  # noqa: PLR2004  (a matrix)
        return None
    return layout if stored.shape[1] % layout.weights == 0 else None


def parts_of(tensors: Mapping[str, StoredTensor], module: str, wanted: Sequence[str]) -> dict[str, StoredTensor]:
    """Those of the wanted tensors that a module has."""
    return {part: tensors[f"{module}.{part}"] for part in wanted if f"{module}.{part}" in tensors}


def stated(name: str, method: str, settings: Mapping[str, Any], keys: Sequence[str], default: str) -> str:
    """The version of a format that config.json states under one of several keys, in lower case.

    Raises:
        UnsupportedArchitectureError: Two of them differ.
    """
    found = {key: str(settings[key]).lower() for key in keys if settings.get(key)}
    if len(set(found.values())) > 1:
        said = " and ".join(f"{key} {value:.40}" for key, value in found.items())
        raise refusal(name, method, f"{said} in config.json")
    return next(iter(found.values()), default)


def group_width(name: str, method: str, settings: Mapping[str, Any]) -> int | None:
    """The columns of a group in all modules, as GPTQ's and AWQ's settings say; None for whole rows.

    Raises:
        UnsupportedArchitectureError: It is none, or modules have settings of their own.
    """
    dynamic = settings.get("dynamic")
    # With a minus GPTQModel names modules that are left as they are.
    if dynamic and not (isinstance(dynamic, dict) and all(str(key).startswith("-:") for key in dynamic)):
        raise refusal(name, method, "dynamic in config.json, which gives modules settings of their own")
    size = settings.get("group_size", settings.get("q_group_size", _GROUP))
    if type(size) is not int or not (size > 0 or size == -1):
        raise refusal(name, method, f"group_size {size!r:.40} in config.json")
    return None if size == -1 else size


def refusal(name: str, method: str, reason: str) -> UnsupportedArchitectureError:
    """The error for a checkpoint of a format that is read, in a form that is not."""
    return UnsupportedArchitectureError(f"model {name} is quantised with {method:.100} ({reason:.300}); {ORIGINAL}")


def _row_bytes(layout: BlockLayout, columns: int) -> int:
    return columns // layout.weights * layout.nbytes


def _order(subject: str, groups: torch.Tensor, width: int) -> torch.Tensor | None:
    """The columns group by group; None if they are in this order."""
    count = len(groups) // width
    if int(groups.min()) < 0 or int(groups.max()) >= count or bool((torch.bincount(groups) != width).any()):
        raise ModelError(f"{subject} has groups of columns (g_idx) that are not all of {width}; fetch the model again")
    order = torch.argsort(groups, stable=True)
    return None if torch.equal(order, torch.arange(len(order))) else order
