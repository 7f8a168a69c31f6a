"""An adapter's directory: read as PEFT reads it, or refused with the reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helix_jobs.engine.loading.model_adapters import check_adapters
from helix_jobs.engine.loading.peft_adapter import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from helix_jobs.errors import ModelError, ModelNotFoundError, UnsupportedArchitectureError
from tests.unit.engine.adapters import ATTENTION, EVERYTHING, peft_model, save_adapter, wrapped
from tests.unit.engine.tiny_models import tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODEL = tiny_model(seed=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "sql", peft_model(MODEL, target_modules=EVERYTHING))


def edit(folder: Path, **changes: Any) -> Path:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    weights = load_file(folder / WEIGHTS_FILE)
    change(weights)
    save_file(weights, folder / WEIGHTS_FILE)
    return folder


def scales(made: Any) -> dict[str, tuple[int, float]]:
    """PEFT's own ranks and scales, by the names of modules as Helix shortens them."""
    return {
        name.removeprefix("base_model.model.model."): (module.r["default"], module.scaling["default"])
        for name, module in made.named_modules()
        if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": EVERYTHING},
        {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
        {"target_modules": r".*\.layers\.1\..*_proj", "exclude_modules": r".*k_proj"},
        {"target_modules": ATTENTION, "use_rslora": True, "r": 5},
        {"target_modules": ATTENTION, "layers_to_transform": 1},
        {"target_modules": ATTENTION, "layers_to_transform": [0], "layers_pattern": "layers"},
        {"target_modules": EVERYTHING, "rank_pattern": {"q_proj": 2, r"layers\.1\..*up_proj": 3}},
        {"target_modules": EVERYTHING, "alpha_pattern": {"model.layers.0.mlp.up_proj": 5, "_proj": 1}},
        {"target_modules": ["o_proj"], "rank_pattern": {r"^model\.layers\.1\..*": 6}, "use_rslora": True},
        {"target_modules": ["model.layers.1.self_attn.q_proj", "v_proj"]},
    ],
    ids=str,
)
def test_modules_ranks_and_scales_are_those_of_peft(settings: dict[str, Any], tmp_path: Path) -> None:
    made = peft_model(MODEL, **settings)
    read = read_adapter("sql", save_adapter(tmp_path, made))
    assert {name: (pair.rank, pair.scale) for name, pair in read.adapter.pairs.items()} == scales(made)
    assert check_adapters("tiny", MODEL.config, [read]) > 0


def test_the_digest_tells_files_apart_and_not_names(folder: Path, tmp_path: Path) -> None:
    other = save_adapter(tmp_path / "other", peft_model(MODEL, 2, target_modules=EVERYTHING))
    first, again, second = read_adapter("a", folder), read_adapter("b", folder), read_adapter("a", other)
    assert first.adapter.digest == again.adapter.digest != second.adapter.digest
    edit(folder, lora_alpha=99)
    assert read_adapter("a", folder).adapter.digest != first.adapter.digest


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "is a DoRA adapter"),
        ({"bias": "all"}, "changes biases of the model"),
        ({"lora_bias": True}, "has biases of its own"),
        ({"modules_to_save": ["lm_head"]}, "replaces whole modules"),
        ({"trainable_token_indices": [1]}, "changes the embeddings of tokens"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "repeats layers"),
        ({"alora_invocation_tokens": [3]}, "in the middle of a prompt"),
        ({"init_lora_weights": "pissa"}, "beside changed weights of the model"),
        ({"init_lora_weights": "olora"}, "beside changed weights of the model"),
        ({"peft_type": "IA3"}, "is of the type 'IA3'; supported is LORA"),
        ({"peft_type": None}, "is of the type None"),
        ({"use_of_tomorrow": True}, "has the setting use_of_tomorrow, which Helix does not know"),
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_with_its_reason(folder: Path, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=f"adapter sql .*{reason}"):
        read_adapter("sql", edit(folder, **settings))


def test_settings_of_tomorrow_that_ask_for_nothing_are_accepted(folder: Path) -> None:
    assert read_adapter("sql", edit(folder, use_of_tomorrow=False, other_of_tomorrow=None)).adapter.pairs


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"target_modules": ["embed_tokens", "q_proj"]}, "changes the embedding or the output head"),
        ({"target_modules": ["q_proj"], "use_dora": True}, "DoRA"),
        ({"target_modules": ["q_proj"], "lora_bias": True}, "has biases of its own"),
    ],
)
def test_tensors_of_other_kinds_are_refused_whatever_the_settings_say(
    made: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = save_adapter(tmp_path, peft_model(tiny_model(seed=3, attention_bias=True), **made))
    edit(folder, use_dora=False, lora_bias=False)
    with pytest.raises(UnsupportedArchitectureError, match=reason):
        read_adapter("sql", folder)


def test_experts_and_routers_are_refused(tmp_path: Path) -> None:
    model = tiny_model("qwen2_moe", seed=3)
    made = wrapped(tiny_model("qwen2_moe"), target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    folder = save_adapter(tmp_path / "experts", made)
    with pytest.raises(UnsupportedArchitectureError, match=r"adapter sql changes experts .*takes no adapter; merge it"):
        read_adapter("sql", folder)
    folder = save_adapter(tmp_path / "gate", peft_model(model, target_modules=["shared_expert_gate"]))
    with pytest.raises(UnsupportedArchitectureError, match=r"changes layers\.0\.mlp\.shared_expert_gate, which Helix"):
        check_adapters("tiny", model.config, [read_adapter("sql", folder)])


def test_the_matrices_of_latents_are_refused(tmp_path: Path) -> None:
    model = tiny_model("minicpm3", seed=3)
    folder = save_adapter(tmp_path, peft_model(model, target_modules=["kv_b_proj"]))
    with pytest.raises(UnsupportedArchitectureError, match=r"kv_b_proj, which Helix computes in a form that takes no"):
        check_adapters("tiny", model.config, [read_adapter("sql", folder)])


def test_the_output_head_is_refused(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path, peft_model(MODEL, target_modules=["lm_head"]))
    with pytest.raises(UnsupportedArchitectureError, match="changes the embedding or the output head"):
        read_adapter("sql", folder)
    edit_weights(folder, lambda all_of: all_of.pop("base_model.model.lm_head.base_layer.weight"))
    with pytest.raises(UnsupportedArchitectureError, match="changes lm_head, which Helix computes"):
        check_adapters("tiny", MODEL.config, [read_adapter("sql", folder)])


def test_an_adapter_of_another_model_is_refused(folder: Path) -> None:
    read = [read_adapter("sql", folder)]
    with pytest.raises(ModelError, match="from 80 inputs to 48 outputs, and that of model big has 80 and 96"):
        check_adapters("big", tiny_model(hidden_size=96).config, read)
    with pytest.raises(ModelError, match=r"layers\.1\..*, and model small has no such linear layer"):
        check_adapters("small", tiny_model(num_hidden_layers=1).config, read)
    with pytest.raises(ModelError, match="model gpt2 has no such linear layer"):
        check_adapters("gpt2", tiny_model("gpt2").config, read)


def test_missing_weights_are_refused(folder: Path) -> None:
    def leave_out(layer: dict[str, torch.Tensor]) -> None:
        for side in "AB":
            del layer[f"base_model.model.model.layers.1.self_attn.v_proj.lora_{side}.weight"]

    read = read_adapter("sql", edit_weights(folder, leave_out))
    with pytest.raises(ModelError, match=r"lacks the weights of 1 modules .*model\.layers\.1\.self_attn\.v_proj"):
        check_adapters("tiny", MODEL.config, [read])


def test_one_matrix_alone_is_refused(folder: Path) -> None:
    edit_weights(folder, lambda all_of: all_of.pop("base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"))
    with pytest.raises(ModelError, match=r"lacks one of the matrices of model\.layers\.1\.self_attn\.v_proj"):
        read_adapter("sql", folder)


def test_weights_that_the_settings_do_not_name_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"which its adapter_config\.json does not name"):
        read_adapter("sql", edit(folder, target_modules=["q_proj"]))


def test_a_rank_that_is_not_the_weights_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"and its adapter_config\.json says rank 8"):
        read_adapter("sql", edit(folder, r=8))


@pytest.mark.parametrize(
    "changes",
    [
        {"r": "4"},
        {"r": 0},
        {"lora_alpha": None},
        {"rank_pattern": ["q_proj"]},
        {"rank_pattern": {"(": 3}},
        {"target_modules": None},
        {"target_modules": "("},
        {"layers_to_transform": ["x"]},
        {"alpha_pattern": {"q_proj": "x"}},
    ],
    ids=str,
)
def test_damaged_settings_are_refused(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="adapter sql"):
        read_adapter("sql", edit(folder, **changes))


def test_damaged_files_are_refused(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes(b"no weights")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        read_adapter("sql", folder)
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")
    with pytest.raises(ModelNotFoundError, match=r"has only adapter_model\.bin, a pickle"):
        read_adapter("sql", folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ModelNotFoundError, match=r"has no adapter_model\.safetensors"):
        read_adapter("sql", folder)
    (folder / CONFIG_FILE).write_text("{")
    with pytest.raises(ModelError, match="is no JSON object"):
        read_adapter("sql", folder)
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(ModelNotFoundError, match="give the directory that save_pretrained of peft made"):
        read_adapter("sql", folder)


def test_a_vision_model_s_adapter_serves_its_language_model(folder: Path) -> None:
    """Under the names of the whole model; what changes the part that reads images is left out."""

    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[name.replace("model.model.layers", "model.model.language_model.layers")] = weights.pop(name)
        weights["base_model.model.model.visual.q_proj.lora_A.weight"] = torch.zeros(4, 9)
        weights["base_model.model.model.visual.q_proj.lora_B.weight"] = torch.zeros(9, 4)

    plain = read_adapter("sql", folder).adapter.pairs.keys()
    read = read_adapter("sql", edit_weights(folder, rename))
    assert read.adapter.pairs.keys() == plain
    assert check_adapters("tiny", MODEL.config, [read]) > 0
