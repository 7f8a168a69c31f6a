"""All first turns of Spec-Bench at full strength, equal to transformers at batch 1.

In float32 token for token. In bfloat16 neighbouring logits are often equal or one rounding apart, and which of them
comes first depends on the shapes that were multiplied: transformers differs from itself as much when its prompts are
computed in one pass instead of step by step. So there every output that differs must differ first at a near-tie, which
is shown; and where products round alike in any number of rows, all outputs equal Helix' own in any company.

The demo's quantised file is served from its blocks, with float32 activations. transformers' own reader makes plain
float32 numbers of the same file, and its outputs are the reference.

A command of its own: ``python -m pytest -m slow -s tests/acceptance/test_lossless_full.py``. Most of the first run's
time is transformers'; outputs that it made token by token are kept in pytest's cache directory.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loading import weight_format
from helix_jobs.engine.loading.demo_model import ensure_demo_model
from helix_jobs.engine.loading.load_engine import with_compiled_kernels
from helix_jobs.engine.loading.model_loader import load_models
from helix_jobs.engine.loading.reproducible import make_reproducible
from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import ConfigurationError
from tests.acceptance.reference_outputs import NEAR_TIE_STEPS, ReferenceOutputs

pytestmark = [pytest.mark.slow, pytest.mark.demo]

MAX_TOKENS = 64
PROMPTS = Path(__file__).parent.parent / "data" / "spec_bench.jsonl"
# Beside the int8 copy: lookup. Adaptive depths may leave the copy out where it does not pay; a fixed one never does.
SPECULATIONS = {
    "adaptive": SpeculationConfig(drafters=("lookup",)),
    "fixed": SpeculationConfig(drafters=("lookup",), adaptive=False, depth=4),
}
# Batch size, speculation, token budget, and one of how many prompts is run: alone a fifth of them, to save time.
COMPANIES = {
    "batch 32": (32, SpeculationConfig(depth=0, adaptive=False), 1024, 1),
    "batch 32, drafts": (32, SPECULATIONS["fixed"], 1024, 1),
    "batch 32, adaptive": (32, SPECULATIONS["adaptive"], 1024, 1),
    "batch 7, drafts, small chunks": (7, SPECULATIONS["fixed"], 100, 1),
    "alone": (1, SpeculationConfig(depth=0, adaptive=False), 1024, 5),
    "alone, drafts": (1, SPECULATIONS["fixed"], 1024, 5),
}


def requests():
    for number, line in enumerate(PROMPTS.read_text(encoding="utf-8").splitlines()):
        yield Request(
            request_id=str(number),
            messages=({"role": "user", "content": json.loads(line)["turns"][0]},),
            seed=number,
            sampling_params=SamplingParams(max_tokens=MAX_TOKENS),
        )


@pytest.mark.parametrize("speculation", SPECULATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_480_first_turns_equal_transformers(pytestconfig, demo_home, tmp_path, dtype, speculation):
    models = load_models("demo", "int8", device=torch.device("cpu"), dtype=dtype, home=demo_home)
    compare(
        with_compiled_kernels(models, "auto", tmp_path),
        ensure_demo_model(demo_home, print),
        dtype,
        speculation,
        kept(pytestconfig),
    )


@pytest.fixture(scope="module")
def decoded_folder(demo_gguf, tmp_path_factory):
    """The quantised file's numbers in float32, as transformers' own reader decodes them."""
    folder = tmp_path_factory.mktemp("decoded")
    model = AutoModelForCausalLM.from_pretrained(demo_gguf.parent, gguf_file=demo_gguf.name, dtype=torch.float32)
    model.hf_quantizer = None  # its weights are plain numbers by now, and it would not let them be saved
    del model.config.quantization_config
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def _float32_activations(monkeypatch):
    """The dtype ``packed`` names no type of activations; some processors would take bfloat16."""
    monkeypatch.setattr(weight_format, "resolve_dtype", lambda *_: torch.float32)


@pytest.mark.usefixtures("_float32_activations")
@pytest.mark.parametrize("speculation", SPECULATIONS)
def test_480_first_turns_from_blocks_equal_transformers(pytestconfig, demo_gguf, decoded_folder, tmp_path, speculation):
    models = load_models(
        str(demo_gguf), "int8", device=torch.device("cpu"), dtype="packed", home=tmp_path, on_progress=print
    )
    models = with_compiled_kernels(models, "auto", tmp_path)
    assert models.target.dtype_name == "q4_1"
    compare(models, decoded_folder, "float32", speculation, kept(pytestconfig))


def kept(pytestconfig):
    """Where transformers' outputs are kept between runs."""
    return pytestconfig.cache.mkdir("helix-references")


def compare(models, reference, dtype, speculation, folder):
    """Answer all first turns, print every difference from transformers' outputs, and fail where there may be none."""
    engine = Engine(
        models, EngineConfig(max_batch_size=32, speculation=SPECULATIONS[speculation]), CacheConfig(num_blocks=1500)
    )
    encoded = [engine.encode(request) for request in requests()]
    assert len(encoded) == 480
    outputs = ReferenceOutputs(reference, dtype, models.eos_token_ids, MAX_TOKENS, folder)
    results = engine.generate(encoded)
    engine.check_integrity()

    counters = engine.counters()
    kernels = models.target.decoder.kernels
    report = [f"{dtype}, {kernels} kernels: {counters}"]
    differences = []
    for request, result in zip(encoded, results, strict=True):
        found = outputs.difference(request.prompt_token_ids, result.output_token_ids)
        if found is not None:
            differences.append(found)
            report.append(
                f"prompt {result.request_id}: differs at token {found.position}, top-2 logit gap {found.gap:.4f} or "
                f"{found.gap_in_steps:.1f} steps, {'the runner-up' if found.is_runner_up else 'another token'} instead"
                f"; in float32 {found.exact_gap:.4f} apart, transformers' {dtype} off by {found.error:.4f}"
            )
    num_equal = len(results) - len(differences)
    report.append(
        f"{num_equal} of {len(results)} outputs equal ({num_equal / len(results):.2%}), {outputs.num_confirmed} of "
        "them confirmed in one pass, the others token by token"
    )
    print("", *report, sep="\n")  # noqa: T201  (what the command is run for)
    assert all(result.error is None for result in results)
    assert counters.accepted_tokens > 0
    if dtype == "float32":
        assert not differences
    assert all(one.gap_in_steps <= NEAR_TIE_STEPS and one.is_runner_up for one in differences)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_480_first_turns_are_the_same_in_any_company(demo_home, tmp_path, dtype):
    models = load_models("demo", "int8", device=torch.device("cpu"), dtype=dtype, home=demo_home)
    try:
        models = make_reproducible(with_compiled_kernels(models, "auto", tmp_path), "on", tmp_path, print)
    except ConfigurationError as error:
        pytest.skip(str(error))
    outputs = {}
    for name, (batch, speculation, budget, every) in COMPANIES.items():
        config = EngineConfig(max_batch_size=batch, speculation=speculation, token_budget=budget)
        engine = Engine(models, config, CacheConfig(num_blocks=1500))
        results = engine.generate([engine.encode(request) for request in list(requests())[::every]])
        assert all(result.error is None for result in results)
        outputs[name] = {result.request_id: result.output_token_ids for result in results}
        first = outputs["batch 32"]
        num_equal = sum(first[key] == found for key, found in outputs[name].items())
        print(f"{dtype}, {name}: {num_equal} of {len(results)} equal")  # noqa: T201  (what the command is run for)
    assert all(outputs["batch 32"][key] == found for one in outputs.values() for key, found in one.items())
