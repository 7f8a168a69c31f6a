"""What families with latent attention share: one description of it, alone and with experts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.model.description import AttentionDescription, RotaryDescription, UnsupportedSettingError
from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.settings import projection, rms_norm
from helix_jobs.engine.model.families.sparse import experts, shared_expert, with_experts
from helix_jobs.engine.model.latent_description import LatentDescription, LowRankDescription

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.model.description import ModelDescription
    from helix_jobs.engine.model.expert_description import RouterDescription

# Of the norms between two products, whatever the configuration says of the other norms.
_INNER_EPS: Final = 1e-6
_WIDTHS: Final = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def with_latents(
    model: ModelDescription,
    config: Any,  # noqa: ANN401  (the settings of several families)
    *,
    is_interleaved: bool,
    is_wide: bool = False,
) -> ModelDescription:
    """The model with latent attention in every layer.

    Args:
        model: Of a family that names the parts of a layer as Llama does.
        config: Its configuration.
        is_interleaved: See ``RotaryDescription``.
        is_wide: See ``RotaryDescription``.

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
        rotary=RotaryDescription(is_interleaved=is_interleaved, is_wide=is_wide),
        latent=LatentDescription(
            rank=config.kv_lora_rank,
            plain_dim=config.qk_nope_head_dim,
            rotary_dim=config.qk_rope_head_dim,
            value_dim=config.v_head_dim,
            norm=norm("self_attn.kv_a_layernorm"),
            matrix="self_attn.kv_b_proj",
            queries=queries,
        ),
    )
    return model.with_attention(lambda _, _own: attention)


def latents_with_experts(
    config: Any,  # noqa: ANN401  (as above)
    choice: RouterDescription,
    is_sparse: Callable[[int], bool],
    *,
    is_interleaved: bool,
    is_wide: bool = False,
) -> ModelDescription:
    """Llama with latent attention in every layer, and with experts beside a shared one where ``is_sparse`` says so.

    Args:
        config: See ``with_latents``.
        choice: Router of the experts.
        is_sparse: Whether the layer of an index has experts.
        is_interleaved: See ``RotaryDescription``.
        is_wide: See ``RotaryDescription``.

    Raises:
        UnsupportedSettingError: As ``with_latents``.
    """
    made = experts(config.hidden_act, choice, shared=shared_expert(config.hidden_act, "mlp.shared_experts"))
    model = with_latents(llama.describe(config), config, is_interleaved=is_interleaved, is_wide=is_wide)
    return with_experts(model, lambda _: made, is_sparse)


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
            f"has latent attention, num_key_value_heads {shared} and num_attention_heads {heads}; they must be equal"
        )
    factor = (config.rope_parameters or {}).get("partial_rotary_factor")
    if factor not in (None, 1):
        raise UnsupportedSettingError(f"has partial_rotary_factor {factor!r:.40} of qk_rope_head_dim; supported is 1")


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
