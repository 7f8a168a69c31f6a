"""Experts in GGUF files: the settings of each family that has them, and the configuration that they make.

transformers' reader knows some of these families, and of these not every setting. So the configuration is made here,
from the settings alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from transformers import CONFIG_MAPPING

from helix_jobs.engine.loading.tensor_names import HEAD
from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PretrainedConfig

    from helix_jobs.engine.loading.gguf_file import GgufFile

_WIDTH: Final = "expert_feed_forward_length"
_SHARED_WIDTH: Final = "expert_shared_feed_forward_length"
EXPERT_COUNTS: Final = ("expert_count", "expert_used_count", _WIDTH, _SHARED_WIDTH)
_NEEDED: Final = ("expert_used_count",)
# llama.cpp's number of a softmax over all logits.
_SOFTMAX: Final = 1


@dataclass(frozen=True, slots=True)
class ExpertFamily:
    """How llama.cpp computes the experts of one architecture.

    Attributes:
        model_type: Transformers' name of it.
        is_normalised: Whether the weights of a token's experts are divided by their sum.
        settings: The configuration's settings of experts, made from those of the file.
        needed: Settings without which the configuration would be another model's.
    """

    model_type: str
    is_normalised: bool
    settings: Callable[[Mapping[str, Any]], dict[str, Any]]
    needed: tuple[str, ...] = ()


def _mixtral(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "intermediate_size": settings.get(_WIDTH) or settings["feed_forward_length"],
        "num_local_experts": settings["expert_count"],
        "sliding_window": None,
    }


def _olmoe(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "intermediate_size": settings.get(_WIDTH) or settings["feed_forward_length"],
        "num_experts": settings["expert_count"],
    }


def _qwen2(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "moe_intermediate_size": settings[_WIDTH],
        "shared_expert_intermediate_size": settings[_SHARED_WIDTH],
        "intermediate_size": settings["feed_forward_length"],
        "num_experts": settings["expert_count"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _qwen3(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "moe_intermediate_size": settings[_WIDTH],
        "intermediate_size": settings["feed_forward_length"],
        "num_experts": settings["expert_count"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


FAMILIES_WITH_EXPERTS: Final = {
    "llama": ExpertFamily("mixtral", is_normalised=True, settings=_mixtral),
    "qwen2moe": ExpertFamily("qwen2_moe", is_normalised=False, settings=_qwen2, needed=(_WIDTH, _SHARED_WIDTH)),
    "qwen3moe": ExpertFamily("qwen3_moe", is_normalised=True, settings=_qwen3, needed=(_WIDTH,)),
    "olmoe": ExpertFamily("olmoe", is_normalised=False, settings=_olmoe),
}
# Architectures that have experts in every file.
_ALWAYS: Final = frozenset(FAMILIES_WITH_EXPERTS) - {"llama"}


def neutral_expert_settings(architecture: str, *, has_experts: bool) -> dict[str, tuple[object, ...]]:
    """Settings of experts that are not read, and the values that say what is computed anyway."""
    if not has_experts:
        return dict.fromkeys(EXPERT_COUNTS, (0,))
    return {
        "expert_gating_func": (0, _SOFTMAX),
        "expert_weights_norm": (FAMILIES_WITH_EXPERTS[architecture].is_normalised,),
        "expert_weights_scale": (0.0, 1.0),
        "expert_group_count": (0, 1),
        "expert_group_used_count": (0, 1),
        "expert_shared_count": (0,),
        "leading_dense_block_count": (0,),
        "interleave_moe_layer_step": (0, 1),
    }


def check_expert_settings(name: str, architecture: str, settings: Mapping[str, Any]) -> bool:
    """Whether a file has experts.

    Raises:
        ModelError: It has, and lacks a setting of theirs.
    """
    has_experts = bool(settings.get("expert_count"))
    if not has_experts and architecture in _ALWAYS:
        raise ModelError(f"model {name}: the GGUF file lacks {architecture}.expert_count; fetch it again")
    if has_experts:
        for key in (*_NEEDED, *FAMILIES_WITH_EXPERTS[architecture].needed):
            if not settings.get(key):
                raise ModelError(f"model {name}: the GGUF file lacks {architecture}.{key}; fetch it again")
    return has_experts


def expert_config(gguf: GgufFile) -> PretrainedConfig:
    """The configuration of a file with experts."""
    settings, family = gguf.settings, FAMILIES_WITH_EXPERTS[gguf.architecture]
    tokens = {kind: gguf.vocabulary.get(f"ggml.{kind}_token_id") for kind in ("bos", "eos", "padding")}
    made: Any = CONFIG_MAPPING[family.model_type]  # its annotations name no family's own settings
    config: PretrainedConfig = made(
        vocab_size=gguf.tensors["embed_tokens.weight"].shape[0],
        hidden_size=settings["embedding_length"],
        num_hidden_layers=gguf.num_layers,
        num_attention_heads=settings["attention.head_count"],
        num_key_value_heads=gguf.num_kv_heads,
        head_dim=gguf.head_dim,
        hidden_act="silu",
        max_position_embeddings=settings["context_length"],
        rms_norm_eps=settings["attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": settings.get("rope.freq_base", 10000.0)},
        tie_word_embeddings=HEAD not in gguf.tensors,
        num_experts_per_tok=settings["expert_used_count"],
        bos_token_id=tokens["bos"],
        eos_token_id=tokens["eos"],
        pad_token_id=tokens["padding"],
        norm_topk_prob=family.is_normalised,  # Mixtral has no such setting, and always divides
        **family.settings(settings),
    )
    return config
