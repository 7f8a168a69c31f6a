"""Int8 models of files of blocks: with compiled kernels they keep the blocks, and round activations alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM

from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import with_native
from helix_jobs.engine.kernels.cpu.packed_int8_linear import CompiledPackedInt8Linear
from helix_jobs.engine.loading import weight_format
from helix_jobs.engine.loading.load_engine import without_uncompiled_blocks
from helix_jobs.engine.loading.model_loader import load_models
from helix_jobs.engine.loading.model_outline import model_outline
from helix_jobs.engine.loading.model_pair import ModelPair
from helix_jobs.engine.loading.weight_format import WeightFormat
from helix_jobs.engine.model.quantize import dequantize, is_fast
from helix_jobs.engine.weights.int8_linear import Int8Linear
from helix_jobs.engine.weights.packed_int8_linear import PackedInt8Linear
from helix_jobs.engine.weights.packed_linear import PackedLinear
from tests.unit.engine.held_tensors import held_bytes
from tests.unit.engine.loading.answers import expected_tokens, greedy
from tests.unit.engine.model_files import load, save_checkpoint, write_gguf
from tests.unit.engine.tiny_models import CPU, decoder_logits

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.loaded_models import LoadedModels

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 16,
}
INT8 = WeightFormat(torch.float32, is_int8=True)
PACKED = WeightFormat(torch.float32, is_packed=True)
# By how much rounded activations may move these models' logits.
MOVED = 0.1


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``auto`` means depends on the machine."""
    monkeypatch.setattr(weight_format, "resolve_dtype", lambda *_: torch.float32)


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def mixed(name: str) -> str:
    return "Q6_K" if "attn_v" in name or "ffn_down" in name else "Q4_K"


def load_compiled(path: Path, home: Path, draft: Path | str = "none", dtype: str = "int8") -> LoadedModels:
    """As where kernels will be compiled, which they are not yet."""
    return load_models(
        str(path), str(draft), device=CPU, dtype=dtype, home=home, on_progress=lambda _: None, compiles=True
    )


def compiled(models: LoadedModels, folder: Path) -> LoadedModels:
    kernels = load_kernels(folder, torch.float32, CPU, 16)
    target = replace(models.target, decoder=with_native(models.target.decoder, kernels))
    if models.draft is None:
        return replace(models, target=target)
    return replace(
        models, target=target, draft=replace(models.draft, decoder=with_native(models.draft.decoder, kernels))
    )


@pytest.mark.parametrize("is_tied", [False, True])
def test_an_int8_target_keeps_its_blocks(tmp_path: Path, compiled_folder: Path, *, is_tied: bool) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, tie_word_embeddings=is_tied, **SIZES)
    models, exact = load_compiled(path, tmp_path), load(path, dtype="packed")
    assert models.target.dtype_name == "int8"
    assert all(isinstance(linear, PackedInt8Linear) for linear in models.target.decoder.linears())
    native = compiled(models, compiled_folder).target.decoder
    assert all(isinstance(linear, CompiledPackedInt8Linear) for linear in native.linears())
    assert is_fast(native)
    native.pack()
    decoders = (models.target.decoder, native, exact.target.decoder)
    plain, got, expected = (decoder_logits(one, range(3, 40)) for one in decoders)
    # Rounded activations move the logits by about a hundredth. Sums in another order round a few of them to the next
    # whole number, which moves the logits by less.
    assert relative(got, plain) < relative(got, expected) < MOVED
    assert relative(plain, expected) > MOVED / 100


@pytest.mark.parametrize("is_tied", [False, True])
def test_it_takes_the_memory_of_the_blocks(tmp_path: Path, compiled_folder: Path, *, is_tied: bool) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, tie_word_embeddings=is_tied, **SIZES)
    decoder = compiled(load_compiled(path, tmp_path), compiled_folder).target.decoder
    decoder.pack()
    pair = ModelPair(CPU, model_outline(str(path), tmp_path).sizes, compiles=True)
    memory = pair.memory(INT8)
    assert memory.weights == memory.loading == held_bytes(decoder) == pair.memory(PACKED).weights
    assert memory.weights < replace(pair, compiles=False).memory(INT8).weights


def test_a_packed_target_and_its_int8_draft_share_the_blocks(tmp_path: Path, compiled_folder: Path) -> None:
    """Greedy answers stay those of transformers, with drafts that cost no memory."""
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, **SIZES)
    models = load_compiled(path, tmp_path, "int8", "packed")
    assert models.draft is not None
    assert all(isinstance(linear, PackedInt8Linear) for linear in models.draft.decoder.linears())
    both = compiled(models, compiled_folder)
    assert both.draft is not None
    assert held_bytes(both.draft.decoder) == held_bytes(both.target.decoder)
    for own, drafting in zip(both.target.decoder.linears(), both.draft.decoder.linears(), strict=True):
        assert isinstance(own, PackedLinear)
        assert isinstance(drafting, PackedInt8Linear)
        assert own.parts == drafting.exact.parts  # the same objects: tensors are not compared
    pair = ModelPair(CPU, model_outline(str(path), tmp_path).sizes, wants_int8_copy=True, compiles=True)
    assert pair.memory(PACKED).draft == 0
    assert pair.memory(WeightFormat(torch.float32)).draft > 0
    reference = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file=path.name, dtype=torch.float32)
    expected = expected_tokens(reference)
    assert greedy(both) == greedy(both, depth=3) == expected


def test_a_draft_model_of_blocks_keeps_them(tmp_path: Path, compiled_folder: Path) -> None:
    target, path = tmp_path / "t.gguf", tmp_path / "m.gguf"
    write_gguf(target, blocks=mixed, **SIZES)
    write_gguf(path, blocks=lambda _: "Q4_1", **SIZES | {"num_hidden_layers": 1})
    models = compiled(load_compiled(target, tmp_path, path, "packed"), compiled_folder)
    assert models.draft is not None
    assert all(isinstance(linear, CompiledPackedInt8Linear) for linear in models.draft.decoder.linears())
    sizes = (model_outline(str(one), tmp_path).sizes for one in (target, path))
    assert ModelPair(CPU, *sizes, compiles=True).memory(PACKED).draft == held_bytes(models.draft.decoder)
    assert greedy(models, depth=3) == greedy(models)


def test_blocks_are_rounded_to_int8_rows_where_kernels_were_not_compiled_after_all(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, **SIZES)
    lines: list[str] = []
    decoder = without_uncompiled_blocks(load_compiled(path, tmp_path), lines.append).target.decoder
    assert lines == [f"weights of {path} are rounded to int8 rows: without compiled kernels blocks are slow"]
    assert all(isinstance(linear, Int8Linear) for linear in decoder.linears())
    expected = decoder_logits(load(path, dtype="int8").target.decoder, range(3, 40))
    assert torch.equal(decoder_logits(decoder, range(3, 40)), expected)


def test_models_without_blocks_stay_as_they_are(tmp_path: Path) -> None:
    models = load_compiled(save_checkpoint(tmp_path / "m"), tmp_path)
    assert all(isinstance(linear, Int8Linear) for linear in models.target.decoder.linears())
    same = without_uncompiled_blocks(models, pytest.fail)
    assert same.target is models.target


def test_the_way_back_is_the_exact_layer(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=mixed, **SIZES)
    back = dequantize(load_compiled(path, tmp_path).target.decoder)
    assert all(isinstance(linear, PackedLinear) for linear in back.linears())
    expected = decoder_logits(load(path, dtype="packed").target.decoder, range(3, 40))
    assert torch.equal(decoder_logits(back, range(3, 40)), expected)
