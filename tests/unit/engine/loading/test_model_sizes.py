"""A model's memory as its configuration tells it, against the memory of the loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from helix_jobs.engine.attention.kv_cache import PagedKVCache
from helix_jobs.engine.config import CacheConfig, EngineConfig
from helix_jobs.engine.loading.model_sizes import model_sizes, skeleton
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.engine.model.step_memory import StepWidths, step_bytes
from helix_jobs.engine.weights.linear import packs
from helix_jobs.errors import ModelError
from tests.unit.engine.held_tensors import held_bytes
from tests.unit.engine.tiny_models import ARCHITECTURES, CPU, copy_of, tiny_config, tiny_model

if TYPE_CHECKING:
    from helix_jobs.engine.model.decoder import Decoder

# Latent attention without experts and with them.
LATENT = ("minicpm3", "deepseek_v2")
WITH_EXPERTS = (
    "mixtral",
    "qwen2_moe",
    "granitemoe",
    "gpt_oss",
    "hunyuan_v1_moe",
    "qwen3_next",
    "falcon_h1",
    "jamba",
)
# Layers of several shapes, and a table that is looked up beside the embedding.
SHAPES = ("gemma4_text",)
BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def decoder_of(architecture: str, dtype: torch.dtype = torch.float32, *, is_tied: bool = False) -> Decoder:
    return build_decoder(copy_of(tiny_model(architecture, tie_word_embeddings=is_tied), dtype))


@pytest.mark.thorough(fast=18)
@BOTH_DTYPES
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *WITH_EXPERTS, *LATENT, *SHAPES])
def test_weights_take_what_the_loaded_model_takes(architecture: str, dtype: torch.dtype, *, is_tied: bool) -> None:
    sizes = model_sizes("m", tiny_config(architecture, tie_word_embeddings=is_tied))
    decoder = decoder_of(architecture, dtype, is_tied=is_tied)
    # Norms with an offset, GPT-OSS' sinks, exact routers and what recurrences hold are kept in float32.
    delta = 7 * 48 + 2 * 8 + 2 * (4 * 56 + 4 + 4 + 6)
    kept = {
        "gemma": 5 * 48,
        "gpt_oss": 2 * 6,
        "hunyuan_v1_moe": 2 * 6 * 48,
        "deepseek_v2": 6 * 48,
        "lfm2": 2 * 3 * 48,
        "granitemoehybrid": 2 * (5 * 128 + 3 * 6 + 96),
        "qwen3_5_text": delta,
        "qwen3_next": delta,
        "falcon_h1": 2 * (5 * 128 + 3 * 6),
        "jamba": 3 * (5 * 96 + 8 * 96 + 96),
    }.get(architecture, 0) * (4 - dtype.itemsize)
    # Norms without weight hold ones: those of the values of the two layers that keep their own.
    kept += {"gemma4_text": 8 + 16}.get(architecture, 0) * dtype.itemsize
    assert held_bytes(decoder) == sizes.dense_bytes(dtype, packs=False) + kept
    assert (sizes.tied > 0) is is_tied
    int8 = quantize(decoder)
    assert held_bytes(int8) == sizes.int8_bytes(dtype) + kept
    assert sum(linear.nbytes for linear in int8.linears()) == sizes.int8_products_bytes
    decoder.pack()
    assert held_bytes(decoder) == sizes.dense_bytes(dtype, packs=packs(dtype, CPU)) + kept


@BOTH_DTYPES
@pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="DBRX is served with transformers 5")
def test_experts_one_behind_another_take_what_the_loaded_model_takes(dtype: torch.dtype) -> None:
    """DBRX, whose head is never its embedding."""
    sizes, decoder = model_sizes("m", tiny_config("dbrx")), decoder_of("dbrx", dtype)
    assert held_bytes(decoder) == sizes.dense_bytes(dtype, packs=False)
    int8 = quantize(decoder)
    assert held_bytes(int8) == sizes.int8_bytes(dtype)
    assert sum(linear.nbytes for linear in int8.linears()) == sizes.int8_products_bytes


@BOTH_DTYPES
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "minicpm3"])
def test_a_token_takes_what_it_takes_in_the_cache(architecture: str, dtype: torch.dtype) -> None:
    sizes = model_sizes("m", tiny_config(architecture))
    geometry = decoder_of(architecture).geometry
    cache = PagedKVCache(geometry, CacheConfig(num_blocks=25, block_size=4), dtype, CPU)
    assert cache.num_bytes == 100 * sizes.geometry.block_bytes(1, dtype)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *WITH_EXPERTS, *LATENT, *SHAPES])
def test_a_step_is_reckoned_as_that_of_the_loaded_model(architecture: str) -> None:
    decoder = decoder_of(architecture)
    config = EngineConfig()
    widths = model_sizes("m", tiny_config(architecture)).step_widths(torch.float32, CPU)
    assert widths.step_bytes(config, 256) >= step_bytes(decoder, config, 256)
    if architecture not in (
        "gpt_neox",
        "qwen2_moe",
        "lfm2",
        "qwen3_5_text",
        "qwen3_next",
    ):  # a layer's products count as one
        assert widths == StepWidths.of(decoder)


@pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="latent attention is served with transformers 5")
def test_the_matrix_of_latents_is_no_product() -> None:
    wide = {"v_head_dim": 40}  # keys and values of six heads are then wider than the feed-forward
    widths = model_sizes("m", tiny_config("minicpm3", **wide)).step_widths(torch.float32, CPU)
    assert widths == StepWidths.of(build_decoder(tiny_model("minicpm3", **wide)))


def test_the_context_is_that_which_is_served() -> None:
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    scaled = tiny_config("phi3", rope_parameters=scaling, original_max_position_embeddings=64)
    assert model_sizes("m", scaled).context == 256
    assert model_sizes("m", tiny_config("phi3")).context == 256


def test_a_configuration_that_fits_no_model() -> None:
    config = tiny_config("llama")
    config.hidden_act = "no such activation"
    with pytest.raises(ModelError, match=r"model m: its configuration describes no model .*; fetch the model again"):
        skeleton("m", config)
