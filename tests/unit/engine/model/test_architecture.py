"""What the engine would not compute exactly is refused by name, or served up to where it would begin to differ."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import CONFIG_MAPPING
from transformers.activations import ACT2FN

from helix_jobs.engine.config import CacheConfig, EngineConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.model.activations import ACTIVATIONS
from helix_jobs.engine.model.architecture import SUPPORTED_MODEL_TYPES, check_architecture
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.families.registry import describe
from helix_jobs.engine.model.not_served import NOT_SERVED
from helix_jobs.engine.model.text_tower import TEXT_TOWERS
from helix_jobs.errors import ModelError, UnsupportedArchitectureError
from tests.unit.engine.model_files import edit_config, edit_weights, load, save_checkpoint
from tests.unit.engine.tiny_models import VOCAB_SIZE, decoder_logits, reference_logits, request, tiny_config, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gemma3n", r" \(sliding windows and shared keys\)"),
        ("llama4_text", r" \(chunked attention and experts\)"),
        ("deepseek_v32", r" \(latent attention to keys that an index chooses\)"),
        ("mamba", r" \(recurrent state instead of attention\)"),
        ("phimoe", r" \(experts chosen by a sparse mixer\)"),
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


WINDOWS = [
    ("mistral", {"sliding_window": 20}),
    ("phi3", {"sliding_window": 20}),
    # These two layer settings have no meaning for Mistral: every layer has the window.
    ("mistral", {"sliding_window": 20, "use_sliding_window": False}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 0}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "layer_types": ["sliding_attention"] * 2}),
]


SLIDING_LAYERS = {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}


@pytest.mark.parametrize(("architecture", "settings"), WINDOWS)
def test_a_windowed_model_is_served_beyond_its_window(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: str, settings: dict[str, Any]
) -> None:
    caplog.set_level("INFO", logger="helix_jobs")
    model = tiny_model(architecture, seed=3, **settings)
    models = load(save_checkpoint(tmp_path, model), "int8")
    assert models.max_context == 256
    assert "ends there" not in caplog.text
    engine = Engine(models, EngineConfig(), CacheConfig(num_blocks=60, block_size=4))
    prompts = [[(7 * i + n) % (VOCAB_SIZE - 1) + 1 for i in range(n)] for n in (15, 59)]
    results = engine.generate(request(str(len(prompt)), prompt, max_tokens=30, ignore_eos=True) for prompt in prompts)
    for prompt, result in zip(prompts, results, strict=True):
        assert result.completion_tokens == 30
        logits = reference_logits(model, [*prompt, *result.output_token_ids])
        assert result.output_token_ids == tuple(logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist())


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("mistral", {"sliding_window": 256}),
        ("mistral", {"sliding_window": 4096}),
        ("mixtral", {"sliding_window": 256}),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 256}),
        *((family, {**SLIDING_LAYERS, "sliding_window": 256}) for family in ("dots1", "gpt_oss", "qwen2_moe")),
        ("llama", {"sliding_window": 60}),  # no module of it reads the setting
        ("qwen2", {"use_sliding_window": False, "sliding_window": 60}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 60, "max_window_layers": 2}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 60, "layer_types": ["full_attention"] * 2}),
    ],
)
def test_a_window_without_effect_costs_nothing(architecture: str, settings: dict[str, Any]) -> None:
    description = describe(tiny_config(architecture, **settings))
    assert all(layer.attention.window is None for layer in description.layers)


@pytest.mark.parametrize("architecture", ["dots1", "gpt_oss", "ministral", "qwen2_moe"])
def test_layers_with_a_window_of_no_length(architecture: str) -> None:
    config = tiny_config(architecture, **SLIDING_LAYERS)
    config.sliding_window = None
    with pytest.raises(UnsupportedArchitectureError, match="layers of type 'sliding_attention' and no sliding_window"):
        check_architecture("m", config)


def test_long_rotary_scaling_is_served_to_the_end_of_the_context(tmp_path: Path) -> None:
    rope = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0, 5.0, 6.0, 7.0]}
    model = tiny_model("phi3", original_max_position_embeddings=64, sliding_window=128, rope_scaling=rope)
    models = load(save_checkpoint(tmp_path, model))
    assert models.max_context == 256
    assert models.target.decoder.attention.spec.original_context == 64


def test_a_long_rotary_scaling_that_is_never_reached() -> None:
    rope = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0, 5.0, 6.0, 7.0]}
    model = tiny_model("phi3", original_max_position_embeddings=256, rope_scaling=rope)
    assert build_decoder(model).attention.spec.original_context is None


@pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="OLMo 3 is served with transformers 5")
def test_layers_of_several_original_contexts() -> None:
    config = tiny_config("olmo3")
    config.rope_parameters = {
        kind: {**LONGROPE, "original_max_position_embeddings": length}
        for kind, length in (("full_attention", 64), ("sliding_attention", 32))
    }
    with pytest.raises(UnsupportedArchitectureError, match="has several original contexts"):
        check_architecture("m", config)


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        *((family, {"sliding_window": value}, "sliding_window") for family in ("mistral", "phi3") for value in (0, -5)),
        *(("qwen2", {**SLIDING_LAYERS, "sliding_window": value}, "sliding_window") for value in (0, -5)),
        *(
            ("phi3", {"original_max_position_embeddings": value, "rope_parameters": LONGROPE}, "original_max_position")
            for value in (0, -5)
        ),
        *(("llama", {"rope_parameters": {**LLAMA3, "rope_theta": x}}, "rope_theta") for x in (0.0, -1.0, math.nan)),
        *(("llama", {"rope_parameters": {**LLAMA3, "factor": x}}, "factor") for x in (0.0, -8.0, math.nan, math.inf)),
        *(("llama", {"rope_parameters": {**LLAMA3, "low_freq_factor": x}}, "low_freq") for x in (-1.0, math.nan, True)),
        ("llama", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 0}}, "original_max_position"),
        ("phi3", {"rope_parameters": {**LONGROPE, "short_factor": [1.0, 1.0, 0.0, 1.0]}}, "short_factor"),
        ("llama", {"head_dim": 7}, "head_dim 7 and rotates 7 of it, an odd number"),
    ],
)
def test_a_number_that_no_rotation_and_no_window_has(architecture: str, changes: dict[str, Any], message: str) -> None:
    config = tiny_config(architecture)
    for key, value in changes.items():
        setattr(config, "rope_scaling" if key == "rope_parameters" and TRANSFORMERS_MAJOR < 5 else key, value)
    with pytest.raises(ModelError, match=f"its configuration says {message}"):
        check_architecture("m", config)


@pytest.mark.parametrize(("factor", "rotated"), [(0.4, 6), (0.2, 3)])
def test_of_heads_that_are_rotated_in_part_that_part_is_even(factor: float, rotated: int) -> None:
    config = tiny_config("gpt_neox", hidden_size=90, num_attention_heads=6, head_dim=15)
    for key in ("partial_rotary_factor", "rotary_pct"):
        setattr(config, key, factor)
    if TRANSFORMERS_MAJOR >= 5:
        config.rope_parameters = {**config.rope_parameters, "partial_rotary_factor": factor}
    if rotated % 2 == 0:
        check_architecture("m", config)
        return
    with pytest.raises(ModelError, match=f"rotates {rotated} of it, an odd number"):
        check_architecture("m", config)


def test_a_window_that_is_turned_off_may_be_any_number() -> None:
    check_architecture("m", tiny_config("qwen2", use_sliding_window=False, sliding_window=0))


@pytest.mark.parametrize(
    ("name", "architecture", "settings", "context"),
    [
        ("Mistral-7B-v0.1", "mistral", {"max_position_embeddings": 32768, "sliding_window": 4096}, 32768),
        ("Mistral-7B-v0.3", "mistral", {"max_position_embeddings": 32768, "sliding_window": None}, 32768),
        ("Phi-3-mini-4k", "phi3", {"max_position_embeddings": 4096, "sliding_window": 2047}, 4096),
        (
            "Phi-3.5-mini",
            "phi3",
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "sliding_window": 262144,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
            },
            131072,
        ),
        (
            "Qwen2.5-7B",
            "qwen2",
            {"max_position_embeddings": 32768, "sliding_window": 131072, "use_sliding_window": False},
            32768,
        ),
        ("gpt2", "gpt2", {"max_position_embeddings": 1024}, 1024),
    ],
)
def test_how_far_known_models_are_served(name: str, architecture: str, settings: dict[str, Any], context: int) -> None:
    config = tiny_config(architecture, **settings)
    check_architecture(name, config)
    assert config.max_position_embeddings == context
