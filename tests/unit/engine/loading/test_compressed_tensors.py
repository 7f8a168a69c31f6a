"""Checkpoints of compressed-tensors compute what their dequantised weights compute, in the memory of their files."""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import with_native
from helix_jobs.engine.loading import weight_format
from helix_jobs.engine.loading.model_loader import open_source, read_weights
from helix_jobs.engine.loading.model_outline import model_outline
from helix_jobs.engine.loading.model_pair import ModelPair
from helix_jobs.engine.loading.weight_format import WeightFormat
from helix_jobs.engine.model.architecture import SUPPORTED_MODEL_TYPES
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.placement import Placement
from helix_jobs.engine.weights.packed_linear import PackedLinear
from helix_jobs.errors import ModelError, UnsupportedArchitectureError
from tests.unit.engine.held_tensors import held_bytes
from tests.unit.engine.loading.answers import assert_close, expected_tokens, greedy
from tests.unit.engine.model_files import edit_config, edit_weights, load
from tests.unit.engine.quantized_files import (
    compressed_tensors_config,
    pack_quantized,
    quantized,
    read_settings,
    write_quantized,
)
from tests.unit.engine.tiny_models import CPU, VOCAB_SIZE, decoder_logits, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Parts = dict[str, torch.Tensor]

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")

# Heads of 16, for which the tests' kernels are compiled, and rows of more than one group.
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "initializer_range": 0.2,
}
PACKED = WeightFormat(torch.float32, is_packed=True)
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``auto`` means depends on the machine."""
    monkeypatch.setattr(weight_format, "resolve_dtype", lambda *_: torch.float32)


def in_words(bits: int, width: int | None, weight: torch.Tensor, **form: bool) -> tuple[Parts, torch.Tensor]:
    return pack_quantized(quantized(weight, bits, width, **form), **form)


def in_bytes(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """``int-quantized``: signed numbers, a scale a row."""
    one = quantized(weight, 8)
    return {"weight": (one.codes - 128).to(torch.int8), "weight_scale": one.scale}, one.dense


def in_floats(weight: torch.Tensor, *, by_row: bool) -> tuple[Parts, torch.Tensor]:
    """``float-quantized``: E4M3, a scale a row or one in all."""
    scale = weight.abs().amax(1, keepdim=True) / 448 if by_row else weight.abs().max().view(1) / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    parts = {"weight": codes, "weight_scale": scale} | ({} if by_row else {"input_scale": torch.ones(1)})
    return parts, codes.float() * scale


W4 = compressed_tensors_config("pack-quantized", 4, strategy="group", group_size=64)
W4_UNEVEN = compressed_tensors_config(
    "pack-quantized", 4, strategy="group", group_size=32, symmetric=False, actorder="group"
)
FORMS: dict[str, tuple[Callable[[torch.Tensor], tuple[Parts, torch.Tensor]], dict[str, Any], str]] = {
    "int4 by group": (partial(in_words, 4, 64), W4, "int4_weights"),
    "int4, zeros, order": (
        partial(in_words, 4, 32, is_symmetric=False, is_reordered=True),
        W4_UNEVEN,
        "int4_weights",
    ),
    "int8 by row, zeros": (
        partial(in_words, 8, None, is_symmetric=False),
        compressed_tensors_config("pack-quantized", 8, symmetric=False),
        "int8_weights",
    ),
    "int8 in bytes": (
        in_bytes,
        compressed_tensors_config("int-quantized", 8, activations={"num_bits": 8, "dynamic": True}),
        "int8_weights",
    ),
    "fp8 by row": (
        partial(in_floats, by_row=True),
        compressed_tensors_config("float-quantized", 8, kind="float", activations={"num_bits": 8, "type": "float"}),
        "fp8_weights",
    ),
    "fp8 in all": (
        partial(in_floats, by_row=False),
        compressed_tensors_config("float-quantized", 8, kind="float", strategy="tensor"),
        "fp8_weights",
    ),
}


def write(folder: Path, form: str = "int4 by group", architecture: str = "llama", **settings: Any) -> Any:
    store, config, _ = FORMS[form]
    return write_quantized(folder, tiny_model(architecture, **{**SIZES, **settings}), store, config)


def logits_of(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(torch.arange(3, 28).unsqueeze(0)).logits[0].detach()
    return found


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("form", FORMS)
def test_answers_are_those_of_the_dequantised_model(tmp_path: Path, compiled_folder: Path, form: str) -> None:
    """In blocks and decoded, compiled and not, with an int8 draft of its own and without."""
    model = write(tmp_path, form)
    expected, tokens = logits_of(model), expected_tokens(model)
    models = load(tmp_path, "int8", dtype="packed")
    assert models.draft is not None
    assert models.target.dtype_name == FORMS[form][2]
    decoder = models.target.decoder
    assert all(isinstance(linear, PackedLinear) for linear in decoder.linears())
    assert_close(decoder_logits(decoder, range(3, 28)), expected)
    assert greedy(models) == tokens
    kernels = load_kernels(compiled_folder, torch.float32, CPU, 16)
    compiled = replace(
        models,
        target=replace(models.target, decoder=with_native(decoder, kernels)),
        draft=replace(models.draft, decoder=with_native(models.draft.decoder, kernels)),
    )
    assert greedy(compiled, depth=3) == tokens
    decoded = load(tmp_path, dtype="float32").target
    assert decoded.dtype_name == "float32"
    assert_close(decoder_logits(decoded.decoder, range(3, 28)), expected)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("cohere", {"tie_word_embeddings": True}),  # rows of queries and keys in another order
        ("gpt_neox", {"num_key_value_heads": 8}),  # rows by group, biases
        ("phi3", {}),  # queries, keys and values in one matrix
        ("gemma3_text", {}),  # two rotary tables
        ("apertus", {}),  # buffers in the files
        ("phi", {"num_key_value_heads": 8}),  # a bias of the output head
    ],
)
def test_families_with_parts_that_differ(tmp_path: Path, architecture: str, settings: dict[str, Any]) -> None:
    model = write(tmp_path, "int4, zeros, order", architecture, **settings)
    target = load(tmp_path, dtype="packed").target
    assert isinstance(target.decoder.layers[0].qkv, PackedLinear)
    assert_close(decoder_logits(target.decoder, range(3, 28)), logits_of(model))


def test_modules_of_several_forms_and_modules_left_as_they_are(tmp_path: Path) -> None:
    second = {**FORMS["int8 in bytes"][1]["config_groups"]["group_0"], "format": "int-quantized"}
    config = {**W4, "config_groups": {**W4["config_groups"], "group_1": second}}

    def store(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        return in_bytes(weight) if weight.shape[1] == SIZES["intermediate_size"] else in_words(4, 64, weight)

    model = write_quantized(
        tmp_path, tiny_model(**SIZES), store, config, is_kept=lambda name: "layers.1" in name or "v_proj" in name
    )
    target = load(tmp_path, dtype="packed").target
    assert target.dtype_name == "int4_weights"
    qkv = target.decoder.layers[1].qkv
    assert isinstance(qkv, PackedLinear)
    assert [part.layout.kind for part in qkv.parts] == ["BF16"]
    assert_close(decoder_logits(target.decoder, range(3, 28)), logits_of(model))


def test_rows_that_no_block_parts_become_plain_numbers(tmp_path: Path) -> None:
    config = compressed_tensors_config("pack-quantized", 4, strategy="group", group_size=16, symmetric=False)
    store = partial(in_words, 4, 16, is_symmetric=False)
    model = write_quantized(tmp_path, tiny_model(hidden_size=48, intermediate_size=80), store, config)
    assert model_outline(str(tmp_path), tmp_path).has_blocks is False
    assert_close(decoder_logits(load(tmp_path).target.decoder, range(3, 28)), logits_of(model))


@pytest.mark.parametrize(
    ("form", "dtype"),
    [("int4, zeros, order", torch.bfloat16), ("fp8 in all", torch.bfloat16), ("fp8 in all", torch.float32)],
)
def test_what_it_takes_is_what_its_decoder_holds(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    """A tied head shares the embedding's blocks of 16 bits; of a plain embedding it is packed anew."""
    store, config, _ = FORMS[form]
    model = tiny_model(**{**SIZES, "tie_word_embeddings": True})
    write_quantized(tmp_path, model, store, config, dtype=dtype)
    outline = model_outline(str(tmp_path), tmp_path)
    assert (outline.stored, outline.stored_name) == (None, FORMS[form][2])
    memory = ModelPair(CPU, outline.sizes).memory(PACKED)
    decoder = load(tmp_path, dtype="packed").target.decoder
    decoder.pack()
    held = held_bytes(decoder)
    # Parts of one order share it, and an order that is none takes nothing.
    shared = outline.sizes.hidden_size * 8 * 8 if "order" in form else 0
    assert held <= memory.weights == memory.loading <= held + shared


def test_what_is_taken_is_dropped(tmp_path: Path) -> None:
    """The embedding and the head are the largest matrices: each is in memory twice by itself, never both."""
    write_quantized(tmp_path, tiny_model(**SIZES), *FORMS["fp8 in all"][:2], dtype=torch.float32)
    model = read_weights(open_source(str(tmp_path), tmp_path, lambda _: None), torch.float32)
    stored = weakref.ref(model.get_input_embeddings().weight)
    build_decoder(model, Placement(dtype=torch.float32, device=CPU, keeps_blocks=True))
    assert stored() is None
    assert model.get_output_embeddings().weight is None


def test_end_tokens_are_those_of_generation_config(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    assert load(tmp_path).eos_token_ids == {0, 7}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({"transform_config": {"config_groups": {"a": {}}}}, "transform_config"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ({"quantization_status": "initialized"}, "quantization_status 'initialized'"),
        ({"config_groups": {}}, "no config_groups"),
        ({"config_groups": {"a": {"targets": ["Linear"]}}}, "a group without weights"),
        ({"format": ["int-quantized"]}, "format "),
        ({"format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized'"),
        ({"config_groups": {"a": {"weights": {"num_bits": 3, "type": "int"}}}}, "weights of 3 bits"),
        ({"config_groups": {"a": {"weights": {"num_bits": [4], "type": {}}}}}, "weights of .* bits"),
        (
            {"config_groups": {"a": {"weights": {"num_bits": 4, "strategy": "tensor_group"}}}},
            "scales by 'tensor_group'",
        ),
        ({"config_groups": {"a": {"weights": {"num_bits": 4}, "output_activations": {"num_bits": 8}}}}, "output_act"),
        (
            {"config_groups": {"a": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 32}}}},
            r"stored as I32 with scales \[\d+, \d\], unlike config.json says",
        ),
    ],
)
def test_what_is_announced_and_not_computed_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    write(tmp_path)
    edit_config(tmp_path, quantization_config={**W4, **changes})
    with pytest.raises(
        UnsupportedArchitectureError, match=rf"quantised with compressed-tensors \(.*{reason}.*\); use the original"
    ):
        load(tmp_path)


def test_transposed_matrices_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    edit_config(tmp_path, model_type="gpt2", architectures=[SUPPORTED_MODEL_TYPES["gpt2"]])
    edit_config(tmp_path, num_key_value_heads=None, head_dim=None)  # it has no such settings
    with pytest.raises(UnsupportedArchitectureError, match="with matrices that its family has transposed"):
        load(tmp_path)


def _strange(weights: Parts) -> None:
    weights[f"{Q}.weight_scale_2"] = torch.ones(1)


def _without_shape(weights: Parts) -> None:
    del weights[f"{Q}.weight_shape"]


def _other_groups(weights: Parts) -> None:
    weights[f"{Q}.weight_g_idx"] = torch.zeros(SIZES["hidden_size"], dtype=torch.int32)


def _endless_scale(weights: Parts) -> None:
    weights[f"{Q}.weight_scale"][3, 1] = torch.inf


def _transposed_scale(weights: Parts) -> None:
    weights[f"{Q}.weight_scale"] = weights[f"{Q}.weight_scale"].t().contiguous()


def _far_zeros(weights: Parts) -> None:
    weights[f"{Q}.weight_zero_point"] = torch.full((128, 2), -100, dtype=torch.int8)


def _plain_scale(weights: Parts) -> None:
    weights[f"{Q}.weight"] = torch.ones(128, 128)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_strange, r"does not name \(the tensor .*weight_scale_2"),
        (_without_shape, "lacks the shape of"),
        (_other_groups, r"has groups of columns \(g_idx\) that are not all of 64"),
        (_transposed_scale, r"stored as I32 with scales \[2, 128\], unlike config.json says"),
        (_endless_scale, "has scales that are no numbers"),
        (_plain_scale, "both as it is and quantised"),
    ],
)
def test_tensors_that_do_not_belong_together(tmp_path: Path, change: Callable[[Parts], None], reason: str) -> None:
    write(tmp_path)
    edit_weights(tmp_path, change)
    with pytest.raises(ModelError, match=reason):
        load(tmp_path)


@pytest.mark.parametrize("status", ["frozen", None])
def test_zero_points_in_bytes_and_other_words_for_compressed(tmp_path: Path, status: str | None) -> None:
    def store(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        one = quantized(weight, 4, 64, is_symmetric=False)
        parts, dense = pack_quantized(one)
        return {**parts, "weight_zero_point": (one.zeros - 8).to(torch.int8)}, dense

    config = compressed_tensors_config("pack-quantized", 4, strategy="group", group_size=64, symmetric=False)
    model = write_quantized(tmp_path, tiny_model(**SIZES), store, {**config, "quantization_status": status})
    assert_close(decoder_logits(load(tmp_path).target.decoder, range(3, 28)), logits_of(model))
    edit_weights(tmp_path, _far_zeros)
    with pytest.raises(ModelError, match=r"q_proj.weight has whole numbers of more than 4 bits"):
        load(tmp_path)


def test_a_weight_that_is_no_number(tmp_path: Path) -> None:
    write(tmp_path, "fp8 by row")
    weights = load_file(tmp_path / "model.safetensors")
    weights[f"{Q}.weight"].view(torch.uint8)[0, 5] = 0xFF
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"q_proj.weight has weights that are no numbers"):
        load(tmp_path)


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    source, path = open_source(str(tmp_path), tmp_path, lambda _: None), tmp_path / "model.safetensors"
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 1000)
    with pytest.raises(ModelError, match=r"model\.safetensors is cut short"):
        read_weights(source, torch.float32)


def test_a_plain_head_beside_a_quantised_embedding(tmp_path: Path) -> None:
    write(tmp_path)
    parts, _ = in_words(4, 64, torch.randn(VOCAB_SIZE, 128))
    name = "model.embed_tokens"
    edit_weights(tmp_path, lambda weights: weights.update({f"{name}.{part}": one for part, one in parts.items()}))
    edit_weights(tmp_path, lambda weights: weights.pop(f"{name}.weight"))
    load(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(ModelError, match=r"has an output head .* beside a quantised embedding"):
        load(tmp_path)


def test_a_quantised_head_beside_a_tied_embedding(tmp_path: Path) -> None:
    write(tmp_path)
    parts, _ = in_words(4, 64, torch.randn(VOCAB_SIZE, 128))
    edit_weights(tmp_path, lambda weights: weights.update({f"lm_head.{part}": one for part, one in parts.items()}))
    edit_weights(tmp_path, lambda weights: weights.pop("lm_head.weight"))
    edit_config(tmp_path, tie_word_embeddings=True)
    assert read_settings(tmp_path)["tie_word_embeddings"]
    with pytest.raises(ModelError, match="has a quantised output head"):
        load(tmp_path)
