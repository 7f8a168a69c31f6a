"""Experts in GGUF files: the model that they were made of, in blocks and out of them, or a refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import pytest
import torch

from helix_jobs.engine.loading.gguf_registry import family_of
from helix_jobs.engine.loading.model_loader import open_source, read_weights
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.model.experts import Experts
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.packed_linear import PackedLinear
from helix_jobs.errors import ModelError, UnsupportedArchitectureError
from tests.unit.engine.gguf_conversion import write_converted
from tests.unit.engine.model_files import load, write_gguf
from tests.unit.engine.tiny_models import decoder_logits, reference_logits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.usefixtures("_tokenizers_tried_once"),
    pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="transformers 4 stacks no experts"),
]

COUNTS = {"expert_count": 6, "expert_used_count": 2}
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16}
WIDTHS = {"expert_feed_forward_length": 32}
# Settings of the file, and of the model that it is made of.
FILES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": (COUNTS, {"intermediate_size": 32, "rope_theta": 10000.0}),
    "qwen2moe": (
        {**COUNTS, **WIDTHS, "expert_shared_feed_forward_length": 96},
        {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 96},
    ),
    "qwen3moe": ({**COUNTS, **WIDTHS}, {"moe_intermediate_size": 32, "norm_topk_prob": True}),
    "olmoe": (COUNTS, {"intermediate_size": 32}),
}


def write(path: Path, architecture: str, settings: dict[str, Any] | None = None, **more: Any) -> Any:
    own, overrides = FILES[architecture]
    family = family_of(architecture, own).model_type
    return write_gguf(path, architecture, {**own, **(settings or {})}, model_type=family, **SIZES, **overrides, **more)


def experts_of(models: Any) -> list[Experts]:
    layers = models.target.decoder.layers
    return [layer.feed_forward for layer in layers if isinstance(layer.feed_forward, Experts)]


def is_close(models: Any, model: Any) -> bool:
    if models.target.decoder.dtype is not torch.float32:  # rounding may change the choice of experts
        return True
    expected = reference_logits(model, range(3, 60))
    return torch.allclose(
        decoder_logits(models.target.decoder, range(3, 60)), expected, atol=1e-4 * float(expected.abs().max())
    )


@pytest.mark.parametrize("architecture", FILES)
def test_a_file_is_the_model_it_was_made_of(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "tiny.gguf"
    model = write(path, architecture, tie_word_embeddings=architecture == "olmoe")
    models = load(path, dtype="float32")
    assert len(experts_of(models)) == 2
    assert is_close(models, model)


def type_of(name: str) -> str | None:
    """As usual, down projections have a better type than the others; here gates and up projections differ as well."""
    types = {"ffn_gate_exps": "Q4_0", "ffn_up_exps": "Q5_0", "ffn_down_exps": "Q8_0"}
    return next((kind for part, kind in types.items() if part in name), None)


def fill(model: Any, path: Path) -> None:
    """Give the model the numbers that the file's blocks stand for."""
    numbers = {one.name: one for one in gguf.GGUFReader(path).tensors}

    def decoded(layer: int, part: str) -> torch.Tensor:
        one = numbers[f"blk.{layer}.{part}.weight"]
        return torch.from_numpy(gguf.dequantize(one.data, one.tensor_type).copy())

    for index, layer in enumerate(model.model.layers):
        experts = layer.mlp.experts
        gates = torch.cat((decoded(index, "ffn_gate_exps"), decoded(index, "ffn_up_exps")), dim=1)
        experts.gate_up_proj.data.copy_(gates)
        experts.down_proj.data.copy_(decoded(index, "ffn_down_exps"))


@pytest.mark.parametrize(
    "types",
    [type_of, lambda name: "Q4_1" if "exps" in name else None, lambda name: "Q4_1" if "up_exps" in name else None],
    ids=["three types", "one type", "up only"],
)
def test_blocks_stay_blocks(tmp_path: Path, types: Callable[[str], str | None]) -> None:
    path = tmp_path / "tiny.gguf"
    model = write(path, "qwen3moe", blocks=types)
    fill(model, path)
    is_whole = types("ffn_gate_exps") is not None
    for dtype in ("packed", "float32") if is_whole else ("float32",):
        models = load(path, dtype=dtype)
        linears = [linear for one in experts_of(models) for expert in one.experts for linear in expert.linears()]
        form = PackedLinear if dtype == "packed" else DenseLinear
        assert all(isinstance(linear, form) for linear in linears)
        assert is_close(models, model)


def test_types_that_are_no_blocks_are_decoded_one_expert_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded to float32, all experts of a layer would take many times what the file does."""
    path = tmp_path / "tiny.gguf"
    sizes = {"hidden_size": 256, "moe_intermediate_size": 256, "num_attention_heads": 4, "head_dim": 64}
    settings = {**COUNTS, "expert_feed_forward_length": 256}
    kind = gguf.GGMLQuantizationType.TQ2_0
    model = write_gguf(path, "qwen3moe", settings, quantized=kind, model_type="qwen3_moe", norm_topk_prob=True, **sizes)
    fill(model, path)
    most, decode = [], gguf.dequantize

    def watched(data: Any, number: Any) -> Any:
        most.append(data.size)
        return decode(data, number)

    monkeypatch.setattr(gguf, "dequantize", watched)
    source = open_source(str(path), tmp_path, print)
    for dtype in (torch.bfloat16, torch.float32):
        read: Any = read_weights(source, dtype)
        for stored, own in zip(read.model.layers, model.model.layers, strict=True):
            for name in ("gate_up_proj", "down_proj"):
                stack = getattr(stored.mlp.experts, name)
                assert torch.equal(stack, getattr(own.mlp.experts, name).to(dtype))
    assert max(most) == 256 * 256 // 256 * 66


@pytest.mark.parametrize("types", [("MXFP4", "MXFP4"), ("Q4_0", "Q5_0")], ids=["as published", "two types"])
def test_paired_projections_stay_in_their_blocks(tmp_path: Path, types: tuple[str, str]) -> None:
    """GPT-OSS' gates and up projections are tensors of their own, and alternate in transformers' parameter."""
    kinds = {"ffn_gate_exps.weight": types[0], "ffn_up_exps.weight": types[1], "ffn_down_exps.weight": "MXFP4"}
    path = tmp_path / "tiny.gguf"
    model = write_converted(
        path, "gpt-oss", blocks=lambda name: next((kind for part, kind in kinds.items() if part in name), None)
    )
    numbers = {one.name: one for one in gguf.GGUFReader(path).tensors}

    def decoded(layer: int, part: str) -> torch.Tensor:
        one = numbers[f"blk.{layer}.{part}.weight"]
        return torch.from_numpy(gguf.dequantize(one.data, one.tensor_type).copy())

    for index, layer in enumerate(model.model.layers):
        inner = layer.mlp.experts.gate_up_proj
        inner[..., ::2] = decoded(index, "ffn_gate_exps").transpose(1, 2)
        inner[..., 1::2] = decoded(index, "ffn_up_exps").transpose(1, 2)
        layer.mlp.experts.down_proj.copy_(decoded(index, "ffn_down_exps").transpose(1, 2))
    for dtype in ("packed", "float32"):
        models = load(path, dtype=dtype)
        linears = [linear for one in experts_of(models) for expert in one.experts for linear in expert.linears()]
        assert all(isinstance(linear, PackedLinear if dtype == "packed" else DenseLinear) for linear in linears)
        assert is_close(models, model)


@pytest.mark.parametrize(
    ("architecture", "settings", "leave_out", "error", "message"),
    [
        ("qwen3moe", {"expert_weights_norm": False}, (), UnsupportedArchitectureError, "expert_weights_norm"),
        ("qwen3moe", {"expert_gating_func": 2}, (), UnsupportedArchitectureError, "expert_gating_func"),
        ("olmoe", {"leading_dense_block_count": 1}, (), UnsupportedArchitectureError, "leading_dense_block_count"),
        ("qwen2moe", {}, ("expert_shared_feed_forward_length",), ModelError, "lacks qwen2moe.expert_shared"),
        ("olmoe", {}, ("expert_count",), ModelError, "lacks olmoe.expert_count"),
        ("llama", {"expert_used_count": 7}, (), UnsupportedArchitectureError, "chooses 7 of 6 experts"),
        ("llama", {"expert_count": 5}, (), ModelError, "has the shape"),
    ],
)
def test_settings_that_would_be_lost_are_refused(
    tmp_path: Path, architecture: str, *, settings: Any, leave_out: Any, error: type[Exception], message: str
) -> None:
    path = tmp_path / "tiny.gguf"
    write(path, architecture, settings, leave_out=leave_out)
    with pytest.raises(error, match=message):
        load(path)


def test_experts_of_a_dense_architecture_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "qwen2", {"expert_count": 8})
    with pytest.raises(UnsupportedArchitectureError, match=r"experts .* cannot be read"):
        load(tmp_path / "tiny.gguf")


def test_a_file_without_one_kind_of_matrices_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write(path, "olmoe")
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up_exps", b"blk.1.ffn_up_exqs"))
    with pytest.raises((ModelError, UnsupportedArchitectureError)):
        load(path)
