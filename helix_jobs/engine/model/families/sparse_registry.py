"""The families that have experts."""

from __future__ import annotations

from typing import Final

from helix_jobs.engine.model.families import (
    afmoe,
    axk1,
    deepseek_v2,
    deepseek_v3,
    dots1,
    ernie4_5_moe,
    exaone_moe,
    flex_olmo,
    flint,
    glm4_moe,
    glm4_moe_lite,
    gpt_oss,
    granitemoe,
    granitemoeshared,
    hunyuan_v1_moe,
    hy_v3,
    jamba,
    kolibri1,
    lfm2_moe,
    mellum,
    minimax_m2,
    mixtral,
    nemotron_h,
    olmoe,
    phimoe,
    qwen2_moe,
    qwen3_5_moe,
    qwen3_moe,
    qwen3_next,
    solar_open,
)

SPARSE_FAMILIES: Final = tuple(
    module.FAMILY
    for module in (
        mixtral,
        qwen2_moe,
        qwen3_moe,
        qwen3_next,
        qwen3_5_moe,
        olmoe,
        granitemoe,
        granitemoeshared,
        glm4_moe,
        dots1,
        ernie4_5_moe,
        hunyuan_v1_moe,
        minimax_m2,
        gpt_oss,
        deepseek_v2,
        deepseek_v3,
        glm4_moe_lite,
        axk1,
        lfm2_moe,
        nemotron_h,
        afmoe,
        exaone_moe,
        flex_olmo,
        flint,
        hy_v3,
        kolibri1,
        mellum,
        phimoe,
        solar_open,
        jamba,
    )
)
