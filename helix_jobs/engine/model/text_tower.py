"""TextTower: the language model inside a checkpoint that also reads images. Helix serves it for prompts of text.

Without an image such a model computes what the family of its language model computes: positions that count rows and
columns of an image are then the plain ones, and nothing is added to the embeddings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from transformers import CONFIG_MAPPING

from helix_jobs.errors import UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PretrainedConfig

Value = TypeVar("Value")

# Prefixes of the language model's tensors, and what transformers calls the same tensors in that model alone.
KEY_MAPPING: Final = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^model\.text_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
# The parts that read images or sounds; their tensors are not read.
_IMAGE_PARTS: Final = re.compile(
    r"(model\.)?((vision_tower|vision_model|multi_modal_projector|connector|visual|audio_tower|embed_vision|embed_audio)\."
    r"|image_newline$)"
)
# Positions by row and column of an image.
_IMAGE_POSITIONS: Final = ("mrope_section", "mrope_interleaved")


@dataclass(frozen=True, slots=True)
class TextTower:
    """A kind of checkpoint with a language model inside.

    Attributes:
        class_name: The class of transformers that generates text with it.
        families: The language model's type in config.json -> the family that computes it.
        constants: Settings that the family has, and this kind of checkpoint in one way alone.
        may_flip_experts: Whether the stacks of experts may be stored with rows and columns exchanged.
    """

    class_name: str
    families: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    may_flip_experts: bool = False


TEXT_TOWERS: Final = {
    "mistral3": TextTower("Mistral3ForConditionalGeneration", {"mistral": "mistral", "ministral3": "ministral3"}),
    "gemma3": TextTower("Gemma3ForConditionalGeneration", {"gemma3_text": "gemma3_text"}),
    "gemma3n": TextTower("Gemma3nForConditionalGeneration", {"gemma3n_text": "gemma3n_text"}),
    "gemma4": TextTower("Gemma4ForConditionalGeneration", {"gemma4_text": "gemma4_text"}),
    "llava": TextTower("LlavaForConditionalGeneration", {"llama": "llama", "mistral": "mistral"}),
    "llava_next": TextTower("LlavaNextForConditionalGeneration", {"llama": "llama", "mistral": "mistral"}),
    "llava_onevision": TextTower("LlavaOnevisionForConditionalGeneration", {"qwen2": "qwen2"}),
    "vipllava": TextTower("VipLlavaForConditionalGeneration", {"llama": "llama"}),
    "internvl": TextTower("InternVLForConditionalGeneration", {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}),
    "idefics3": TextTower("Idefics3ForConditionalGeneration", {"llama": "llama"}),
    "smolvlm": TextTower("SmolVLMForConditionalGeneration", {"llama": "llama"}),
    "lfm2_vl": TextTower("Lfm2VlForConditionalGeneration", {"lfm2": "lfm2"}),
    "qwen2_vl": TextTower("Qwen2VLForConditionalGeneration", {"qwen2_vl_text": "qwen2"}),
    "qwen2_5_vl": TextTower("Qwen2_5_VLForConditionalGeneration", {"qwen2_5_vl_text": "qwen2"}),
    "qwen3_vl": TextTower("Qwen3VLForConditionalGeneration", {"qwen3_vl_text": "qwen3"}),
    "qwen3_vl_moe": TextTower(
        "Qwen3VLMoeForConditionalGeneration",
        {"qwen3_vl_moe_text": "qwen3_moe"},
        constants={"norm_topk_prob": True},
        may_flip_experts=True,
    ),
    "qwen3_5": TextTower("Qwen3_5ForConditionalGeneration", {"qwen3_5_text": "qwen3_5_text"}),
    "qwen3_5_moe": TextTower("Qwen3_5MoeForConditionalGeneration", {"qwen3_5_moe_text": "qwen3_5_moe_text"}),
}


def text_tensors(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """The language model's tensors, under the names that it has alone."""
    return {text_name(name): value for name, value in tensors.items() if not _IMAGE_PARTS.match(name)}


def is_image_part(tensor: str) -> bool:
    """Whether a tensor belongs to a part that reads images."""
    return _IMAGE_PARTS.match(tensor) is not None


def text_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of config.json; older files of Qwen 2.5 VL have no such part."""
    inner = settings.get("text_config")
    return inner if isinstance(inner, dict) else settings


def text_config(name: str, config: PretrainedConfig, *, is_tied: bool) -> PretrainedConfig:
    """The language model's configuration as that of its family.

    Args:
        name: The model's name as the user gave it.
        config: The whole checkpoint's.
        is_tied: Whether the embedding is the output head.

    Raises:
        UnsupportedArchitectureError: The checkpoint's class does not generate text, or its language model is of another
            family.
    """
    tower = TEXT_TOWERS[config.model_type]
    if config.architectures and tower.class_name not in config.architectures:
        raise UnsupportedArchitectureError(
            f"model {name} is a {config.architectures[0]}, which does not generate text; choose a {tower.class_name}"
        )
    inner = config.get_text_config()
    family = tower.families.get(inner.model_type)
    if family is None:
        raise UnsupportedArchitectureError(
            f"model {name} has a language model of type {inner.model_type!r}; in a {config.model_type} checkpoint "
            f"supported are {', '.join(tower.families)}; choose another model"
        )
    settings = inner.to_dict()
    for key in ("model_type", "architectures", "transformers_version", "quantization_config"):
        settings.pop(key, None)
    for key in ("rope_parameters", "rope_scaling"):
        if key in settings:
            settings[key] = _text_rope(settings[key])
    return CONFIG_MAPPING[family](**{**settings, **tower.constants, "tie_word_embeddings": is_tied})


def _text_rope(rope: Any) -> Any:  # noqa: ANN401  (a part of a configuration)
    """Rotary settings for text alone, where an image's rows and columns do not count."""
    if not isinstance(rope, dict):
        return rope
    plain = {key: value for key, value in rope.items() if key not in _IMAGE_POSITIONS}
    return {
        key: "default" if key in {"type", "rope_type"} and value == "mrope" else value for key, value in plain.items()
    }


def text_name(tensor: str) -> str:
    """What transformers calls a tensor of the language model in that model alone."""
    for prefix, plain in KEY_MAPPING.items():
        tensor, count = re.subn(prefix, plain, tensor)
        if count:
            break
    return tensor
