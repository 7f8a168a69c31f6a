"""Block layouts: how GGUF files store a row of weights as blocks, each a few scales and many small whole numbers.

A block holds one or several groups of neighbouring weights. The weights of a group share a scale and, in some layouts,
an offset: ``weight = scale * level + offset``. The layouts are those of ggml (github.com/ggml-org/ggml,
``ggml-common.h``); the gguf package's ``dequantize`` gives the same float32 numbers, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.engine.weights import super_blocks
from helix_jobs.engine.weights.block_parts import (
    MXFP4_LEVELS,
    NONLINEAR_LEVELS,
    Groups,
    chosen,
    float16s,
    nibbles,
    shifted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Unpack = Callable[[torch.Tensor], Groups]


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """One type of block.

    Attributes:
        kind: Its name, in GGUF files that of the format, such as ``Q4_K``.
        weights: Number of weights in a block.
        nbytes: Bytes of a block.
        unpack: Takes blocks ``[n, nbytes]`` uint8 apart.
        label: What results call it, if not by its kind.
    """

    kind: str
    weights: int
    nbytes: int
    unpack: Unpack
    label: str = ""

    @property
    def name(self) -> str:
        """What results call it."""
        return self.label or self.kind.lower()

    def decode(self, blocks: torch.Tensor) -> torch.Tensor:
        """The float32 weights ``[rows, columns]`` of rows of blocks ``[rows, bytes of a row]`` uint8."""
        rows = blocks.shape[0]
        return self.unpack(blocks.reshape(-1, self.nbytes)).weights().view(rows, -1)


def _q4_0(blocks: torch.Tensor) -> Groups:
    return Groups((nibbles(blocks[:, 2:]).to(torch.int8) - 8).unsqueeze(1), float16s(blocks[:, :2]))


def _q4_1(blocks: torch.Tensor) -> Groups:
    return Groups(nibbles(blocks[:, 4:]).to(torch.int8).unsqueeze(1), float16s(blocks[:, :2]), float16s(blocks[:, 2:4]))


def _fifth_bits(blocks: torch.Tensor) -> torch.Tensor:
    """The bits of ``[n, 4]`` bytes, least significant first, each worth 16: ``[n, 32]``."""
    return (shifted(blocks.unsqueeze(2), range(8)) & 1).flatten(1) << 4


def _q5_0(blocks: torch.Tensor) -> Groups:
    levels = nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return Groups((levels.to(torch.int8) - 16).unsqueeze(1), float16s(blocks[:, :2]))


def _q5_1(blocks: torch.Tensor) -> Groups:
    levels = nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return Groups(levels.to(torch.int8).unsqueeze(1), float16s(blocks[:, :2]), float16s(blocks[:, 2:4]))


def _q8_0(blocks: torch.Tensor) -> Groups:
    return Groups(blocks[:, 2:].contiguous().view(torch.int8).unsqueeze(1), float16s(blocks[:, :2]))


def _iq4_nl(blocks: torch.Tensor) -> Groups:
    return Groups(chosen(NONLINEAR_LEVELS, nibbles(blocks[:, 2:])).unsqueeze(1), float16s(blocks[:, :2]))


def _mxfp4(blocks: torch.Tensor) -> Groups:
    """Levels are doubled E2M1 numbers; the scale is half the power of two that an E8M0 byte stands for."""
    exponent = blocks[:, :1].to(torch.int32)
    # 0x00200000 << 0 and << 1 are the two subnormal halves.
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)  # noqa: PLR2004  (as in ggml)
    levels = chosen(MXFP4_LEVELS, nibbles(blocks[:, 1:]))
    return Groups(levels.unsqueeze(1), bits.view(torch.float32).unsqueeze(2))


_SUPER: Final = partial(BlockLayout, weights=super_blocks.WEIGHTS)
_SMALL: Final = partial(BlockLayout, weights=32)
_LAYOUTS: Final = (
    _SMALL("Q4_0", nbytes=18, unpack=_q4_0),
    _SMALL("Q4_1", nbytes=20, unpack=_q4_1),
    _SMALL("Q5_0", nbytes=22, unpack=_q5_0),
    _SMALL("Q5_1", nbytes=24, unpack=_q5_1),
    _SMALL("Q8_0", nbytes=34, unpack=_q8_0),
    _SMALL("IQ4_NL", nbytes=18, unpack=_iq4_nl),
    _SMALL("MXFP4", nbytes=17, unpack=_mxfp4),
    _SUPER("Q2_K", nbytes=84, unpack=super_blocks.q2_k),
    _SUPER("Q3_K", nbytes=110, unpack=super_blocks.q3_k),
    _SUPER("Q4_K", nbytes=144, unpack=super_blocks.q4_k),
    _SUPER("Q5_K", nbytes=176, unpack=super_blocks.q5_k),
    _SUPER("Q6_K", nbytes=210, unpack=super_blocks.q6_k),
    _SUPER("IQ4_XS", nbytes=136, unpack=super_blocks.iq4_xs),
)
BLOCK_LAYOUTS: Final = {layout.kind: layout for layout in _LAYOUTS}
