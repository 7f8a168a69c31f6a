"""The families that Helix serves, by their name in config.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.model.families import gemma, gpt2, gpt_neox, llama, mistral, phi3, qwen2, qwen3

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription
    from helix_jobs.engine.model.families.family import Family

FAMILIES: Final[dict[str, Family]] = {
    module.FAMILY.model_type: module.FAMILY for module in (llama, mistral, qwen2, qwen3, gemma, phi3, gpt2, gpt_neox)
}


def describe(config: PretrainedConfig) -> ModelDescription:
    """What a configuration of a served family computes.

    Raises:
        UnsupportedSettingError: See ``Family``.
    """
    return FAMILIES[config.model_type].describe(config)
