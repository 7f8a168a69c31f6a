"""Products of bytes as processors without AVX-512 compute them, compiled for these and run here."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.kernels.cpu import build
from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.level_layouts import LEVEL_LAYOUTS
from helix_jobs.engine.weights.packed_int8_linear import BYTE_LAYOUTS, PackedInt8Linear
from helix_jobs.engine.weights.packed_linear import PackedLinear
from tests.unit.engine.block_files import level_blocks, random_blocks

if TYPE_CHECKING:
    from pathlib import Path

# Haswell has AVX2 and FMA; the plain x86-64 has neither, and takes the path of processors that nobody wrote code for.
PROCESSORS = ("haswell", "x86-64")
ROWS, COLUMNS = 37, 768


@pytest.fixture(scope="module", params=PROCESSORS)
def product(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``packed_int8_linear_float32`` for another processor."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if platform.machine() != "x86_64" or compiler is None:
        pytest.skip("these processors cannot be had here")
    if request.param == "haswell" and "avx2" not in build.processor_features():
        pytest.skip("this processor has no AVX2")
    library: Path = tmp_path_factory.mktemp("other") / "other.so"
    source = build._FOLDER / "packed_int8.cpp"
    flags = [flag.replace("native", request.param) for flag in build._FLAGS]
    subprocess.run([compiler, *flags, "-shared", "-o", str(library), str(source)], check=True)
    function = ctypes.CDLL(str(library)).packed_int8_linear_float32
    function.argtypes = (ctypes.c_void_p, ctypes.c_int32, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 4)
    return function


@pytest.mark.parametrize("kind", BYTE_LAYOUTS)
def test_every_layout_and_the_largest_levels(product: Any, kind: str) -> None:
    if kind in BLOCK_LAYOUTS:
        blocks = BlockMatrix(BLOCK_LAYOUTS[kind], random_blocks(kind, rows=ROWS, columns=COLUMNS))
    else:
        blocks = BlockMatrix(LEVEL_LAYOUTS[kind], level_blocks(kind, rows=ROWS, columns=COLUMNS))
    plain = PackedInt8Linear(PackedLinear([blocks], None))
    # Whole numbers are rounded alike with a fused multiply-add and without.
    hidden = torch.randint(-127, 128, (9, COLUMNS)).float()
    hidden[:, ::32] = 127.0
    hidden[7:] = torch.where(hidden[7:] > 0, 127.0, -127.0)
    expected = plain(hidden)
    for first, last in ((0, 9), (4, 5), (8, 9)):
        some = hidden[first:last].contiguous()
        got = torch.empty(last - first, ROWS)
        product(
            blocks.data.data_ptr(), BYTE_LAYOUTS.index(kind), some.data_ptr(), None, None, got.data_ptr(),
            last - first, COLUMNS, ROWS, ROWS,
        )  # fmt: skip
        limit = 1e-6 * float(expected.abs().max())
        torch.testing.assert_close(got, expected[first:last], rtol=1e-6, atol=limit)
