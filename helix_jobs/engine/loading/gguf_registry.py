"""The architectures of GGUF files that are served, and those whose models are served from safetensors alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.gguf_delta_families import DELTA_FAMILIES
from helix_jobs.engine.loading.gguf_dense_families import DENSE_FAMILIES, MINISTRAL3, OLMO3
from helix_jobs.engine.loading.gguf_expert_families import (
    EXPERT_FAMILIES,
    EXPERT_FAMILIES_OF_TOWERS,
    GRANITE_WITH_SHARED,
    MIXTRAL,
)
from helix_jobs.engine.loading.gguf_gemma3n import GEMMA3N
from helix_jobs.engine.loading.gguf_gemma4 import GEMMA4, GEMMA4_WITH_EXPERTS
from helix_jobs.engine.loading.gguf_gpt_families import (
    FALCON_WITH_GROUPS,
    FALCON_WITH_TWO_NORMS,
    GPT_FAMILIES,
    SECOND_NORM,
)
from helix_jobs.engine.loading.gguf_latent_families import DEEPSEEK_V2, DEEPSEEK_V3, MINICPM3
from helix_jobs.engine.loading.gguf_mamba_families import GRANITE_HYBRID_WITH_EXPERTS, MAMBA_FAMILIES
from helix_jobs.engine.loading.gguf_settings import KEY_HEADS

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from helix_jobs.engine.loading.gguf_family import GgufFamily

_FIRST: Final[dict[str, GgufFamily]] = {
    **DENSE_FAMILIES,
    **EXPERT_FAMILIES,
    **EXPERT_FAMILIES_OF_TOWERS,
    **DELTA_FAMILIES,
    **GPT_FAMILIES,
    **MAMBA_FAMILIES,
    "gemma3n": GEMMA3N,
    "gemma4": GEMMA4,
    "deepseek2": DEEPSEEK_V2,
    "minicpm3": MINICPM3,
}
GGUF_ARCHITECTURES: Final = tuple(_FIRST)
# V2 and V3 both say deepseek2; the third generation scores experts by sigmoids, by llama.cpp's number.
_GATING, _SIGMOID = "expert_gating_func", 2
# Architectures that are another family's where a file has a setting, and not zero.
_OTHERS: Final[dict[tuple[str, str | None], GgufFamily]] = {
    ("llama", "expert_count"): MIXTRAL,
    ("gemma4", "expert_count"): GEMMA4_WITH_EXPERTS,
    ("mistral3", "attention.temperature_scale"): MINISTRAL3,
    ("olmo2", "attention.sliding_window"): OLMO3,
    ("granitemoe", "expert_shared_feed_forward_length"): GRANITE_WITH_SHARED,
    ("granitehybrid", "expert_count"): GRANITE_HYBRID_WITH_EXPERTS,
}
# By architecture, and the setting or tensor that tells a further family of the same one.
FAMILIES: Final[dict[tuple[str, str | None], GgufFamily]] = {
    **{(architecture, None): family for architecture, family in _FIRST.items()},
    **_OTHERS,
    ("deepseek2", _GATING): DEEPSEEK_V3,
    ("falcon", SECOND_NORM): FALCON_WITH_TWO_NORMS,
    ("falcon", KEY_HEADS): FALCON_WITH_GROUPS,
}
# Architectures, as files name them, of families that are served from safetensors.
# (Of GPT-J llama.cpp has the name, and writes no such files.)
SERVED_OTHERWISE: Final = frozenset({"gptj"})

# Further families that files name as another one, which computes the same.
SAID_AS: Final = {"iquestcoder": "llama", "internlm3": "llama", "mistral": "llama", "glm4_moe_lite": "deepseek2"}


def family_of(architecture: str, settings: Mapping[str, Any], tensors: Container[str] = ()) -> GgufFamily:
    """The family of a file.

    Args:
        architecture: Of ``GGUF_ARCHITECTURES``.
        settings: The file's settings of it, without that prefix.
        tensors: The names of its tensors.
    """
    if architecture == "falcon" and SECOND_NORM in tensors:
        return FALCON_WITH_TWO_NORMS
    if architecture == "falcon" and settings.get(KEY_HEADS, 1) != 1:
        return FALCON_WITH_GROUPS
    if architecture == "deepseek2" and settings.get(_GATING) == _SIGMOID:
        return DEEPSEEK_V3
    for (name, key), family in _OTHERS.items():
        if name == architecture and key is not None and settings.get(key):
            return family
    return _FIRST[architecture]


def gguf_model_types() -> frozenset[str]:
    """Transformers' names of the families that are served from GGUF files."""
    return frozenset(SAID_AS) | {family.model_type for family in FAMILIES.values()}


def gguf_architectures(model_type: str) -> frozenset[str]:
    """What a family's files may name it; empty if it is served from safetensors alone."""
    said = {SAID_AS[model_type]} if model_type in SAID_AS else set()
    return frozenset(said | {name for (name, _), family in FAMILIES.items() if family.model_type == model_type})
