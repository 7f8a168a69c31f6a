"""The sections of loaded models: which of their layers keep keys and values together, and what a cache block takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.attention.block_layout import BlockLayout
from helix_jobs.engine.cache_sections import CacheSections, KeptLayer, num_pools
from helix_jobs.engine.devices.devices import compiles_each_shape

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
    return divide([(one.geometry, [own.window for own in one.layers]) for one in models], context, target.device)


def divide(
    models: Sequence[tuple[CacheGeometry, Sequence[int | None]]], context: int, device: torch.device
) -> CacheSections:
    """Divide layers by their windows.

    Trade-off: layers of different shapes share blocks as views into one pool (see ``BlockLayout``). DirectML copies a
    whole view that begins within a tensor, so there a model with such layers (Gemma 4) keeps every block.

    Args:
        models: Shapes and windows of the target's layers, and of the draft's if there is one.
        context: The most tokens of a sequence.
        device: Where they compute.
    """
    layers = [
        [
            KeptLayer(window, shape.token_elements, shape.source)
            for shape, window in zip(geometry.layers, windows, strict=True)
        ]
        for geometry, windows in models
    ]
    target, draft = ([*layers, []])[:2]
    can_divide = all(
        len(geometry.shapes) <= 1 or (geometry.can_share_blocks and not compiles_each_shape(device))
        for geometry, _ in models
    )
    if not can_divide or not target:
        return CacheSections(target=(0,) * len(target), draft=(0,) * len(draft))
    return CacheSections.of(target, draft, context=context)


def block_bytes(geometry: CacheGeometry, sections: Sequence[int], block_size: int, stored: torch.dtype) -> int:
    """Bytes that one block takes in one model.

    Args:
        geometry: Shapes of its keys and values.
        sections: The section of each of its layers.
        block_size: Tokens a block.
        stored: The dtype of its keys and values in the cache.
    """
    if geometry.shares_blocks(sections):
        return BlockLayout.of(geometry, sections, block_size).block_bytes(block_size, stored)
    if len(set(sections)) <= 1:
        return geometry.block_bytes(block_size, stored)
    own = [section for section, shape in zip(sections, geometry.layers, strict=True) if shape.source is None]
    return num_pools(own) * geometry.layers[0].token_bytes(stored) * block_size
