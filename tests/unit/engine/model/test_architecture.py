"""What the engine would not compute exactly is refused by name, or served up to where it would begin to differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import CONFIG_MAPPING
from transformers.activations import ACT2FN
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.model.activations import ACTIVATIONS
from helix_jobs.engine.model.architecture import SUPPORTED_MODEL_TYPES, check_architecture
from helix_jobs.engine.model.not_served import NOT_SERVED
from helix_jobs.engine.model.text_tower import TEXT_TOWERS
from helix_jobs.errors import UnsupportedArchitectureError
from tests.unit.engine.model_files import edit_config, edit_weights, load, save_checkpoint
from tests.unit.engine.tiny_models import decoder_logits, reference_logits, tiny_config, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("diffllama", r" \(differences of two attentions\)"),
        ("llama4_text", r" \(chunked attention and experts\)"),
        ("deepseek_v32", r" \(latent attention to keys that an index chooses\)"),
        ("mamba", r" \(recurrent state instead of attention\)"),
        ("jetmoe", r" \(heads that are chosen as experts are\)"),
        ("some_new_one", ""),
        (None, ""),
        (["llama"], ""),
    ],
)
def test_an_architecture_outside_the_list(tmp_path: Path, model_type: object, reason: str) -> None:
    folder = edit_config(save_checkpoint(tmp_path), model_type=model_type)
    with pytest.raises(UnsupportedArchitectureError) as caught:
        load(folder)
    served = ", ".join((*SUPPORTED_MODEL_TYPES, *TEXT_TOWERS))
    caught.match(rf"has the architecture .*{reason}; supported are {served}$")


def test_no_reason_is_given_against_a_family_that_is_served() -> None:
    assert not NOT_SERVED.keys() & SUPPORTED_MODEL_TYPES.keys()


def test_every_type_that_transformers_generates_text_with_is_served_or_has_a_reason() -> None:
    served = {*SUPPORTED_MODEL_TYPES, *TEXT_TOWERS}
    assert {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} <= served | NOT_SERVED.keys()


def test_no_reason_is_given_twice_and_none_for_a_tower() -> None:
    assert not NOT_SERVED.keys() & TEXT_TOWERS.keys()
    assert all(NOT_SERVED.values())


def test_a_model_that_does_not_generate(tmp_path: Path) -> None:
    folder = edit_config(save_checkpoint(tmp_path), architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UnsupportedArchitectureError, match="LlamaForSequenceClassification, which does not generate"):
        load(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "hqq", "quanto"])
def test_quantised_weights_of_another_tool(tmp_path: Path, method: str) -> None:
    folder = edit_config(save_checkpoint(tmp_path), quantization_config={"quant_method": method, "bits": 4})
    message = rf"quantised with {method} \(quantization_config in config.json\); use the original weights or a .gguf"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("gptq", {"bits": 4}),
        ("awq", {"bits": 4}),
        ("fp8", {}),
        ("compressed-tensors", {"format": "int-quantized", "config_groups": {"a": {"weights": {"num_bits": 8}}}}),
    ],
)
def test_a_quantisation_that_is_read_and_in_which_nothing_is_stored(
    tmp_path: Path, method: str, more: dict[str, Any]
) -> None:
    folder = edit_config(save_checkpoint(tmp_path), quantization_config={"quant_method": method, **more})
    message = rf"quantised with {method} \(says config.json, but no weight is stored so\); use the original"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("llama", {"hidden_act": "xielu"}, r"the activation 'xielu'; supported are silu, "),
        ("gpt2", {"activation_function": "mish"}, r"the activation 'mish'; supported are silu, "),
        ("qwen3_5_text", {"hidden_act": "mish"}, r"the activation 'mish'; supported are silu, "),
        ("granitemoehybrid", {"hidden_act": "mish"}, r"the activation 'mish'; supported are silu, "),
        ("jamba", {"hidden_act": "mish"}, r"the activation 'mish'; supported are silu, "),
        ("nemotron_h", {"mamba_hidden_act": "mish"}, r"the activation 'mish'; supported are silu, "),
        ("gpt2", {"add_cross_attention": True}, "attends to an encoder; supported are decoders alone"),
        ("gemma", {"use_bidirectional_attention": True}, "attends in both directions; supported is causal attention"),
        (
            "qwen3",
            {"layer_types": ["full_attention", "chunked_attention"]},
            "layers of type 'chunked_attention'; supported are full_attention and sliding_attention",
        ),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before False; supported is True"),
        ("opt", {"word_embed_proj_dim": 7}, "word_embed_proj_dim 7; supported is "),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine False; supported is True"),
    ],
)
def test_a_setting_that_would_change_the_computation(
    tmp_path: Path, architecture: str, changes: dict[str, Any], message: str
) -> None:
    folder = edit_config(save_checkpoint(tmp_path, tiny_model(architecture)), **changes)
    with pytest.raises(UnsupportedArchitectureError, match=f"{message}.*; choose another model$"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"multi_query": False, "num_kv_heads": 3},
            "with num_kv_heads 3 and num_attention_heads 6",
        ),
        ({"num_ln_in_parallel_attn": 2}, "of the old architecture with num_ln_in_parallel_attn 2"),
    ],
)
def test_a_falcon_of_the_old_architecture_with_parts_of_the_new(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=f"{message}.*; choose another model$"):
        check_architecture("m", tiny_config("falcon", **changes))


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        (
            "bamba",
            {"time_step_limit": (0.0, 0.1)},
            r"recurrent layers \(time_step_limit \(0.0, 0.1\)\)",
        ),
        ("bamba", {"attn_layer_indices": []}, "has no layer with attention"),
        (
            "nemotron_h",
            {"time_step_limit": (0.0, 0.1)},
            r"recurrent layers \(time_step_limit \(0.0, 0.1\)\)",
        ),
        (
            "nemotron_h",
            {"moe_latent_size": 16},
            r"narrower product of the token \(moe_latent_size 16\)",
        ),
        ("nemotron_h", {"layers_block_type": ["linear_attention", "mlp"]}, "has no layer with attention"),
        ("nemotron_h", {"mlp_hidden_act": "mish"}, "the activation 'mish'"),
        ("jamba", {"attn_layer_period": 9, "attn_layer_offset": 8}, "4 layers, 0 of them full_attention"),
        (
            "dbrx",
            {"ffn_config": {"moe_num_experts": 6, "moe_top_k": 2, "moe_normalize_expert_weights": 2.0}},
            "moe_normalize_expert_weights 2.0; supported are 1, the sum of the weights, and null",
        ),
        ("dbrx", {"attn_config": {"kv_n_heads": 2}}, "no rope_theta in its attn_config"),
        (
            "dbrx",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "of the type 'linear'",
        ),
        ("jamba", {"num_experts_per_tok": 7}, "chooses 7 of 6 experts"),
        ("nemotron_h", {"mamba_hidden_act": "mish"}, "the activation 'mish'"),
    ],
)
def test_a_hybrid_with_parts_that_are_not_computed(architecture: str, changes: dict[str, Any], message: str) -> None:
    if architecture not in CONFIG_MAPPING or TRANSFORMERS_MAJOR < 5:
        pytest.skip("served with transformers 5 alone")
    with pytest.raises(UnsupportedArchitectureError, match=f"{message}.*; choose another model$"):
        check_architecture("m", tiny_config(architecture, **changes))


@pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="latent attention is served with transformers 5")
@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        (
            "minicpm3",
            {"num_key_value_heads": 2},
            "latent attention, num_key_value_heads 2 and num_attention_heads 6",
        ),
        ("minicpm3", {"kv_lora_rank": 0}, "kv_lora_rank 0, which must be a whole number above zero"),
        (
            "youtu",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor 0.5 of qk_rope_head_dim; supported is 1",
        ),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob True; supported is False"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "'noaux_tc'; supported is 'greedy' or 'group_limited_greedy'"),
        ("deepseek_v2", {"topk_method": None}, "topk_method None; supported is 'greedy' or 'group_limited_greedy'"),
        ("deepseek_v2", {"moe_layer_freq": 2}, "moe_layer_freq 2; supported is 1"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func 'softmax'; supported is 'sigmoid'"),
        ("deepseek_v3", {"first_k_dense_replace": None}, "first_k_dense_replace None, which must be a whole number"),
        ("glm4_moe_lite", {"mlp_layer_types": ["sparse"]}, "mlp_layer_types that do not say of each layer whether"),
    ],
)
def test_latent_attention_of_other_kinds(architecture: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=f"{message}.*; choose another model$"):
        check_architecture("m", tiny_config(architecture, **changes))


@pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="Gemma 4 is served with transformers 5")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_shared_layers": 4}, "num_kv_shared_layers 4 of 4 layers"),
        ({"num_kv_shared_layers": 3}, "num_kv_shared_layers 3 and before them no layer of type 'full_attention'"),
        ({"vocab_size_per_layer_input": 5}, "vocab_size_per_layer_input 5, less than its vocab_size 35"),
        ({"per_layer_config": {1: {"head_dim": 16, "sliding_window": 3}}}, "sets 'sliding_window' by layer"),
        ({"per_layer_config": {1: {"head_dim": 16}}}, "num_kv_shared_layers 2, and heads of another size in layer 3"),
        ({"global_head_dim": 0}, "in layer 1 num_key_value_heads 2 and head_dim 0"),
        (
            {"attention_k_eq_v": True, "num_global_key_value_heads": 4},
            "in layer 1 num_key_value_heads 4 and head_dim 16",
        ),
        ({"use_bidirectional_attention": "all"}, "attends in both directions"),
    ],
)
def test_a_gemma_4_whose_layers_do_not_fit_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=f"{message}.*; choose another model$"):
        check_architecture("m", tiny_config("gemma4_text", **changes))


@pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="Gemma 4 is served with transformers 5")
def test_keys_that_a_gemma_4_checkpoint_holds_and_nobody_reads(tmp_path: Path) -> None:
    model = tiny_model("gemma4_text")
    expected = reference_logits(model)

    def add(weights: dict[str, torch.Tensor], layer: int) -> None:
        weights[f"model.layers.{layer}.self_attn.k_proj.bias"] = torch.ones(16)
        weights[f"model.layers.{layer}.self_attn.v_proj.bias"] = torch.ones(16)

    folder = edit_weights(save_checkpoint(tmp_path, model), lambda weights: add(weights, 2))
    torch.testing.assert_close(decoder_logits(load(folder).target.decoder), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UnsupportedArchitectureError, match="2 weights that its architecture does not use"):
        load(edit_weights(folder, lambda weights: add(weights, 1)))


def test_an_unknown_scaling_of_positions(tmp_path: Path) -> None:
    rope = {"rope_theta": 10000.0, "rope_type": "mrope", "mrope_section": [1, 1, 2]}
    folder = edit_config(save_checkpoint(tmp_path), rope_parameters=rope, rope_scaling=rope)
    with pytest.raises(UnsupportedArchitectureError, match="scales its positions with 'mrope'; supported are default"):
        load(folder)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activations_name_means_what_transformers_means(name: str) -> None:
    values = torch.linspace(-12, 12, 4001)
    theirs = ACT2FN[name](values)
    assert torch.allclose(ACTIVATIONS[name](values), theirs, atol=2e-6, rtol=2e-6)


def test_the_activations_are_told_apart() -> None:
    values = torch.linspace(-3, 3, 100)
    exact, approximate = ACTIVATIONS["gelu"](values), ACTIVATIONS["gelu_new"](values)
    assert (exact - approximate).abs().max() > 1e-4
