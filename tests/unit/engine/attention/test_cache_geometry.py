"""Layers of different shapes in one cache, and layers that keep nothing of their own."""

from __future__ import annotations

import mmap

import pytest
import torch

from helix_jobs.engine.attention.cache_geometry import CacheGeometry, CacheShape
from helix_jobs.engine.attention.kv_cache import PagedKVCache
from helix_jobs.engine.config import CacheConfig
from tests.unit.engine.tiny_models import CPU

BLOCK, BLOCKS = 4, 3
PLAIN = CacheShape(num_kv_heads=2, head_dim=16)
WIDE = CacheShape(num_kv_heads=1, head_dim=32, value_dim=8)
LATENT = CacheShape(num_kv_heads=1, head_dim=24, value_dim=16, has_values=False)
SHARED = CacheShape(num_kv_heads=2, head_dim=16, source=0)
MIXED = CacheGeometry(layers=(PLAIN, WIDE, LATENT, SHARED))


def test_a_token_takes_what_each_layer_keeps() -> None:
    assert [shape.token_elements for shape in MIXED.layers] == [2 * 32, 32 + 8, 24, 0]
    assert MIXED.block_bytes(BLOCK, torch.bfloat16) == (64 + 40 + 24) * BLOCK * 2
    cache = PagedKVCache(MIXED, CacheConfig(num_blocks=BLOCKS, block_size=BLOCK), torch.float32, CPU)
    assert cache.num_bytes == BLOCKS * MIXED.block_bytes(BLOCK, torch.float32)


def test_rows_of_8_bits_take_a_scale_each() -> None:
    whole = CacheGeometry(layers=(PLAIN, WIDE, SHARED))
    # Of a token: four rows of 16, one of 32, one of 8.
    assert whole.block_bytes(BLOCK, torch.int8) == (4 * 16 + 32 + 8 + 6 * 4) * BLOCK
    cache = PagedKVCache(whole, CacheConfig(num_blocks=BLOCKS, block_size=BLOCK, dtype="int8"), torch.bfloat16, CPU)
    assert cache.num_bytes == BLOCKS * whole.block_bytes(BLOCK, torch.int8)
    usual = CacheGeometry.uniform(num_layers=2, num_kv_heads=3, head_dim=64)
    sizes = [usual.block_bytes(BLOCK, dtype) for dtype in (torch.float32, torch.bfloat16, torch.int8)]
    assert [size / sizes[2] for size in sizes] == [256 / 68, 128 / 68, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_come_out_as_they_were_rounded(dtype: torch.dtype) -> None:
    shape = CacheGeometry(layers=(WIDE,))
    cache = PagedKVCache(shape, CacheConfig(num_blocks=BLOCKS, block_size=BLOCK, dtype="int8"), dtype, CPU)
    keys, values = torch.randn(3, 32).to(dtype), torch.randn(3, 8).to(dtype)
    keys[1] *= 1e4
    values[2] = 0
    cache.write(0, torch.tensor([5, 9, 2]), keys, values)
    found = cache.gather(0, torch.tensor([1, 2, 0]), 1)
    for rows, one in zip((keys, values), found, strict=True):
        assert one.dtype is dtype
        largest = rows.float().abs().amax(dim=1, keepdim=True)
        apart = (one[0, [1, 5, 10]].float() - rows.float()).abs()
        assert bool((apart <= largest * (0.501 / 127 + torch.finfo(dtype).eps)).all())
    assert bool((found[1][0, 10] == 0).all())
    assert bool((found[0][0, [0, 2, 3, 4]] == 0).all())  # never written


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_stays_so_until_it_is_cleared(bad: float) -> None:
    shape = CacheGeometry(layers=(WIDE,))
    cache = PagedKVCache(shape, CacheConfig(num_blocks=BLOCKS, block_size=BLOCK, dtype="int8"), torch.float32, CPU)
    keys, values = torch.ones(2, 32), torch.ones(2, 8)
    keys[0, 3] = values[1, 2] = bad
    cache.write(0, torch.tensor([BLOCK, BLOCK + 1]), keys, values)
    found = cache.gather(0, torch.tensor([1]), 1)
    assert [torch.isfinite(one[0]).all(dim=1).tolist() for one in found] == [
        [False, *[True] * 3],
        [True, False, True, True],
    ]
    cache.clear([1])
    assert all(bool((one == 0).all()) for one in cache.gather(0, torch.tensor([1]), 1))


def test_pools_begin_with_a_page() -> None:
    geometry = CacheGeometry.uniform(num_layers=3, num_kv_heads=2, head_dim=16)
    for dtype in ("auto", "int8"):
        cache = PagedKVCache(geometry, CacheConfig(num_blocks=5, block_size=4, dtype=dtype), torch.bfloat16, CPU)
        pools = [pool for layer in range(3) for pool in cache.pools_of(layer)]
        assert [pool.data_ptr() % mmap.PAGESIZE for pool in pools] == [0] * len(pools)
        assert all(not pool.any() for pool in pools)


def test_the_shapes_of_layers_are_features() -> None:
    assert CacheGeometry.uniform(num_layers=3, num_kv_heads=2, head_dim=16).features == frozenset()
    assert CacheGeometry(layers=(PLAIN, SHARED)).features == {"source"}
    assert MIXED.features == {"layers", "value_dim", "has_values", "source"}
    assert MIXED.shapes == (PLAIN, WIDE, LATENT)


def test_a_layer_reads_the_keys_of_its_source_and_values_out_of_keys() -> None:
    cache = PagedKVCache(MIXED, CacheConfig(num_blocks=BLOCKS, block_size=BLOCK), torch.float32, CPU)
    keys, values = torch.randn(2, 16), torch.randn(2, 16)
    cache.write(0, torch.tensor([2 * BLOCK + 1, 3 * BLOCK + 1]), keys, values)  # block 1, its second token, both heads
    for layer in (0, 3):
        found = cache.gather(layer, torch.tensor([2, 3]), 2)
        torch.testing.assert_close(found[0][:, 1], keys)
        torch.testing.assert_close(found[1][:, 1], values)
    latents = torch.randn(1, 24)
    cache.write(2, torch.tensor([BLOCK + 1]), latents, None)
    found = cache.gather(2, torch.tensor([1]), 1)
    torch.testing.assert_close(found[0][:, 1], latents)
    torch.testing.assert_close(found[1][:, 1], latents[:, :16])


def test_a_cleared_block_is_zero_in_every_layer_and_others_are_not() -> None:
    cache = PagedKVCache(MIXED, CacheConfig(num_blocks=BLOCKS, block_size=BLOCK), torch.float32, CPU)
    pools = (*cache.keys, *cache.values)
    for pool in pools:
        pool.fill_(float("nan"))
    cache.clear([1])
    for pool in pools:
        is_zero = (pool == 0).all(dim=1).view(BLOCKS, -1)
        assert is_zero.all(dim=1).tolist() == [False, True, False]
