"""A packed layer computes what a dense one over its decoded weights computes."""

from __future__ import annotations

import pytest
import torch

from helix_jobs.engine.weights import block_matrix
from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.block_matrix import BlockMatrix, look_up
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.packed_linear import PackedLinear
from tests.unit.engine.block_files import random_blocks


def matrix(kind: str, rows: int, columns: int = 512, seed: int = 1) -> BlockMatrix:
    return BlockMatrix(BLOCK_LAYOUTS[kind], random_blocks(kind, rows=rows, columns=columns, seed=seed))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of three rows of 512."""
    monkeypatch.setattr(block_matrix, "_TILE_WEIGHTS", 3 * 512)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("kind", BLOCK_LAYOUTS)
def test_tiles_make_up_the_matrix(kind: str) -> None:
    blocks = matrix(kind, 8)
    assert torch.equal(blocks.dense(torch.float32), blocks.layout.decode(blocks.data))
    assert blocks.shape == (8, 512)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kinds", [("Q4_0",), ("Q4_K", "Q4_K", "Q6_K"), ("Q8_0", "Q4_K", "Q8_0")])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_product_is_that_of_the_decoded_weights(
    dtype: torch.dtype, kinds: tuple[str, ...], *, has_bias: bool
) -> None:
    parts = [matrix(kind, 5 + index, seed=index) for index, kind in enumerate(kinds)]
    weight = torch.cat([part.dense(dtype) for part in parts])
    bias = torch.randn(len(weight)).to(dtype) if has_bias else None
    packed, dense = PackedLinear(parts, bias), DenseLinear(weight, bias)
    hidden, residual = torch.randn(7, 512).to(dtype), torch.randn(7, len(weight)).to(dtype)
    tolerance = 8 * torch.finfo(dtype).eps
    for got, expected in (
        (packed(hidden), dense(hidden)),
        (packed.add_to(residual, hidden), dense.add_to(residual, hidden)),
    ):
        assert got.dtype is dtype
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    assert torch.equal(packed.weight(dtype), weight)


def test_neighbours_of_one_layout_are_one_part() -> None:
    same, other = matrix("Q4_K", 4), matrix("Q6_K", 2)
    assert [part.shape for part in PackedLinear([same, same, other], None).parts] == [(8, 512), (2, 512)]
    assert PackedLinear([same], None).parts[0] is same


def test_a_layer_counts_the_bytes_it_keeps() -> None:
    assert PackedLinear([matrix("Q4_K", 4)], None).nbytes == 4 * 2 * 144
    assert PackedLinear([matrix("Q4_K", 4)], torch.zeros(4)).nbytes == 4 * 2 * 144 + 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_are_decoded_when_looked_up(dtype: torch.dtype) -> None:
    blocks, tokens = matrix("Q6_K", 9), torch.tensor([3, 0, 3, 8])
    expected = blocks.dense(dtype)
    assert torch.equal(look_up(tokens, blocks, dtype), expected[tokens])
    assert torch.equal(look_up(tokens, expected, dtype), expected[tokens])
