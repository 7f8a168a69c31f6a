"""Layers that read the keys and values of another layer (Gemma 3n and 4): which one, and what checkpoints hold."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.model.description import UnsupportedSettingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PretrainedConfig

# What checkpoints hold of layers that read another's keys and values.
_UNREAD: Final = re.compile(r"layers\.(\d{1,9})\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.")


def key_sources(config: PretrainedConfig, types: Sequence[str]) -> list[int | None]:
    """For each layer, whose keys and values it reads: the last layers those of the last one of their kind before.

    Args:
        config: Of a family that counts the last layers as ``num_kv_shared_layers``.
        types: The kind of each layer.

    Raises:
        UnsupportedSettingError: There are not so many layers, or none of a kind before them.
    """
    count, num_shared = config.num_hidden_layers, config.num_kv_shared_layers
    if type(num_shared) is not int or not 0 <= num_shared < count:
        raise UnsupportedSettingError(f"has num_kv_shared_layers {num_shared!r:.40} of {count} layers")
    first = count - num_shared
    sources: list[int | None] = [None] * first
    for index in range(first, count):
        before = [other for other in range(first) if types[other] == types[index]]
        if not before:
            raise UnsupportedSettingError(
                f"has num_kv_shared_layers {num_shared} and before them no layer of type {types[index]!r}"
            )
        sources.append(before[-1])
    return sources


def is_unread(config: PretrainedConfig, tensor: str) -> bool:
    """See ``Family``: whether a tensor belongs to keys or values of a layer that reads another's."""
    found = _UNREAD.match(tensor)
    return found is not None and config.num_hidden_layers > int(found[1]) >= (
        config.num_hidden_layers - config.num_kv_shared_layers
    )
