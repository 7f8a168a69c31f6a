"""The real demo model, fp32, speculating over a ragged batch: transformers' own outputs, token for token."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.decoder.int8_linear import dequantize, is_fast
from helix_jobs.engine.demo_model import ensure_demo_model
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.load_engine import with_compiled_kernels
from helix_jobs.engine.model_loader import load_models
from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import ConfigurationError

pytestmark = pytest.mark.demo

MAX_TOKENS = 24
PROMPTS = Path(__file__).parent.parent / "data" / "spec_bench_24.jsonl"


def load(home, draft):
    return load_models("demo", draft, device=torch.device("cpu"), dtype="float32", home=home)


@pytest.fixture(scope="module")
def references(demo_home):
    """Each prompt as the engine encodes it, with transformers' own greedy output."""
    models = load(demo_home, "none")
    engine = Engine(models, EngineConfig(max_batch_size=1), CacheConfig(num_blocks=100))
    prompts = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    assert len(prompts) == 24
    model = AutoModelForCausalLM.from_pretrained(ensure_demo_model(demo_home, print), dtype=torch.float32).eval()
    eos = sorted(models.eos_token_ids)
    references = []
    for i, prompt in enumerate(prompts):
        request = engine.encode(
            Request(
                request_id=str(i),
                messages=({"role": "user", "content": prompt},),
                seed=i,
                sampling_params=SamplingParams(max_tokens=MAX_TOKENS),
            )
        )
        # [1, prompt_tokens]
        ids = torch.tensor([request.prompt_token_ids])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=MAX_TOKENS,
            eos_token_id=eos,
            pad_token_id=eos[0],
        )
        expected = out[0, ids.shape[1] :].tolist()
        if expected[-1] in eos:
            expected.pop()
        references.append((request, expected))
    return references


@pytest.mark.parametrize("compiled", [False, True], ids=["torch", "compiled"])
@pytest.mark.parametrize(
    "speculation",
    [SpeculationConfig(depth=4, adaptive=False), SpeculationConfig(lookup=True)],
    ids=["fixed-depth", "adaptive-with-lookup"],
)
def test_24_spec_bench_prompts_equal_transformers(demo_home, references, speculation, compiled):
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
    results = engine.generate(request for request, _ in references)
    engine.check_integrity()
    if not speculation.adaptive:
        drafted = sum(r.draft_tokens for r in results)
        assert drafted > 0
        assert sum(r.accepted_tokens for r in results) > 0.5 * drafted
    for (request, expected), result in zip(references, results, strict=True):
        assert list(result.output_token_ids) == expected, f"prompt {request.request_id}"
        assert result.output_text == models.tokenizer.decode(expected, skip_special_tokens=True)
