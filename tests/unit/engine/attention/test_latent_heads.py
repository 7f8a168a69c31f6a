"""Latent heads compute what transformers' attention modules compute, which make keys and values of each head."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from helix_jobs.engine.attention.kv_cache import PagedKVCache
from helix_jobs.engine.attention.rotary import RotaryTable
from helix_jobs.engine.attention.sdpa import SdpaAttention
from helix_jobs.engine.config import CacheConfig
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.families.registry import describe
from helix_jobs.engine.model.latents import latent_heads, latent_products
from helix_jobs.engine.model.placement import Placement
from helix_jobs.engine.model.stored_parts import StoredParts
from tests.unit.engine.model.family_case import Case, error, prompts
from tests.unit.engine.tiny_models import CPU, copy_of, ragged_logits, roughen, tiny_model

pytestmark = pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="latent attention is served with transformers 5")
NUM_TOKENS = 23


def absorbed_attention(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The first layer's attention of one sequence ``[T, hidden_size]``, over latents alone."""
    description, place = describe(model.config), Placement.of(model)
    own = description.layers[0].attention
    assert own is not None
    assert own.latent is not None
    assert own.rotary is not None
    parts = StoredParts(model.base_model.layers[0], place)
    num_heads = description.num_heads
    product, lift = latent_products(parts, own.qkv, own.latent, num_heads, is_interleaved=own.rotary.is_interleaved)
    heads = latent_heads(parts, place, own.latent, num_heads)
    rotary = model.base_model.rotary_emb
    table = RotaryTable(rotary.inv_freq, rotary.attention_scaling, own.latent.rotary_dim, torch.float32, CPU)
    rotation = table.at(torch.arange(len(hidden)), len(hidden))
    inner = product(hidden)
    queries, keys = heads.absorbed(inner if lift is None else lift(inner), lambda part: table.rotate(part, rotation))
    # [num_heads, T, T]
    scores = queries.transpose(0, 1) @ keys.squeeze(1).t() * own.scaling
    later = torch.ones(len(hidden), len(hidden), dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, float("-inf")).softmax(dim=-1)
    summed = (weights @ keys.squeeze(1)[:, : own.latent.rank]).transpose(0, 1).reshape(len(hidden), -1)
    return parts.linear(own.out)(heads.results(summed))


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("deepseek_v2", {}),
        ("deepseek_v2", {"q_lora_rank": None}),
        ("deepseek_v3", {}),
        ("deepseek_v3", {"rope_interleave": False, "q_lora_rank": None}),
        ("minicpm3", {"attention_bias": True}),
    ],
)
@torch.no_grad()
def test_latents_give_what_keys_and_values_of_each_head_give(architecture: str, settings: dict[str, Any]) -> None:
    model = roughen(tiny_model(architecture, seed=3, **settings))
    hidden = torch.randn((NUM_TOKENS, model.config.hidden_size), generator=torch.Generator().manual_seed(2))
    positions = model.base_model.rotary_emb(hidden[None], torch.arange(NUM_TOKENS)[None])
    mask = torch.full((NUM_TOKENS, NUM_TOKENS), float("-inf")).triu(1)[None, None]
    expected, _ = model.base_model.layers[0].self_attn(
        hidden_states=hidden[None], position_embeddings=positions, attention_mask=mask
    )
    torch.testing.assert_close(absorbed_attention(model, hidden), expected[0], rtol=1e-4, atol=1e-5)


def test_deepseek_v2_rotates_in_float32_and_rounds_once() -> None:
    model = tiny_model("deepseek_v2")
    heads = torch.randn((1, 6, NUM_TOKENS, 8), generator=torch.Generator().manual_seed(2)).bfloat16()
    positions = torch.arange(NUM_TOKENS)
    module = importlib.import_module(type(model).__module__)
    expected, _ = module.apply_rotary_emb(heads, heads, model.base_model.rotary_emb(heads, positions[None]))
    table = build_decoder(copy_of(model, torch.bfloat16)).attention.spec.layers[0].rotary
    assert table is not None
    # Each head's first numbers of all pairs, then the second ones; [T, 6, 8] of [1, 6, T, 8].
    first_then_second = [0, 2, 4, 6, 1, 3, 5, 7]
    given, right = (one[0].transpose(0, 1)[..., first_then_second] for one in (heads, expected))
    assert torch.equal(table.rotate(given, table.at(positions, NUM_TOKENS)), right)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_fused_operator_attends_to_latents(chunk: int) -> None:
    model = Case("youtu").model()
    decoder = build_decoder(copy_of(model))
    fused = replace(decoder, attention=SdpaAttention(decoder.attention.spec))
    for got, expected in zip(ragged_logits(fused, prompts(), chunk), Case("youtu").expected(), strict=True):
        assert error(got, expected) < 2e-5


def test_a_token_takes_its_latent_and_one_key_in_the_cache() -> None:
    decoder = build_decoder(tiny_model("deepseek_v2"))
    cache = PagedKVCache(decoder.geometry, CacheConfig(num_blocks=5, block_size=4), torch.float32, CPU)
    # Two layers, a latent of 16 numbers and a key of 8.
    assert cache.num_bytes == 5 * 4 * 2 * (16 + 8) * 4
    cache.keys[0].fill_(float("nan"))
    cache.clear([1, 3])
    rows = cache.keys[0].view(5, -1)
    assert torch.isfinite(rows[[1, 3]]).all()
    assert torch.isnan(rows[[0, 2, 4]]).all()
