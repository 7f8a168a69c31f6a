"""Whole generations on a simulated DirectML device: no operator, dtype, rank or write beyond its rules."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from simulated_directml import SimulatedDirectml, moved
from tiny_models import ARCHITECTURES, VOCAB_SIZE, copy_of, request, tiny_model, tokenizer

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.decoder.families import build_decoder
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.model_loader import LoadedModel, LoadedModels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.engine.request import GenerationResult, Request

DTYPES = [torch.float32, torch.float16]


@pytest.fixture
def device() -> Iterator[SimulatedDirectml]:
    """The device; breaches fail the test that made them."""
    with SimulatedDirectml() as simulated:
        yield simulated
    assert not simulated.breaches


def loaded_on_device(name: str, model: Any, dtype: torch.dtype) -> LoadedModel:
    decoder = moved(copy_of(model, dtype), build_decoder)
    decoder.pack()
    return LoadedModel(name, decoder)


def loaded_on_host(name: str, model: Any, dtype: torch.dtype) -> LoadedModel:
    decoder = build_decoder(copy_of(model, dtype))
    decoder.pack()
    return LoadedModel(name, decoder)


def engine_of(target: LoadedModel, draft: LoadedModel | None, speculation: SpeculationConfig, **cache: int) -> Engine:
    models = LoadedModels(
        target=target,
        draft=draft,
        tokenizer=tokenizer(),
        eos_token_ids=frozenset((0,)),
        vocab_size=VOCAB_SIZE,
        max_context=256,
    )
    config = EngineConfig(max_batch_size=6, token_budget=12, speculation=speculation)
    return Engine(models, config, CacheConfig(**{"num_blocks": 30, "block_size": 4, **cache}))


def work() -> list[Request]:
    """Shared prefixes, chunked prompts, repetition for lookup, greedy and sampled and penalised, too much at once."""
    rng = random.Random(4)
    shared = [rng.randrange(1, VOCAB_SIZE) for _ in range(13)]
    prompts = [shared + [rng.randrange(1, VOCAB_SIZE) for _ in range(n)] for n in (1, 3, 17, 2)]
    prompts += [[3, 4, 5, 6, 7] * 5, [9], [rng.randrange(1, VOCAB_SIZE) for _ in range(40)]]
    params: list[dict[str, Any]] = [{}, {"temperature": 0.9, "top_k": 5}, {"repetition_penalty": 1.3}, {}, {}, {}, {}]
    return [
        request(str(i), prompt, seed=i, max_tokens=20, ignore_eos=True, **extra)
        for i, (prompt, extra) in enumerate(zip(prompts, params, strict=True))
    ]


def finished(results: list[GenerationResult]) -> list[tuple[int, ...]]:
    assert [result.error for result in results] == [None] * len(results)
    assert all(result.completion_tokens == 20 for result in results)
    return [result.output_token_ids for result in results]


def draft_of(target: Any) -> Any:
    """Its target with noise: it agrees often, not always."""
    draft = copy_of(target)
    generator = torch.Generator().manual_seed(1)
    for parameter in draft.parameters():
        if parameter.dim() > 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return draft


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_whole_generation_keeps_to_the_rules(
    device: SimulatedDirectml, architecture: str, dtype: torch.dtype
) -> None:
    model = tiny_model(architecture, seed=3)
    draft = draft_of(model)
    speculation = SpeculationConfig(depth=3, adaptive=False, lookup=True)
    engine = engine_of(loaded_on_device("target", model, dtype), loaded_on_device("draft", draft, dtype), speculation)
    outputs = finished(engine.generate(work()))
    counters = engine.counters()
    assert counters.preemptions > 0
    assert counters.cached_prompt_tokens > 0
    assert 0 < counters.accepted_tokens < counters.draft_tokens
    engine.check_integrity()
    if dtype is torch.float32:
        host = engine_of(loaded_on_host("target", model, dtype), loaded_on_host("draft", draft, dtype), speculation)
        assert outputs == finished(host.generate(work()))
