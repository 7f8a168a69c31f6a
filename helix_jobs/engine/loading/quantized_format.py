"""QuantizedFormat: how one kind of quantised checkpoint stores a matrix as several tensors of safetensors files.

A format says which tensors belong together, and takes their numbers apart into codes, scales and zero points. What it
cannot take apart exactly it refuses by name, before a weight is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import torch

from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.level_layouts import FLOAT_LAYOUTS, Levels, blocks_of, dense_levels, level_layout
from helix_jobs.errors import ModelError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.loading.stored_tensor import StoredTensor
    from helix_jobs.engine.weights.block_layouts import BlockLayout

ORIGINAL: Final = "use the original weights or a .gguf file"
# Weights that are taken apart at once: what lies in between takes some 10 MB.
_TILE_WEIGHTS: Final = 1 << 20
# The code of E4M3 that is no number, without its sign.
_NO_NUMBER: Final = 0x7F
_ORDER_BYTES: Final = 8


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
        doubt: Why these numbers cannot be read in one way alone, and what to do; empty if they can.
    """

    scale: torch.Tensor
    zeros: torch.Tensor | None = None
    groups: torch.Tensor | None = None
    doubt: str = ""


class QuantizedFormat(Protocol):
    """How checkpoints of one kind store matrices."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def rounds_activations(self) -> bool:
        """Whether the format's own programs also quantise what the weights are multiplied with."""

    def matrices(self, name: str, tensors: Mapping[str, StoredTensor]) -> dict[str, QuantizedMatrix]:
        """The quantised matrices by their modules' names; each part is a tensor of ``tensors``.

        Raises:
            UnsupportedArchitectureError: A matrix is stored in a way that is not read.
            ModelError: Its tensors do not belong together.
        """

    def scales(self, matrix: QuantizedMatrix, parts: Mapping[str, torch.Tensor]) -> Scales:
        """The small parts, out of the tensors as they are stored."""

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
    scales, layout = quantized.scales(matrix, parts), matrix.layout
    if scales.doubt:
        raise ModelError(f"{subject} {scales.doubt}")
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
