"""Compiled products of weights in blocks: every layout decoded exactly, every number of rows summed alike."""

from __future__ import annotations

import gguf
import pytest
import torch

from helix_jobs.engine.kernels.cpu.kernels import NativeKernels
from helix_jobs.engine.kernels.cpu.packed_linear import CompiledPackedLinear
from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.level_layouts import FLOAT_LAYOUTS, LEVEL_LAYOUTS, blocks_of
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.packed_linear import PackedLinear
from tests.unit.engine.block_files import level_blocks, level_numbers, random_blocks, random_levels

Kernels = tuple[NativeKernels, torch.dtype]


def matrix(kind: str, rows: int, columns: int, seed: int = 1) -> BlockMatrix:
    return BlockMatrix(BLOCK_LAYOUTS[kind], random_blocks(kind, rows=rows, columns=columns, seed=seed))


@pytest.mark.parametrize("kind", BLOCK_LAYOUTS)
def test_decoded_weights_are_those_of_the_gguf_package(kernels: Kernels, kind: str) -> None:
    """A row of the identity has one product that is not zero."""
    native, dtype = kernels
    blocks = matrix(kind, 21, 768)
    compiled = CompiledPackedLinear(PackedLinear([blocks], None), native)
    expected = torch.from_numpy(gguf.dequantize(blocks.data.numpy(), gguf.GGMLQuantizationType[kind])).to(dtype)
    assert torch.equal(compiled(torch.eye(768, dtype=dtype)), expected.t())


@pytest.mark.parametrize("kind", LEVEL_LAYOUTS)
def test_decoded_levels_are_those_of_their_definition(kernels: Kernels, kind: str) -> None:
    native, dtype = kernels
    levels = random_levels(kind, rows=21, columns=384)
    blocks = BlockMatrix(LEVEL_LAYOUTS[kind], blocks_of(LEVEL_LAYOUTS[kind], levels))
    compiled = CompiledPackedLinear(PackedLinear([blocks], None), native)
    assert torch.equal(compiled(torch.eye(384, dtype=dtype)), level_numbers(kind, levels).to(dtype).t())


@pytest.mark.parametrize("kind", FLOAT_LAYOUTS)
def test_numbers_of_16_bits_are_decoded_as_they_are(kernels: Kernels, kind: str) -> None:
    native, dtype = kernels
    layout, stored = FLOAT_LAYOUTS[kind], torch.randn(21, 384).to({"BF16": torch.bfloat16, "F16": torch.float16}[kind])
    blocks = BlockMatrix(layout, stored.view(torch.uint8))
    compiled = CompiledPackedLinear(PackedLinear([blocks], None), native)
    assert torch.equal(blocks.dense(torch.float32), stored.float())
    assert torch.equal(compiled(torch.eye(384, dtype=dtype)), stored.to(dtype).t())


def test_columns_may_be_stored_in_another_order_in_each_part(kernels: Kernels) -> None:
    native, dtype = kernels
    orders = (torch.randperm(256), None, torch.randperm(256))
    parts = [
        BlockMatrix(LEVEL_LAYOUTS["INT4_64"], level_blocks("INT4_64", rows=7, columns=256, seed=seed), order)
        for seed, order in enumerate(orders)
    ]
    compiled = CompiledPackedLinear(PackedLinear(parts, None), native)
    assert len(compiled.parts) == 3
    expected = torch.cat([part.dense(dtype) for part in parts])
    assert torch.equal(compiled(torch.eye(256, dtype=dtype)), expected.t())


@pytest.mark.parametrize("kinds", [("Q4_1",), ("Q4_K", "Q4_K", "Q6_K"), ("Q8_0", "Q5_0", "Q8_0")])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 7, 33])
def test_the_product_is_that_of_the_decoded_weights(
    kernels: Kernels, kinds: tuple[str, ...], tokens: int, *, has_bias: bool
) -> None:
    native, dtype = kernels
    parts = [matrix(kind, 5 + 16 * index, 1024, index) for index, kind in enumerate(kinds)]
    weight = torch.cat([part.dense(dtype) for part in parts])
    bias = torch.randn(len(weight)).to(dtype) if has_bias else None
    compiled = CompiledPackedLinear(PackedLinear(parts, bias), native)
    dense = DenseLinear(weight.double(), None if bias is None else bias.double())
    hidden, residual = torch.randn(tokens, 1024).to(dtype), torch.randn(tokens, len(weight)).to(dtype)
    tolerance = 8 * torch.finfo(dtype).eps
    for got, expected in (
        (compiled(hidden), dense(hidden.double())),
        (compiled.add_to(residual, hidden), dense.add_to(residual.double(), hidden.double())),
    ):
        assert got.dtype is dtype
        assert got.shape == (tokens, len(weight))
        limit = tolerance * float(expected.abs().max())
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=limit)


@pytest.mark.parametrize(("kind", "columns"), [("Q4_1", 576), ("Q4_1", 8960), ("Q4_K", 2304), ("Q6_K", 512)])
def test_a_row_has_the_same_bits_in_any_company(kernels: Kernels, kind: str, columns: int) -> None:
    """Also where matrix tiles take sixteen tokens at once, and columns in pieces whose size depends on the tokens."""
    native, dtype = kernels
    compiled = CompiledPackedLinear(PackedLinear([matrix(kind, 45, columns)], None), native)
    hidden = torch.randn(97, columns).to(dtype)
    together = compiled(hidden)
    for first, last in ((0, 1), (1, 3), (3, 6), (6, 21), (21, 37), (37, 54), (54, 86), (30, 63), (0, 97)):
        assert torch.equal(compiled(hidden[first:last]), together[first:last])


@pytest.mark.parametrize(("kind", "columns"), [("Q4_1", 608), ("Q4_K", 1536)])
@pytest.mark.parametrize("rows", [613, 160])
def test_a_row_has_the_same_bits_in_a_long_prompt(kernels: Kernels, kind: str, columns: int, rows: int) -> None:
    """More tokens, and more outputs, than are multiplied together."""
    native, dtype = kernels
    compiled = CompiledPackedLinear(PackedLinear([matrix(kind, rows, columns)], torch.randn(rows).to(dtype)), native)
    hidden, residual = torch.randn(531, columns).to(dtype), torch.randn(531, rows).to(dtype)
    together = compiled.add_to(residual, hidden)
    for first, last in ((0, 1), (1, 33), (33, 70), (70, 134), (134, 245), (245, 501), (30, 531)):
        assert torch.equal(compiled.add_to(residual[first:last], hidden[first:last]), together[first:last])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so_and_harms_no_other_row(kernels: Kernels, value: float) -> None:
    native, dtype = kernels
    compiled = CompiledPackedLinear(PackedLinear([matrix("Q4_K", 20, 512)], None), native)
    hidden = torch.randn(19, 512).to(dtype)
    expected = compiled(hidden)
    hidden[17, 300] = value
    got = compiled(hidden)
    assert not torch.isfinite(got[17]).any()
    others = [row for row in range(19) if row != 17]
    assert torch.equal(got[others], expected[others])


@pytest.mark.parametrize("rows", [1, 16, 17, 31, 33])
def test_rows_that_fill_no_panel(kernels: Kernels, rows: int) -> None:
    native, dtype = kernels
    blocks = matrix("Q5_K", rows, 512)
    compiled = CompiledPackedLinear(PackedLinear([blocks], None), native)
    assert torch.equal(compiled(torch.eye(512, dtype=dtype)), blocks.dense(dtype).t())
