"""Checkpoints of block FP8, GPTQ and AWQ compute what their dequantised weights compute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import with_native
from helix_jobs.engine.loading import weight_format
from helix_jobs.engine.loading.awq_format import Awq
from helix_jobs.engine.loading.checkpoint import Checkpoint
from helix_jobs.engine.loading.model_outline import model_outline
from helix_jobs.engine.loading.model_pair import ModelPair
from helix_jobs.engine.loading.model_source import read_configuration
from helix_jobs.engine.loading.weight_format import WeightFormat
from helix_jobs.engine.weights.packed_linear import PackedLinear
from helix_jobs.errors import ModelError, UnsupportedArchitectureError
from tests.unit.engine.held_tensors import held_bytes
from tests.unit.engine.loading.answers import assert_close, expected_tokens, greedy
from tests.unit.engine.model_files import edit_config, edit_weights, load, save_checkpoint
from tests.unit.engine.quantized_files import (
    as_awq,
    as_block_fp8,
    as_gptq,
    quantized,
    read_settings,
    write_quantized,
)
from tests.unit.engine.tiny_models import CPU, decoder_logits, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Parts = dict[str, torch.Tensor]

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")

# Heads of 16, for which the tests' kernels are compiled; rows and scales of several blocks, the last ones smaller.
SIZES = {
    "hidden_size": 160,
    "intermediate_size": 192,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "initializer_range": 0.2,
}
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``auto`` means depends on the machine."""
    monkeypatch.setattr(weight_format, "resolve_dtype", lambda *_: torch.float32)


def gptq(
    bits: int, width: int | None, weight: torch.Tensor, *, is_first: bool, **form: bool
) -> tuple[Parts, torch.Tensor]:
    return as_gptq(quantized(weight, bits, width, dtype=torch.float16, **form), is_first=is_first)


def awq(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    return as_awq(quantized(weight, 4, 32, is_symmetric=False, dtype=torch.float16))


def auto_fp8(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    parts, dense = as_block_fp8(weight, block=None)
    return {"weight": parts["weight"], "weight_scale": parts["weight_scale_inv"], "input_scale": torch.ones(1)}, dense


def model_opt(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    parts, dense = auto_fp8(weight)
    return {**parts, "k_scale": torch.ones(())}, dense


def auto_round(weight: torch.Tensor, *, is_first: bool) -> tuple[Parts, torch.Tensor]:
    """AutoRound writes no groups of columns."""
    parts, dense = gptq(4, 32, weight, is_first=is_first, is_symmetric=False)
    return {part: tensor for part, tensor in parts.items() if part != "g_idx"}, dense


@dataclass(frozen=True)
class Form:
    """How a matrix is stored, what config.json says of it, and what results call it."""

    store: Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]
    config: dict[str, Any]
    label: str = "int4_weights"


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": True}
MODEL_OPT = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "ignore": ["lm_head"]}
AUTO_ROUND = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
    "group_size": 32,
    "data_type": "int",
    "sym": False,
    "extra_config": {"lm_head": {"bits": 16, "data_type": "float"}},
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
FORMS = {
    "fp8 by block": Form(
        partial(as_block_fp8, block=(128, 128)), {**FP8, "weight_block_size": [128, 128]}, "fp8_weights"
    ),
    "fp8 in all": Form(partial(as_block_fp8, block=None), {**FP8, "weight_block_size": None}, "fp8_weights"),
    "gptq, first version, order": Form(
        partial(gptq, 4, 32, is_first=True, is_symmetric=False, is_reordered=True), {**GPTQ, "sym": False}
    ),
    "gptq of 8 bits, second version": Form(
        partial(gptq, 8, None, is_first=False, is_symmetric=False),
        {**GPTQ, "bits": 8, "group_size": -1, "desc_act": False, "sym": False, "checkpoint_format": "gptq_v2"},
        "int8_weights",
    ),
    "awq": Form(awq, AWQ),
    "fp8 of AutoFP8": Form(auto_fp8, FP8, "fp8_weights"),
    "fp8 of ModelOpt": Form(model_opt, MODEL_OPT, "fp8_weights"),
    "gptq of AutoRound": Form(partial(auto_round, is_first=True), AUTO_ROUND),
    "gptq of AutoRound, second version": Form(
        partial(auto_round, is_first=False), {**AUTO_ROUND, "packing_format": "auto_round:gptqmodel"}
    ),
    "awq of AutoRound": Form(awq, {**AUTO_ROUND, "packing_format": "auto_round:auto_awq"}),
}


def write(folder: Path, form: str, architecture: str = "llama", **settings: Any) -> Any:
    own = FORMS[form]
    model = tiny_model(architecture, **{**SIZES, **settings})
    return write_quantized(folder, model, own.store, own.config, dtype=torch.float16)


def logits_of(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(torch.arange(3, 28).unsqueeze(0)).logits[0].detach()
    return found


@pytest.mark.thorough(fast=2)
@pytest.mark.parametrize("form", FORMS)
def test_answers_are_those_of_the_dequantised_model(tmp_path: Path, compiled_folder: Path, form: str) -> None:
    """In blocks, compiled and not, with an int8 draft of its own and without; and in the memory that was reckoned."""
    model = write(tmp_path, form)
    tokens = expected_tokens(model)
    models = load(tmp_path, "int8", dtype="packed")
    decoder = models.target.decoder
    assert models.target.dtype_name == FORMS[form].label
    assert all(isinstance(linear, PackedLinear) for linear in decoder.linears() if linear is not decoder.head)
    assert_close(decoder_logits(decoder, range(3, 28)), logits_of(model))
    sizes = model_outline(str(tmp_path), tmp_path).sizes
    reckoned, held = (
        ModelPair(CPU, sizes).memory(WeightFormat(torch.float32, is_packed=True)).weights,
        held_bytes(decoder),
    )
    # Parts of one order share it, and an order that is none takes nothing.
    shared = 8 * 2 * 7 * SIZES["intermediate_size"] if "order" in form or "8 bits" in form else 0
    assert held <= reckoned <= held + shared
    assert models.draft is not None
    kernels = load_kernels(compiled_folder, torch.float32, CPU, 16)
    compiled = replace(
        models,
        target=replace(models.target, decoder=with_native(decoder, kernels)),
        draft=replace(models.draft, decoder=with_native(models.draft.decoder, kernels)),
    )
    assert greedy(compiled, depth=3) == tokens


@pytest.mark.parametrize(
    ("form", "file", "content"),
    [
        ("awq", "quant_config.json", "{}"),
        ("awq", "quantize_config.json", '{"quant_method": "awq"}'),
        ("gptq, first version, order", "quantize_config.json", "{}"),
        ("fp8 of ModelOpt", "hf_quant_config.json", '{"quantization": {"quant_algo": "FP8"}}'),
    ],
)
def test_the_file_that_a_tool_writes_beside_it_is_no_refusal(
    tmp_path: Path, form: str, file: str, content: str
) -> None:
    model = write(tmp_path, form, "qwen2")  # with biases
    (tmp_path / file).write_text(content)
    assert_close(decoder_logits(load(tmp_path, dtype="float32").target.decoder, range(3, 28)), logits_of(model))
    other = {"awq": "quantize_config.json"}.get(form, "quant_config.json")
    (tmp_path / other).write_text("[" if file == other else "{}")
    with pytest.raises(UnsupportedArchitectureError, match=other):
        load(tmp_path)


def test_gptq_s_second_version_may_stand_under_another_key(tmp_path: Path) -> None:
    form = "gptq of 8 bits, second version"
    model = write(tmp_path, form)
    config = {key: value for key, value in FORMS[form].config.items() if key != "checkpoint_format"}
    edit_config(tmp_path, quantization_config={**config, "format": "gptq_v2", "dynamic": {"-:.*lm_head": {}}})
    assert_close(decoder_logits(load(tmp_path, dtype="float32").target.decoder, range(3, 28)), logits_of(model))


@pytest.mark.parametrize(
    ("form", "changes", "reason"),
    [
        ("fp8 by block", {"fmt": "e5m2"}, "fmt 'e5m2'"),
        ("fp8 by block", {"weight_block_size": [128]}, "weight_block_size"),
        ("fp8 by block", {"weight_block_size": [64, 64]}, r"has scales \[2, 2\], unlike config.json says"),
        ("fp8 of AutoFP8", {"weight_block_size": [128, 128]}, r"weight_scale F32\) has scales \[\], unlike"),
        ("awq", {"bits": 3}, "bits 3"),
        ("awq", {"format": "gemv"}, "version gemm and format gemv"),
        ("awq", {"version": None, "format": "marlin"}, "version 'marlin'"),
        ("awq", {"group_size": 64}, "unlike config.json says"),
        ("gptq, first version, order", {"group_size": -1}, "unlike config.json says"),
        ("gptq, first version, order", {"group_size": [32]}, r"group_size \[32\]"),
        ("gptq, first version, order", {"dynamic": {"+:.*q_proj": {"bits": 8}}}, "dynamic"),
        (
            "gptq, first version, order",
            {"checkpoint_format": "gptq", "format": "gptq_v2"},
            "checkpoint_format gptq and format gptq_v2",
        ),
        ("gptq, first version, order", {"format": "marlin"}, "checkpoint_format 'marlin'"),
        ("awq", {"version": "gemv"}, "version 'gemv'"),
        ("gptq, first version, order", {"bits": [4]}, "bits"),
        ("fp8 of ModelOpt", {"quant_algo": "NVFP4"}, "quant_algo 'NVFP4'"),
        ("gptq of AutoRound", {"packing_format": "auto_round:exllamav2"}, "packing_format 'auto_round:exllamav2'"),
        ("gptq of AutoRound", {"data_type": "mx_fp"}, "data_type 'mx_fp'"),
        ("gptq of AutoRound", {"extra_config": {"a": {"bits": 8}}}, "extra_config in config.json, which gives modules"),
        ("gptq, first version, order", {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
    ],
)
def test_what_is_announced_and_not_computed_is_refused(
    tmp_path: Path, form: str, changes: dict[str, Any], reason: str
) -> None:
    write(tmp_path, form)
    edit_config(tmp_path, quantization_config={**FORMS[form].config, **changes})
    with pytest.raises(
        UnsupportedArchitectureError, match=rf"quantised with [\w-]+ \(.*{reason}.*\); use the original"
    ):
        load(tmp_path)


def test_transposed_matrices_of_other_formats_are_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, tiny_model("gpt2"))
    found = Checkpoint("m", folder, None, (), {}, read_settings(folder), quantized=Awq("m", FORMS["awq"].config))
    with pytest.raises(UnsupportedArchitectureError, match="with matrices that its family has transposed"):
        read_configuration(found)


def _without_scales(weights: Parts) -> None:
    for part in ("weight_scale_inv", "scales"):
        weights.pop(f"{Q}.{part}", None)


def _cache_scale(weights: Parts) -> None:
    weights["model.layers.0.self_attn.k_scale"] = torch.ones(1)


def _nought(weights: Parts) -> None:
    weights[f"{Q}.qzeros"][0, 0] = -1  # what zero points of nought were packed as


def _other_scales(weights: Parts) -> None:
    weights[f"{Q}.weight_scale_inv"] = weights[f"{Q}.weight_scale_inv"].to(torch.float8_e8m0fnu)


def _fewer_groups(weights: Parts) -> None:
    weights[f"{Q}.scales"] = weights[f"{Q}.scales"][:3]


@pytest.mark.parametrize(
    ("form", "change", "reason"),
    [
        ("fp8 by block", _without_scales, "lacks its scales"),
        ("fp8 by block", _cache_scale, "does not name .the tensor .*k_scale"),
        ("fp8 by block", _other_scales, "weight_scale_inv F8_E8M0"),
        ("gptq, first version, order", _without_scales, "lacks a part of"),
        ("gptq, first version, order", _nought, "zero points of nought"),
        ("gptq, first version, order", _fewer_groups, "is stored as I32"),
        ("awq", _without_scales, "lacks a part of"),
        ("awq", _fewer_groups, "is stored as I32"),
    ],
)
def test_tensors_that_do_not_belong_together(
    tmp_path: Path, form: str, change: Callable[[Parts], None], reason: str
) -> None:
    write(tmp_path, form)
    edit_weights(tmp_path, change)
    with pytest.raises(ModelError, match=rf"model .*{reason}"):
        load(tmp_path)
