"""Compiled attention within a window, and with bounded scores, against plain products."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from helix_jobs.engine.attention.backend import AttentionSpec, LayerAttention
from helix_jobs.engine.attention.cache_geometry import CacheGeometry
from helix_jobs.engine.attention.dense import DenseAttention
from helix_jobs.engine.attention.kv_cache import PagedKVCache
from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.cache_sections import LayerSections, first_seen
from helix_jobs.engine.config import CacheConfig
from helix_jobs.engine.kernels.cpu.attention import CompiledAttention
from helix_jobs.engine.schedule.block_table import FREED
from tests.unit.engine.tiny_models import CPU

if TYPE_CHECKING:
    from helix_jobs.engine.attention.backend import AttentionBackend
    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels

HEADS, KV_HEADS, HEAD_DIM, LENGTH = 6, 2, 16, 210
WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM


def spec_of(window: int | None, score_cap: float | None) -> AttentionSpec:
    geometry = CacheGeometry.uniform(num_layers=1, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM)
    layer = LayerAttention(0.4, window=window, score_cap=score_cap)
    return AttentionSpec(geometry=geometry, num_heads=HEADS, layers=(layer,))


def attended(
    backend: AttentionBackend, rows: torch.Tensor, block_size: int, cuts: list[int], *, frees: int | None = None
) -> torch.Tensor:
    """Attention over one sequence, ``[LENGTH, WIDTH]`` rows, in steps that end at ``cuts``.

    Blocks behind a window of ``frees`` are freed, and hold what is not finite.
    """
    num_blocks = -(-LENGTH // block_size)
    config = CacheConfig(num_blocks=num_blocks, block_size=block_size)
    sections = LayerSections(windows=(frees,), layers=(0,))
    cache = PagedKVCache(backend.spec.geometry, config, rows.dtype, CPU, sections)
    blocks = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(2)).tolist()
    outputs, start = [], 0
    for end in cuts:
        for index in range(first_seen(frees, start, block_size)):
            if blocks[index] != FREED:
                for pool in (cache.keys[0], cache.values[0]):
                    pool.view(num_blocks, -1)[blocks[index]] = torch.nan
                blocks[index] = FREED
        plan = backend.plan([TokenSlice(end - start, start, blocks)], cache)
        layout = plan.on_device(iter([torch.from_numpy(array) for array in plan.arrays()]))
        outputs.append(backend.begin(layout, cache).attend(0, rows[start:end].clone()))
        start = end
    return torch.cat(outputs)


@pytest.mark.parametrize("block_size", [4, 16, 24])
@pytest.mark.parametrize(
    ("window", "score_cap"), [(1, None), (7, None), (64, None), (150, 2.0), (None, 2.0), (None, 50.0)]
)
def test_it_attends_as_plain_products_do(
    kernels: tuple[NativeKernels, torch.dtype], window: int | None, score_cap: float | None, block_size: int
) -> None:
    native, dtype = kernels
    spec = spec_of(window, score_cap)
    rows = (torch.randn((LENGTH, WIDTH), generator=torch.Generator().manual_seed(1)) * 1.5).to(dtype)
    cuts = [1, 90, 91, 95, 180, 209, LENGTH]
    compiled = attended(CompiledAttention(spec, native), rows, block_size, cuts)
    # In float32 also of rounded rows: plain products would round the scores as well.
    plain = attended(DenseAttention(spec), rows.float(), block_size, cuts)
    rounding = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(compiled.float(), plain, **rounding)
    without = attended(CompiledAttention(spec_of(None, None), native), rows, block_size, cuts)
    assert (compiled - without).abs().max() > 1e-3


@pytest.mark.parametrize("block_size", [16, 24])
def test_within_a_window_the_cut_of_a_prompt_does_not_change_a_bit(
    kernels: tuple[NativeKernels, torch.dtype], block_size: int
) -> None:
    native, dtype = kernels
    backend = CompiledAttention(spec_of(37, None), native)
    rows = torch.randn((LENGTH, WIDTH), generator=torch.Generator().manual_seed(1)).to(dtype)
    whole = attended(backend, rows, block_size, [LENGTH])
    assert torch.equal(attended(backend, rows, block_size, list(range(1, LENGTH + 1))), whole)
    assert torch.equal(attended(backend, rows, block_size, [5, 80, 81, 150, 163, LENGTH]), whole)


@pytest.mark.parametrize(("window", "block_size"), [(1, 4), (7, 16), (100, 24)])
def test_blocks_behind_the_window_are_not_read(
    kernels: tuple[NativeKernels, torch.dtype], window: int, block_size: int
) -> None:
    native, dtype = kernels
    spec = spec_of(window, None)
    rows = (torch.randn((LENGTH, WIDTH), generator=torch.Generator().manual_seed(1)) * 1.5).to(dtype)
    cuts = [1, 90, 91, 95, 180, 209, LENGTH]
    whole, freed = (attended(CompiledAttention(spec, native), rows, block_size, cuts, frees=f) for f in (None, window))
    assert torch.equal(freed, whole)
    dense = attended(DenseAttention(spec), rows, block_size, cuts, frees=window)
    assert torch.allclose(dense.float(), whole.float(), atol=1e-5 if dtype is torch.float32 else 0.05, rtol=1e-2)
