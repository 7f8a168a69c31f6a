"""Whether an int8 target, or a draft, rounds its activations is decided by a trial, once for a machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from helix_jobs.engine.kernels.cpu.experts import CompiledExperts
from helix_jobs.engine.kernels.cpu.kernels import NativeKernels, load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import with_native
from helix_jobs.engine.loading import byte_trial, load_engine, weight_format
from helix_jobs.engine.loading.byte_trial import is_exact_faster, job_seconds, without_slow_bytes
from helix_jobs.engine.loading.draft_spec import DraftSpec
from helix_jobs.engine.loading.load_engine import open_models
from helix_jobs.engine.loading.model_loader import load_models
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.weights.int8_linear import Int8Linear
from helix_jobs.engine.weights.packed_int8_linear import PackedInt8Linear
from tests.unit.engine.model_files import load, write_gguf
from tests.unit.engine.tiny_models import CPU, decoder_logits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helix_jobs.engine.loaded_models import LoadedModel, LoadedModels

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 16,
}


@pytest.fixture
def native(compiled_folder: Path) -> NativeKernels:
    """Kernels that pass for those of a processor with matrix tiles."""
    kernels = load_kernels(compiled_folder, torch.float32, CPU, 16)
    kernels.has_tiles = True
    return kernels


def taking(seconds: dict[int, tuple[float, float]]) -> Callable[[NativeKernels, int], tuple[float, float]]:
    """A trial in which products of so many rows take so long: exact ones, and those of rounded activations."""
    return lambda _, rows: seconds[rows]


def test_a_job_is_a_prompt_and_an_answer() -> None:
    assert job_seconds(0.5, 2.0, 1) == 128 * 0.5 + 2.0
    assert job_seconds(0.5, 2.0, 32) == 128 * 0.5 + 32 * 2.0


def test_each_batch_size_has_its_own_verdict(
    native: NativeKernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded activations pay for single rows, and lose in prompts."""
    seconds = {1: (3.0, 1.0), 32: (3.0, 4.0), 256: (8.0, 20.0)}
    monkeypatch.setattr(byte_trial, "_try", taking(seconds))
    assert not is_exact_faster(native, 1, tmp_path)
    assert is_exact_faster(native, 32, tmp_path)


@pytest.mark.parametrize(("exact", "rounded"), [(1.0, 2.0), (2.0, 1.0)])
def test_the_verdict_is_kept(
    native: NativeKernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: float, rounded: float
) -> None:
    """Answers stay the same from one start to the next, even if another trial would come to another end."""
    monkeypatch.setattr(byte_trial, "_try", lambda *_: (exact, rounded))
    assert is_exact_faster(native, 8, tmp_path) is (exact < rounded)
    monkeypatch.setattr(byte_trial, "_try", lambda *_: (rounded, exact))
    assert is_exact_faster(native, 8, tmp_path) is (exact < rounded)
    native.version = "other kernels"
    assert is_exact_faster(native, 8, tmp_path) is (exact > rounded)


def test_a_damaged_verdict_is_found_again(
    native: NativeKernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_trial, "_try", lambda *_: (1.0, 2.0))
    assert is_exact_faster(native, 8, tmp_path)
    (file,) = tmp_path.glob("bytes-*.json")
    file.write_text('{"verdict": "perhaps"}')
    monkeypatch.setattr(byte_trial, "_try", lambda *_: (2.0, 1.0))
    assert not is_exact_faster(native, 8, tmp_path)


def test_without_matrix_tiles_nothing_is_tried(
    native: NativeKernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_trial, "_try", lambda *_: pytest.fail("tried"))
    native.has_tiles = False
    assert not is_exact_faster(native, 32, tmp_path)
    assert not list(tmp_path.iterdir())


def test_both_products_are_timed(native: NativeKernels, tmp_path: Path) -> None:
    assert min(byte_trial._try(native, 5)) > 0.0
    assert isinstance(is_exact_faster(native, 5, tmp_path), bool)


def int8_target(path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setattr(weight_format, "resolve_dtype", lambda *_: torch.float32)
    return load_models(
        str(path), "none", device=CPU, dtype="int8", home=home, on_progress=lambda _: None, compiles=True
    ).target


@pytest.mark.usefixtures("_tokenizers_tried_once")
def test_where_exact_products_are_faster_the_target_is_exact(
    native: NativeKernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=lambda _: "Q4_K", **SIZES)
    target = int8_target(path, tmp_path, monkeypatch)
    lines: list[str] = []
    monkeypatch.setattr(byte_trial, "_try", lambda *_: (2.0, 1.0))
    assert without_slow_bytes(target, native, 32, tmp_path, lines.append) is target
    assert lines == []
    monkeypatch.setattr(byte_trial, "_try", lambda *_: (1.0, 2.0))
    changed = without_slow_bytes(target, native, 16, tmp_path, lines.append)
    assert changed.dtype_name == "q4_k"
    (line,) = lines
    assert line.startswith(f"activations of {path} are not rounded to bytes (q4_k): ")
    assert line.endswith("faster here for 16 sequences at once")
    expected = decoder_logits(load(path, dtype="packed").target.decoder, range(3, 40))
    assert torch.equal(decoder_logits(changed.decoder, range(3, 40)), expected)


@pytest.mark.usefixtures("_tokenizers_tried_once")
def test_matrices_in_no_blocks_stay_int8_and_results_say_so(
    native: NativeKernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=lambda name: None if "ffn_down" in name else "Q4_K", **SIZES)
    target = int8_target(path, tmp_path, monkeypatch)
    monkeypatch.setattr(byte_trial, "_try", lambda *_: (1.0, 2.0))
    changed = without_slow_bytes(target, native, 32, tmp_path, lambda _: None)
    kinds = [type(linear) for linear in changed.decoder.linears()]
    assert kinds.count(Int8Linear) == SIZES["num_hidden_layers"]
    assert PackedInt8Linear not in kinds
    assert changed.dtype_name == "int8"


def with_draft(
    path: Path, draft: str, native: NativeKernels, monkeypatch: pytest.MonkeyPatch
) -> tuple[LoadedModels, list[str]]:
    """A target in blocks and its draft, as they are opened where these kernels compute them, and what was told."""
    lines: list[str] = []
    write_gguf(path, blocks=lambda _: "Q4_K", **SIZES)
    monkeypatch.setattr(weight_format, "resolve_dtype", lambda *_: torch.float32)
    monkeypatch.setattr(load_engine, "load_kernels", lambda *_: native)
    models = open_models(
        str(path),
        DraftSpec(draft),
        device=CPU,
        dtype="packed",
        compile_when="on",
        home=path.parent,
        on_progress=lines.append,
    )
    return models, lines


@pytest.mark.usefixtures("_tokenizers_tried_once")
@pytest.mark.parametrize("is_exact", [True, False])
def test_a_draft_model_rounds_only_where_that_is_faster(
    native: NativeKernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_exact: bool
) -> None:
    path = tmp_path / "m.gguf"
    monkeypatch.setattr(byte_trial, "_try", lambda *_: (1.0, 2.0) if is_exact else (2.0, 1.0))
    models, lines = with_draft(path, str(path), native, monkeypatch)
    assert models.target.dtype_name == "q4_k"
    assert models.draft is not None
    assert models.draft.dtype_name == ("q4_k" if is_exact else "int8")
    rounded = [isinstance(linear, PackedInt8Linear) for linear in models.draft.decoder.linears()]
    assert any(rounded) is not is_exact
    assert any(line.startswith(f"activations of {path} are not rounded") for line in lines) is is_exact


@pytest.mark.usefixtures("_tokenizers_tried_once")
@pytest.mark.parametrize("is_exact", [True, False])
def test_a_copy_that_does_not_round_is_left_out(
    native: NativeKernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_exact: bool
) -> None:
    """It would be the target itself, and draft as slowly as that answers."""
    monkeypatch.setattr(byte_trial, "_try", lambda *_: (1.0, 2.0) if is_exact else (2.0, 1.0))
    models, lines = with_draft(tmp_path / "m.gguf", "int8", native, monkeypatch)
    assert (models.draft is None) is is_exact
    told = "going on without the int8 draft: activations that are not rounded make it the target itself"
    assert (told in lines) is is_exact


@pytest.mark.usefixtures("_tokenizers_tried_once")
@pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="transformers 4 stacks no experts")
def test_exact_experts_are_computed_in_one_call(
    native: NativeKernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    settings = {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 32}
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "moe_intermediate_size": 32}
    write_gguf(
        path, "qwen3moe", settings, model_type="qwen3_moe", blocks=lambda _: "Q4_1", norm_topk_prob=True, **sizes
    )
    target = int8_target(path, tmp_path, monkeypatch)
    monkeypatch.setattr(byte_trial, "_try", lambda *_: (1.0, 2.0))
    changed = without_slow_bytes(target, native, 32, tmp_path, lambda _: None)
    compiled = replace(changed, decoder=with_native(changed.decoder, native)).decoder
    assert all(isinstance(layer.feed_forward, CompiledExperts) for layer in compiled.layers)
