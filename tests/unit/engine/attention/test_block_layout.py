"""Blocks that sections of differently shaped layers divide in their own ways: sizes, places, nothing overwritten."""

from __future__ import annotations

import pytest
import torch

from helix_jobs.engine.attention.block_layout import BlockLayout
from helix_jobs.engine.attention.cache_geometry import CacheGeometry, CacheShape
from helix_jobs.engine.attention.kv_cache import PagedKVCache
from helix_jobs.engine.cache_sections import LayerSections
from helix_jobs.engine.config import CacheConfig
from helix_jobs.engine.model.layer_sections import block_bytes, divide
from tests.unit.engine.tiny_models import CPU

DIRECTML = torch.device("privateuseone:0")
BLOCK, BLOCKS, WINDOW = 4, 6, 512
SMALL, LARGE = CacheShape(num_kv_heads=2, head_dim=8), CacheShape(num_kv_heads=1, head_dim=32)


def model_of(*, kinds: str, shapes: dict[str, CacheShape]) -> tuple[CacheGeometry, list[int | None]]:
    layers = tuple(shapes[kind] for kind in kinds)
    return CacheGeometry(layers=layers), [None if kind == "f" else WINDOW for kind in kinds]


# Two small layers lie where one large one does.
SIX = model_of(kinds="ssfssf", shapes={"s": SMALL, "f": LARGE})


def cache_of(dtype: str = "auto", sections: tuple[int, ...] = (1, 1, 0, 2, 2, 0)) -> PagedKVCache:
    geometry, _ = SIX
    config = CacheConfig(num_blocks=BLOCKS, block_size=BLOCK, dtype=dtype)
    return PagedKVCache(
        geometry, config, torch.float32, CPU, LayerSections(windows=(None, WINDOW, WINDOW), layers=sections)
    )


@pytest.mark.parametrize(
    ("kinds", "shapes", "windows", "elements"),
    [
        # Six windowed layers keep as much as three without a window.
        (
            "ssssf" * 3,
            {"s": CacheShape(num_kv_heads=1, head_dim=256), "f": CacheShape(num_kv_heads=1, head_dim=512)},
            [None, WINDOW, WINDOW],
            6 * 512,
        ),
        # Five windowed layers keep ten times as much as the one without.
        (
            "sssssf" * 10,
            {"s": CacheShape(num_kv_heads=16, head_dim=256), "f": CacheShape(num_kv_heads=4, head_dim=512)},
            [None, *[WINDOW] * 7],
            8 * 8192,
        ),
    ],
    ids=["large heads keep more", "large heads keep less"],
)
def test_a_section_of_few_large_heads_keeps_about_as_much_as_one_of_many_small_ones(kinds, shapes, windows, elements):
    geometry, seen = model_of(kinds=kinds, shapes=shapes)
    sections = divide([(geometry, seen)], 1 << 17, CPU)
    assert list(sections.windows) == windows
    assert block_bytes(geometry, sections.target, 16, torch.bfloat16) == 16 * 2 * elements


def test_where_views_are_copied_such_a_model_keeps_every_block():
    geometry, _ = SIX
    assert divide([SIX], 1 << 17, CPU).frees
    assert not divide([SIX], 1 << 17, DIRECTML).frees
    uniform = model_of(kinds="ssfssf", shapes={"s": SMALL, "f": SMALL})
    assert divide([uniform], 1 << 17, DIRECTML).frees
    # So does one whose values are of another width than its keys.
    odd = model_of(kinds="sf", shapes={"s": CacheShape(num_kv_heads=2, head_dim=16, value_dim=8), "f": LARGE})
    assert not divide([odd], 1 << 17, CPU).frees
    assert divide([odd], 1 << 17, CPU).target == (0, 0)
    # And one with latents, whose values are columns of their keys.
    latent = CacheShape(num_kv_heads=1, head_dim=32, value_dim=32, has_values=False)
    assert not divide([model_of(kinds="sf", shapes={"s": SMALL, "f": latent})], 1 << 17, CPU).frees
    assert geometry.block_bytes(BLOCK, torch.float32) == 4 * (4 * 32 + 2 * 64) * BLOCK


def test_a_layer_that_reads_another_s_keys_is_kept_where_those_are_and_as_long_as_it_sees_them():
    shared = CacheShape(num_kv_heads=2, head_dim=8, source=0)
    geometry = CacheGeometry(layers=(SMALL, SMALL, shared))
    sections = divide([(geometry, [8, 8, 8])], 100, CPU)
    assert (sections.windows, sections.target) == ((8,), (0, 0, 0))
    sections = divide([(geometry, [8, 8, None])], 100, CPU)
    assert (sections.windows, sections.target) == ((None, 8), (0, 1, 0))
    assert block_bytes(geometry, sections.target, BLOCK, torch.float32) == 4 * 32 * BLOCK


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_the_pool_takes_what_is_reckoned_and_layers_of_a_section_do_not_overlap(dtype):
    cache = cache_of(dtype)
    geometry, _ = SIX
    assert cache.num_bytes == BLOCKS * block_bytes(geometry, (1, 1, 0, 2, 2, 0), BLOCK, cache.stored)
    written = {}
    for section, block in ((0, 3), (1, 1), (2, 4)):
        for layer in (layer for layer in range(6) if cache.sections.of(layer) == section):
            shape, own = geometry.layers[layer], cache.block_rows[layer]
            rows = [
                (block * own.stride + head) * BLOCK + slot for head in range(own.num_heads) for slot in range(BLOCK)
            ]
            written[layer, block] = tuple(torch.randn(len(rows), shape.head_dim) for _ in range(2))
            cache.write(layer, torch.tensor(rows), *written[layer, block])
    cache.clear([1])
    for (layer, block), parts in written.items():
        own = cache.block_rows[layer]
        rows = torch.tensor([block * own.stride + head for head in range(own.num_heads)])
        for found, part in zip(cache.gather(layer, rows, own.num_heads), parts, strict=True):
            expected = torch.zeros_like(part) if block == 1 else part
            torch.testing.assert_close(
                found.reshape(-1, found.shape[-1]), expected, rtol=0, atol=0 if dtype == "auto" else 0.03
            )


def test_a_model_of_one_section_beside_one_of_several_takes_what_is_reckoned():
    """A draft's layers may all be in one of the target's sections; each then has pools of its own, without padding."""
    geometry = CacheGeometry(layers=(SMALL, CacheShape(num_kv_heads=1, head_dim=12)))
    config = CacheConfig(num_blocks=BLOCKS, block_size=BLOCK)
    sections = LayerSections(windows=(None, WINDOW), layers=(0, 0))
    cache = PagedKVCache(geometry, config, torch.float32, CPU, sections)
    assert cache.num_bytes == BLOCKS * block_bytes(geometry, (0, 0), BLOCK, torch.float32)


def test_a_cleared_block_holds_nothing_that_is_not_finite_whoever_had_it():
    cache = cache_of()
    cache.keys[2].fill_(float("nan"))  # the whole pool, but for what lies before this layer
    for block in range(BLOCKS):
        cache.clear([block])
    assert all(bool(torch.isfinite(one).all()) for one in (*cache.keys, *cache.values))


def test_rows_that_are_no_multiples_of_each_other_are_padded():
    shapes = (SMALL, CacheShape(num_kv_heads=1, head_dim=12), CacheShape(num_kv_heads=1, head_dim=24))
    layout = BlockLayout.of(CacheGeometry(layers=shapes), (0, 1, 1), BLOCK)
    # Rows of 8, 12 and 24 tokens' elements: the largest come first, the keys of 12 begin behind both.
    assert layout.firsts == (0, 4, 0)
    assert layout.size == 72 * BLOCK
    assert [layout.size % size for size in layout.row_sizes] == [0, 0, 0]
