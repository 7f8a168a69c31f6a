"""Compiled products of weights in blocks with activations rounded to bytes, against torch's of the same rounding."""

from __future__ import annotations

import pytest
import torch

from helix_jobs.engine.kernels.cpu.kernels import NativeKernels
from helix_jobs.engine.kernels.cpu.packed_int8_linear import CompiledPackedInt8Linear
from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.level_layouts import LEVEL_LAYOUTS
from helix_jobs.engine.weights.packed_int8_linear import BYTE_LAYOUTS, PackedInt8Linear
from helix_jobs.engine.weights.packed_linear import PackedLinear
from tests.unit.engine.block_files import level_blocks, random_blocks

Kernels = tuple[NativeKernels, torch.dtype]


def matrix(kind: str, rows: int, columns: int, seed: int = 1, order: torch.Tensor | None = None) -> BlockMatrix:
    if kind in BLOCK_LAYOUTS:
        return BlockMatrix(BLOCK_LAYOUTS[kind], random_blocks(kind, rows=rows, columns=columns, seed=seed), order)
    return BlockMatrix(LEVEL_LAYOUTS[kind], level_blocks(kind, rows=rows, columns=columns, seed=seed), order)


def both(parts: list[BlockMatrix], bias: torch.Tensor | None, native: NativeKernels):
    plain = PackedInt8Linear(PackedLinear(parts, bias))
    return plain, CompiledPackedInt8Linear(plain, native)


def assert_alike(got: torch.Tensor, expected: torch.Tensor, largest: float = 0.0) -> None:
    """The sums of a row differ in their last bits, those of ``largest`` where products cancel."""
    tolerance = 16 * torch.finfo(got.dtype).eps
    assert got.dtype is expected.dtype
    limit = tolerance * max(largest, float(expected.abs().max()))
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=limit)


@pytest.mark.thorough(fast=29)
@pytest.mark.parametrize("kind", BYTE_LAYOUTS)
@pytest.mark.parametrize("tokens", [1, 2, 13])
def test_every_layout(kernels: Kernels, kind: str, tokens: int) -> None:
    native, dtype = kernels
    plain, compiled = both([matrix(kind, 37, 768)], None, native)
    hidden = torch.randn(tokens, 768).to(dtype)
    assert_alike(compiled(hidden), plain(hidden))


@pytest.mark.parametrize("kind", BYTE_LAYOUTS)
def test_the_largest_levels_do_not_overflow(kernels: Kernels, kind: str) -> None:
    """All bits of the levels set and cleared, and all activations at the ends of their range."""
    native, dtype = kernels
    signs = torch.where(torch.randn(3, 512) > 0, 1.0, -1.0)
    hidden = torch.cat((torch.ones(1, 512), -torch.ones(1, 512), signs)).to(dtype)
    for byte in (0x00, 0x7F, 0x80, 0xFF):
        blocks = matrix(kind, 16, 512)
        largest = float(blocks.dense(torch.float32).abs().max()) * 512
        scales = [place for place in range(blocks.layout.nbytes) if place not in level_places(kind)]
        data = blocks.data.view(-1, blocks.layout.nbytes).clone()
        filled = torch.full_like(data, byte)
        filled[:, scales] = data[:, scales]
        plain, compiled = both([BlockMatrix(blocks.layout, filled.view(16, -1))], None, native)
        assert_alike(compiled(hidden), plain(hidden), largest)


def level_places(kind: str) -> range:
    """Where a block has levels and nothing but levels."""
    places = {
        "Q4_0": (2, 18), "Q4_1": (4, 20), "Q5_0": (2, 22), "Q5_1": (4, 24), "Q8_0": (2, 34), "IQ4_NL": (2, 18),
        "MXFP4": (1, 17), "Q2_K": (16, 80), "Q3_K": (0, 96), "Q4_K": (16, 144), "Q5_K": (16, 176), "Q6_K": (0, 192),
        "IQ4_XS": (8, 136),
    }  # fmt: skip
    if kind in places:
        return range(*places[kind])
    return range(4 + ("Z_" in kind), LEVEL_LAYOUTS[kind].nbytes)


@pytest.mark.parametrize("kinds", [("Q4_1",), ("Q4_K", "Q4_K", "Q6_K"), ("Q8_0", "Q5_0", "INT4Z_64")])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 300])
def test_parts_bias_and_residual(kernels: Kernels, kinds: tuple[str, ...], tokens: int, *, has_bias: bool) -> None:
    native, dtype = kernels
    parts = [matrix(kind, 5 + 16 * index, 1024, index) for index, kind in enumerate(kinds)]
    rows = sum(part.shape[0] for part in parts)
    plain, compiled = both(parts, torch.randn(rows).to(dtype) if has_bias else None, native)
    hidden, residual = torch.randn(tokens, 1024).to(dtype), torch.randn(tokens, rows).to(dtype)
    assert_alike(compiled(hidden), plain(hidden))
    assert_alike(compiled.add_to(residual, hidden), plain.add_to(residual, hidden))


def test_columns_may_be_stored_in_another_order_in_each_part(kernels: Kernels) -> None:
    native, dtype = kernels
    orders = (torch.randperm(256), None, torch.randperm(256))
    parts = [matrix("INT4_64", 7, 256, seed, order) for seed, order in enumerate(orders)]
    plain, compiled = both(parts, None, native)
    hidden = torch.randn(3, 256).to(dtype)
    assert_alike(compiled(hidden), plain(hidden))


@pytest.mark.parametrize("kind", ["Q4_1", "IQ4_NL", "Q4_K", "Q6_K", "Q8_0"])
@pytest.mark.parametrize("columns", [256, 768, 8960])
def test_a_row_has_the_same_bits_in_any_company(kernels: Kernels, kind: str, columns: int) -> None:
    native, dtype = kernels
    _, compiled = both([matrix(kind, 45, columns)], None, native)
    hidden = torch.randn(300, columns).to(dtype)
    together = compiled(hidden)
    for first, last in ((0, 1), (1, 3), (3, 6), (6, 10), (10, 21), (21, 299), (299, 300)):
        assert torch.equal(compiled(hidden[first:last]), together[first:last])


@pytest.mark.parametrize("columns", [32, 96, 288, 576])
def test_rows_that_end_within_a_chunk(kernels: Kernels, columns: int) -> None:
    native, dtype = kernels
    plain, compiled = both([matrix("Q4_1", 33, columns)], None, native)
    for tokens in (1, 9):
        hidden = torch.randn(tokens, columns).to(dtype)
        assert_alike(compiled(hidden), plain(hidden))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", [0, 300, 543])
def test_what_is_not_finite_stays_so_and_harms_no_other_row(kernels: Kernels, value: float, column: int) -> None:
    """In the first column of a row, in the middle of a chunk, and in the last one of a chunk filled in part."""
    native, dtype = kernels
    _, compiled = both([matrix("Q4_1", 20, 544)], None, native)
    hidden = torch.randn(3, 544).to(dtype)
    expected = compiled(hidden)
    hidden[1, column] = value
    got = compiled(hidden)
    assert not torch.isfinite(got[1]).any()
    assert torch.equal(got[[0, 2]], expected[[0, 2]])


def test_zeros(kernels: Kernels) -> None:
    native, dtype = kernels
    _, compiled = both([matrix("Q4_K", 20, 512)], None, native)
    assert not compiled(torch.zeros(2, 512, dtype=dtype)).any()
