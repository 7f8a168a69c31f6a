"""Whole numbers of four or eight bits out of the 32-bit words that quantised checkpoints pack them into."""

from __future__ import annotations

from typing import Final

import torch

WORD_BITS: Final = 32


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers packed along the last dimension, the first of a word in its lowest bits.

    Args:
        words: ``[rows, words]`` int32.
        bits: 4 or 8.

    Returns:
        ``[rows, words * 32 / bits]`` uint8.
    """
    in_bytes = words.contiguous().view(torch.uint8)
    if bits == 8:  # noqa: PLR2004  (a byte)
        return in_bytes
    return torch.stack((in_bytes & 15, in_bytes >> 4), dim=2).flatten(1)
