"""Kernels as processors without AVX-512 compute them, compiled for these and run here."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.kernels.cpu.kernels import LAYOUT_NUMBERS
from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.int8_linear import ZERO_POINT
from helix_jobs.engine.weights.level_layouts import FLOAT_LAYOUTS, LEVEL_LAYOUTS
from helix_jobs.engine.weights.packed_int8_linear import BYTE_LAYOUTS, PackedInt8Linear
from helix_jobs.engine.weights.packed_linear import PackedLinear
from tests.unit.engine.block_files import level_blocks, random_blocks
from tests.unit.engine.kernels.other_processors import PROCESSORS, compiled_for

if TYPE_CHECKING:
    from pathlib import Path

ROWS, COLUMNS = 37, 768


@pytest.fixture(scope="module", params=PROCESSORS)
def library(request: pytest.FixtureRequest, kernels_folder: Path) -> ctypes.CDLL:
    """Kernels of the common library for another processor."""
    return compiled_for(request.param, ["packed_int8.cpp", "packed_linear.cpp", "kernels.cpp"], kernels_folder)


def multiply(function: Any, number: int, blocks: BlockMatrix, hidden: torch.Tensor) -> torch.Tensor:
    """``hidden @ weight.T`` by a kernel that knows layouts by their number."""
    function.argtypes = (ctypes.c_void_p, ctypes.c_int32, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 4)
    tokens, (rows, columns) = len(hidden), blocks.shape
    got = hidden.new_empty(tokens, rows)
    function(blocks.data.data_ptr(), number, hidden.data_ptr(), None, None, got.data_ptr(), tokens, columns, rows, rows)
    return got


def random_matrix(kind: str) -> BlockMatrix:
    if kind in BLOCK_LAYOUTS:
        return BlockMatrix(BLOCK_LAYOUTS[kind], random_blocks(kind, rows=ROWS, columns=COLUMNS))
    return BlockMatrix(LEVEL_LAYOUTS[kind], level_blocks(kind, rows=ROWS, columns=COLUMNS))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", LAYOUT_NUMBERS)
def test_every_layout_is_decoded_exactly(library: ctypes.CDLL, kind: str) -> None:
    """A row of the identity has one product that is not zero."""
    if kind in FLOAT_LAYOUTS:
        dtype = {"BF16": torch.bfloat16, "F16": torch.float16}[kind]
        blocks = BlockMatrix(FLOAT_LAYOUTS[kind], torch.randn(ROWS, COLUMNS).to(dtype).view(torch.uint8))
    else:
        blocks = random_matrix(kind)
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        function = getattr(library, f"packed_linear_{name}")
        got = multiply(function, LAYOUT_NUMBERS[kind], blocks, torch.eye(COLUMNS, dtype=dtype))
        assert torch.equal(got, blocks.dense(dtype).t())


@pytest.mark.parametrize("size", [1, 15, 77])
def test_activations_and_rounding(library: ctypes.CDLL, size: int) -> None:
    """Rows that end within a vector of any number of lanes."""
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    inner, result = torch.randn(3, 2 * size), torch.empty(3, size)
    library.silu_float32.argtypes = (*[pointer] * 2, *[count] * 2, ctypes.c_int32)
    library.silu_float32(inner.data_ptr(), result.data_ptr(), 3, size, 1)
    torch.testing.assert_close(result, torch.nn.functional.silu(inner[:, :size]) * inner[:, size:])
    hidden, rounded, scales = torch.randn(3, size), torch.empty(3, size, dtype=torch.uint8), torch.empty(3)
    library.quantize_rows_float32.argtypes = (*[pointer] * 3, *[count] * 2, ctypes.c_float, ctypes.c_int32)
    library.quantize_rows_float32(hidden.data_ptr(), rounded.data_ptr(), scales.data_ptr(), 3, size, 1e-12, ZERO_POINT)
    assert torch.equal(scales, hidden.abs().amax(dim=1) / 127)
    found = (rounded.float() - ZERO_POINT) * scales.unsqueeze(1)
    assert ((found - hidden).abs() <= 0.501 * scales.unsqueeze(1)).all()
    weight = torch.randn(size)
    library.rms_norm_float32.argtypes = (*[pointer] * 3, *[count] * 2, ctypes.c_float)
    library.rms_norm_float32(hidden.data_ptr(), weight.data_ptr(), result.data_ptr(), 3, size, 1e-6)
    torch.testing.assert_close(result, torch.nn.functional.rms_norm(hidden, (size,), weight, 1e-6))


@pytest.mark.parametrize("kind", BYTE_LAYOUTS)
def test_products_of_bytes_and_the_largest_levels(library: ctypes.CDLL, kind: str) -> None:
    blocks = random_matrix(kind)
    plain = PackedInt8Linear(PackedLinear([blocks], None))
    # Whole numbers are rounded alike with a fused multiply-add and without.
    hidden = torch.randint(-127, 128, (9, COLUMNS)).float()
    hidden[:, ::32] = 127.0
    hidden[7:] = torch.where(hidden[7:] > 0, 127.0, -127.0)
    expected = plain(hidden)
    for first, last in ((0, 9), (4, 5), (8, 9)):
        got = multiply(
            library.packed_int8_linear_float32, BYTE_LAYOUTS.index(kind), blocks, hidden[first:last].contiguous()
        )
        limit = 1e-6 * float(expected.abs().max())
        torch.testing.assert_close(got, expected[first:last], rtol=1e-6, atol=limit)
