"""Blocks of every layout with random content."""

from __future__ import annotations

from typing import Final

import torch

from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS

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
