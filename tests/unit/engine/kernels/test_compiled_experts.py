"""All experts of a layer in one compiled call equal the same experts one by one, in any company."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

from helix_jobs.engine.kernels.cpu.experts import CompiledExperts
from helix_jobs.engine.kernels.cpu.feed_forward import CompiledFeedForward
from helix_jobs.engine.kernels.cpu.kernels import NativeKernels, load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import with_native
from helix_jobs.engine.model.activations import ClampedSwiglu, tanh_gelu
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.expert_description import RouterDescription
from helix_jobs.engine.model.experts import Experts
from helix_jobs.engine.model.feed_forward import GatedFeedForward, PlainFeedForward
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.engine.model.router import Router
from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.packed_linear import PackedLinear
from helix_jobs.engine.weights.router_linear import RouterLinear
from tests.unit.engine.block_files import scaled_blocks
from tests.unit.engine.tiny_models import CPU, copy_of, decoder_logits, reference_logits, roughen, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helix_jobs.engine.weights.linear import Linear

Kernels = tuple[NativeKernels, torch.dtype]
HIDDEN, SIZE, NUM_EXPERTS, TOP_K = 64, 288, 7, 3


def made(kinds: tuple[str, ...], outputs: int, inputs: int, dtype: torch.dtype, *, has_bias: bool, seed: int) -> Linear:
    """A layer whose outputs are those of parts side by side, or a dense one."""
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randn(outputs, generator=generator).to(dtype) if has_bias else None
    if not kinds:
        return DenseLinear((torch.randn(outputs, inputs, generator=generator) / 8).to(dtype), bias)
    rows = outputs // len(kinds)
    parts = [
        BlockMatrix(BLOCK_LAYOUTS[kind], scaled_blocks(kind, rows=rows, columns=inputs, seed=seed + number))
        for number, kind in enumerate(kinds)
    ]
    return PackedLinear(parts, bias)


def some_experts(
    dtype: torch.dtype,
    activation: Callable[[torch.Tensor], torch.Tensor] = functional.silu,
    kinds: tuple[str, ...] = (),
    outer: tuple[str, ...] = (),
    *,
    has_bias: bool = False,
) -> Experts:
    """Experts of which the last is never chosen."""
    form: Any = PlainFeedForward if isinstance(activation, ClampedSwiglu) else GatedFeedForward
    chosen = torch.tensor([0.0] * (NUM_EXPERTS - 1) + [-1e9]).to(dtype)
    weight = torch.randn(NUM_EXPERTS, HIDDEN, generator=torch.Generator().manual_seed(5)).to(dtype)
    rule = RouterDescription(weight="", top_k=TOP_K)
    return Experts(
        Router(RouterLinear(weight, chosen), None, rule, dtype),
        tuple(
            form(
                made(kinds, 2 * SIZE, HIDDEN, dtype, has_bias=has_bias, seed=index),
                made(outer, HIDDEN, SIZE, dtype, has_bias=has_bias, seed=100 + index),
                activation,
            )
            for index in range(NUM_EXPERTS)
        ),
    )


def compiled(experts: Experts, native: NativeKernels) -> CompiledExperts:
    found = CompiledFeedForward.of(experts, native)
    if native.has_tiles and not isinstance(found, CompiledExperts):
        pytest.skip("this processor multiplies dense bfloat16 in tiles")
    assert isinstance(found, CompiledExperts)
    return found


@pytest.mark.parametrize(
    ("activation", "kinds", "outer", "has_bias"),
    [
        (functional.silu, (), (), False),
        (functional.gelu, (), (), True),
        (tanh_gelu, ("Q8_0", "Q5_1"), (), False),
        (functional.silu, ("Q4_0", "Q4_0"), ("Q8_0",), True),
        (ClampedSwiglu(1.702, 1.5), ("Q4_1",), ("Q5_0",), True),
    ],
    ids=["silu", "gelu", "two layouts", "one layout", "clamped"],
)
def test_they_equal_experts_one_by_one(
    kernels: Kernels, activation: Any, kinds: tuple[str, ...], outer: tuple[str, ...], *, has_bias: bool
) -> None:
    native, dtype = kernels
    experts = some_experts(dtype, activation, kinds, outer, has_bias=has_bias)
    ours = compiled(experts, native)
    hidden = torch.randn(75, HIDDEN).to(dtype)
    expected = experts(hidden).double()
    limit = 16 * torch.finfo(dtype).eps
    for count in (1, 2, 9, 75):
        got = ours(hidden[:count])
        assert got.dtype is dtype
        scale = float(expected.abs().max())
        torch.testing.assert_close(got.double(), expected[:count], rtol=limit, atol=limit * scale)
    summed = ours.add_to(hidden, hidden).double()
    torch.testing.assert_close(summed, expected + hidden.double(), rtol=limit, atol=limit * scale)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["gate", "up"])
@pytest.mark.parametrize("activation", [functional.silu, functional.gelu, tanh_gelu, ClampedSwiglu(1.702, 1.5)])
def test_they_show_what_is_not_finite(kernels: Kernels, activation: Any, part: str, value: float) -> None:
    """A bound may make a number of what is endless; nothing makes one of what is none."""
    native, dtype = kernels
    experts = some_experts(dtype, activation, ("Q4_1",), ("Q4_1",), has_bias=True)
    bias = experts.experts[2].linears()[0].bias  # type: ignore[attr-defined]
    bias[5 if part == "gate" else SIZE + 5] = value
    hidden = torch.randn(9, HIDDEN).to(dtype)
    expected = torch.isfinite(experts(hidden).float()).all(dim=1)
    assert not isnan(value) or 0 < int(expected.sum()) < 9, "some choose this expert"
    assert torch.equal(torch.isfinite(compiled(experts, native)(hidden).float()).all(dim=1), expected)


@pytest.mark.parametrize("kinds", [(), ("Q4_1",)])
def test_a_token_has_the_same_bits_in_any_company(kernels: Kernels, kinds: tuple[str, ...]) -> None:
    native, dtype = kernels
    ours = compiled(some_experts(dtype, kinds=kinds, outer=kinds), native)
    # Enough tokens for groups of more than are summed at once.
    hidden = torch.randn(120, HIDDEN).to(dtype)
    together = ours(hidden)
    for first, last in ((0, 1), (1, 3), (3, 20), (20, 120)):
        assert torch.equal(ours(hidden[first:last]), together[first:last])
        for expert in ours.experts[:1]:
            assert torch.equal(expert(hidden[first:last]), expert(hidden)[first:last])


def test_an_expert_of_many_tokens(kernels: Kernels) -> None:
    """More than are multiplied together; each token alone is computed another way."""
    native, dtype = kernels
    ours = compiled(some_experts(dtype, kinds=("Q4_1", "Q5_0"), outer=("Q8_0",), has_bias=True), native)
    hidden = torch.randn(1, HIDDEN).to(dtype).repeat(300, 1)  # all choose the same experts
    hidden[150:] = torch.randn(150, HIDDEN).to(dtype)
    together = ours(hidden)
    for first, last in ((0, 1), (149, 151), (200, 240), (250, 300)):
        assert torch.equal(ours(hidden[first:last]), together[first:last])


def test_what_the_kernels_do_not_compute_stays_as_it_is(compiled_folder: Path) -> None:
    native = load_kernels(compiled_folder, torch.float32, CPU, 16)
    assert CompiledExperts.of(some_experts(torch.float32, functional.relu), native) is None
    assert CompiledExperts.of(some_experts(torch.bfloat16), native) is None
    decoder = quantize(
        build_decoder(tiny_model("mixtral", hidden_size=64, intermediate_size=64, num_attention_heads=4, head_dim=16))
    )
    assert not any(isinstance(layer.feed_forward, CompiledExperts) for layer in with_native(decoder, native).layers)


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss"])
def test_a_model_is_its_own(compiled_folder: Path, family: str) -> None:
    """A shared expert behind a gate; and biases, clamps and interleaved gates."""
    sizes = {"moe_intermediate_size": 32} if family == "qwen2_moe" else {}
    settings = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = roughen(tiny_model(family, seed=3, head_dim=16, **settings, **sizes))
    native = load_kernels(compiled_folder, torch.float32, CPU, 16)
    decoder = with_native(build_decoder(copy_of(model)), native)
    assert any(isinstance(layer.feed_forward, CompiledExperts) for layer in decoder.layers)
    decoder.pack()
    expected = reference_logits(model)
    assert torch.allclose(decoder_logits(decoder), expected, atol=1e-4 * float(expected.abs().max()))
