"""Layers over blocks with activations rounded block by block, as torch computes them."""

from __future__ import annotations

import pytest
import torch

from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.level_layouts import FLOAT_LAYOUTS, LEVEL_LAYOUTS
from helix_jobs.engine.weights.packed_int8_linear import BYTE_LAYOUTS, PackedInt8Linear, round_in_blocks
from helix_jobs.engine.weights.packed_linear import PackedLinear
from tests.unit.engine.block_files import level_blocks, random_blocks


def test_each_block_of_a_row_has_a_scale_of_its_own() -> None:
    hidden = torch.randn(3, 96) * torch.tensor([1.0, 100.0, 0.01]).repeat_interleave(32)
    rounded = round_in_blocks(hidden)
    steps = hidden.unflatten(1, (3, 32)).abs().amax(2, keepdim=True) / 127
    assert float(((rounded - hidden).unflatten(1, (3, 32)).abs() / steps).max()) < 0.501
    # The largest of each block is kept.
    tops = [one.unflatten(1, (3, 32)).abs().amax(2) for one in (hidden, rounded)]
    torch.testing.assert_close(tops[0], tops[1])
    assert torch.equal(round_in_blocks(torch.zeros(1, 32)), torch.zeros(1, 32))


def test_a_rounded_row_is_rounded_no_further() -> None:
    rounded = round_in_blocks(torch.randn(2, 64))
    torch.testing.assert_close(round_in_blocks(rounded), rounded, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_the_decoded_weights_with_rounded_activations(dtype: torch.dtype) -> None:
    parts = [
        BlockMatrix(BLOCK_LAYOUTS[kind], random_blocks(kind, rows=rows, columns=512))
        for kind, rows in (("Q4_K", 9), ("Q6_K", 7))
    ]
    bias = torch.randn(16).to(dtype)
    layer = PackedInt8Linear(PackedLinear(parts, bias))
    assert (layer.in_features, layer.out_features, layer.nbytes) == (512, 16, layer.exact.nbytes)
    assert not layer.is_fast
    hidden, residual = torch.randn(5, 512).to(dtype), torch.randn(5, 16).to(dtype)
    weight = torch.cat([part.dense(torch.float32) for part in parts])
    expected = round_in_blocks(hidden) @ weight.t() + bias
    tolerance = 4 * torch.finfo(dtype).eps
    limit = tolerance * float(expected.abs().max())
    torch.testing.assert_close(layer(hidden), expected.to(dtype), rtol=tolerance, atol=limit)
    added = layer.add_to(residual, hidden)
    torch.testing.assert_close(added, (residual + expected).to(dtype), rtol=tolerance, atol=limit)


def test_columns_in_an_order_of_their_own_are_rounded_as_they_are_stored() -> None:
    order = torch.randperm(128)
    blocks = BlockMatrix(LEVEL_LAYOUTS["INT4_64"], level_blocks("INT4_64", rows=6, columns=128), order)
    hidden = torch.randn(4, 128)
    got = PackedInt8Linear(PackedLinear([blocks], None))(hidden)
    stored = blocks.layout.decode(blocks.data)
    torch.testing.assert_close(got, round_in_blocks(hidden[:, order]) @ stored.t(), rtol=1e-5, atol=1e-5)


def test_which_layouts_bytes_multiply() -> None:
    for layout in (*BLOCK_LAYOUTS.values(), *LEVEL_LAYOUTS.values(), *FLOAT_LAYOUTS.values()):
        blocks = torch.zeros((1, layout.nbytes * (256 // layout.weights)), dtype=torch.uint8)
        layer = PackedLinear([BlockMatrix(layout, blocks)], None)
        assert PackedInt8Linear.serves(layer) is (layout.kind in BYTE_LAYOUTS)
        assert PackedInt8Linear.serves(layer) is not layout.kind.startswith(("FP8", "BF16", "F16"))
