"""The sections of loaded models: which of their layers keep keys and values together, and what a cache block takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.cache_sections import CacheSections, num_pools

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from helix_jobs.engine.attention.cache_geometry import CacheGeometry
    from helix_jobs.engine.model.decoder import Decoder


def sections_of(target: Decoder, draft: Decoder | None, context: int) -> CacheSections:
    """Divide the layers of loaded models.

    Args:
        target: The target.
        draft: The draft model, or None.
        context: The most tokens of a sequence.
    """
    models = [one.attention.spec for one in (target, draft) if one is not None]
    return divide([(one.geometry, [own.window for own in one.layers]) for one in models], context)


def divide(models: Sequence[tuple[CacheGeometry, Sequence[int | None]]], context: int) -> CacheSections:
    """Divide layers by their windows.

    Trade-off: sections share pools, so layers of different shapes would need pools cut in more than one way. A model
    that has such layers (Gemma 4), or a draft that has, keeps every block.

    Args:
        models: Shapes and windows of the target's layers, and of the draft's if there is one.
        context: The most tokens of a sequence.
    """
    geometries = [geometry for geometry, _ in models]
    target, draft = ([*(windows for _, windows in models), []])[:2]
    is_uniform = all(
        len(one.shapes) == 1 and all(shape.source is None for shape in one.layers) for one in geometries if one.layers
    )
    if not is_uniform or not target:
        return CacheSections(target=(0,) * len(target), draft=(0,) * len(draft))
    costs = [one.layers[0].token_elements if one.layers else 0 for one in (*geometries, geometries[0])]
    return CacheSections.of(target, draft, context=context, costs=(costs[0], costs[1]))


def block_bytes(geometry: CacheGeometry, sections: Sequence[int], block_size: int, stored: torch.dtype) -> int:
    """Bytes that one block takes in one model.

    Args:
        geometry: Shapes of its keys and values.
        sections: The section of each of its layers.
        block_size: Tokens a block.
        stored: The dtype of its keys and values in the cache.
    """
    if len(set(sections)) <= 1:
        return geometry.block_bytes(block_size, stored)
    return num_pools(sections) * geometry.layers[0].token_bytes(stored) * block_size
