"""What families with latent attention share: one description of it, and checked settings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.attention.cache_geometry import CacheShape
from helix_jobs.engine.model.description import AttentionDescription, RotaryDescription, UnsupportedSettingError
from helix_jobs.engine.model.families.settings import projection, rms_norm
from helix_jobs.engine.model.latent_description import LatentDescription, LowRankDescription

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription

# Of the norms between two products, whatever the configuration says of the other norms.
_INNER_EPS: Final = 1e-6
_WIDTHS: Final = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def with_latents(model: ModelDescription, config: Any, *, is_interleaved: bool) -> ModelDescription:  # noqa: ANN401  (the settings of several families)
    """The model with latent attention in every layer.

    Args:
        model: Of a family that names the parts of a layer as Llama does.
        config: Its configuration.
        is_interleaved: See ``RotaryDescription``.

    Raises:
        UnsupportedSettingError: Widths, heads or a rotation that such attention cannot have.
    """
    _check(config)
    norm, query_rank = rms_norm(_INNER_EPS), config.q_lora_rank
    first, queries = "self_attn.q_proj", None
    if query_rank is not None:
        first = "self_attn.q_a_proj"
        queries = LowRankDescription(
            rank=query_rank, norm=norm("self_attn.q_a_layernorm"), product=projection("self_attn.q_b_proj")
        )
    attention = AttentionDescription(
        qkv=projection(first, "self_attn.kv_a_proj_with_mqa"),
        out=projection("self_attn.o_proj"),
        scaling=_scaling(config),
        rotary=RotaryDescription(is_interleaved=is_interleaved),
        cache=CacheShape(
            num_kv_heads=1,
            head_dim=config.kv_lora_rank + config.qk_rope_head_dim,
            value_dim=config.kv_lora_rank,
            has_values=False,
        ),
        latent=LatentDescription(
            rank=config.kv_lora_rank,
            plain_dim=config.qk_nope_head_dim,
            rotary_dim=config.qk_rope_head_dim,
            value_dim=config.v_head_dim,
            norm=norm("self_attn.kv_a_layernorm"),
            product="self_attn.kv_b_proj",
            queries=queries,
        ),
    )
    return model.with_attention(lambda _, _own: attention)


def check_setting(config: PretrainedConfig, key: str, *served: object) -> None:
    """Refuse another value of a setting that checkpoints have and transformers does not read, or reads in part.

    Raises:
        UnsupportedSettingError: Its value is none of these.
    """
    value = getattr(config, key, None)
    if value is not None and value not in served:
        raise UnsupportedSettingError(f"has {key} {value!r:.40}; supported is {' or '.join(map(repr, served))}")


def first_sparse_layer(config: Any) -> int:  # noqa: ANN401  (as above)
    """The first layer that has experts.

    Raises:
        UnsupportedSettingError: No layer is named, or experts are in some of the layers behind it.
    """
    check_setting(config, "moe_layer_freq", 1)
    first = config.first_k_dense_replace
    if type(first) is not int:
        raise UnsupportedSettingError(f"has first_k_dense_replace {first!r:.40}, which must be a whole number")
    return first


def _check(config: Any) -> None:  # noqa: ANN401  (as above)
    widths = {key: getattr(config, key) for key in _WIDTHS}
    if config.q_lora_rank is not None:
        widths["q_lora_rank"] = config.q_lora_rank
    for key, value in widths.items():
        if type(value) is not int or value < 1:
            raise UnsupportedSettingError(f"has {key} {value!r:.40}, which must be a whole number above zero")
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    if shared != heads:
        raise UnsupportedSettingError(
            f"has latent attention with {shared} key-value heads for {heads} query heads; both numbers must be equal"
        )
    factor = (config.rope_parameters or {}).get("partial_rotary_factor")
    if factor not in (None, 1):
        raise UnsupportedSettingError(f"rotates a part ({factor!r:.40}) of qk_rope_head_dim; supported is all of it")


def _scaling(config: Any) -> float:  # noqa: ANN401  (as above)
    """Factor of the scores; YaRN's temperature counts there, twice (arXiv:2309.00071, section 3.4)."""
    plain = float((config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5)
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") == "default" or not rope.get("mscale_all_dim"):
        return plain
    depth, factor = _number(rope, "mscale_all_dim"), _number(rope, "factor")
    temperature = 1.0 if factor <= 1 else 0.1 * depth * math.log(factor) + 1.0
    return plain * temperature * temperature


def _number(rope: dict[str, Any], key: str) -> float:
    value = rope.get(key)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UnsupportedSettingError(f"scales positions with {key} {value!r:.40}, which must be a number")
    return float(value)
