"""Experts in checkpoints: stored one by one, in MXFP4 blocks, and with layers behind the last."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from helix_jobs.engine.loading.checkpoint import find_local_checkpoint
from helix_jobs.engine.loading.expert_tensors import with_plain_experts, with_stacked_experts
from helix_jobs.engine.loading.stored_tensor import StoredTensor
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.packed_linear import PackedLinear
from helix_jobs.errors import ModelError, UnsupportedArchitectureError
from tests.unit.engine.model_files import edit_config, edit_weights, load, save_checkpoint
from tests.unit.engine.tiny_models import copy_of, decoder_logits, reference_logits, roughen, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def matrices(count: int, parts: tuple[str, ...] = ("gate_proj", "up_proj")) -> dict[str, StoredTensor]:
    return {
        f"layers.0.mlp.experts.{index}.{part}.weight": StoredTensor("BF16", (5, 3))
        for index in range(count)
        for part in parts
    }


def test_experts_stored_one_by_one_are_one_tensor() -> None:
    there = {**matrices(4), **matrices(4, ("down_proj",)), "norm.weight": StoredTensor("BF16", (3,))}
    assert with_stacked_experts("m", there) == {
        "layers.0.mlp.experts.gate_up_proj": StoredTensor("BF16", (4, 10, 3), is_merged=True),
        "layers.0.mlp.experts.down_proj": StoredTensor("BF16", (4, 5, 3), is_merged=True),
        "norm.weight": StoredTensor("BF16", (3,)),
    }


def test_experts_without_gates_are_one_tensor() -> None:
    there = {**matrices(3, ("up_proj",)), **matrices(3, ("down_proj",))}
    assert with_stacked_experts("m", there) == {
        "layers.0.mlp.experts.up_proj": StoredTensor("BF16", (3, 5, 3), is_merged=True),
        "layers.0.mlp.experts.down_proj": StoredTensor("BF16", (3, 5, 3), is_merged=True),
    }
    del there["layers.0.mlp.experts.1.up_proj.weight"]
    with pytest.raises(ModelError, match="lacks some of the experts' weights"):
        with_stacked_experts("m", there)


@pytest.mark.parametrize("lost", range(0, 8, 3))
def test_a_lost_expert_is_missed(lost: int) -> None:
    there = matrices(4)
    del there[list(there)[lost]]
    with pytest.raises(ModelError, match="lacks some of the experts' weights"):
        with_stacked_experts("m", there)


def test_a_number_as_no_model_has_it_takes_no_memory() -> None:
    with pytest.raises(ModelError, match="of 999999999 experts"):
        with_stacked_experts("m", {"a.experts.999999998.w1.weight": StoredTensor("F32", (5, 3))})


def test_an_expert_of_another_shape_is_refused() -> None:
    there = {**matrices(2), "layers.0.mlp.experts.1.up_proj.weight": StoredTensor("BF16", (6, 3))}
    with pytest.raises(ModelError, match=r"shape \[6, 3\] and that of another expert \[5, 3\]"):
        with_stacked_experts("m", there)


@pytest.mark.parametrize("blocks", [(6, 64, 2, 8), (6, 64, 3, 16), (64, 2, 16), ()])
def test_blocks_of_another_shape_are_refused(blocks: tuple[int, ...]) -> None:
    there = {
        "mlp.experts.down_proj_scales": StoredTensor("U8", (6, 64, 2)),
        **({"mlp.experts.down_proj_blocks": StoredTensor("U8", blocks)} if blocks else {}),
    }
    with pytest.raises(ModelError, match="do not belong together"):
        with_plain_experts("m", there)


def test_a_checkpoint_without_one_expert_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, tiny_model("mixtral"))
    edit_weights(folder, lambda weights: weights.pop("model.layers.1.block_sparse_moe.experts.2.w3.weight"))
    with pytest.raises(ModelError, match="lacks some of the experts' weights"):
        load(folder)


def test_layers_behind_the_last_are_left_out(tmp_path: Path) -> None:
    """GLM-4.5's checkpoints hold a layer that predicts two tokens ahead."""
    model = roughen(tiny_model("glm4_moe", num_nextn_predict_layers=1))
    folder = save_checkpoint(tmp_path, model)

    def add(weights: dict[str, torch.Tensor]) -> None:
        ahead = {name: weight for name, weight in weights.items() if ".layers.1." in name}
        weights.update({name.replace(".layers.1.", ".layers.2."): weight.clone() for name, weight in ahead.items()})
        weights["model.layers.2.eh_proj.weight"] = torch.zeros(48, 96)

    edit_weights(folder, add)
    models = load(folder)
    assert torch.allclose(decoder_logits(models.target.decoder), reference_logits(model), atol=1e-3)
    with pytest.raises(ModelError, match="says 2 layers and its files have 3"):
        load(edit_config(folder, num_nextn_predict_layers=0))


def test_experts_of_a_head_for_drafts_are_left_out(tmp_path: Path) -> None:
    """Qwen3-Next's checkpoints hold a layer that predicts two tokens ahead, experts and all, under names of its own."""
    model = roughen(tiny_model("qwen3_next", initializer_range=0.2))
    folder = save_checkpoint(tmp_path, model)

    def add(weights: dict[str, torch.Tensor]) -> None:
        layer = {name: weight for name, weight in weights.items() if ".layers.1." in name}
        weights.update({name.replace("model.layers.1.", "mtp.layers.0."): one.clone() for name, one in layer.items()})
        weights["mtp.fc.weight"] = torch.zeros(48, 96)

    models = load(edit_weights(folder, add))
    assert torch.allclose(decoder_logits(models.target.decoder), reference_logits(model), atol=1e-3)


def test_heads_are_rotated_as_the_model_was_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """DBRX's files say so in attn_config, which transformers does not read for it."""
    rope = {"rope_type": "default", "rope_theta": 500.0}
    own = {"kv_n_heads": 2, "clip_qkv": 3.0, "rope_theta": 500.0}
    model = roughen(tiny_model("dbrx", attn_config=own, rope_parameters=rope))
    folder = save_checkpoint(tmp_path, model)
    assert torch.allclose(decoder_logits(load(folder).target.decoder), reference_logits(model), atol=1e-3)
    assert "rotates heads" not in caplog.text
    edit_config(folder, rope_parameters=None)
    assert torch.allclose(decoder_logits(load(folder).target.decoder), reference_logits(model), atol=1e-3)
    assert "transformers rotates heads by 10000 (rope_parameters), and Helix by 500" in caplog.text


@pytest.fixture
def nemotron(tmp_path: Path) -> tuple[Any, Path]:
    model = roughen(tiny_model("nemotron_h"))
    return model, save_checkpoint(tmp_path, model)


@pytest.mark.parametrize(
    "said",
    [
        {"hybrid_override_pattern": "MEM*-"},
        {"layer_types": ["linear_attention", "moe", "linear_attention", "full_attention", "mlp"]},
        {
            "layers_block_type": ["linear_attention", "moe", "linear_attention", "full_attention", "mlp"],
            "num_hidden_layers": 52,
        },
    ],
    ids="+".join,
)
def test_layers_are_those_of_the_list_that_names_them(nemotron: tuple[Any, Path], said: dict[str, Any]) -> None:
    """By letters in Nemotron-H's first files, which call the model a backbone; beside a count that is out of date."""
    model, folder = nemotron
    assert all(name.startswith(("backbone.", "lm_head.")) for name in load_file(folder / "model.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("layers_block_type", "num_hidden_layers")}
    (folder / "config.json").write_text(json.dumps({**config, **said}))
    found = decoder_logits(load(folder).target.decoder)
    assert torch.allclose(found, reference_logits(model), atol=1e-3)
    (key, layers), *_ = said.items()
    longer = layers + "M" if isinstance(layers, str) else [*layers, "linear_attention"]
    with pytest.raises(ModelError, match="says 6 layers and its files have 5"):
        load(edit_config(folder, **{key: longer}))


def test_time_steps_that_transformers_raises_are_spoken_of(
    nemotron: tuple[Any, Path], caplog: pytest.LogCaptureFixture
) -> None:
    load(nemotron[1])
    assert "transformers raises the time steps of a prompt to 0.001" in caplog.text
    caplog.clear()
    load(edit_config(nemotron[1], time_step_min=0.0))
    assert "time steps" not in caplog.text


def test_convolutions_stored_in_parts_are_one(tmp_path: Path) -> None:
    """As OLMo Hybrid's checkpoints have those of queries, keys and values."""
    model = roughen(tiny_model("olmo_hybrid"))
    folder = save_checkpoint(tmp_path, model)
    own, parts = "model.layers.0.linear_attn.conv1d.weight", ("q_conv1d", "k_conv1d", "v_conv1d")
    names = [own.replace("conv1d", part) for part in parts]
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(torch.cat([stored[name] for name in names]), model.get_parameter(own))
    assert torch.allclose(decoder_logits(load(folder).target.decoder), reference_logits(model), atol=1e-3)
    edit_weights(folder, lambda weights: weights.pop(names[1]))
    with pytest.raises(ModelError, match=r"of model.layers.0.linear_attn. do not fit together, or one is missing"):
        load(folder)


def in_blocks(weights: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> None:
    """Store random experts in MXFP4 blocks; ``plain`` receives their numbers."""
    generator = torch.Generator().manual_seed(4)
    for name in [name for name in weights if re.search(r"experts\.(gate_up|down)_proj$", name)]:
        count, columns, rows = weights.pop(name).shape
        blocks = torch.randint(0, 256, (count, rows, columns // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(122, 126, (count, rows, columns // 32), dtype=torch.uint8, generator=generator)
        weights[f"{name}_blocks"], weights[f"{name}_scales"] = blocks, scales
        # The lower half of a byte is the earlier number.
        numbers = torch.stack((FP4[(blocks & 15).long()], FP4[(blocks >> 4).long()]), dim=-1).flatten(-2)
        exact = numbers * torch.exp2(scales.float() - 127)[..., None]
        plain[name] = exact.flatten(-2).transpose(1, 2)


@pytest.fixture
def gpt_oss() -> Any:
    return roughen(tiny_model("gpt_oss", seed=3, hidden_size=64, intermediate_size=64, num_attention_heads=8))


def test_mxfp4_blocks_are_read_exactly(tmp_path: Path, gpt_oss: Any) -> None:
    plain: dict[str, torch.Tensor] = {}
    folder = edit_weights(save_checkpoint(tmp_path, gpt_oss), lambda weights: in_blocks(weights, plain))
    edit_config(folder, quantization_config={"quant_method": "mxfp4"})
    expected = copy_of(gpt_oss)
    for name, numbers in plain.items():
        expected.get_parameter(name).copy_(numbers)
    theirs = reference_logits(expected)
    for dtype, form in (("float32", DenseLinear), ("packed", PackedLinear)):
        decoder = load(folder, dtype=dtype).target.decoder
        linears = [linear for layer in decoder.layers for linear in layer.feed_forward.linears()]
        assert all(isinstance(linear, form) for linear in linears)
        if decoder.dtype is torch.float32:  # rounding may change the choice of experts
            assert torch.allclose(decoder_logits(decoder), theirs, atol=1e-4 * float(theirs.abs().max()))
    found = find_local_checkpoint(str(folder), tmp_path)
    assert found is not None
    blocks = found.blocks
    assert blocks.weights == sum(numbers.numel() for numbers in plain.values())
    assert blocks.nbytes == sum(part.nbytes for linear in linears for part in linear.parts)
    assert blocks.nbytes == blocks.weights * 17 // 32


@pytest.mark.parametrize(
    ("change", "settings", "reason"),
    [
        (None, {"quantization_config": {"quant_method": "fp8"}}, "is quantised with fp8"),
        (None, {}, "is quantised with a method that stores U8"),
        (
            lambda weights: weights.pop("model.layers.0.mlp.experts.down_proj_scales"),
            {"quantization_config": {"quant_method": "mxfp4"}},
            "do not belong together",
        ),
    ],
)
def test_blocks_that_the_settings_do_not_name_are_refused(
    tmp_path: Path, gpt_oss: Any, change: Callable[[dict[str, torch.Tensor]], None] | None, settings: Any, reason: str
) -> None:
    folder = edit_weights(save_checkpoint(tmp_path, gpt_oss), lambda weights: in_blocks(weights, {}))
    if change is not None:
        edit_weights(folder, change)
    with pytest.raises((ModelError, UnsupportedArchitectureError), match=reason):
        load(edit_config(folder, **settings))


def test_mxfp4_of_a_family_that_does_not_store_it_is_refused(tmp_path: Path) -> None:
    folder = edit_config(save_checkpoint(tmp_path), quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(UnsupportedArchitectureError, match="is quantised with mxfp4"):
        load(folder)
