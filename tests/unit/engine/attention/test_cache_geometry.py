"""Layers of different shapes in one cache, and layers that keep nothing of their own."""

from __future__ import annotations

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
