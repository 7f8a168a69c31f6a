"""The rotary settings of a configuration, wherever a version of transformers keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ORIGINAL_CONTEXT: Final = "original_max_position_embeddings"
LONG_ROPE: Final = "longrope"


def rope_settings(config: PretrainedConfig) -> list[dict[str, Any]]:
    """The rotary settings of each kind of layer. Transformers 5 keeps them in ``rope_parameters``, 4 in others."""
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    by_kind = [one for one in settings.values() if isinstance(one, dict)]
    return by_kind or [settings]


def named(parameters: dict[str, Any]) -> str:
    """The name of the scaling that rotary settings ask for."""
    return str(parameters.get("rope_type", parameters.get("type", "default")))


def rope_type(config: PretrainedConfig) -> str:
    """The rotary scaling's name, of a family whose layers all have the same."""
    return named(rope_settings(config)[0])


def original_contexts(config: PretrainedConfig) -> frozenset[int]:
    """The lengths beyond which LongRoPE computes all of a sequence by its long factors, as far as any is reached."""
    length = int(config.max_position_embeddings)
    found = {
        int(parameters.get(ORIGINAL_CONTEXT) or getattr(config, ORIGINAL_CONTEXT, None) or length)
        for parameters in rope_settings(config)
        if named(parameters) == LONG_ROPE
    }
    return frozenset(one for one in found if one < length)


def long_layer_type(config: PretrainedConfig, layer_type: str | None) -> bool:
    """Whether layers of this kind (None: all) have LongRoPE."""
    settings = getattr(config, "rope_parameters", None) or {}
    own = rope_settings(config)[0] if layer_type is None else settings[layer_type]
    return named(own) == LONG_ROPE
