"""Quantised checkpoints of models with experts, recurrent layers, latents and layers of several shapes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import with_native
from helix_jobs.engine.loading import weight_format
from helix_jobs.engine.loading.model_loader import load_models
from helix_jobs.engine.loading.model_outline import model_outline
from helix_jobs.engine.loading.model_pair import ModelPair
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.loading.weight_format import WeightFormat
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.packed_linear import PackedLinear
from helix_jobs.errors import ModelError, UnsupportedArchitectureError
from tests.unit.engine.devices.simulated_directml import DIRECTML, SimulatedDirectml
from tests.unit.engine.held_tensors import held_bytes
from tests.unit.engine.loading.answers import assert_close, expected_tokens, greedy
from tests.unit.engine.model_files import edit_weights, load
from tests.unit.engine.quantized_files import (
    as_awq,
    as_block_fp8,
    as_gptq,
    compressed_tensors_config,
    pack_quantized,
    quantized,
    write_quantized_tensors,
)
from tests.unit.engine.tiny_models import CPU, decoder_logits, roughen, tiny_model
from tests.unit.engine.tiny_towers import tiny_tower

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Parts = dict[str, torch.Tensor]

pytestmark = [
    pytest.mark.usefixtures("_tokenizers_tried_once"),
    pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="these families are served with transformers 5"),
]


@dataclass(frozen=True)
class Form:
    """How a matrix is stored, and what config.json says of it."""

    store: Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]
    config: dict[str, Any]


def gptq(weight: torch.Tensor, *, is_reordered: bool = False) -> tuple[Parts, torch.Tensor]:
    one = quantized(weight, 4, 32, is_symmetric=False, is_reordered=is_reordered, dtype=torch.float16)
    return as_gptq(one, is_first=True)


def awq(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    return as_awq(quantized(weight, 4, 32, is_symmetric=False, dtype=torch.float16))


def pack(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    return pack_quantized(quantized(weight, 4, 32))


FORMS = {
    "fp8": Form(
        partial(as_block_fp8, block=(32, 32)), {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [32, 32]}
    ),
    "gptq": Form(gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}),
    "awq": Form(awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}),
    "pack": Form(pack, compressed_tensors_config("pack-quantized", 4, strategy="group", group_size=32)),
}
# Heads of 16, for which the tests' kernels are compiled.
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
}
EXPERTS = {**SIZES, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96}
ROUTERS = (".gate.weight", "router.weight", "shared_expert_gate.weight")


@dataclass(frozen=True)
class Family:
    """A tiny model of a family, and which of its matrices published files leave as they are."""

    architecture: str
    settings: dict[str, Any] = field(default_factory=lambda: SIZES)
    kept: tuple[str, ...] = ROUTERS

    def write(self, folder: Path, form: Form, dtype: torch.dtype = torch.bfloat16) -> Any:
        """See ``write_quantized_tensors``."""
        model = roughen(tiny_model(self.architecture, seed=3, **self.settings))
        write_quantized_tensors(
            folder, model, form.store, form.config, is_kept=lambda name: name.endswith(self.kept), dtype=dtype
        )
        made = AutoModelForCausalLM.from_pretrained(
            folder / "dequantised", dtype=torch.float32, attn_implementation="eager"
        )
        return made.eval()


HEADS = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
RECURRENT = (*ROUTERS, "in_proj_a.weight", "in_proj_b.weight", "in_proj_ba.weight", "x_proj.weight", "dt_proj.weight")
FAMILIES = {
    "qwen3_moe": Family("qwen3_moe", EXPERTS),
    "qwen2_moe": Family("qwen2_moe", EXPERTS),
    "mixtral": Family("mixtral"),
    "olmoe": Family("olmoe"),
    "minimax_m2": Family("minimax_m2"),
    "deepseek_v3": Family("deepseek_v3", {"moe_intermediate_size": 64, "hidden_size": 64, "intermediate_size": 96}),
    "minicpm3": Family("minicpm3", {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 8}),
    "lfm2": Family("lfm2", {**HEADS, "intermediate_size": 96}),
    "qwen3_5_text": Family("qwen3_5_text", {"hidden_size": 64, "intermediate_size": 96}, RECURRENT),
    "qwen3_next": Family("qwen3_next", {**EXPERTS}, RECURRENT),
    "granitemoehybrid": Family("granitemoehybrid", {**HEADS, "mamba_n_heads": 8}, RECURRENT),
    "gemma4_text": Family("gemma4_text", {"hidden_size": 64, "intermediate_size": 96}),
    # What mixes residual streams is published as it is.
    "gemma3n_text": Family(
        "gemma3n_text",
        {**HEADS, "head_dim": 16, "intermediate_size": [96] * 4, "hidden_size_per_layer_input": 32, "laurel_rank": 32},
        ("modality_router.weight", "prediction_coefs.weight", "correction_coefs.weight"),
    ),
    "phimoe": Family("phimoe"),
    "lfm3": Family("lfm3", {**HEADS, "head_dim": 16, "intermediate_size": 96}),
    # Experts without gates; and rows with factors, which become plain numbers.
    "nemotron_h": Family(
        "nemotron_h",
        {
            **HEADS,
            "head_dim": 16,
            "intermediate_size": 96,
            "moe_intermediate_size": 64,
            "moe_shared_expert_intermediate_size": 64,
            "mamba_num_heads": 8,
            "time_step_min": 1e-9,  # transformers raises shorter time steps of a prompt
        },
        RECURRENT,
    ),
    "jamba": Family("jamba", {**HEADS, "head_dim": 16, "intermediate_size": 96}, RECURRENT),
    "falcon_h1": Family(
        "falcon_h1",
        {**HEADS, "head_dim": 16, "intermediate_size": 96, "mamba_n_heads": 8, "mamba_d_ssm": 128},
        RECURRENT,
    ),
}


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``auto`` means depends on the machine."""
    monkeypatch.setattr(weight_format, "resolve_dtype", lambda *_: torch.float32)


def logits_of(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(torch.arange(3, 28).unsqueeze(0)).logits[0].detach()
    return found


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(
    ("family", "form"),
    [
        *(("qwen3_moe", form) for form in FORMS),
        *(("lfm2", form) for form in FORMS),
        *((family, "fp8") for family in FAMILIES if family not in ("qwen3_moe", "lfm2")),
    ],
)
def test_answers_are_those_of_the_dequantised_model(
    tmp_path: Path, compiled_folder: Path, family: str, form: str
) -> None:
    """Token for token in float32, in blocks, compiled and not, with an int8 draft; and in the memory reckoned."""
    model = FAMILIES[family].write(tmp_path, FORMS[form])
    tokens, expected = expected_tokens(model), logits_of(model)
    models = load(tmp_path, "int8", dtype="packed")
    decoder = models.target.decoder
    assert any(isinstance(linear, PackedLinear) for linear in decoder.linears())
    assert_close(decoder_logits(decoder, range(3, 28)), expected)
    assert greedy(models, depth=3) == tokens
    sizes = model_outline(str(tmp_path), tmp_path).sizes
    reckoned = ModelPair(CPU, sizes).memory(WeightFormat(torch.float32, is_packed=True)).weights
    # What recurrences and norms without weight hold is not reckoned, and of orders of columns the most there can be.
    assert 0.85 * reckoned <= held_bytes(decoder) <= 1.02 * reckoned
    if decoder.geometry.head_dims == (16,):
        kernels = load_kernels(compiled_folder, torch.float32, CPU, 16)
        compiled = replace(models, draft=None, target=replace(models.target, decoder=with_native(decoder, kernels)))
        assert greedy(compiled) == tokens


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "qwen3_next"])
def test_in_bfloat16_and_on_directml_its_numbers_are_close(tmp_path: Path, family: str) -> None:
    """Each weight is rounded once more, as that of any bfloat16 model; on a device all of them are plain numbers."""
    expected = logits_of(FAMILIES[family].write(tmp_path, FORMS["fp8"]))
    rounded = load_models(str(tmp_path), "none", device=CPU, dtype="bfloat16", home=tmp_path).target.decoder
    assert not any(isinstance(linear, PackedLinear) for linear in rounded.linears())
    scale = float(expected.abs().max())
    got = decoder_logits(rounded, range(3, 28)).float()
    assert float((got - expected).abs().mean()) < 0.03 * scale
    if family == "qwen3_next":
        with SimulatedDirectml(), pytest.raises(UnsupportedArchitectureError, match="recurrent layers"):
            load_models(str(tmp_path), "none", device=DIRECTML, dtype="float32", home=tmp_path)
        return
    with SimulatedDirectml() as device:
        models = load_models(str(tmp_path), "none", device=DIRECTML, dtype="float32", home=tmp_path)
        tokens = greedy(models)
    assert not device.breaches
    assert tokens == greedy(load(tmp_path / "dequantised", dtype="float32"))


def turned(weight: torch.Tensor, *, group: int) -> tuple[Parts, torch.Tensor]:
    """GPT-2's matrices lie transposed in its modules, and AutoGPTQ stores them as it does others."""
    one = quantized(weight.t().contiguous(), 4, group, is_symmetric=False, dtype=torch.float16)
    parts, dense = as_gptq(one, is_first=True)
    return parts, dense.t()


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(("group", "packed"), [(32, 8), (8, 0)], ids=["in blocks", "as plain numbers"])
def test_gpt2_in_gptq(tmp_path: Path, group: int, packed: int) -> None:
    """Matrices whose rows cannot be parted into blocks become plain numbers, turned again."""
    sizes = {**SIZES, "num_key_value_heads": 4, "n_inner": 96}
    form = Form(partial(turned, group=group), {**FORMS["gptq"].config, "group_size": group})
    model = Family("gpt2", sizes, ("wte.weight", "wpe.weight")).write(tmp_path, form)
    tokens, expected = expected_tokens(model), logits_of(model)
    models = load(tmp_path, "int8")
    decoder = models.target.decoder
    # The head keeps its 16 bits a number.
    assert sum(isinstance(linear, PackedLinear) for linear in decoder.linears()) == packed + 1
    assert_close(decoder_logits(decoder, range(3, 28)), expected)
    assert greedy(models, depth=3) == tokens
    rounded = load(tmp_path, dtype="float32").target.decoder
    assert_close(decoder_logits(rounded, range(3, 28)), expected)


FACTORS = {
    "key_multiplier": 0.4,
    "attention_out_multiplier": 0.7,
    "ssm_in_multiplier": 1.3,
    "ssm_out_multiplier": 0.6,
    "ssm_multipliers": [0.5, 1.5, 0.8, 1.2, 0.9],
    "mlp_multipliers": [0.8, 1.4],
    "embedding_multiplier": 2.0,
    "lm_head_multiplier": 0.5,
}


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("form", ["gptq", "fp8"])
def test_matrices_with_factors_become_plain_numbers(tmp_path: Path, form: str) -> None:
    """Falcon-H1's: its rows are multiplied once, when they are read."""
    own = Family(
        "falcon_h1", {**HEADS, **FACTORS, "intermediate_size": 96, "mamba_n_heads": 8, "mamba_d_ssm": 128}, RECURRENT
    )
    model = own.write(tmp_path, FORMS[form])
    tokens, expected = expected_tokens(model), logits_of(model)
    models = load(tmp_path, "int8")
    decoder = models.target.decoder
    # The head keeps its 16 bits a number.
    assert [linear for linear in decoder.linears() if isinstance(linear, PackedLinear)] == [decoder.head]
    assert_close(decoder_logits(decoder, range(3, 28)), expected)
    assert greedy(models, depth=3) == tokens
    sizes = model_outline(str(tmp_path), tmp_path).sizes
    reckoned = ModelPair(CPU, sizes).memory(WeightFormat(torch.float32, is_packed=True)).weights
    assert 0.85 * reckoned <= held_bytes(decoder) <= 1.02 * reckoned


def test_experts_of_a_text_tower(tmp_path: Path) -> None:
    settings = {"initializer_range": 0.2, "hidden_size": 64, "moe_intermediate_size": 64}
    model = roughen(tiny_tower("qwen3_5_moe", "qwen3_5_moe_text", settings))
    form, kept = FORMS["fp8"], RECURRENT
    write_quantized_tensors(
        tmp_path, model, form.store, form.config, is_kept=lambda name: "visual" in name or name.endswith(kept)
    )
    models = load(tmp_path, dtype="packed")
    decoder = models.target.decoder
    assert any(isinstance(linear, PackedLinear) for linear in decoder.layers[0].linears())
    plain = load(tmp_path / "dequantised", dtype="float32")
    assert_close(decoder_logits(decoder, range(3, 28)), decoder_logits(plain.target.decoder, range(3, 28)))
    assert greedy(models) == greedy(plain)


def test_experts_that_a_checkpoint_leaves_as_they_are(tmp_path: Path) -> None:
    family = replace(FAMILIES["qwen3_moe"], kept=(*ROUTERS, *_ends_of_experts(layer=1)))
    model = family.write(tmp_path, FORMS["awq"])
    decoder = load(tmp_path, dtype="packed").target.decoder
    assert_close(decoder_logits(decoder, range(3, 28)), logits_of(model))
    kinds = [{type(linear) for linear in layer.feed_forward.linears()} for layer in decoder.layers]
    assert kinds == [{PackedLinear}, {DenseLinear}]


def _ends_of_experts(layer: int) -> list[str]:
    parts = ("gate_proj", "up_proj", "down_proj")
    return [f"layers.{layer}.mlp.experts.{index}.{part}.weight" for index in range(8) for part in parts]


def test_layers_that_only_draft_are_not_read(tmp_path: Path) -> None:
    model = FAMILIES["qwen3_next"].write(tmp_path, FORMS["fp8"])

    def add(weights: Parts) -> None:
        layer = {name: one for name, one in weights.items() if name.startswith("model.layers.1.")}
        weights.update({name.replace("model.layers.1.", "mtp.layers.0."): one.clone() for name, one in layer.items()})

    edit_weights(tmp_path, add)
    assert_close(decoder_logits(load(tmp_path, dtype="packed").target.decoder, range(3, 28)), logits_of(model))


def test_experts_with_columns_in_an_order_of_their_own_are_refused(tmp_path: Path) -> None:
    form = replace(FORMS["gptq"], store=partial(gptq, is_reordered=True))
    FAMILIES["qwen3_moe"].write(tmp_path, form)
    with pytest.raises(UnsupportedArchitectureError, match=r"gptq \(experts with columns in an order of their own"):
        load(tmp_path, dtype="packed")


def test_experts_of_one_layer_in_several_ways_are_refused(tmp_path: Path) -> None:
    kept = (*ROUTERS, "layers.0.mlp.experts.1.up_proj.weight")
    replace(FAMILIES["qwen3_moe"], kept=kept).write(tmp_path, FORMS["fp8"])
    with pytest.raises(UnsupportedArchitectureError, match=r"the experts at .*gate_up_proj are quantised in several"):
        load(tmp_path)


def test_a_lost_scale_of_an_expert_is_missed(tmp_path: Path) -> None:
    FAMILIES["qwen3_moe"].write(tmp_path, FORMS["fp8"])
    edit_weights(tmp_path, lambda weights: weights.pop("model.layers.0.mlp.experts.3.up_proj.weight_scale_inv"))
    with pytest.raises(ModelError, match=r"experts\.3\.up_proj lacks its scales"):
        load(tmp_path)
