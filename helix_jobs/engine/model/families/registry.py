"""The families that Helix serves, by their name in config.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.model.families import (
    apertus,
    arcee,
    bamba,
    biogpt,
    cohere,
    cohere2,
    cwm,
    ernie4_5,
    exaone4,
    falcon,
    falcon_h1,
    gemma,
    gemma2,
    gemma3_text,
    gemma3n_text,
    gemma4_text,
    glm,
    glm4,
    gpt2,
    gpt_bigcode,
    gpt_neo,
    gpt_neox,
    gptj,
    granite,
    granitemoehybrid,
    helium,
    hunyuan_v1_dense,
    hyperclovax,
    internlm3,
    iquestcoder,
    jais2,
    lfm2,
    lfm3,
    llama,
    minicpm3,
    ministral,
    ministral3,
    mistral,
    nanochat,
    nemotron,
    olmo,
    olmo2,
    olmo3,
    olmo_hybrid,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3_5,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
    vaultgemma,
    youtu,
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
        ministral,
        ministral3,
        qwen2,
        qwen3,
        gemma,
        gemma2,
        gemma3_text,
        gemma3n_text,
        gemma4_text,
        vaultgemma,
        phi3,
        phi,
        gpt2,
        gpt_neo,
        gpt_neox,
        gptj,
        gpt_bigcode,
        starcoder2,
        smollm3,
        opt,
        biogpt,
        falcon,
        olmo,
        olmo2,
        olmo3,
        granite,
        hyperclovax,
        glm,
        glm4,
        cohere,
        cohere2,
        exaone4,
        stablelm,
        nemotron,
        arcee,
        apertus,
        ernie4_5,
        helium,
        seed_oss,
        internlm3,
        iquestcoder,
        jais2,
        hunyuan_v1_dense,
        nanochat,
        cwm,
        lfm2,
        lfm3,
        qwen3_5,
        granitemoehybrid,
        bamba,
        falcon_h1,
        olmo_hybrid,
        minicpm3,
        youtu,
    )
} | {family.model_type: family for family in SPARSE_FAMILIES}


def describe(config: PretrainedConfig) -> ModelDescription:
    """What a configuration of a served family computes.

    Raises:
        UnsupportedSettingError: See ``Family``.
    """
    return FAMILIES[config.model_type].describe(config)
