"""The decoder equals transformers' modules for every family, with every setting that changes what they compute."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.loaded_models import LoadedModel
from helix_jobs.engine.model.architecture import SUPPORTED_MODEL_TYPES
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.quantize import quantize
from tests.unit.engine.model_files import load, save_checkpoint
from tests.unit.engine.tiny_models import (
    ARCHITECTURES,
    VOCAB_SIZE,
    copy_of,
    decoder_logits,
    ragged_logits,
    reference_logits,
    request,
    roughen,
    tiny_engine,
    tiny_model,
)

if TYPE_CHECKING:
    from pathlib import Path

ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [2.0, 4.0, 8.0, 9.0]}


@dataclass(frozen=True)
class Case:
    architecture: str
    settings: dict[str, Any] = field(default_factory=dict)
    changes: bool = True  # what the family computes without the settings

    def __str__(self) -> str:
        names = [
            f"{k}={'+'.join(map(str, v.values())) if isinstance(v, dict) else v}" for k, v in self.settings.items()
        ]
        return f"{self.architecture}({','.join(names)})"

    def model(self) -> Any:
        return roughen(tiny_model(self.architecture, seed=3, **self.settings))


CASES = [
    *(Case(architecture, changes=False) for architecture in ARCHITECTURES),
    *(Case(architecture, {"tie_word_embeddings": True}) for architecture in ARCHITECTURES),
    *(Case(architecture, {"head_dim": 16}) for architecture in ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3")),
    *(Case(architecture, {"attention_bias": True}) for architecture in ("llama", "qwen3", "gemma")),
    *(Case("llama", {"num_key_value_heads": heads}) for heads in (1, 6)),
    Case("llama", {"mlp_bias": True}),
    Case("llama", {"hidden_act": "gelu"}),
    Case("llama", {"pretraining_tp": 2}, changes=False),
    Case("llama", {"rms_norm_eps": 0.1}),
    *(Case("llama", {"rope_scaling": rope}) for rope in ROPES.values()),
    Case("llama", {"rope_theta": 500.0}),
    *(Case("qwen2", {"rope_scaling": rope}) for rope in ROPES.values()),
    Case("gemma", {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "relu"}, changes=False),
    Case("phi3", {"partial_rotary_factor": 0.5}),
    Case("phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64}),
    Case("phi3", {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attention_dropout": 0.5}, changes=False),
    Case("gpt2", {"scale_attn_weights": False}),
    Case("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    Case("gpt2", {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True}),
    Case("gpt2", {"n_inner": 72}),
    Case("gpt2", {"layer_norm_epsilon": 0.1}),
    *(Case("gpt2", {"activation_function": name}) for name in ("relu", "gelu")),
    *(Case("gpt2", {"activation_function": name}, changes=False) for name in ("gelu_fast", "gelu_pytorch_tanh")),
    Case("gpt_neox", {"use_parallel_residual": False}),
    Case("gpt_neox", {"attention_bias": False}),
    *(Case("gpt_neox", {"rotary_pct": share}) for share in (0.5, 1.0)),
    Case("gpt_neox", {"rotary_pct": 1.0, "rotary_emb_base": 500}),
    *(Case("gpt_neox", {"hidden_act": name}) for name in ("gelu_new", "gelu_fast", "relu")),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def prompts() -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in (1, 9, 33, 60, 4)]


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def test_every_supported_family_is_tested() -> None:
    assert set(ARCHITECTURES) == set(SUPPORTED_MODEL_TYPES)


def test_ragged_steps_equal_transformers(case: Case) -> None:
    model = case.model()
    expected = [reference_logits(model, prompt) for prompt in prompts()]
    decoder = build_decoder(copy_of(model))
    for _ in ("plain", "packed"):
        for chunk in (5, 1000):
            for got, theirs in zip(ragged_logits(decoder, prompts(), chunk), expected, strict=True):
                assert error(got, theirs) < 2e-5
                assert torch.allclose(got, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)
        decoder.pack()


def test_a_saved_model_is_loaded_with_its_settings(case: Case, tmp_path: Path) -> None:
    model = case.model()
    models = load(save_checkpoint(tmp_path, model))
    assert error(decoder_logits(models.target.decoder), reference_logits(model)) < 2e-5


def test_in_bfloat16_it_is_as_close_to_the_truth_as_transformers(case: Case) -> None:
    model = case.model()
    rounded = copy_of(model, torch.bfloat16)
    truth = [reference_logits(copy_of(rounded), prompt) for prompt in prompts()]
    theirs = [error(reference_logits(rounded, prompt), true) for prompt, true in zip(prompts(), truth, strict=True)]
    decoder = build_decoder(rounded)
    decoder.pack()
    ours = [error(got, true) for got, true in zip(ragged_logits(decoder, prompts()), truth, strict=True)]
    assert all(0 < error < 0.1 for error in ours)
    assert sum(ours) < 1.5 * sum(theirs)


def test_its_int8_copy_is_close(case: Case) -> None:
    model = case.model()
    quantised = quantize(build_decoder(copy_of(model)))
    quantised.pack()
    assert 0 < error(decoder_logits(quantised, prompts()[3]), reference_logits(model, prompts()[3])) < 0.25


def test_a_case_that_changes_nothing_would_test_nothing(case: Case) -> None:
    model, plain = case.model(), Case(case.architecture).model()
    weights = dict(model.named_parameters())
    shared = {name: weight for name, weight in plain.named_parameters() if name in weights}
    if any(weights[name].shape != weight.shape for name, weight in shared.items()):
        return  # it changes a shape
    for name, weight in shared.items():
        weights[name].copy_(weight)
    difference = error(reference_logits(model, prompts()[3]), reference_logits(plain, prompts()[3]))
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


def test_a_draft_with_fewer_learned_positions_than_its_target_goes_on() -> None:
    target = tiny_model("gpt2", seed=3)
    short = build_decoder(tiny_model("gpt2", seed=3, max_position_embeddings=24))
    engine = tiny_engine(target, LoadedModel("short", short), depth=4)
    prompt = list(range(2, 20))
    (result,) = engine.generate([request("a", prompt, max_tokens=40, ignore_eos=True)])
    logits = reference_logits(target, [*prompt, *result.output_token_ids])
    assert result.output_token_ids == tuple(logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist())
    assert result.completion_tokens == 40
