"""Compiled attention over keys and values of 8 bits: it equals plain products over the same cache."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.attention.backend import AttentionSpec, LayerAttention
from helix_jobs.engine.attention.cache_geometry import CacheGeometry
from helix_jobs.engine.attention.dense import DenseAttention
from helix_jobs.engine.attention.kv_cache import PagedKVCache
from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.config import CacheConfig
from helix_jobs.engine.kernels.cpu.attention import CompiledAttention
from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import with_native
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.engine.model.runner import ModelRunner
from tests.unit.engine.kernels.native_models import DTYPES
from tests.unit.engine.rounded_cache import rounded_logits
from tests.unit.engine.tiny_models import CPU, copy_of, ragged_logits, reference_logits, roughen, tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from helix_jobs.engine.attention.backend import AttentionBackend
    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels

KV_HEADS, HEAD_DIM, NUM_BLOCKS = 2, 16, 60
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 37},
    "soft cap": {"score_cap": 1.5},
    "sinks": {"sinks": torch.linspace(-2, 2, 6)},
}


def attended(backend: AttentionBackend, head_dim: int, dtype: torch.dtype, block_size: int) -> list[torch.Tensor]:
    """Three ragged steps over scattered blocks, each ``[T, heads * head_dim]``; what nobody wrote holds NaN scales."""
    spec = backend.spec
    config = CacheConfig(num_blocks=NUM_BLOCKS, block_size=block_size, dtype="int8")
    cache = PagedKVCache(spec.geometry, config, dtype, CPU)
    generator = torch.Generator().manual_seed(7)
    blocks = torch.randperm(NUM_BLOCKS, generator=generator).tolist()
    if isinstance(backend, CompiledAttention):  # plain products multiply what is masked with zero
        for scales in (*cache.key_scales, *cache.value_scales):
            scales.fill_(torch.nan)
    tables = [blocks[i * 15 : i * 15 + 15] for i in range(4)]
    outputs, lengths = [], [0, 0, 0, 0]
    for step in ((1, 7, 30, 37), (1, 5, 1, 17), (3, 1, 17, 1)):
        slices = [TokenSlice(new, lengths[i], tables[i]) for i, new in enumerate(step)]
        plan = backend.plan(slices, cache)
        layout = plan.on_device(iter([torch.from_numpy(array) for array in plan.arrays()]))
        rows = torch.randn((sum(step), (spec.num_heads + 2 * KV_HEADS) * head_dim), generator=generator).to(dtype)
        # In packed order, which differs between backends.
        places = torch.cat([torch.arange(sum(step[:i]), sum(step[: i + 1])) for i in plan.order])
        output = backend.begin(layout, cache).attend(0, rows[places])
        outputs.append(torch.empty_like(output).index_copy_(0, places, output))
        lengths = [done + new for done, new in zip(lengths, step, strict=True)]
    return outputs


def check(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
    rounding = 1e-5 if dtype is torch.float32 else 0.02
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)


def spec_of(head_dim: int, heads: int, **layer: Any) -> AttentionSpec:
    geometry = CacheGeometry.uniform(num_layers=1, num_kv_heads=KV_HEADS, head_dim=head_dim)
    return AttentionSpec(geometry=geometry, num_heads=heads, layers=(LayerAttention(head_dim**-0.5, **layer),))


@pytest.mark.parametrize("kind", KINDS)
def test_ragged_steps_equal_plain_products(kernels: tuple[NativeKernels, torch.dtype], kind: str) -> None:
    native, dtype = kernels
    spec = spec_of(HEAD_DIM, 6, **KINDS[kind])
    found, expected = (
        attended(one, HEAD_DIM, dtype, 4) for one in (CompiledAttention(spec, native), DenseAttention(spec))
    )
    check(found, expected, dtype)


# Matrix tiles want blocks of sixteen keys and heads of a multiple of 32.
@pytest.mark.thorough
@pytest.mark.parametrize("block_size", [5, 16])
@pytest.mark.parametrize(("head_dim", "heads"), [(80, 2), (128, 8)])
@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "bfloat16"))
def test_heads_and_blocks_of_other_sizes(
    folder: Path, dtype: torch.dtype, head_dim: int, heads: int, block_size: int
) -> None:
    spec = spec_of(head_dim, heads)
    native = load_kernels(folder, dtype, CPU, head_dim)
    found, expected = (
        attended(one, head_dim, dtype, block_size) for one in (CompiledAttention(spec, native), DenseAttention(spec))
    )
    check(found, expected, dtype)


def test_rows_are_rounded_as_torch_rounds_them(kernels: tuple[NativeKernels, torch.dtype]) -> None:
    native, dtype = kernels
    spec = spec_of(HEAD_DIM, 6)
    pools = []
    for backend in (CompiledAttention(spec, native), DenseAttention(spec)):
        cache = PagedKVCache(spec.geometry, CacheConfig(num_blocks=8, block_size=4, dtype="int8"), dtype, CPU)
        plan = backend.plan([TokenSlice(29, 0, range(8))], cache)
        layout = plan.on_device(iter([torch.from_numpy(array) for array in plan.arrays()]))
        rows = torch.randn((29, (6 + 2 * KV_HEADS) * HEAD_DIM), generator=torch.Generator().manual_seed(1)).to(dtype)
        rows[3] *= 1e-20
        rows[4] = 0
        rows[5] *= 1e20
        backend.begin(layout, cache).attend(0, rows)
        pools.append(cache.pools_of(0))
    assert all(map(torch.equal, *pools))


def test_a_poisoned_row_is_seen_by_those_who_attend_to_it(kernels: tuple[NativeKernels, torch.dtype]) -> None:
    native, dtype = kernels
    backend = CompiledAttention(spec_of(HEAD_DIM, 6), native)
    for place in (6 * HEAD_DIM + 3, (6 + KV_HEADS) * HEAD_DIM + 3):  # in a key, and in a value
        for bad in (torch.nan, torch.inf):
            cache = PagedKVCache(
                backend.spec.geometry, CacheConfig(num_blocks=8, block_size=4, dtype="int8"), dtype, CPU
            )
            plan = backend.plan([TokenSlice(2, 0, (0,)), TokenSlice(2, 0, (1,))], cache)
            layout = plan.on_device(iter([torch.from_numpy(array) for array in plan.arrays()]))
            rows = torch.randn((4, (6 + 2 * KV_HEADS) * HEAD_DIM)).to(dtype)
            rows[1, place] = bad
            output = backend.begin(layout, cache).attend(0, rows)
            assert torch.isfinite(output.float()).all(dim=1).tolist()[1:] == [False, True, True]


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gemma2": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_oss": {"sliding_window": 7},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_a_rounded_cache(folder: Path, family: str) -> None:
    model = roughen(tiny_model(family, seed=3, head_dim=HEAD_DIM, **FAMILIES[family]))
    decoder = with_native(build_decoder(copy_of(model)), load_kernels(folder, torch.float32, CPU, HEAD_DIM))
    assert isinstance(decoder.attention, CompiledAttention)
    given = [[(7 * i + 3 * j) % 31 + 2 for j in range(n)] for i, n in enumerate((1, 9, 40, 63))]
    wanted = torch.cat([rounded_logits(model, prompt) for prompt in given])
    exact = torch.cat([reference_logits(model, prompt) for prompt in given])
    for chunk in (7, 1000):
        found = torch.cat(ragged_logits(decoder, given, chunk, "int8"))
        # A number in the middle of two steps falls on either side here and there.
        assert (found - wanted).abs().mean() < 0.02 * (exact - wanted).abs().mean()


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral"])
def test_an_int8_decoder_in_one_call_equals_its_layers_one_by_one(
    kernels: tuple[NativeKernels, torch.dtype], architecture: str
) -> None:
    native, dtype = kernels
    if not native.has_byte_products:
        pytest.skip("this processor multiplies no bytes")
    overrides: dict[str, Any] = {"sliding_window": 6} if architecture == "mistral" else {}
    model = roughen(tiny_model(architecture, head_dim=HEAD_DIM, **overrides))
    made = []
    for is_small in (False, True):
        decoder = with_native(quantize(build_decoder(copy_of(model, dtype))), native)
        assert decoder.small_steps is not None
        decoder = decoder if is_small else replace(decoder, small_steps=None)
        made.append(ModelRunner(decoder, CacheConfig(num_blocks=60, block_size=4, dtype="int8")))
    blocks = [list(range(i * 15, i * 15 + 15)) for i in range(4)]
    steps = [
        [TokenSlice(length, 0, blocks[i]) for i, length in enumerate((1, 7, 30, 37))],  # too long for one call
        [TokenSlice(1, (1, 7, 30, 37)[i], blocks[i]) for i in range(4)],
        [TokenSlice(1, (2, 8, 31, 38)[i], blocks[i]) for i in range(4)],
        [TokenSlice(1, 9, blocks[1])],
    ]
    for slices in steps:
        outputs = []
        for runner in made:
            plan = runner.plan(slices)
            tokens = [[(3 * i + 5 * j) % 30 + 2 for j in range(part.num_tokens)] for i, part in enumerate(slices)]
            logits = runner.forward(plan, tokens, range(plan.num_tokens))
            assert logits is not None
            outputs.append(logits.float())
        # Roundings to 8 bits fall on either side here and there, and the layers hand on what that makes.
        apart, size = (outputs[1] - outputs[0]).abs().mean(), outputs[0].abs().mean()
        assert apart < (0.02 if dtype == torch.float32 else 0.15) * size
