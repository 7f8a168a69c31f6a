"""Models whose weights stay in the blocks of their GGUF file compute what the decoded models compute."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import with_native
from helix_jobs.engine.loading import load_engine as engine_loading
from helix_jobs.engine.loading import model_memory, weight_format
from helix_jobs.engine.loading.load_engine import without_slow_blocks
from helix_jobs.engine.loading.model_loader import load_models, open_source, read_weights
from helix_jobs.engine.loading.model_outline import model_outline
from helix_jobs.engine.loading.model_pair import ModelPair
from helix_jobs.engine.loading.weight_format import WeightFormat, formats_for
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.packed_linear import PackedLinear
from helix_jobs.errors import ConfigurationError, ModelError
from tests.unit.engine.held_tensors import held_bytes
from tests.unit.engine.loading.answers import assert_close, expected_tokens, greedy
from tests.unit.engine.model_files import load, save_checkpoint, write_gguf
from tests.unit.engine.tiny_models import CPU, decoder_logits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")

# Widths of which every layout has whole blocks.
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 32,
}
# Heads of 16, for which the tests' kernels are compiled.
SIXTEENS = {**SIZES, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 16}
PACKED = WeightFormat(torch.float32, is_packed=True)


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``auto`` means depends on the machine."""
    monkeypatch.setattr(weight_format, "resolve_dtype", lambda *_: torch.float32)


def one_kind(kind: str) -> Callable[[str], str]:
    return lambda _: kind


def mixed(name: str) -> str:
    """Values, and an MLP's outer matrix, are stored more exactly than the rest, as llama.cpp does."""
    return "Q6_K" if "attn_v" in name or "ffn_down" in name else "Q4_K"


def dequantized(path: Path, config: Any = None) -> Any:
    """The model as transformers reads it; ``config`` has what its reader leaves out."""
    return AutoModelForCausalLM.from_pretrained(
        str(path.parent), config=config, gguf_file=path.name, dtype=torch.float32
    )


@pytest.mark.thorough(fast=5)
@pytest.mark.parametrize("kind", BLOCK_LAYOUTS)
def test_a_packed_model_is_the_decoded_one(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=one_kind(kind), tie_word_embeddings=True, **SIZES)
    packed, dense = load(path, dtype="packed").target, load(path, dtype="float32").target
    assert all(isinstance(linear, PackedLinear) for linear in packed.decoder.linears())
    assert all(isinstance(linear, DenseLinear) for linear in dense.decoder.linears())
    assert (packed.dtype_name, dense.dtype_name) == (kind.lower(), "float32")
    got, expected = (decoder_logits(one.decoder, range(3, 40)) for one in (packed, dense))
    assert_close(got, expected)
    assert torch.equal(got.argmax(1), expected.argmax(1))
    assert len(expected.argmax(1).unique()) > 2


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "phi3", "gpt2"])
def test_greedy_answers_are_transformers(tmp_path: Path, compiled_folder: Path, architecture: str) -> None:
    """Packed and compiled, with drafts and without, of matrices of several layouts."""
    path = tmp_path / "m.gguf"
    kv_heads = 16 if architecture == "gpt2" else 8
    write_gguf(
        path, architecture, blocks=mixed, **{**SIXTEENS, "num_hidden_layers": 2, "num_key_value_heads": kv_heads}
    )
    expected = expected_tokens(dequantized(path, open_source(str(path), tmp_path, print).config))
    models = load(path, "int8", dtype="packed")
    assert greedy(models) == expected
    kernels = load_kernels(compiled_folder, torch.float32, CPU, 16)
    assert models.draft is not None
    compiled = replace(
        models,
        target=replace(models.target, decoder=with_native(models.target.decoder, kernels)),
        draft=replace(models.draft, decoder=with_native(models.draft.decoder, kernels)),
    )
    assert greedy(compiled) == expected
    assert greedy(compiled, depth=3) == expected


def test_a_target_of_blocks_is_packed_by_default_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, **SIZES)
    assert load(path).target.dtype_name == "q4_k"
    write_gguf(path, **SIZES)
    assert load(path).target.dtype_name == "float32"


def test_matrices_in_blocks_beside_dense_ones_are_decoded_for_a_common_product(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=lambda name: None if "attn_k" in name else "Q8_0", **SIZES)
    packed, dense = load(path, dtype="packed").target.decoder, load(path, dtype="float32").target.decoder
    assert isinstance(packed.layers[0].qkv, DenseLinear)
    assert isinstance(packed.layers[0].attention_out, PackedLinear)
    assert_close(decoder_logits(packed, range(3, 40)), decoder_logits(dense, range(3, 40)))


def test_blocks_without_a_layout_of_ours_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, quantized=gguf.GGMLQuantizationType.TQ2_0, **SIZES)
    decoder = load(path).target.decoder
    expected = dequantized(path)(torch.arange(3, 40).unsqueeze(0)).logits[0].detach()
    assert_close(decoder_logits(decoder, range(3, 40)), expected)


def test_an_int8_model_made_of_blocks_is_that_of_the_decoded_weights(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, **SIZES)
    got, expected = load(path, dtype="int8").target, quantize(load(path, dtype="float32").target.decoder)
    assert got.dtype_name == "int8"
    assert torch.equal(decoder_logits(got.decoder, range(3, 40)), decoder_logits(expected, range(3, 40)))


@pytest.mark.parametrize("is_tied", [False, True])
def test_without_compiled_kernels_blocks_are_decoded_once(tmp_path: Path, *, is_tied: bool) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, tie_word_embeddings=is_tied, **SIZES)
    lines: list[str] = []
    decoder = without_slow_blocks(load(path), lines.append).target.decoder
    assert lines == ["weights are decoded to float32: without compiled kernels blocks are slow"]
    assert (decoder.head.weight is decoder.embedding) is is_tied  # type: ignore[attr-defined]
    expected = decoder_logits(load(path, dtype="float32").target.decoder, range(3, 40))
    assert torch.equal(decoder_logits(decoder, range(3, 40)), expected)


def test_blocks_stay_where_decoded_weights_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, **SIZES)
    models, lines = load(path), list[str]()
    monkeypatch.setattr(engine_loading, "free_memory", lambda _: 1000)
    assert without_slow_blocks(models, lines.append) is models
    assert "there is no room for them decoded" in lines[0]


def test_compiled_kernels_keep_blocks(tmp_path: Path, compiled_folder: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, **SIXTEENS)
    models = load(path)
    decoder = with_native(models.target.decoder, load_kernels(compiled_folder, torch.float32, CPU, 16))
    models = replace(models, target=replace(models.target, decoder=decoder))
    assert without_slow_blocks(models, pytest.fail) is models


def test_only_stored_bytes_are_asked_of_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    model = write_gguf(path, blocks=one_kind("Q4_0"), tie_word_embeddings=True, **SIZES)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    norms = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)
    heads = model.config.num_key_value_heads * model.config.head_dim
    needed = matrices // 32 * 18 + norms * 4 + 256 * 2 * heads * 4
    monkeypatch.setattr(model_memory, "free_memory", lambda _: needed)
    decoder = load(path).target.decoder
    assert isinstance(decoder.embedding, BlockMatrix)
    monkeypatch.setattr(model_memory, "free_memory", lambda _: needed - 1)
    with pytest.raises(ModelError, match="the models need"):
        load(path)


@pytest.mark.parametrize("is_tied", [False, True])
def test_what_a_packed_model_takes_is_what_its_decoder_holds(tmp_path: Path, *, is_tied: bool) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, tie_word_embeddings=is_tied, **SIZES)
    memory = ModelPair(CPU, model_outline(str(path), tmp_path).sizes).memory(PACKED)
    assert memory.weights == memory.loading == held_bytes(load(path, dtype="packed").target.decoder)


def test_an_int8_target_is_made_out_of_blocks(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, **SIZES)
    pair = ModelPair(CPU, model_outline(str(path), tmp_path).sizes)
    made = sum(linear.nbytes for linear in load(path, dtype="int8").target.decoder.linears())
    assert pair.memory(WeightFormat(torch.float32, is_int8=True)).loading == pair.memory(PACKED).weights + made


def test_keeping_the_blocks_is_a_remedy_where_decoded_weights_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, **SIZES)
    pair = ModelPair(CPU, model_outline(str(path), tmp_path).sizes)
    needed = pair.memory(PACKED).needed
    monkeypatch.setattr(model_memory, "free_memory", lambda _: needed)
    with pytest.raises(ModelError, match=r"; use --dtype packed$"):
        load(path, dtype="float32")


def test_blocks_are_a_format_of_a_cpu_only() -> None:
    assert formats_for(CPU, None, has_blocks=True)[0] == PACKED
    assert [one.name for one in formats_for(CPU, None, has_blocks=True)].count("packed") == 1
    for device, has_blocks in ((CPU, False), (torch.device("cuda", 0), True)):
        assert not any(one.is_packed for one in formats_for(device, None, has_blocks=has_blocks))


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, **SIZES)
    source = open_source(str(path), tmp_path, lambda _: None)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 1000)
    with pytest.raises(ModelError, match="the GGUF file is cut short"):
        read_weights(source, torch.float32)


def test_nothing_to_keep_in_blocks(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"keeps the blocks of a quantised model, and model .* has none"):
        load(save_checkpoint(tmp_path / "m"), dtype="packed")


def test_blocks_are_kept_on_a_cpu_only(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, **SIZES)
    with pytest.raises(ConfigurationError, match="dtype packed runs on a CPU only, not on mps"):
        load_models(str(path), "none", device=torch.device("mps"), dtype="packed", home=tmp_path)
