"""Level layouts: blocks of our own for quantised safetensors, whose files keep whole numbers and scales apart.

``weight = scale * (code - zero)``. A block holds one float32 scale, which every format's scale equals exactly; one byte
for the zero point where the format has zero points; and the codes of 32, 64 or 128 neighbouring weights. Codes of four
bits lie as in GGUF's blocks: of each 32 the first sixteen in the lower halves of sixteen bytes. Codes of eight bits are
unsigned, or 8-bit floats (E4M3, the "FN" variant of Micikevicius et al., "FP8 Formats for Deep Learning", 2022).

Trade-off: a scale that many blocks share is repeated in each, and takes 4 bytes where files take 2: 3 to 14 % more than
the file, a quarter where a row has one scale and only blocks of 32 part it. In return a row is one run of bytes, as in
GGUF, and one kernel reads both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

import torch

from helix_jobs.engine.weights.block_layouts import BlockLayout
from helix_jobs.engine.weights.block_parts import Groups

INT4: Final = "INT4"
INT8: Final = "INT8"
FP8: Final = "FP8"
# Codes of symmetric formats are stored plus half their range.
MIDDLES: Final = {INT4: 8, INT8: 128, FP8: 0}
BLOCK_SIZES: Final = (128, 64, 32)
_SCALE_BYTES: Final = 4
_RUN: Final = 32  # codes of four bits that are packed together


@dataclass(frozen=True, slots=True)
class Levels:
    """Rows of a matrix taken apart. Weights that share a scale are ``width`` neighbours in a row.

    Attributes:
        codes: ``[rows, columns]`` uint8.
        scale: ``[rows, ceil(columns / width)]`` float32.
        zeros: As ``scale``, uint8; None if the zero point is that of ``MIDDLES``.
        width: See above.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zeros: torch.Tensor | None
    width: int


def level_layout(code: str, columns: int, width: int, *, has_zeros: bool) -> BlockLayout | None:
    """The layout with the largest blocks that part such rows and have one scale each; None where there is none.

    Args:
        code: ``INT4``, ``INT8`` or ``FP8``.
        columns: Weights of a row.
        width: Neighbours that share a scale; ``columns`` or more if all do.
        has_zeros: Whether each scale has a zero point.
    """
    shared = 0 if width >= columns else width
    for size in BLOCK_SIZES:
        if columns % size == 0 and shared % size == 0:
            return LEVEL_LAYOUTS[_kind(code, size, has_zeros=has_zeros)]
    return None


def blocks_of(layout: BlockLayout, levels: Levels) -> torch.Tensor:
    """The rows as blocks of a layout from ``level_layout``: ``[rows, bytes of a row]`` uint8."""
    rows, columns = levels.codes.shape
    size = layout.weights
    count = columns // size
    codes = levels.codes.view(rows, count, size)
    if layout.label == _LABELS[INT4]:
        halves = codes.view(rows, count, size // _RUN, 2, _RUN // 2)
        codes = (halves[:, :, :, 0] | halves[:, :, :, 1] << 4).reshape(rows, count, size // 2)
    # [count]: which scale each block has
    places = torch.arange(count) * size // levels.width
    data = torch.empty((rows, count, layout.nbytes), dtype=torch.uint8)
    data[:, :, :_SCALE_BYTES] = levels.scale[:, places].contiguous().view(torch.uint8).view(rows, count, _SCALE_BYTES)
    start = layout.nbytes - codes.shape[2]
    if levels.zeros is not None:
        data[:, :, _SCALE_BYTES] = levels.zeros[:, places]
    data[:, :, start:] = codes
    return data.view(rows, -1)


def dense_levels(code: str, levels: Levels) -> torch.Tensor:
    """The float32 weights ``[rows, columns]``, for rows that no layout parts."""
    places = torch.arange(levels.codes.shape[1]) // levels.width
    zeros = None if levels.zeros is None else levels.zeros[:, places]
    return _numbers(code, levels.codes, zeros) * levels.scale[:, places]


def _numbers(code: str, codes: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
    """What codes stand for before they are scaled: whole numbers of 16 bits, or float32."""
    if code == FP8:
        return codes.view(torch.float8_e4m3fn).float()
    return codes.to(torch.int16) - (MIDDLES[code] if zeros is None else zeros.to(torch.int16))


def _unpack(blocks: torch.Tensor, *, code: str, has_zeros: bool) -> Groups:
    scale = blocks[:, :_SCALE_BYTES].contiguous().view(torch.float32).unsqueeze(2)
    start = _SCALE_BYTES + has_zeros
    codes = blocks[:, start:].contiguous()
    if code == INT4:
        runs = codes.view(len(codes), -1, _RUN // 2)
        codes = torch.cat((runs & 15, runs >> 4), dim=2).flatten(1)
    zeros = blocks[:, _SCALE_BYTES:start] if has_zeros else None
    return Groups(_numbers(code, codes, zeros).unsqueeze(1), scale)


def _kind(code: str, size: int, *, has_zeros: bool) -> str:
    return f"{code}{'Z' if has_zeros else ''}_{size}"


def _layout(code: str, size: int, *, has_zeros: bool) -> BlockLayout:
    return BlockLayout(
        _kind(code, size, has_zeros=has_zeros),
        weights=size,
        nbytes=_SCALE_BYTES + has_zeros + (size // 2 if code == INT4 else size),
        unpack=partial(_unpack, code=code, has_zeros=has_zeros),
        label=_LABELS[code],
    )


# What results call them: unlike ``int8``, these say that the weights alone are rounded.
_LABELS: Final = {INT4: "int4_weights", INT8: "int8_weights", FP8: "fp8_weights"}
_LAYOUTS: Final = tuple(
    _layout(code, size, has_zeros=has_zeros)
    for code, has_zeros in ((INT4, False), (INT4, True), (INT8, False), (INT8, True), (FP8, False))
    for size in BLOCK_SIZES
)
LEVEL_LAYOUTS: Final = {layout.kind: layout for layout in _LAYOUTS}

# Matrices that a quantised checkpoint leaves in 16 bits: they stay so where activations are float32.
_FLOAT_SIZE: Final = 32
FLOAT_DTYPES: Final = {"BF16": torch.bfloat16, "F16": torch.float16}


def _unpack_floats(blocks: torch.Tensor, *, dtype: torch.dtype) -> Groups:
    return Groups(blocks.contiguous().view(dtype).float().unsqueeze(1), torch.ones((len(blocks), 1, 1)))


FLOAT_LAYOUTS: Final = {
    kind: BlockLayout(
        kind,
        weights=_FLOAT_SIZE,
        nbytes=_FLOAT_SIZE * dtype.itemsize,
        unpack=partial(_unpack_floats, dtype=dtype),
        label=str(dtype).removeprefix("torch."),
    )
    for kind, dtype in FLOAT_DTYPES.items()
}
