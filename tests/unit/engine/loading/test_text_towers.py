"""The language model of a checkpoint that also reads images is served for text, and equals the whole model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.model.text_tower import TEXT_TOWERS
from helix_jobs.errors import ModelError, UnsupportedArchitectureError
from tests.unit.engine.model_files import edit_config, edit_weights, load, save_checkpoint
from tests.unit.engine.quantized_files import compressed_tensors_config, pack_quantized, quantized, write_quantized
from tests.unit.engine.tiny_models import decoder_logits, reference_logits, roughen, tiny_config, tiny_model
from tests.unit.engine.tiny_towers import tiny_tower

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")

PROMPT = [(7 * i) % 33 + 2 for i in range(40)]
WINDOW = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
CASES = [
    ("mistral3", "mistral", {}),
    ("mistral3", "mistral", {"tie_word_embeddings": False}),
    ("mistral3", "ministral3", {}),
    ("gemma3", "gemma3_text", WINDOW),
    (
        "gemma4",
        "gemma4_text",
        {
            "sliding_window": 7,
            "use_bidirectional_attention": "vision",
            "pad_token_id": 0,
            "initializer_range": 0.2,
        },
    ),
    *((outer, family, {}) for outer in ("llava", "llava_next") for family in ("llama", "mistral")),
    ("llava_onevision", "qwen2", {}),
    ("vipllava", "llama", {}),
    *(("internvl", family, {}) for family in ("llama", "qwen2", "qwen3")),
    ("idefics3", "llama", {}),
    ("smolvlm", "llama", {"tie_word_embeddings": True}),
    ("lfm2_vl", "lfm2", {}),
    ("qwen2_vl", "qwen2", {}),
    ("qwen2_5_vl", "qwen2", {}),
    ("qwen2_5_vl", "qwen2", {**WINDOW, "use_sliding_window": True}),
    ("qwen3_vl", "qwen3", {}),
    ("qwen3_vl_moe", "qwen3_moe", {"initializer_range": 0.2, "moe_intermediate_size": 20}),
    ("qwen3_5", "qwen3_5_text", {}),
    ("qwen3_5_moe", "qwen3_5_moe_text", {"initializer_range": 0.2}),
]


def renamed(prefix: str, other: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if name.startswith(prefix)]:
            weights[other + name.removeprefix(prefix)] = weights.pop(name)

    return rename


def test_every_kind_is_tested() -> None:
    assert {(outer, inner) for outer, inner, _ in CASES} | {("gemma3n", "gemma3n_text")} == {
        (outer, family) for outer, tower in TEXT_TOWERS.items() for family in tower.families.values()
    }


@pytest.mark.thorough(fast=5)
@pytest.mark.parametrize(("outer", "inner", "settings"), CASES)
def test_it_equals_the_whole_model(tmp_path: Path, outer: str, inner: str, settings: dict[str, Any]) -> None:
    model = tiny_tower(outer, inner, settings)
    expected = reference_logits(model, PROMPT)
    models = load(save_checkpoint(tmp_path, model))
    torch.testing.assert_close(decoder_logits(models.target.decoder, PROMPT), expected, rtol=1e-4, atol=1e-4)
    assert models.max_context == 256


@pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="Gemma 3n is served with transformers 5")
def test_a_tower_beside_a_part_that_transformers_reads_with_another_library(tmp_path: Path) -> None:
    """Gemma 3n's images go through a model of timm; the language model needs none of it."""
    model = roughen(tiny_model("gemma3n_text", seed=3, sliding_window=7))

    def wrap(weights: dict[str, torch.Tensor]) -> None:
        renamed("model.", "model.language_model.")(weights)
        for part in ("vision_tower.timm_model.conv_stem", "audio_tower.conformer.0", "embed_vision", "embed_audio"):
            weights[f"model.{part}.weight"] = torch.ones(3)

    folder = edit_weights(save_checkpoint(tmp_path, model), wrap)
    text = json.loads((folder / "config.json").read_text())
    outer = {"model_type": "gemma3n", "architectures": ["Gemma3nForConditionalGeneration"], "text_config": text}
    (folder / "config.json").write_text(json.dumps({**outer, "tie_word_embeddings": False}))
    found = decoder_logits(load(folder).target.decoder, PROMPT)
    torch.testing.assert_close(found, reference_logits(model, PROMPT), rtol=1e-4, atol=1e-4)


def test_the_names_that_newer_releases_give_are_read_too(tmp_path: Path) -> None:
    model = tiny_tower("mistral3", "mistral", {})
    folder = edit_weights(save_checkpoint(tmp_path, model), renamed("language_model.model.", "model.language_model."))
    found = decoder_logits(load(folder).target.decoder, PROMPT)
    torch.testing.assert_close(found, reference_logits(model, PROMPT), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_experts_may_be_stored_with_rows_and_columns_exchanged(tmp_path: Path, dtype: str) -> None:
    model = tiny_tower("qwen3_vl_moe", "qwen3_moe", {"initializer_range": 0.2, "moe_intermediate_size": 20})
    folder = save_checkpoint(tmp_path, model)
    answers = []

    def flip(weights: dict[str, torch.Tensor]) -> None:
        shapes.append([weight.shape for name, weight in weights.items() if ".experts." in name])
        weights.update({name: weight.transpose(1, 2) for name, weight in weights.items() if ".experts." in name})

    shapes: list[list[torch.Size]] = []
    for _ in range(2):
        answers.append(decoder_logits(load(folder, dtype=dtype).target.decoder, PROMPT))
        edit_weights(folder, flip)
    assert shapes[0]
    assert shapes[0] != shapes[1]
    assert torch.equal(*answers)
    if dtype == "float32":
        torch.testing.assert_close(answers[0], reference_logits(model, PROMPT), rtol=1e-4, atol=1e-4)


def test_a_quantised_checkpoint_may_store_experts_with_rows_and_columns_exchanged(tmp_path: Path) -> None:
    """Its experts are left as they are, and its projections are quantised."""
    settings = {"initializer_range": 0.2, "hidden_size": 64, "moe_intermediate_size": 20}
    model = tiny_tower("qwen3_vl_moe", "qwen3_moe", settings)
    write_quantized(
        tmp_path,
        model,
        lambda weight: pack_quantized(quantized(weight, 4, 32)),
        compressed_tensors_config("pack-quantized", 4, strategy="group", group_size=32),
        is_kept=lambda name: not name.endswith(("q_proj", "k_proj", "v_proj")),
    )
    expected = reference_logits(model, PROMPT)
    shapes: list[list[torch.Size]] = []

    def flip(weights: dict[str, torch.Tensor]) -> None:
        shapes.append([weight.shape for name, weight in weights.items() if ".experts." in name])
        weights.update({name: weight.transpose(1, 2) for name, weight in weights.items() if ".experts." in name})

    for _ in range(2):
        found = decoder_logits(load(tmp_path, dtype="float32").target.decoder, PROMPT)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        edit_weights(tmp_path, flip)
    assert shapes[0]
    assert shapes[0] != shapes[1]


def test_experts_may_be_stored_stacked(tmp_path: Path) -> None:
    model = tiny_tower("qwen3_5_moe", "qwen3_5_moe_text", {"initializer_range": 0.2})

    def stack(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if ".experts." in name]:
            weights.pop(name)
        weights.update({name: weight.clone() for name, weight in model.named_parameters() if ".experts." in name})

    models = load(edit_weights(save_checkpoint(tmp_path, model), stack))
    found = decoder_logits(models.target.decoder, PROMPT)
    torch.testing.assert_close(found, reference_logits(model, PROMPT), rtol=1e-4, atol=1e-4)


def test_a_head_that_config_json_does_not_speak_of_is_the_files_own(tmp_path: Path) -> None:
    model = tiny_tower("mistral3", "mistral", {"tie_word_embeddings": False})
    folder = save_checkpoint(tmp_path, model)
    config = json.loads((folder / "config.json").read_text())
    assert [part.pop("tie_word_embeddings") for part in (config, config["text_config"])] == [False, False]
    (folder / "config.json").write_text(json.dumps(config))
    found = decoder_logits(load(folder).target.decoder, PROMPT)
    torch.testing.assert_close(found, reference_logits(model, PROMPT), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inner", ["mistral", "qwen3_moe"])
def test_a_tied_head_may_be_stored_but_not_differ(tmp_path: Path, inner: str) -> None:
    outer = {"mistral": "mistral3", "qwen3_moe": "qwen3_vl_moe"}[inner]
    model = tiny_tower(outer, inner, {"tie_word_embeddings": True, "initializer_range": 0.2})
    folder = save_checkpoint(tmp_path, model)
    expected = reference_logits(model, PROMPT)

    def store(difference: float) -> None:
        def add(weights: dict[str, torch.Tensor]) -> None:
            embedding = next(weight for name, weight in weights.items() if name.endswith("embed_tokens.weight"))
            weights["lm_head.weight"] = embedding + difference

        edit_weights(folder, add)

    store(0.0)
    decoder = load(folder).target.decoder
    torch.testing.assert_close(decoder_logits(decoder, PROMPT), expected, rtol=1e-4, atol=1e-4)
    store(1.0)
    with pytest.raises(ModelError, match=r"differs from its embedding.*\"tie_word_embeddings\": false"):
        load(folder)


def test_a_language_model_of_another_family_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, tiny_tower("mistral3", "mistral", {}))
    text = {**tiny_config("qwen2").to_dict(), "model_type": "qwen2"}
    with pytest.raises(
        UnsupportedArchitectureError, match="a language model of type 'qwen2'; in a mistral3 checkpoint"
    ):
        load(edit_config(folder, text_config=text))


def test_a_class_that_does_not_generate_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, tiny_tower("gemma3", "gemma3_text", {}))
    with pytest.raises(UnsupportedArchitectureError, match="Gemma3ForSequenceClassification, which does not generate"):
        load(edit_config(folder, architectures=["Gemma3ForSequenceClassification"]))


def test_a_tensor_of_the_language_model_that_is_not_read_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, tiny_tower("mistral3", "mistral", {}))

    def add(weights: dict[str, torch.Tensor]) -> None:
        weights["language_model.model.layers.0.self_attn.q_proj.bias"] = torch.ones(48)

    with pytest.raises(UnsupportedArchitectureError, match="1 weights that its architecture does not use"):
        load(edit_weights(folder, add))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, tiny_tower("mistral3", "mistral", {}))

    def drop(weights: dict[str, torch.Tensor]) -> None:
        del weights["language_model.model.norm.weight"]

    with pytest.raises(ModelError, match=r"lacks 1 weights \(first model.norm.weight\)"):
        load(edit_weights(folder, drop))
