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
from helix_jobs.engine.speculation.depth.costs import CostProfile
from helix_jobs.errors import ConfigurationError
from tests.acceptance.reference_outputs import ReferenceOutputs

pytestmark = pytest.mark.demo

MAX_TOKENS = 24
PROMPTS = Path(__file__).parent.parent / "data" / "spec_bench_24.jsonl"


# Of a machine on which the draft costs a fifth of its target, so that adaptive depths use it. Made up: to measure what
# this machine's steps cost an engine computes thousands of tokens, as many as most prompts have together.
COSTS = CostProfile.from_measurements(
    {1: 0.02, 8: 0.025, 64: 0.06, 512: 0.4}, {1: 0.004, 8: 0.005, 64: 0.012, 512: 0.08}
)


@pytest.fixture(scope="module")
def kinds(demo_home, demo_kernels):
    """The models of all cases by kind, read once. An engine lays weights out anew, so both kinds are made before."""
    models = load_models("demo", "int8", device=torch.device("cpu"), dtype="float32", home=demo_home)
    try:
        compiled = with_fast_draft(with_compiled_kernels(models, "on", demo_kernels))
    except ConfigurationError as error:
        compiled = error
    return {"torch": with_fast_draft(models), "compiled": compiled}


def with_fast_draft(models):
    """With the rounded weights multiplied as float32, which draft as well, where products of bytes take minutes."""
    draft = models.draft
    if is_fast(draft.decoder):
        return models
    return replace(models, draft=replace(draft, decoder=dequantize(draft.decoder), is_int8=False))


@pytest.fixture(scope="module")
def requests(kinds):
    """Each prompt as the engine encodes it."""
    no_drafts = SpeculationConfig(depth=0, adaptive=False)
    engine = Engine(kinds["torch"], EngineConfig(max_batch_size=1, speculation=no_drafts), CacheConfig(num_blocks=100))
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
def references(pytestconfig, demo_home, kinds):
    folder = pytestconfig.cache.mkdir("helix-references")
    eos = kinds["torch"].eos_token_ids
    return ReferenceOutputs(ensure_demo_model(demo_home, print), "float32", eos, MAX_TOKENS, folder)


FIXED = SpeculationConfig(depth=4, adaptive=False)
ADAPTIVE = SpeculationConfig(drafters=("lookup",))


# Two prompts of each category. The fast tests answer one of them by each way to compute and each way to choose depths;
# every pair of ways with all prompts is slow.
WAYS = {
    "fixed-depth-compiled": (FIXED, "compiled"),
    "adaptive-with-lookup-torch": (ADAPTIVE, "torch"),
    "fixed-depth-torch": (FIXED, "torch"),
    "adaptive-with-lookup-compiled": (ADAPTIVE, "compiled"),
}
FIRST, SECOND, ALL = slice(0, None, 2), slice(1, None, 2), slice(None)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("way", "part"),
    [
        pytest.param("fixed-depth-compiled", FIRST, id="fixed-depth-compiled, first of each category"),
        pytest.param("adaptive-with-lookup-torch", SECOND, id="adaptive-with-lookup-torch, second of each category"),
        *(pytest.param(way, ALL, id=way, marks=pytest.mark.slow) for way in WAYS),
    ],
)
def test_spec_bench_prompts_equal_transformers(kinds, requests, references, way, part):
    speculation, kind = WAYS[way]
    asked = requests[part]
    models = kinds[kind]
    if isinstance(models, ConfigurationError):
        pytest.skip(str(models))
    config = EngineConfig(max_batch_size=8, speculation=speculation)
    engine = Engine(models, config, CacheConfig(num_blocks=900), COSTS)
    results = engine.generate(asked)
    engine.check_integrity()
    drafted = sum(r.draft_tokens for r in results)
    assert drafted > 0
    if not speculation.adaptive:
        assert sum(r.accepted_tokens for r in results) > 0.5 * drafted
    for request, result in zip(asked, results, strict=True):
        found = references.difference(request.prompt_token_ids, result.output_token_ids)
        assert found is None, f"prompt {request.request_id}"
        assert result.output_text == models.tokenizer.decode(result.output_token_ids, skip_special_tokens=True)
