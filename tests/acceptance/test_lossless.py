"""The real demo model, fp32, speculating over a ragged batch: transformers' own outputs, token for token."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loading.demo_model import ensure_demo_model
from helix_jobs.engine.loading.load_engine import with_compiled_kernels
from helix_jobs.engine.loading.model_loader import load_models
from helix_jobs.engine.model.quantize import dequantize, is_fast
from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import ConfigurationError
from tests.acceptance.reference_outputs import ReferenceOutputs

pytestmark = pytest.mark.demo

MAX_TOKENS = 24
PROMPTS = Path(__file__).parent.parent / "data" / "spec_bench_24.jsonl"


def load(home, draft):
    return load_models("demo", draft, device=torch.device("cpu"), dtype="float32", home=home)


@pytest.fixture(scope="module")
def target_alone(demo_home):
    return load(demo_home, "none")


@pytest.fixture(scope="module")
def requests(target_alone):
    """Each prompt as the engine encodes it."""
    engine = Engine(target_alone, EngineConfig(max_batch_size=1), CacheConfig(num_blocks=100))
    prompts = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    assert len(prompts) == 24
    return [
        engine.encode(
            Request(
                request_id=str(i),
                messages=({"role": "user", "content": prompt},),
                seed=i,
                sampling_params=SamplingParams(max_tokens=MAX_TOKENS),
            )
        )
        for i, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def references(pytestconfig, demo_home, target_alone):
    folder = pytestconfig.cache.mkdir("helix-references")
    eos = target_alone.eos_token_ids
    return ReferenceOutputs(ensure_demo_model(demo_home, print), "float32", eos, MAX_TOKENS, folder)


@pytest.mark.parametrize("compiled", [False, True], ids=["torch", "compiled"])
@pytest.mark.parametrize(
    "speculation",
    [SpeculationConfig(depth=4, adaptive=False), SpeculationConfig(drafters=("lookup",))],
    ids=["fixed-depth", "adaptive-with-lookup"],
)
def test_24_spec_bench_prompts_equal_transformers(demo_home, requests, references, speculation, compiled):
    models = load(demo_home, "int8")
    if compiled:
        try:
            models = with_compiled_kernels(models, "on", demo_home / "native")
        except ConfigurationError as error:
            pytest.skip(str(error))
    draft = models.draft
    if not is_fast(draft.decoder):
        # torch's product of bytes takes minutes here; the same rounded weights, multiplied as float32, draft as well.
        models = replace(models, draft=replace(draft, decoder=dequantize(draft.decoder), is_int8=False))
    engine = Engine(models, EngineConfig(max_batch_size=8, speculation=speculation), CacheConfig(num_blocks=900))
    results = engine.generate(requests)
    engine.check_integrity()
    if not speculation.adaptive:
        drafted = sum(r.draft_tokens for r in results)
        assert drafted > 0
        assert sum(r.accepted_tokens for r in results) > 0.5 * drafted
    for request, result in zip(requests, results, strict=True):
        found = references.difference(request.prompt_token_ids, result.output_token_ids)
        assert found is None, f"prompt {request.request_id}"
        assert result.output_text == models.tokenizer.decode(result.output_token_ids, skip_special_tokens=True)
