"""GGUF files as llama.cpp converts each family: the loaded model is transformers' model, token for token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch

from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import with_native
from helix_jobs.engine.loading import weight_format
from helix_jobs.engine.loading.gguf_registry import FAMILIES, SERVED_OTHERWISE, gguf_model_types
from helix_jobs.engine.loading.model_loader import open_source
from helix_jobs.engine.loading.model_outline import model_outline
from helix_jobs.engine.loading.model_pair import ModelPair
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.loading.weight_format import WeightFormat
from helix_jobs.engine.model.architecture import SUPPORTED_MODEL_TYPES
from helix_jobs.engine.weights.packed_linear import PackedLinear
from helix_jobs.errors import ModelError, UnsupportedArchitectureError
from tests.unit.engine.gguf_conversion import CONVERSIONS, write_converted
from tests.unit.engine.gguf_equality import TOKENS, check_equal
from tests.unit.engine.held_tensors import held_bytes
from tests.unit.engine.model_files import load
from tests.unit.engine.tiny_models import CPU, decoder_logits

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.usefixtures("_tokenizers_tried_once"),
    pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="transformers 4 lacks many of these families"),
]


@pytest.mark.thorough(fast=6)
@pytest.mark.parametrize("architecture", CONVERSIONS)
def test_a_file_is_the_model_it_was_made_of(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "tiny.gguf"
    check_equal(path, write_converted(path, architecture))


def fill_with_bytes(model: Any) -> None:
    """Give every matrix numbers that blocks of Q8_0 hold exactly, along its rows and along its columns."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            rows, columns = parameter.shape[-2:]
            numbers = torch.randint(-127, 128, parameter.shape, generator=generator)
            # In each block one number is the largest, from which its scale follows.
            numbers[..., (torch.arange(rows)[:, None] + torch.arange(columns)) % 16 == 0] = 127
            parameter.copy_(numbers / 512)


@pytest.mark.thorough(fast=11)
@pytest.mark.parametrize("architecture", CONVERSIONS)
def test_blocks_are_the_numbers_that_they_stand_for(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_format, "resolve_dtype", lambda *_: torch.float32)
    path = tmp_path / "tiny.gguf"
    model = write_converted(path, architecture, prepare=fill_with_bytes, quantized=gguf.GGMLQuantizationType.Q8_0)
    check_equal(path, model, "packed")


@pytest.mark.parametrize("architecture", ["qwen35", "qwen3next", "gpt-oss", "gemma3", "granitemoe:shared"])
def test_compiled_kernels_compute_the_same(
    tmp_path: Path, compiled_folder: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_format, "resolve_dtype", lambda *_: torch.float32)
    path = tmp_path / "tiny.gguf"
    write_converted(path, architecture, prepare=fill_with_bytes, quantized=gguf.GGMLQuantizationType.Q8_0)
    plain = load(path, dtype="packed").target.decoder
    native = with_native(plain, load_kernels(compiled_folder, torch.float32, CPU, 16))
    got, expected = decoder_logits(native, TOKENS), decoder_logits(plain, TOKENS)
    assert torch.equal(got.argmax(1), expected.argmax(1))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# Their files are made in tests of their own.
ELSEWHERE = {"llama", "qwen2", "qwen3", "phi3", "gpt2", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe"}


def test_every_family_is_tried() -> None:
    tried = {conversion.model_type for conversion in CONVERSIONS.values()} | ELSEWHERE
    assert tried == {family.model_type for family in FAMILIES.values()}


def test_the_table_names_what_there_is() -> None:
    """Architectures of llama.cpp, families of Helix, and no architecture as served and not served."""
    known = set(gguf.MODEL_ARCH_NAMES.values())
    assert {architecture for architecture, _ in FAMILIES} | SERVED_OTHERWISE <= known
    assert not {architecture for architecture, _ in FAMILIES} & SERVED_OTHERWISE
    assert gguf_model_types() <= set(SUPPORTED_MODEL_TYPES)


@pytest.mark.parametrize("architecture", sorted(SERVED_OTHERWISE))
def test_a_model_that_is_served_from_safetensors_says_so(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), dtype=np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(UnsupportedArchitectureError, match=f"'{architecture}' cannot be read .*; use the model's safe"):
        load(path)


@pytest.mark.parametrize(
    ("architecture", "leave_out", "message"),
    [
        ("granite", "logit_scale", "lacks granite.logit_scale"),
        ("granite", "embedding_scale", "lacks granite.embedding"),
    ],
)
def test_settings_of_a_family_are_needed(tmp_path: Path, architecture: str, leave_out: str, message: str) -> None:
    path = tmp_path / "tiny.gguf"
    write_converted(path, architecture, leave_out=(leave_out,))
    with pytest.raises(ModelError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("architecture", "settings", "error", "message"),
    [
        ("gemma3", {"rope.scaling.type": "yarn"}, UnsupportedArchitectureError, r"scaling of positions \(yarn\)"),
        ("gemma3", {"rope.scaling.factor": 0.0}, ModelError, "says rope.scaling.factor 0.0"),
        ("gemma2", {"attn_logit_softcapping": -1.0}, ModelError, "says attn_logit_softcapping -1.0"),
        ("granite", {"attention.scale": float("nan")}, ModelError, "says attention.scale nan"),
        ("qwen35", {"ssm.inner_size": 100}, ModelError, r"ssm.inner_size \[16, 2, 6, 100\]"),
        ("qwen35", {"ssm.inner_size": 48}, ModelError, "has the shape"),
        ("qwen35", {"ssm.time_step_rank": 0}, ModelError, "lacks qwen35.ssm.time_step_rank"),
        ("qwen35", {"nextn_predict_layers": 9}, ModelError, "its configuration says -4 layers"),
        ("lfm2", {"attention.head_count_kv": [0, 2, 1]}, ModelError, r"says attention.head_count_kv \[0, 2, 1\]"),
        ("lfm2", {"attention.head_count_kv": [0, 2]}, ModelError, r"says attention.head_count_kv \[0, 2\]"),
        ("gemma4", {"attention.value_length": 16}, UnsupportedArchitectureError, "values are not as wide"),
        ("gemma4", {"attention.sliding_window_pattern": [True]}, ModelError, r"sliding_window_pattern \[True\]"),
        ("gemma4", {"attention.head_count_kv": [2, 0, 2, 2]}, ModelError, r"head_count_kv \[2, 0, 2, 2\]"),
        ("gemma4", {"feed_forward_length": [192, 96, 96, 96]}, ModelError, "has the shape"),
        (
            "gemma3n",
            {"activation_sparsity_scale": [1.6, float("nan"), 0.0, 0.0]},
            ModelError,
            "says activation_sparsity",
        ),
        ("gemma3n", {"activation_sparsity_scale": [1.6]}, ModelError, r"activation_sparsity_scale \[1.6"),
        ("gemma3n", {"activation_sparsity_scale": [9.0] * 4}, UnsupportedArchitectureError, "no share from 0 to 1"),
        ("gemma3n", {"altup.num_inputs": 3}, UnsupportedArchitectureError, r"2 of its weights \(first altup_proj"),
        ("gemma3n", {"altup.num_inputs": 5}, ModelError, "lacks 2 weights"),
        ("exaone-moe", {"attention.sliding_window_pattern": [True]}, ModelError, r"sliding_window_pattern \[True\]"),
        ("deepseek2", {"attention.value_length_mla": 8}, ModelError, "has the shape"),
        ("deepseek2", {"attention.key_length_mla": 8}, UnsupportedArchitectureError, "has qk_nope_head_dim 0"),
        ("deepseek2", {"expert_gating_func": 3}, UnsupportedArchitectureError, "expert_gating_func"),
        ("gpt-oss", {"rope.scaling.original_context_length": 0}, ModelError, "original_context_length 0"),
        ("olmo2:olmo3", {"attention.sliding_window_pattern": [1, 0]}, ModelError, "sliding_window_pattern"),
        ("dots1", {"expert_gating_func": 1}, UnsupportedArchitectureError, "expert_gating_func"),
        ("olmo2", {"rope.dimension_count": 4}, UnsupportedArchitectureError, "heads are rotated in part"),
        ("falcon:40b", {"attention.head_count_kv": 1}, ModelError, "has the shape"),
        (
            "chatglm:in one",
            {"attention.head_count_kv": 1},
            ModelError,
            r"has the shape \[\] and its configuration says",
        ),
        ("granitehybrid", {"rope.scaling.finetuned": True}, UnsupportedArchitectureError, "rope.scaling.finetuned"),
        ("granitehybrid", {"attention.head_count_kv": 2}, UnsupportedArchitectureError, "of its weights"),
        ("granitehybrid", {"ssm.inner_size": 64}, ModelError, "has the shape"),
        ("nemotron_h", {"feed_forward_length": [0, 96, 0, 0, 64]}, ModelError, "says feed_forward_length"),
        ("nemotron_h", {"feed_forward_length": [0, 0, 0, 0, 96]}, UnsupportedArchitectureError, "of its weights"),
        ("minicpm3", {"attention.key_length": 8}, UnsupportedArchitectureError, "has qk_nope_head_dim 0"),
        ("phi3:long", {"rope.dimension_count": 4}, ModelError, "rope_factors_long.weight does not fit its heads"),
    ],
)
def test_settings_that_no_model_has_are_refused(
    tmp_path: Path, architecture: str, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = tmp_path / "tiny.gguf"
    write_converted(path, architecture, settings=settings)
    with pytest.raises(error, match=message):
        load(path)


@pytest.mark.parametrize(
    ("architecture", "more", "error", "message"),
    [
        (
            "falcon:11b",
            {"leave_out": ("rope.freq_base",)},
            UnsupportedArchitectureError,
            r"rope.freq_base\) is not in .*safetensors",
        ),
        (
            "falcon-h1",
            {"tie_word_embeddings": True},
            UnsupportedArchitectureError,
            "no output head .* use the model's safetensors",
        ),
        (
            "apertus",
            {"general": {"xielu.beta": [0.5]}, "stated": lambda _: {}},
            ModelError,
            "has no xielu.alpha_n for each of its 2",
        ),
        ("apertus", {"stated": lambda _: {"xielu.alpha_n": [0.5, float("nan")]}}, ModelError, "has no xielu.alpha_n"),
    ],
)
def test_what_a_file_does_not_tell_is_refused(
    tmp_path: Path, architecture: str, more: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = tmp_path / "tiny.gguf"
    write_converted(path, architecture, **more)
    with pytest.raises(error, match=message):
        load(path)


@pytest.mark.parametrize("architecture", ["falcon-h1", "granitehybrid", "nemotron_h_moe"])
def test_blocks_of_hybrids_stay_blocks(tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are multiplied, but sums of two products; and the memory is what was reckoned."""
    monkeypatch.setattr(weight_format, "resolve_dtype", lambda *_: torch.float32)
    path = tmp_path / "tiny.gguf"
    write_converted(path, architecture, prepare=fill_with_bytes, quantized=gguf.GGMLQuantizationType.Q8_0)
    decoder = load(path, dtype="packed").target.decoder
    plain = [linear for linear in decoder.linears() if not isinstance(linear, PackedLinear)]
    assert len(plain) == (2 if architecture == "falcon-h1" else 0)
    sizes = model_outline(str(path), tmp_path).sizes
    reckoned = ModelPair(CPU, sizes).memory(WeightFormat(torch.float32, is_packed=True)).weights
    assert 0.85 * reckoned <= held_bytes(decoder) <= 1.02 * reckoned


def test_what_files_of_a_family_leave_out_is_that_of_its_models(tmp_path: Path) -> None:
    """StarCoder 2 has one window in all its sizes, and Falcon H1's factors are in the weights."""
    path = tmp_path / "tiny.gguf"
    write_converted(path, "starcoder2")
    assert open_source(str(path), tmp_path, print).config.sliding_window == 4096
    write_converted(path, "falcon-h1")
    config = open_source(str(path), tmp_path, print).config
    assert (config.ssm_multipliers, config.key_multiplier) == ([1.0] * 5, 1.0)


def test_frequencies_that_are_not_proportional_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    more = {**CONVERSIONS["gemma4"].more, "rope_freqs.weight": torch.tensor([1.0] * 4 + [8.0] * 12)}
    write_converted(path, "gemma4", more=more)
    with pytest.raises(UnsupportedArchitectureError, match=r"rope_freqs.weight, neither one nor 1e\+30, cannot"):
        load(path)


@pytest.mark.parametrize("architecture", ["gemma3", "gemma2"])
def test_norms_keep_their_sum_where_activations_are_bfloat16(tmp_path: Path, architecture: str) -> None:
    """The file's norm is the weight plus one in float32, as transformers adds them."""
    path = tmp_path / "tiny.gguf"
    model = write_converted(path, architecture)
    norm = load(path, dtype="bfloat16").target.decoder.layers[0].attention_norm
    assert norm is not None
    torch.testing.assert_close(norm.weight, model.model.layers[0].input_layernorm.weight + 1, rtol=0, atol=0)
