"""GGUF's blocks of 256 weights, in which the scales of the groups are whole numbers with a common float16 factor."""

from __future__ import annotations

from typing import Final

import torch

from helix_jobs.engine.weights.block_parts import NONLINEAR_LEVELS, Groups, chosen, float16s, shifted

WEIGHTS: Final = 256


def q2_k(blocks: torch.Tensor) -> Groups:
    """16 groups of 16 with 4-bit scales and offsets; 2-bit levels."""
    packed = blocks[:, :16]
    scale = float16s(blocks[:, 80:82]) * (packed & 15).unsqueeze(2)
    offset = float16s(blocks[:, 82:84]) * (packed >> 4).unsqueeze(2)
    levels = _spread(blocks[:, 16:80], 32, (0, 2, 4, 6)) & 3
    return Groups(levels.reshape(-1, 16, 16).to(torch.int8), scale, offset.neg())


def q3_k(blocks: torch.Tensor) -> Groups:
    """16 groups of 16 with 6-bit scales; 3-bit levels, whose highest bits stand apart."""
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    # [n, 16]
    scales = torch.cat((low & 15, low >> 4), dim=1) | (_spread(high, 4, (0, 2, 4, 6)).flatten(1) & 3) << 4
    levels = (_spread(blocks[:, 32:96], 32, (0, 2, 4, 6)) & 3).flatten(1).to(torch.int8)
    # A set bit means that nothing is subtracted.
    has_no_offset = (_spread(blocks[:, :32], 32, tuple(range(8))) & 1).flatten(1).to(torch.int8)
    levels = levels - (1 - has_no_offset) * 4
    return Groups(levels.view(-1, 16, 16), float16s(blocks[:, 108:110]) * _signed(scales, 32))


def q4_k(blocks: torch.Tensor) -> Groups:
    """8 groups of 32 with 6-bit scales and offsets; 4-bit levels."""
    scale, offset = _six_bit_scales(blocks)
    levels = _spread(blocks[:, 16:144], 32, (0, 4)) & 15
    return Groups(levels.reshape(-1, 8, 32).to(torch.int8), scale, offset)


def q5_k(blocks: torch.Tensor) -> Groups:
    """As Q4_K, with a fifth bit of each level apart."""
    scale, offset = _six_bit_scales(blocks)
    levels = _spread(blocks[:, 48:176], 32, (0, 4)).reshape(-1, 8, 32) & 15
    fifth = _spread(blocks[:, 16:48], 32, tuple(range(8))).reshape(-1, 8, 32) & 1
    return Groups((levels | fifth << 4).to(torch.int8), scale, offset)


def q6_k(blocks: torch.Tensor) -> Groups:
    """16 groups of 16 with 8-bit scales; 6-bit levels, whose upper two bits stand apart."""
    low = _spread(blocks[:, :128], 64, (0, 4)).reshape(-1, 16, 16) & 15
    high = _spread(blocks[:, 128:192], 32, (0, 2, 4, 6)).reshape(-1, 16, 16) & 3
    scales = blocks[:, 192:208].contiguous().view(torch.int8).unsqueeze(2)
    return Groups((low | high << 4).to(torch.int8) - 32, float16s(blocks[:, 208:210]) * scales)


def iq4_xs(blocks: torch.Tensor) -> Groups:
    """8 groups of 32 with 6-bit scales; 4-bit levels out of a table."""
    high = shifted(blocks[:, 2:4].unsqueeze(2), (0, 2, 4, 6)).flatten(1) & 3
    low = shifted(blocks[:, 4:8].unsqueeze(2), (0, 4)).flatten(1) & 15
    levels = chosen(NONLINEAR_LEVELS, _spread(blocks[:, 8:136], 16, (0, 4)) & 15)
    return Groups(levels.reshape(-1, 8, 32), float16s(blocks[:, :2]) * _signed(low | high << 4, 32))


def _spread(packed: torch.Tensor, run: int, shifts: tuple[int, ...]) -> torch.Tensor:
    """Runs of bytes, each shifted by each number of bits: ``[n, runs, shifts, run]``; bits above are not cleared."""
    return shifted(packed.unflatten(1, (-1, 1, run)).transpose(2, 3), shifts).transpose(2, 3)


def _signed(scales: torch.Tensor, zero: int) -> torch.Tensor:
    return (scales.to(torch.int8) - zero).unsqueeze(2)


def _six_bit_scales(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and offsets ``[n, 8, 1]`` of Q4_K and Q5_K, out of twelve bytes that hold eight 6-bit numbers of each."""
    scales, offsets, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = torch.cat((scales & 63, (rest & 15) | (scales >> 2 & 48)), dim=1).unsqueeze(2)
    offset = torch.cat((offsets & 63, rest >> 4 | (offsets >> 2 & 48)), dim=1).unsqueeze(2)
    return float16s(blocks[:, :2]) * scale, (float16s(blocks[:, 2:4]) * offset).neg()
