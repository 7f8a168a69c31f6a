"""Answers of small models by Helix and by transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from tests.unit.engine.tiny_models import request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.loaded_models import LoadedModels

_PROMPTS = ([3, 4, 5], [9, 8, 7, 6, 5, 4, 3, 2], [11] * 20)


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the order of sums."""
    torch.testing.assert_close(got, expected, rtol=0, atol=3e-5 * float(expected.abs().max()))


def greedy(models: LoadedModels, depth: int = 0) -> list[Sequence[int]]:
    """Helix's, of twelve tokens to each of three prompts, with drafts of a fixed depth."""
    config = EngineConfig(max_batch_size=2, speculation=SpeculationConfig(depth=depth))
    engine = Engine(models, config, CacheConfig(num_blocks=60, block_size=4))
    requests = [request(str(i), ids, max_tokens=12, ignore_eos=True) for i, ids in enumerate(_PROMPTS)]
    results = {result.request_id: result for result in engine.generate(requests)}
    return [results[one.request_id].output_token_ids for one in requests]


def expected_tokens(model: Any) -> list[Sequence[int]]:
    """transformers' to the same prompts, whatever tokens they contain."""
    found = []
    model.generation_config.eos_token_id = None
    for prompt in _PROMPTS:
        ids = torch.tensor([prompt])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        found.append(tuple(output[0, len(prompt) :].tolist()))
    return found
