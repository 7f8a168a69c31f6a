"""Blocks of every layout with random content."""

from __future__ import annotations

from typing import Final

import torch

from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS

# Where the float16 scales of a block stand; other bytes may hold anything.
_FLOAT16S: Final = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "MXFP4": (),
}


def random_blocks(kind: str, *, rows: int, columns: int, seed: int = 1, size: float = 0.02) -> torch.Tensor:
    """``[rows, bytes of a row]`` uint8: every bit random, but for finite scales of about ``size``."""
    layout = BLOCK_LAYOUTS[kind]
    generator = torch.Generator().manual_seed(seed)
    count = rows * columns // layout.weights
    blocks = torch.randint(0, 256, (count, layout.nbytes), generator=generator, dtype=torch.uint8)
    for place in _FLOAT16S[kind]:
        scales = (torch.randn((count, 1), generator=generator) * size).to(torch.float16)
        blocks[:, place : place + 2] = scales.view(torch.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = torch.randint(112, 124, (count,), generator=generator, dtype=torch.uint8)
    return blocks.view(rows, -1)
