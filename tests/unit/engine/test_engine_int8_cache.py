"""Keys and values of 8 bits: outputs are those of transformers over keys and values that are rounded alike."""

from __future__ import annotations

import functools
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from helix_jobs.engine.attention.sdpa import SdpaAttention
from helix_jobs.engine.model.assembly import build_decoder
from tests.crossed import crossed
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.rounded_cache import rounded_beside, rounded_logits
from tests.unit.engine.tiny_models import (
    VOCAB_SIZE,
    as_loaded,
    copy_of,
    ragged_logits,
    reference_logits,
    request,
    roughen,
    tiny_engine,
    tiny_model,
)

SLIDING, FULL = "sliding_attention", "full_attention"
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},  # a key-value head for each query head
    "qwen3": {},
    "mistral": {"sliding_window": 9},  # blocks are freed
    "gemma2": {"sliding_window": 8, "layer_types": [SLIDING, FULL]},  # soft caps, two sections
    "gpt_oss": {"sliding_window": 7},  # sinks
    "gemma4_text": {"sliding_window": 7},  # layers of two shapes, and shared keys
    "qwen3_5_text": {},  # recurrent states beside keys and values
}


@functools.cache
def model(family: str) -> Any:
    return roughen(tiny_model(family, seed=3, **FAMILIES[family]))


def prompts(count: int = 5, shared: int = 0, longest: int = 50) -> list[tuple[int, ...]]:
    rng = random.Random(5)
    system = tuple(rng.randrange(2, VOCAB_SIZE) for _ in range(shared))
    return [(*system, *(rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randrange(1, longest)))) for _ in range(count)]


def engine_of(family: str, draft: Any = "none", **settings: Any) -> Any:
    return tiny_engine(model(family), draft, cache_dtype="int8", **settings)


def outputs_of(engine: Any, given: list[tuple[int, ...]], max_tokens: int = 30, **params: Any) -> list[Any]:
    results = engine.generate(
        request(f"r{i}", prompt, max_tokens=max_tokens, ignore_eos=True, **params) for i, prompt in enumerate(given)
    )
    engine.check_integrity()
    assert [result.error for result in results] == [None] * len(given)
    return results


def check(family: str, engine: Any, given: list[tuple[int, ...]], max_tokens: int = 30) -> list[Any]:
    results = outputs_of(engine, given, max_tokens)
    for result, prompt in zip(results, given, strict=True):
        assert len(result.output_token_ids) == max_tokens
        assert result.output_token_ids == rounded_beside(model(family), prompt, result.output_token_ids)
    return results


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_a_rounded_cache(family: str) -> None:
    decoder = build_decoder(copy_of(model(family)))
    spec = decoder.attention.spec
    ways = [decoder]
    if SdpaAttention.serves(spec):
        ways.append(replace(decoder, attention=SdpaAttention(spec)))
    given = prompts(count=4, longest=70)
    wanted = torch.cat([rounded_logits(model(family), prompt) for prompt in given])
    exact = torch.cat([reference_logits(model(family), prompt) for prompt in given])
    for way in ways:
        for chunk in (7, 1000):
            found = torch.cat(ragged_logits(way, given, chunk, "int8"))
            # A number in the middle of two steps falls on either side here and there.
            assert (found - wanted).abs().mean() < 0.02 * (exact - wanted).abs().mean()


DRAFTING: list[tuple[str, dict[str, Any]]] = [
    ("none", {"depth": 0, "token_budget": 9}),
    ("same", {"depth": 4}),
    ("int8", {"adaptive": True, "drafters": ("lookup",), "token_budget": 9}),
]


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(
    ("family", "draft", "settings"),
    crossed(["llama", "gemma2", "gpt_oss", "gemma4_text", "qwen3_5_text"], DRAFTING, 2),
)
def test_answers_are_those_of_a_rounded_cache(family: str, draft: str, settings: dict[str, Any]) -> None:
    results = check(family, engine_of(family, draft, max_batch_size=4, **settings), prompts())
    if draft == "same":  # the draft's keys and values are rounded alike
        assert sum(r.accepted_tokens for r in results) > 0.8 * sum(r.draft_tokens for r in results) > 0


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_preempted_sequences_are_computed_again(family: str) -> None:
    engine = engine_of(family, "int8", max_batch_size=5, num_blocks=32 if family == "llama" else 50, token_budget=12)
    check(family, engine, prompts(longest=20), max_tokens=40)
    assert engine.counters().preemptions > 0


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_requests_that_begin_alike_share_that_beginning(family: str) -> None:
    engine = engine_of(family, "int8", max_batch_size=1)
    results = check(family, engine, prompts(count=3, shared=40))
    assert [r.cached_prompt_tokens for r in results[1:]] == [40] * 2


def test_the_choices_of_a_request_share_its_prompt() -> None:
    (prompt,) = prompts(count=1, shared=25)
    together, one_by_one = (
        outputs_of(engine_of("llama", "int8", max_batch_size=size), [prompt], n=4, temperature=1.0)[0]
        for size in (4, 1)
    )
    assert [c.output_token_ids for c in together.choices] == [c.output_token_ids for c in one_by_one.choices]


def test_both_models_caches_take_less_and_the_engine_says_so() -> None:
    plain = tiny_engine(model("llama"), as_loaded("d", model("qwen3")))
    small = engine_of("llama", as_loaded("d", model("qwen3")))
    # Heads of 8: a row of 32 bytes becomes one of 8 and a scale of 4.
    assert small.info.kv_cache_bytes * 32 == plain.info.kv_cache_bytes * 12


def test_what_is_not_finite_is_seen_and_does_not_stay_in_a_block() -> None:
    """A request whose blocks were poisoned is computed again and is answered; so is the next one in the same blocks."""
    engine = engine_of("llama", depth=0, max_batch_size=1, num_blocks=16)
    (prompt,) = prompts(count=1, shared=20)
    engine.add_request(request("r", prompt, max_tokens=30, ignore_eos=True))
    engine.step()
    cache = opened(engine).target.cache
    cache.write(0, torch.arange(8), torch.full((8, 8), torch.nan), torch.zeros(8, 8))
    cache.write(1, torch.arange(8, 16), torch.zeros(8, 8), torch.full((8, 8), torch.inf))
    results = []
    while engine.has_unfinished():
        results += engine.step()
    assert engine.counters().preemptions == 1
    assert results[0].output_token_ids == rounded_beside(model("llama"), prompt, results[0].output_token_ids)
    assert all(bool(torch.isfinite(scales).all()) for scales in (*cache.key_scales, *cache.value_scales))
