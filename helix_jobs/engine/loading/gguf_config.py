"""The configuration that a GGUF file's settings make.

transformers has a reader of its own, which takes settings from a fixed list and silently drops everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from transformers import CONFIG_MAPPING

from helix_jobs.engine.loading.gguf_family import ROTARY
from helix_jobs.engine.loading.gguf_settings import PATTERN
from helix_jobs.engine.loading.tensor_names import HEAD
from helix_jobs.engine.model.families.settings import FULL, SLIDING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.loading.gguf_file import GgufFile

_THETA: Final = 10000.0
ROTARY_FACTORS: Final = "rope_freqs.weight"
LONG_FACTORS: Final = "rope_factors_long.weight"
SHORT_FACTORS: Final = "rope_factors_short.weight"


def gguf_config(gguf: GgufFile) -> PretrainedConfig:
    """The configuration of a file whose settings have been checked."""
    settings, family = gguf.settings, gguf.family
    embedding = gguf.tensors.get(f"{family.outer['token_embd']}.weight")
    window = settings.get("attention.sliding_window") or None
    made: dict[str, Any] = {
        "vocab_size": settings.get("vocab_size") or (1 if embedding is None else embedding.shape[0]),
        "hidden_size": settings["embedding_length"],
        "intermediate_size": settings.get("feed_forward_length") or settings["expert_feed_forward_length"],
        "num_hidden_layers": gguf.num_layers,
        "num_attention_heads": settings["attention.head_count"],
        "num_key_value_heads": gguf.num_kv_heads,
        "head_dim": gguf.head_dim,
        "max_position_embeddings": settings["context_length"],
        family.epsilon[1]: settings[family.epsilon[0]],
        ROTARY: _rope_by_layer(gguf),
        "sliding_window": None if family.window == "none" else window,
        "tie_word_embeddings": HEAD not in gguf.tensors,
        **{f"{kind}_token_id": gguf.vocabulary.get(f"ggml.{kind}_token_id") for kind in ("bos", "eos")},
        "pad_token_id": gguf.vocabulary.get("ggml.padding_token_id"),
        **family.constants,
        **{theirs: settings[key] for key, theirs in family.settings.items()},
        **{theirs: settings[key] for key, theirs in family.optional.items() if settings.get(key)},
        **({} if family.made is None else family.made(gguf)),
    }
    for setting, parameter in family.present.items():
        made[setting] = f"{family.layers}.0.{parameter}" in gguf.tensors
    if isinstance(family.window, int):
        made["layer_types"] = [FULL] * gguf.num_layers if window is None else _layer_types(gguf)
    made = {key: value for key, value in made.items() if key not in family.lacks}
    if SHORT_FACTORS in gguf.rotary:  # transformers 5 has it in both places
        made["original_max_position_embeddings"] = settings["rope.scaling.original_context_length"]
    config: PretrainedConfig = CONFIG_MAPPING[family.model_type](**made)
    return config


def _layer_types(gguf: GgufFile) -> list[str]:
    """The kind of each layer: as the file lists it, or every n-th one without a window."""
    period, count = gguf.family.window, gguf.num_layers
    assert isinstance(period, int), "the caller has looked"
    listed = gguf.settings.get(PATTERN) or [bool((index + 1) % period) for index in range(count)]
    return [SLIDING if has_window else FULL for has_window in listed[:count]]


def _rope_by_layer(gguf: GgufFile) -> dict[str, Any]:
    """Rotary settings; where each kind of layers has its own, those of layers with a window are not scaled."""
    shared, theta = _rope(gguf), gguf.family.local_theta
    if theta is None:
        return shared
    local = shared["rope_theta"] if theta == "shared" else gguf.settings.get("rope.freq_base_swa") or theta
    return {FULL: shared, SLIDING: {"rope_type": "default", "rope_theta": local}}


def _rope(gguf: GgufFile) -> dict[str, Any]:
    settings, family = gguf.settings, gguf.family
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": settings.get("rope.freq_base", _THETA)}
    rotated = settings.get("rope.dimension_count") or gguf.head_dim
    if family.rotates_part:
        found["partial_rotary_factor"] = rotated / gguf.head_dim
    found |= {theirs: settings[key] for key, theirs in family.rope_settings.items()}
    kind = settings.get("rope.scaling.type")
    if family.has_frequencies == "proportional" and ROTARY_FACTORS in gguf.rotary:
        is_rotated = gguf.rotary[ROTARY_FACTORS] == 1
        found |= {"rope_type": "proportional", "partial_rotary_factor": float(is_rotated.float().mean())}
    elif SHORT_FACTORS in gguf.rotary:
        found |= {
            "rope_type": "longrope",
            "short_factor": gguf.rotary[SHORT_FACTORS].tolist(),
            "long_factor": gguf.rotary[LONG_FACTORS].tolist(),
            "original_max_position_embeddings": settings["rope.scaling.original_context_length"],
            "attention_factor": settings.get("rope.scaling.attn_factor"),
            **family.rope,
        }
    elif kind in family.scalings:
        found |= {"rope_type": kind, "factor": settings["rope.scaling.factor"]}
        if kind == "yarn":
            found |= {**_yarn(gguf), **family.rope}
    return found


def _yarn(gguf: GgufFile) -> dict[str, Any]:
    """The further settings of YaRN (arXiv:2309.00071); llama.cpp has the paper's bounds unless a file has others."""
    settings = gguf.settings
    found = {
        "original_max_position_embeddings": settings["rope.scaling.original_context_length"],
        "beta_fast": settings.get("rope.scaling.yarn_beta_fast") or 32.0,
        "beta_slow": settings.get("rope.scaling.yarn_beta_slow") or 1.0,
    }
    if settings.get("rope.scaling.yarn_attn_factor"):
        found["attention_factor"] = settings["rope.scaling.yarn_attn_factor"]
    if settings.get("rope.scaling.yarn_log_multiplier"):
        depth = settings["rope.scaling.yarn_log_multiplier"] / gguf.family.depth_slope
        found |= dict.fromkeys(("mscale", "mscale_all_dim"), depth)
    return found
