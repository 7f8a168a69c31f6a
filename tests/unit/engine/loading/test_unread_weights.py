"""What a checkpoint holds and nobody reads is a refusal, and so is what it lacks; what each release computes is not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.errors import ModelError, ModelNotFoundError, UnsupportedArchitectureError
from tests.unit.engine.model_files import edit_config, edit_weights, load, save_checkpoint
from tests.unit.engine.tiny_models import decoder_logits, reference_logits, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Weights = dict[str, torch.Tensor]

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")

Q = "model.layers.0.self_attn.q_proj"


def packed(method: str) -> Callable[[Weights], None]:
    """Store one matrix as this method does; config.json says nothing of it."""

    def change(weights: Weights) -> None:
        weight = weights[f"{Q}.weight"]
        if method == "fp8":
            weights[f"{Q}.weight"] = weight.to(torch.float8_e4m3fn)
            weights[f"{Q}.weight_scale_inv"] = torch.ones(1, 1)
        elif method == "int8":
            weights[f"{Q}.weight"] = weight.to(torch.int8)
            weights[f"{Q}.weight_scale"] = torch.ones(48, 1)
        elif method == "fp8 in floats":
            weights[f"{Q}.weight_scale"] = torch.ones(1)
        elif method == "kv cache":
            weights["model.layers.0.self_attn.k_scale"] = torch.ones(1)
        elif method == "gptq":
            del weights[f"{Q}.weight"]
            weights[f"{Q}.qweight"] = torch.ones(6, 48, dtype=torch.int32)
            weights[f"{Q}.scales"] = torch.ones(1, 48)
        elif method == "bitsandbytes":
            weights[f"{Q}.weight"] = torch.ones(48 * 24, 1, dtype=torch.uint8)
            weights[f"{Q}.weight.absmax"] = torch.ones(18)
        else:
            weights[f"{Q}.weight"] = torch.ones(48, 6, dtype=torch.int32).view(torch.uint32)
            weights[f"{Q}.scales"], weights[f"{Q}.biases"] = torch.ones(48, 1), torch.ones(48, 1)

    return change


@pytest.mark.parametrize("method", ["fp8", "int8", "fp8 in floats", "kv cache", "gptq", "bitsandbytes", "mlx"])
def test_quantised_weights_that_nothing_announces(tmp_path: Path, method: str) -> None:
    folder = edit_weights(save_checkpoint(tmp_path), packed(method))
    with pytest.raises(
        UnsupportedArchitectureError, match=r"is quantised with .*tensor model.*; use the original weights or a .gguf"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("key", "value", "method"),
    [
        ("quantization", {"group_size": 64, "bits": 4}, r"MLX \(quantization in config.json\)"),
        ("compression_config", {"format": "float-quantized"}, "compressed-tensors"),
        ("quantization_config", {"quant_method": "fbgemm_fp8"}, "fbgemm_fp8"),
        ("quantization_config", {"bits": 4}, r"\(quantization_config in config.json\)"),
    ],
)
def test_quantisation_that_config_json_announces(tmp_path: Path, key: str, value: Any, method: str) -> None:
    folder = edit_config(save_checkpoint(tmp_path), **{key: value})
    with pytest.raises(UnsupportedArchitectureError, match=f"is quantised with .*{method}"):
        load(folder)
    if key != "quantization_config":  # transformers 4 stumbles over it by itself
        load(edit_config(folder, **{key: None}))


@pytest.mark.parametrize("file", ["hf_quant_config.json", "quantize_config.json", "quant_config.json"])
def test_quantisation_that_a_file_beside_it_announces(tmp_path: Path, file: str) -> None:
    folder = save_checkpoint(tmp_path)
    (folder / file).write_text("{}")
    with pytest.raises(UnsupportedArchitectureError, match=rf"is quantised with \w+ \({file}\); use the original"):
        load(folder)


@pytest.mark.parametrize(
    "tensor",
    [f"{Q}.bias", "model.layers.0.self_attn.q_norm.weight", "model.layers.0.mlp.gate.weight", "vision.patch.weight"],
)
def test_weights_that_nobody_reads(tmp_path: Path, tensor: str) -> None:
    folder = edit_weights(save_checkpoint(tmp_path), lambda weights: weights.update({tensor: torch.ones(48)}))
    with pytest.raises(UnsupportedArchitectureError, match=rf"has 1 weights that .* \(first {tensor}\)"):
        load(folder)


@pytest.mark.parametrize(
    ("architecture", "buffers"),
    [
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
        ("llama", {"model.rotary_emb.inv_freq": torch.ones(4)}),
        ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 256, 256).tril().bool()}),
        ("gpt2", {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}),
        (
            "gpt_neox",
            {
                "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 256, 256).to(torch.uint8),
                "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
                "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(1),
            },
        ),
    ],
)
def test_buffers_that_every_release_computes_are_not_missed(
    tmp_path: Path, architecture: str, buffers: Weights
) -> None:
    model = tiny_model(architecture, **({"head_dim": None} if architecture == "gpt_neox" else {}))
    folder = edit_weights(save_checkpoint(tmp_path, model), lambda weights: weights.update(buffers))
    got = decoder_logits(load(folder, dtype="float32").target.decoder)
    assert torch.allclose(got, reference_logits(model), atol=1e-4)


@pytest.mark.parametrize(("architecture", "prefix"), [("llama", "model."), ("gpt2", "transformer.")])
def test_a_checkpoint_of_the_bare_model(tmp_path: Path, architecture: str, prefix: str) -> None:
    """GPT-2's own files have no prefix, because they were saved without the head."""
    model = tiny_model(architecture, tie_word_embeddings=True)

    def strip(weights: Weights) -> None:
        for name in list(weights):
            weights[name.removeprefix(prefix)] = weights.pop(name)

    folder = edit_weights(save_checkpoint(tmp_path, model), strip)
    got = decoder_logits(load(folder, dtype="float32").target.decoder)
    assert torch.allclose(got, reference_logits(model), atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_a_tied_head_may_be_stored_but_not_differ(tmp_path: Path, architecture: str) -> None:
    overrides = {"head_dim": None} if architecture == "gpt_neox" else {}
    model = tiny_model(architecture, tie_word_embeddings=True, **overrides)
    embedding = {"llama": "model.embed_tokens.weight", "gpt_neox": "gpt_neox.embed_in.weight"}[architecture]
    head = {"llama": "lm_head.weight", "gpt_neox": "embed_out.weight"}[architecture]
    folder = edit_weights(
        save_checkpoint(tmp_path, model), lambda weights: weights.update({head: weights[embedding].clone()})
    )
    got = decoder_logits(load(folder, dtype="float32").target.decoder)
    assert torch.allclose(got, reference_logits(model), atol=1e-4)
    edit_weights(folder, lambda weights: weights.update({head: weights[embedding] + 1}))
    with pytest.raises(ModelError, match=r"differs from its embedding.*\"tie_word_embeddings\": false"):
        load(folder)


def test_weights_of_another_shape(tmp_path: Path) -> None:
    folder = edit_config(save_checkpoint(tmp_path), intermediate_size=96)
    with pytest.raises(ModelError, match=r"mlp\.\w+\.weight has the shape .*80.* and its configuration says .*96"):
        load(folder)


@pytest.mark.parametrize("layers", [1, 3, 10**9, 0, "2", None, [2]])
def test_another_number_of_layers_than_the_files_have(tmp_path: Path, layers: Any) -> None:
    folder = edit_config(save_checkpoint(tmp_path), num_hidden_layers=layers)
    with pytest.raises(ModelError, match=r"its configuration says .* layers and its files have 2"):
        load(folder)


@pytest.mark.parametrize("value", [False, 0])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_attention_in_both_directions(tmp_path: Path, architecture: str, value: Any) -> None:
    folder = edit_config(save_checkpoint(tmp_path, tiny_model(architecture)), is_causal=value)
    with pytest.raises(UnsupportedArchitectureError, match="attends in both directions"):
        load(folder)


@pytest.mark.parametrize(("key", "value"), [("head_dim", 16), ("num_key_value_heads", 2)])
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_settings_that_a_family_has_not(tmp_path: Path, architecture: str, key: str, value: int) -> None:
    model = tiny_model(architecture, head_dim=None, num_key_value_heads=None)
    folder = edit_config(save_checkpoint(tmp_path, model), **{key: value})
    with pytest.raises(UnsupportedArchitectureError, match=f"says {key} {value}, and a {architecture} model has no"):
        load(folder)
    load(edit_config(folder, **{key: {"head_dim": 8, "num_key_value_heads": 6}[key]}))


def test_an_adapter_beside_the_weights(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    with pytest.raises(UnsupportedArchitectureError, match=r"an adapter beside its weights .*merge it"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match="is an adapter; merge it into its base model"):
        load(folder)


def test_a_config_that_names_another_weight_file(tmp_path: Path) -> None:
    folder = edit_config(save_checkpoint(tmp_path), transformers_weights="other.safetensors")
    with pytest.raises(UnsupportedArchitectureError, match=r"names a weight file of its own \(transformers_weights\)"):
        load(folder)


@pytest.mark.parametrize(
    ("architecture", "tensor"),
    [
        ("qwen3_5_text", "mtp.layers.0.input_layernorm.weight"),
        ("ernie4_5_moe", "model.mtp_block.0.input_layernorm.weight"),
    ],
)
def test_a_head_for_drafts_is_left_out(tmp_path: Path, architecture: str, tensor: str) -> None:
    def change(weights: Weights) -> None:
        weights[tensor] = torch.ones(48)

    model = tiny_model(architecture)
    folder = edit_weights(save_checkpoint(tmp_path / "with", model), change)
    got = decoder_logits(load(folder, dtype="float32").target.decoder)
    assert torch.allclose(got, reference_logits(model), atol=1e-3)
    with pytest.raises(UnsupportedArchitectureError, match=rf"1 weights that .* \(first {tensor}"):
        load(edit_weights(save_checkpoint(tmp_path / "other"), change))
