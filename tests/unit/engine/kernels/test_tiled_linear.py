"""Layers in the processor's matrix tiles. Only some processors have them; there the others' tests run as everywhere."""

from __future__ import annotations

import pytest
import torch

from helix_jobs.engine.kernels.cpu.native_decoder import native_of
from helix_jobs.engine.kernels.cpu.tiled_linear import TiledLinear
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.rounding import cancelling_operands, rounding_classes
from tests.unit.engine.kernels.native_models import compiled_models

COUNTS = (1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 191, 192, 193, 250)


@pytest.fixture(scope="module")
def native(compiled_folder):
    native = native_of(compiled_models(compiled_folder, torch.bfloat16).target.decoder)
    assert native is not None
    if not native.has_tiles:
        pytest.skip("this processor has no matrix tiles (Intel AMX)")
    return native


def test_float32_has_no_tiles(compiled_folder):
    native = native_of(compiled_models(compiled_folder, torch.float32).target.decoder)
    assert native is not None
    assert not native.has_tiles


@pytest.mark.parametrize("out_features", [1, 15, 16, 17, 31, 32, 33, 100, 1100])
@pytest.mark.parametrize("in_features", [32, 96, 1536, 1568, 3200])
def test_it_multiplies_as_the_dense_layer_does(native, out_features, in_features):
    generator = torch.Generator().manual_seed(out_features)
    weight = (torch.randn((out_features, in_features), generator=generator) * in_features**-0.5).bfloat16()
    bias = torch.randn(out_features, generator=generator).bfloat16()
    rows = torch.randn((max(COUNTS), in_features), generator=generator).bfloat16()
    residual = torch.randn((max(COUNTS), out_features), generator=generator).bfloat16()
    tiled = TiledLinear(DenseLinear(weight, bias), native)
    plain = TiledLinear(DenseLinear(weight, None), native)
    exact = rows.double() @ weight.double().t()
    for found, expected in (
        (tiled(rows), exact + bias.double()),
        (tiled.add_to(residual, rows), exact + bias.double() + residual.double()),
        (plain(rows), exact),
        (plain.add_to(residual, rows), exact + residual.double()),
    ):
        assert found.shape == (max(COUNTS), out_features)
        torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2**-12)
    assert (tiled.in_features, tiled.out_features) == (in_features, out_features)


@pytest.mark.parametrize("in_features", [64, 1568, 3200])
def test_a_row_is_the_same_bits_in_any_number_of_rows_and_at_any_place(native, in_features):
    weight, distinct = cancelling_operands(90, in_features, torch.bfloat16)
    tiled = TiledLinear(DenseLinear(weight, None), native)
    assert set(rounding_classes(tiled, distinct, COUNTS)) == {0}


def test_what_is_not_finite_stays_so_and_stays_in_its_row(native):
    weight = torch.randn((40, 64)).bfloat16()
    rows = torch.randn((35, 64)).bfloat16()
    tiled = TiledLinear(DenseLinear(weight, None), native)
    sound = tiled(rows)
    rows[3, 5], rows[20, 0] = float("nan"), float("inf")
    found = tiled(rows)
    assert found[3].isnan().all()
    assert not found[20].isfinite().any()
    others = [row for row in range(35) if row not in {3, 20}]
    assert torch.equal(found[others], sound[others])


def test_operands_that_are_no_rows_of_one_piece_are_read_right(native):
    weight = torch.randn((40, 64)).bfloat16()
    wide, base = torch.randn((20, 128)).bfloat16(), torch.randn((20, 80)).bfloat16()
    tiled = TiledLinear(DenseLinear(weight, None), native)
    rows, residual = wide[:, ::2], base[:, 40:]
    assert torch.equal(tiled.add_to(residual, rows), tiled.add_to(residual.contiguous(), rows.contiguous()))
    transposed = TiledLinear(DenseLinear(weight.t().contiguous().t(), None), native)
    assert torch.equal(transposed(rows), tiled(rows))
