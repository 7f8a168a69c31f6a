"""Compiled activations against torch's, computed in float64."""

from __future__ import annotations

import pytest
import torch

from helix_jobs.engine.kernels.cpu.feed_forward import COMPILED_ACTIVATIONS
from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.model.activations import ACTIVATIONS, XieluActivation
from tests.unit.engine.tiny_models import CPU


@pytest.mark.parametrize("activation", COMPILED_ACTIVATIONS, ids=COMPILED_ACTIVATIONS.values())
@pytest.mark.parametrize("size", [1, 17, 80, 1536])
def test_activations(kernels, activation, size):
    native, dtype = kernels
    name = COMPILED_ACTIVATIONS[activation]
    inner = (torch.randn(7, 2 * size) * 8).to(dtype)
    inner[0, 0], inner[1, 0] = 300.0, -300.0
    gate, up = inner.double().chunk(2, dim=-1)
    assert_as_exact(native.activate(name, inner, is_gated=True), activation(gate) * up, (gate * up).abs())
    assert_as_exact(native.activate(name, inner, is_gated=False), activation(inner.double()), inner.double().abs())


def assert_as_exact(found: torch.Tensor, exact: torch.Tensor, operands: torch.Tensor) -> None:
    """An activation multiplies its operand by a share of 1, so its error is a part of the operand, not of the result.

    Where a share is nearly 0, float32 cannot tell it from 0.
    """
    if found.dtype == torch.float32:
        assert ((found.double() - exact).abs() <= 4e-7 * operands.clamp(min=1e-3)).all()
    else:
        torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("activation", COMPILED_ACTIVATIONS, ids=COMPILED_ACTIVATIONS.values())
def test_activations_are_as_exact_as_float32_allows(folder, activation):
    native = load_kernels(folder, torch.float32, CPU, 16)
    inner = torch.linspace(-12, 12, 100_001)[None]
    found = native.activate(COMPILED_ACTIVATIONS[activation], inner, is_gated=False).double()
    exact = activation(inner.double())
    assert ((found - exact).abs() <= 3e-7 * inner.abs().clamp(min=1e-3)).all()


@pytest.mark.parametrize("name", COMPILED_ACTIVATIONS.values())
def test_an_activation_shows_what_is_not_finite(kernels, name):
    native, dtype = kernels
    inner = torch.tensor([[float("nan"), float("inf"), 1.0, -1.0]], dtype=dtype)
    assert torch.isfinite(native.activate(name, inner, is_gated=False)).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("name", ["relu", "relu2", "xielu"])
def test_an_activation_without_a_kernel_does_not_depend_on_the_other_rows(name: str) -> None:
    one = torch.ones(1)
    activation = XieluActivation(one * 0.8, one * 1.3, 0.5, -1e-6) if name == "xielu" else ACTIVATIONS[name]
    rows = torch.randn((40, 1003), generator=torch.Generator().manual_seed(1)) * 3
    together = activation(rows)
    for index, row in enumerate(rows):
        assert torch.equal(activation(row[None].clone())[0], together[index])
