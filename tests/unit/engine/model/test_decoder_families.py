"""The decoder equals transformers' modules for every family, with every setting that changes what they compute."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoConfig

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loaded_models import LoadedModel
from helix_jobs.engine.model.architecture import SUPPORTED_MODEL_TYPES
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.families.registry import describe
from helix_jobs.engine.model.quantize import quantize
from tests.unit.engine.model.case_settings import LONGROPE, ROPES
from tests.unit.engine.model.family_case import Case, error, plain_logits, plain_model, prompts
from tests.unit.engine.model.family_cases import CASES, PLAIN_CASES, ROUNDED_CASES
from tests.unit.engine.model_files import load, save_checkpoint
from tests.unit.engine.tiny_models import (
    batched_reference_logits,
    copy_of,
    decoder_logits,
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

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module", params=ROUNDED_CASES, ids=str)
def rounded_case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(
    scope="module",
    params=[
        case if not case.settings or case in ROUNDED_CASES else pytest.param(case, marks=pytest.mark.slow)
        for case in CASES
    ],
    ids=str,
)
def stored_case(request: pytest.FixtureRequest) -> Case:
    """Each family, and each setting of those that others are described by; the other settings are slow."""
    return request.param


def test_every_supported_family_is_tested() -> None:
    assert {case.architecture for case in PLAIN_CASES} == {case.architecture for case in CASES}
    assert {case.architecture for case in CASES} == set(SUPPORTED_MODEL_TYPES)


@pytest.mark.thorough(fast=10)
def test_ragged_steps_equal_transformers(case: Case) -> None:
    model = case.model()
    expected = case.expected()
    decoder = build_decoder(copy_of(model))
    # Packing changes the products, a chunk what the cache has to give: neither knows the other.
    for chunk in (1000, 13):
        for got, theirs in zip(ragged_logits(decoder, prompts(), chunk), expected, strict=True):
            assert error(got, theirs) < 2e-5
            assert torch.allclose(got, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)
        decoder.pack()


@pytest.mark.thorough(fast=45)
def test_a_saved_configuration_describes_the_same_model(case: Case, tmp_path: Path) -> None:
    config = case.model().config
    config.save_pretrained(tmp_path)
    assert describe(AutoConfig.from_pretrained(tmp_path)) == describe(config)


@pytest.mark.thorough(fast=7)
def test_a_saved_model_is_loaded_with_its_settings(stored_case: Case, tmp_path: Path) -> None:
    models = load(save_checkpoint(tmp_path, stored_case.model()))
    assert error(decoder_logits(models.target.decoder, prompts()[3]), stored_case.expected()[3]) < 2e-5


@pytest.mark.thorough(fast=11)
def test_in_bfloat16_it_is_as_close_to_the_truth_as_transformers(rounded_case: Case) -> None:
    model = rounded_case.model()
    rounded = copy_of(model, torch.bfloat16)
    truth = batched_reference_logits(copy_of(rounded), prompts())
    theirs = [error(got, true) for got, true in zip(batched_reference_logits(rounded, prompts()), truth, strict=True)]
    decoder = build_decoder(rounded)
    decoder.pack()
    ours = [error(got, true) for got, true in zip(ragged_logits(decoder, prompts()), truth, strict=True)]
    assert all(0 < error < 0.1 for error in ours)
    assert sum(ours) < 1.5 * sum(theirs)


@pytest.mark.thorough(fast=23)
def test_its_int8_copy_is_close(rounded_case: Case) -> None:
    model = rounded_case.model()
    quantised = quantize(build_decoder(copy_of(model)))
    quantised.pack()
    assert 0 < error(decoder_logits(quantised, prompts()[3]), rounded_case.expected()[3]) < 0.25


@pytest.mark.thorough(fast=27)
def test_a_case_that_changes_nothing_would_test_nothing(case: Case) -> None:
    model, plain = copy_of(case.model()), plain_model(case.architecture)
    weights = dict(model.named_parameters())
    shared = {name: weight for name, weight in plain.named_parameters() if name in weights}
    if any(weights[name].shape != weight.shape for name, weight in shared.items()):
        return  # it changes a shape
    for name, weight in shared.items():
        weights[name].copy_(weight)
    difference = error(reference_logits(model, prompts()[3]), plain_logits(case.architecture))
    assert difference > 1e-4 if case.changes else difference < 1e-5


@pytest.mark.parametrize(
    ("architecture", "settings", "written"),
    [
        ("phi3", {"partial_rotary_factor": 0.5}, {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("gpt_neox", {"rotary_pct": 0.5}, {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("llama", {"rope_scaling": ROPES["yarn"]}, ROPES["yarn"]),
        ("qwen2", {"rope_scaling": ROPES["llama3"]}, ROPES["llama3"]),
        (
            "phi3",
            {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64},
            {**LONGROPE, "rope_type": "longrope", "original_max_position_embeddings": 64},
        ),
    ],
)
def test_rotary_settings_as_transformers_5_writes_them_are_understood_by_either(
    tmp_path: Path, architecture: str, settings: dict[str, Any], written: dict[str, Any]
) -> None:
    model = roughen(tiny_model(architecture, **settings))
    folder = save_checkpoint(tmp_path, model)
    config = json.loads((folder / "config.json").read_text())
    for older in ("rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct", "rotary_emb_base"):
        config.pop(older, None)
    config["rope_parameters"] = {"rope_theta": 10000.0, **written}
    (folder / "config.json").write_text(json.dumps(config))
    assert error(decoder_logits(load(folder).target.decoder), reference_logits(model)) < 2e-5


def test_dynamic_scaling_is_served_to_the_end_of_the_context(tmp_path: Path) -> None:
    """Beyond it transformers recomputes the frequencies from the longest sequence of a batch."""
    rope = {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 6.0}
    model = roughen(tiny_model("internlm3", seed=3, rope_scaling=rope, max_position_embeddings=48))
    models = load(save_checkpoint(tmp_path, model), "int8", dtype="float32")
    assert models.max_context == 48
    engine = Engine(
        models,
        EngineConfig(max_batch_size=4, speculation=SpeculationConfig(depth=3, adaptive=False, drafters=("lookup",))),
        CacheConfig(num_blocks=40, block_size=4),
    )
    wanted = {"a": list(range(2, 20)), "b": [5, 4, 3], "c": [2 + i % 13 for i in range(38)], "d": [7]}
    requests = [request(name, prompt, max_tokens=48 - len(prompt), ignore_eos=True) for name, prompt in wanted.items()]
    model.generation_config.eos_token_id = None
    for result in engine.generate(requests):
        prompt = wanted[result.request_id]
        assert result.completion_tokens == 48 - len(prompt)
        assert result.output_token_ids == reference_greedy(model, prompt, 48 - len(prompt))


def test_a_draft_with_fewer_learned_positions_than_its_target_goes_on() -> None:
    target = tiny_model("gpt2", seed=3)
    short = build_decoder(tiny_model("gpt2", seed=3, max_position_embeddings=24))
    engine = tiny_engine(target, LoadedModel("short", short), depth=4)
    prompt = list(range(2, 20))
    (result,) = engine.generate([request("a", prompt, max_tokens=40, ignore_eos=True)])
    logits = reference_logits(target, [*prompt, *result.output_token_ids])
    assert result.output_token_ids == tuple(logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist())
    assert result.completion_tokens == 40
