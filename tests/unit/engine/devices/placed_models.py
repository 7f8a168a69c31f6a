"""Tiny models on the simulated device and on the host, and engines that run them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loaded_models import LoadedModel, LoadedModels
from helix_jobs.engine.loading.load_engine import add_adapters
from helix_jobs.engine.model.assembly import build_decoder
from tests.unit.engine.devices.simulated_directml import built_on_device
from tests.unit.engine.tiny_models import VOCAB_SIZE, copy_of, tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.speculation.depth.costs import CostProfile
    from helix_jobs.engine.weights.adapter import Adapter


def draft_of(target: Any) -> Any:
    """Its target with noise: it agrees often, not always."""
    draft = copy_of(target)
    generator = torch.Generator().manual_seed(1)
    for parameter in draft.parameters():
        if parameter.dim() > 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return draft


def loaded_on_device(name: str, model: Any, dtype: torch.dtype) -> LoadedModel:
    decoder = built_on_device(copy_of(model, dtype))
    decoder.pack()
    return LoadedModel(name, decoder)


def loaded_on_host(name: str, model: Any, dtype: torch.dtype) -> LoadedModel:
    decoder = build_decoder(copy_of(model, dtype), keeps_origins=True)
    decoder.pack()
    return LoadedModel(name, decoder)


def engine_of(
    target: LoadedModel,
    draft: LoadedModel | None,
    speculation: SpeculationConfig,
    *,
    costs: CostProfile | None = None,
    adapters: Sequence[Adapter] = (),
    **cache: int,
) -> Engine:
    models = LoadedModels(
        target=target,
        draft=draft,
        tokenizer=tokenizer(),
        eos_token_ids=frozenset((0,)),
        vocab_size=VOCAB_SIZE,
        max_context=256,
    )
    if adapters:
        models = add_adapters(models, adapters)
    config = EngineConfig(max_batch_size=6, token_budget=12, speculation=speculation)
    return Engine(models, config, CacheConfig(**{"num_blocks": 30, "block_size": 4, **cache}), costs)
