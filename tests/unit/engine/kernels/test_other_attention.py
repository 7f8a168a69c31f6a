"""Attention as processors without AVX-512 compute it, compiled for these and run here."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pytest
import torch

from tests.unit.engine.kernels.other_processors import PROCESSORS, compiled_for

if TYPE_CHECKING:
    from pathlib import Path

HEADS, KV_HEADS, HEAD_DIM, BLOCK = 6, 2, 32, 16
SCALING, CAP = 0.2, 20.0


@pytest.fixture(scope="module", params=PROCESSORS)
def library(request: pytest.FixtureRequest, kernels_folder: Path) -> ctypes.CDLL:
    """The kernels of attention for another processor."""
    return compiled_for(request.param, ["attention.cpp"], kernels_folder, f"-DHEAD_DIM={HEAD_DIM}")


def pieces_of(lengths: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Pieces and blocks of slices of so many new queries behind so many keys, and the numbers of queries and blocks."""
    pieces, blocks, token, block = [], list[int](), 0, 0
    for new, start in lengths:
        pieces.append([token, new, start, len(blocks)])
        count = -(-(start + new) // BLOCK)
        blocks += range(block, block + count)
        token, block = token + new, block + count
    return torch.tensor(pieces), torch.tensor(blocks, dtype=torch.int32), token, block


def expected(
    queries: torch.Tensor, pools: list[torch.Tensor], pieces: torch.Tensor, window: int, sinks: torch.Tensor
) -> torch.Tensor:
    """Attention in float64. ``pools`` are keys and values, each ``[blocks, kv_heads, block, head_dim]``."""
    # each: [kv_heads, blocks * block, head_dim]
    flat = [pool.transpose(0, 1).reshape(KV_HEADS, -1, HEAD_DIM).double() for pool in pools]
    result = torch.zeros_like(queries, dtype=torch.float64)
    for first, new, start, entry in pieces.tolist():
        for token in range(new):
            last = start + token + 1
            begin = max(0, last - window) if window else 0
            seen = slice(entry * BLOCK + begin, entry * BLOCK + last)
            for head in range(HEADS):
                own = head // (HEADS // KV_HEADS)
                scores = SCALING * (flat[0][own, seen] @ queries[first + token, head].double())
                scores = CAP * torch.tanh(scores / CAP)
                weights = torch.softmax(torch.cat([scores, sinks[head : head + 1].double()]), 0)[:-1]
                result[first + token, head] = weights @ flat[1][own, seen]
    return result


@pytest.mark.thorough
@pytest.mark.parametrize("window", [0, 70])
def test_every_query_weighs_the_keys_that_it_sees(library: ctypes.CDLL, window: int) -> None:
    torch.manual_seed(3)
    pieces, blocks, tokens, count = pieces_of([(1, 0), (1, 95), (5, 130), (16, 3), (2, 14)])
    # each: [blocks, kv_heads, block, head_dim]
    keys, values = torch.randn(count, KV_HEADS, BLOCK, HEAD_DIM), torch.randn(count, KV_HEADS, BLOCK, HEAD_DIM)
    # [tokens, heads, head_dim]
    queries, sinks = 3 * torch.randn(tokens, HEADS, HEAD_DIM), torch.randn(HEADS)
    output = torch.full_like(queries, 7.0)
    attend = library.paged_attention_float32
    attend.argtypes = (
        *[ctypes.c_void_p] * 6,
        *[ctypes.c_int64] * 4,
        *[ctypes.c_float] * 2,
        ctypes.c_int64,
        ctypes.c_void_p,
    )
    assert not attend(
        queries.data_ptr(), keys.data_ptr(), values.data_ptr(), pieces.data_ptr(), blocks.data_ptr(), output.data_ptr(),
        len(pieces), HEADS, KV_HEADS, BLOCK, SCALING, CAP, window, sinks.data_ptr(),
    )  # fmt: skip
    torch.testing.assert_close(
        output.double(), expected(queries, [keys, values], pieces, window, sinks), atol=2e-5, rtol=0
    )


@pytest.mark.thorough(fast=1)
def test_keys_and_values_of_8_bits(library: ctypes.CDLL) -> None:
    torch.manual_seed(4)
    pieces, blocks, tokens, count = pieces_of([(1, 60), (3, 29)])
    shape = (count, KV_HEADS, BLOCK, HEAD_DIM)
    keys, values = (torch.randint(-127, 128, shape, dtype=torch.int8) for _ in range(2))
    key_scales, value_scales = (torch.rand(shape[:3]) / 64 for _ in range(2))
    queries, sinks = torch.randn(tokens, HEADS, HEAD_DIM), torch.full((HEADS,), -1e9)
    output = torch.full_like(queries, 7.0)
    attend = library.paged_attention_int8_float32
    attend.argtypes = (
        *[ctypes.c_void_p] * 8,
        *[ctypes.c_int64] * 4,
        *[ctypes.c_float] * 2,
        ctypes.c_int64,
        ctypes.c_void_p,
    )
    assert not attend(
        queries.data_ptr(), keys.data_ptr(), values.data_ptr(), key_scales.data_ptr(), value_scales.data_ptr(),
        pieces.data_ptr(), blocks.data_ptr(), output.data_ptr(), len(pieces), HEADS, KV_HEADS, BLOCK, SCALING, CAP, 0,
        sinks.data_ptr(),
    )  # fmt: skip
    found = [pool.float() * scales[..., None] for pool, scales in ((keys, key_scales), (values, value_scales))]
    torch.testing.assert_close(output.double(), expected(queries, found, pieces, 0, sinks), atol=2e-5, rtol=0)


def test_heads_are_rotated_and_stored_in_8_bits(library: ctypes.CDLL) -> None:
    torch.manual_seed(5)
    qkv = torch.randn(3, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
    positions, rows = torch.arange(3), torch.tensor([0, 16, 5, 21, 7, 23])
    keys, values = (torch.zeros(2, KV_HEADS, BLOCK, HEAD_DIM, dtype=torch.int8) for _ in range(2))
    key_scales, value_scales = (torch.zeros(2, KV_HEADS, BLOCK) for _ in range(2))
    queries = torch.empty(3, HEADS * HEAD_DIM)
    store = library.rotate_and_store_int8_float32
    store.argtypes = (*[ctypes.c_void_p] * 10, *[ctypes.c_int64] * 5)
    store(
        qkv.data_ptr(), positions.data_ptr(), rows.data_ptr(), None, None, queries.data_ptr(), keys.data_ptr(),
        values.data_ptr(), key_scales.data_ptr(), value_scales.data_ptr(), 3, HEADS, KV_HEADS, HEAD_DIM, 0,
    )  # fmt: skip
    # each: [3, heads, head_dim]
    given = qkv.view(3, -1, HEAD_DIM).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    assert torch.equal(queries.view(3, HEADS, HEAD_DIM), given[0])
    for pool, scales, wanted in ((keys, key_scales, given[1]), (values, value_scales, given[2])):
        stored = (pool.float() * scales[..., None]).view(-1, HEAD_DIM)[rows].view(3, KV_HEADS, HEAD_DIM)
        torch.testing.assert_close(stored, wanted, atol=float(wanted.abs().max()) / 254 * 1.01, rtol=0)
