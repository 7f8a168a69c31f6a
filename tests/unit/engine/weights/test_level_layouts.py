"""Blocks of our own hold exactly the numbers that they are made of."""

from __future__ import annotations

import pytest
import torch

from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.level_layouts import LEVEL_LAYOUTS, blocks_of, dense_levels, level_layout
from helix_jobs.engine.weights.packed_linear import PackedLinear
from tests.unit.engine.block_files import level_blocks, level_code, level_numbers, random_levels


@pytest.mark.parametrize("kind", LEVEL_LAYOUTS)
def test_blocks_hold_the_numbers_bit_for_bit(kind: str) -> None:
    levels, layout = random_levels(kind, rows=5, columns=384), LEVEL_LAYOUTS[kind]
    expected = level_numbers(kind, levels)
    blocks = blocks_of(layout, levels)
    assert blocks.shape == (5, 384 // layout.weights * layout.nbytes)
    assert torch.equal(layout.decode(blocks), expected)
    assert torch.equal(dense_levels(level_code(kind)[0], levels), expected)


@pytest.mark.parametrize(
    ("columns", "width", "kind"),
    [
        (256, 128, "INT4_128"),
        (256, 256, "INT4_128"),
        (576, 576, "INT4_64"),
        (576, 64, "INT4_64"),
        (512, 32, "INT4_32"),
        (160, 160, "INT4_32"),
        (160, 128, "INT4_32"),  # the last scale is that of fewer weights
        (96, 48, None),
        (48, 48, None),
        (64, 16, None),
    ],
)
def test_blocks_are_as_large_as_rows_and_scales_allow(columns: int, width: int, kind: str | None) -> None:
    layout = level_layout("INT4", columns, width, has_zeros=False)
    assert layout is (None if kind is None else LEVEL_LAYOUTS[kind])


def test_a_scale_of_more_weights_than_a_block_stands_in_each_of_them() -> None:
    levels = random_levels("INT8Z_128", rows=3, columns=384)
    made = blocks_of(LEVEL_LAYOUTS["INT8Z_32"], levels)
    assert torch.equal(LEVEL_LAYOUTS["INT8Z_32"].decode(made), level_numbers("INT8Z_128", levels))


@pytest.fixture
def reordered() -> BlockMatrix:
    return BlockMatrix(LEVEL_LAYOUTS["INT4_32"], level_blocks("INT4_32", rows=6, columns=96), torch.randperm(96))


def test_columns_come_back_to_their_places(reordered: BlockMatrix) -> None:
    stored, order = reordered.layout.decode(reordered.data), reordered.order
    assert order is not None
    dense = reordered.dense(torch.float32)
    assert torch.equal(dense[:, order], stored)
    assert torch.equal(reordered.rows(torch.tensor([4, 0]), torch.float32), dense[[4, 0]])
    assert torch.equal(PackedLinear([reordered], None)(torch.eye(96)), dense.t())
    assert reordered.nbytes == 6 * 3 * 20 + 96 * 8


def test_only_parts_with_the_same_order_of_columns_become_one(reordered: BlockMatrix) -> None:
    other = BlockMatrix(reordered.layout, reordered.data, torch.arange(96))
    plain = BlockMatrix(reordered.layout, reordered.data)
    twin = BlockMatrix(reordered.layout, reordered.data, reordered.order)
    assert [part.shape[0] for part in PackedLinear([reordered, twin, other, plain, plain], None).parts] == [12, 6, 12]


def test_outputs_in_another_order(reordered: BlockMatrix) -> None:
    plain = BlockMatrix(LEVEL_LAYOUTS["INT8_32"], level_blocks("INT8_32", rows=4, columns=96))
    layer, order = PackedLinear([reordered, plain], torch.randn(10)), torch.randperm(10)
    unit = torch.eye(96)  # each product is one weight and a bias
    assert torch.equal(layer.with_outputs(order)(unit), layer(unit)[:, order])
    within = torch.cat((torch.randperm(6), 6 + torch.randperm(4)))
    assert len(layer.with_outputs(within).parts) == 2
