"""Blocks of every layout with random content."""

from __future__ import annotations

from typing import Final

import torch

from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.level_layouts import FP8, INT4, LEVEL_LAYOUTS, MIDDLES, Levels, blocks_of

# Where the float16 scale of a block stands, and behind it that of its offsets; other bytes may hold anything.
_FLOAT16S: Final = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "MXFP4": (),
}


# What offsets are in units of the scale, so that weights have both signs: half the largest level.
_OFFSETS: Final = {"Q4_1": -7.5, "Q5_1": -15.5, "Q4_K": 7.5, "Q5_K": 15.5, "Q2_K": 1.5}


def random_blocks(kind: str, *, rows: int, columns: int, seed: int = 1, size: float = 0.02) -> torch.Tensor:
    """``[rows, bytes of a row]`` uint8: every bit random, but for finite scales of about ``size``."""
    layout = BLOCK_LAYOUTS[kind]
    generator = torch.Generator().manual_seed(seed)
    count = rows * columns // layout.weights
    blocks = torch.randint(0, 256, (count, layout.nbytes), generator=generator, dtype=torch.uint8)
    scales = torch.randn((count, 1), generator=generator) * size
    for place, factor in zip(_FLOAT16S[kind], (1.0, _OFFSETS.get(kind, 0.0)), strict=False):
        blocks[:, place : place + 2] = (scales * factor).to(torch.float16).view(torch.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = torch.randint(112, 120, (count,), generator=generator, dtype=torch.uint8)
    return blocks.view(rows, -1)


def scaled_blocks(kind: str, *, rows: int, columns: int, seed: int = 1, spread: float = 0.15) -> torch.Tensor:
    """As ``random_blocks``, with weights whose standard deviation is about ``spread``."""
    layout = BLOCK_LAYOUTS[kind]
    unscaled = layout.decode(random_blocks(kind, rows=rows, columns=columns, seed=seed, size=0.01))
    return random_blocks(kind, rows=rows, columns=columns, seed=seed, size=0.01 * spread / float(unscaled.std()))


def level_code(kind: str) -> tuple[str, bool]:
    """The codes of a layout of ours, and whether its blocks have zero points."""
    code = kind.partition("_")[0]
    return code.removesuffix("Z"), code.endswith("Z")


def random_levels(kind: str, *, rows: int, columns: int, seed: int = 1) -> Levels:
    """Random numbers for a layout of ours: every code, scales of both signs and any size, a scale for each block."""
    (code, has_zeros), width = level_code(kind), LEVEL_LAYOUTS[kind].weights
    generator = torch.Generator().manual_seed(seed)
    top, shape = 16 if code == INT4 else 256, (rows, columns // width)
    codes = torch.randint(0, top, (rows, columns), generator=generator, dtype=torch.uint8)
    if code == FP8:
        codes[(codes & 127) == 127] = 0  # no number
    zeros = torch.randint(0, top, shape, generator=generator, dtype=torch.uint8) if has_zeros else None
    scale = torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-3, 1, shape, generator=generator)
    return Levels(codes, scale, zeros, width)


def level_numbers(kind: str, levels: Levels) -> torch.Tensor:
    """The float32 weights ``[rows, columns]`` that these numbers stand for, by the formats' definition."""
    code, _ = level_code(kind)
    scale = levels.scale.repeat_interleave(levels.width, dim=1)
    if code == FP8:
        return levels.codes.view(torch.float8_e4m3fn).float() * scale
    zeros = MIDDLES[code] if levels.zeros is None else levels.zeros.long().repeat_interleave(levels.width, dim=1)
    return (levels.codes.long() - zeros).float() * scale


def level_blocks(kind: str, *, rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    """Blocks of ours with random numbers."""
    return blocks_of(LEVEL_LAYOUTS[kind], random_levels(kind, rows=rows, columns=columns, seed=seed))
