"""Models with LongRoPE: a sequence that outgrows the original context is computed again, all of it, by long factors."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import with_native
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.quantize import quantize
from tests.crossed import crossed
from tests.unit.engine.model.case_settings import LONGROPE
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import (
    CPU,
    VOCAB_SIZE,
    as_loaded,
    copy_of,
    ragged_logits,
    reference_greedy,
    reference_logits,
    request,
    roughen,
    tiny_engine,
    tiny_model,
)

if TYPE_CHECKING:
    from pathlib import Path

ORIGINAL = 24
# The first is a family whose transformers computes the cache anew where the factors change, the others have none that
# does: there the reference is generation without a cache.
FAMILIES: dict[str, dict[str, Any]] = {
    "phi3": {},
    "llama": {},
    "phi3 with windows": {"sliding_window": 9},
    "minicpm3": {},  # latent attention
    "phimoe": {"short_mscale": 1.2, "long_mscale": 1.5},
}


@functools.cache
def model(family: str) -> Any:
    name = family.split(maxsplit=1)[0]
    own = dict(FAMILIES[family])
    scales = {key: own.pop(key) for key in ("short_mscale", "long_mscale") if key in own}
    rope = {**LONGROPE, **scales, "original_max_position_embeddings": ORIGINAL}
    settings = {"rope_scaling": rope, "original_max_position_embeddings": ORIGINAL, **own}
    return roughen(tiny_model(name, seed=3, **settings))


@functools.cache
def answer(family: str, prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    has_cache = family.startswith("phi")
    return reference_greedy(model(family), prompt, max_tokens + 1, eos_token_id=None, use_cache=has_cache)[:max_tokens]


@functools.cache
def plain_model() -> Any:
    """Its draft, or its target, whose factors do not change."""
    return tiny_model(seed=3)


@functools.cache
def plain_answer(prompt: tuple[int, ...]) -> tuple[int, ...]:
    return reference_greedy(plain_model(), prompt, 21, eos_token_id=None)[:20]


def prompts(lengths: tuple[int, ...] = (3, 23, 20, 24, 25, 60, 7), shared: int = 0) -> list[tuple[int, ...]]:
    rng = random.Random(5)
    system = tuple(rng.randrange(2, VOCAB_SIZE) for _ in range(shared))
    return [(*system, *(rng.randrange(2, VOCAB_SIZE) for _ in range(length - shared))) for length in lengths]


def check(family, engine, given, max_tokens=30):
    results = engine.generate(
        request(f"r{i}", prompt, max_tokens=max_tokens, ignore_eos=True) for i, prompt in enumerate(given)
    )
    engine.check_integrity()
    assert opened(engine).is_empty
    assert [r.output_token_ids for r in results] == [answer(family, p, max_tokens) for p in given]
    return results


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    if request.param in {"minicpm3", "phimoe"} and TRANSFORMERS_MAJOR < 5:
        pytest.skip("it is served with transformers 5")
    return request.param


@pytest.mark.parametrize("chunk", [1000, 13])
def test_a_long_sequence_s_logits_are_those_of_one_forward(family: str, chunk: int) -> None:
    given = prompts((24, 25, 60))
    expected = [reference_logits(model(family), prompt) for prompt in given]
    for got, theirs in zip(ragged_logits(build_decoder(copy_of(model(family))), given, chunk), expected, strict=True):
        assert float((got - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())


@pytest.mark.parametrize("is_int8", [False, True], ids=["float32", "int8"])
def test_compiled_kernels_rotate_long_sequences_as_torch_does(compiled_folder: Path, *, is_int8: bool) -> None:
    factors = {"short_factor": [1 + 0.1 * i for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}
    rope = {"type": "longrope", **factors, "original_max_position_embeddings": ORIGINAL}
    decoder = build_decoder(tiny_model("phi3", **heads, rope_scaling=rope, original_max_position_embeddings=ORIGINAL))
    if is_int8:
        decoder = quantize(decoder)
    compiled = with_native(decoder, load_kernels(compiled_folder, torch.float32, CPU, 16))
    for chunk in (1000, 5):
        expected = ragged_logits(decoder, prompts((24, 25, 40)), chunk)
        for got, theirs in zip(ragged_logits(compiled, prompts((24, 25, 40)), chunk), expected, strict=True):
            assert float((got - theirs).abs().max()) < (2e-2 if is_int8 else 1e-4) * float(theirs.abs().max())


DRAFTING: list[tuple[str, dict[str, Any]]] = [
    ("none", {"depth": 0, "token_budget": 9}),
    ("same", {"depth": 5}),
    ("other", {"depth": 3}),
    ("int8", {"adaptive": True, "drafters": ("lookup",), "token_budget": 9}),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("family", "draft", "settings"), crossed(FAMILIES, DRAFTING, 2), indirect=["family"])
def test_answers_are_the_model_s_own_over_the_end_of_the_original_context(family, draft, settings):
    drafting = as_loaded("other", tiny_model(family.split()[0], seed=99)) if draft == "other" else draft
    engine = tiny_engine(model(family), drafting, max_batch_size=4, **settings)
    results = check(family, engine, prompts())
    if draft == "same":
        assert sum(r.accepted_tokens for r in results) > 0.6 * sum(r.draft_tokens for r in results) > 0


def test_blocks_of_short_sequences_are_none_for_long_ones(family: str) -> None:
    engine = tiny_engine(model(family), "int8", max_batch_size=1)
    short, long, longer, again = prompts((24, 40, 44, 22), shared=16)
    check(family, engine, [short], max_tokens=1)
    (first,) = check(family, engine, [long], max_tokens=4)
    assert first.cached_prompt_tokens == 0
    (second,) = check(family, engine, [longer], max_tokens=4)
    assert second.cached_prompt_tokens == 16
    (third,) = check(family, engine, [again], max_tokens=1)
    assert third.cached_prompt_tokens == 16


def test_what_a_sequence_computed_before_it_grew_long_is_not_taken_by_one_that_is(family: str) -> None:
    engine = tiny_engine(model(family), "none", depth=0, max_batch_size=1)
    (prompt,) = prompts((20,))
    (result,) = check(family, engine, [prompt], max_tokens=20)
    follows = (*prompt, *result.output_token_ids[:12])
    (next_result,) = check(family, engine, [follows], max_tokens=8)
    assert next_result.cached_prompt_tokens == (len(follows) - 1) // 4 * 4
    check(family, engine, [prompt], max_tokens=3)


@pytest.mark.thorough(fast=1)
def test_sequences_that_lose_their_blocks_come_back_as_what_they_are(family: str) -> None:
    engine = tiny_engine(model(family), "int8", max_batch_size=5, num_blocks=30, token_budget=12)
    given = prompts((20, 21, 26, 19, 8))
    check(family, engine, given, max_tokens=40)
    num_outgrown = sum(len(prompt) <= ORIGINAL for prompt in given)
    # Windows need few blocks.
    assert engine.counters().preemptions >= num_outgrown + ("windows" not in family)


@pytest.mark.thorough
def test_a_draft_may_have_a_shorter_original_context_than_its_target_or_the_only_one(family: str) -> None:
    engine = tiny_engine(plain_model(), as_loaded("long", model(family)), max_batch_size=4)
    given = prompts()
    results = engine.generate(request(f"r{i}", p, max_tokens=20, ignore_eos=True) for i, p in enumerate(given))
    outputs = [result.output_token_ids for result in results]
    assert outputs == [plain_answer(p) for p in given]
    check(family, tiny_engine(model(family), as_loaded("plain", plain_model()), max_batch_size=4), given)


def test_a_scored_prompt_is_long_or_short_as_a_whole(family: str) -> None:
    engine = tiny_engine(model(family), "none", depth=0, max_batch_size=2)
    given = prompts((24, 40))
    results = engine.generate(
        request(f"r{i}", p, max_tokens=2, ignore_eos=True, prompt_logprobs=0) for i, p in enumerate(given)
    )
    for prompt, result in zip(given, results, strict=True):
        logprobs = reference_logits(model(family), prompt).log_softmax(dim=-1)
        wanted = [float(logprobs[i, token]) for i, token in enumerate(prompt[1:])]
        first, *found = result.prompt_logprobs
        assert first.logprob is None
        assert [own.logprob for own in found] == pytest.approx(wanted, abs=1e-3)
