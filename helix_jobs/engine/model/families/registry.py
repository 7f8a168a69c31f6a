"""The families that Helix serves, by their name in config.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.model.families import (
    apertus,
    arcee,
    cohere,
    ernie4_5,
    falcon,
    gemma,
    glm,
    glm4,
    gpt2,
    gpt_bigcode,
    gpt_neox,
    gptj,
    granite,
    helium,
    hunyuan_v1_dense,
    hyperclovax,
    internlm3,
    iquestcoder,
    jais2,
    llama,
    mistral,
    nanochat,
    nemotron,
    olmo,
    olmo2,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    seed_oss,
    stablelm,
)
from helix_jobs.engine.model.families.sparse_registry import SPARSE_FAMILIES

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription
    from helix_jobs.engine.model.families.family import Family

FAMILIES: Final[dict[str, Family]] = {
    module.FAMILY.model_type: module.FAMILY
    for module in (
        llama,
        mistral,
        qwen2,
        qwen3,
        gemma,
        phi3,
        gpt2,
        gpt_neox,
        internlm3,
        iquestcoder,
        seed_oss,
        arcee,
        jais2,
        nemotron,
        apertus,
        ernie4_5,
        helium,
        glm,
        glm4,
        gptj,
        phi,
        stablelm,
        falcon,
        gpt_bigcode,
        opt,
        olmo,
        olmo2,
        granite,
        hyperclovax,
        cohere,
        hunyuan_v1_dense,
        nanochat,
    )
} | {family.model_type: family for family in SPARSE_FAMILIES}


def describe(config: PretrainedConfig) -> ModelDescription:
    """What a configuration of a served family computes.

    Raises:
        UnsupportedSettingError: See ``Family``.
    """
    return FAMILIES[config.model_type].describe(config)
