"""Settings of a GGUF file that change the computation are read or refused; what it lacks is not made up."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import gguf
import pytest
import torch

from helix_jobs.errors import ModelError, ModelNotFoundError, UnsupportedArchitectureError
from tests.unit.engine.model_files import load, write_gguf
from tests.unit.engine.tiny_models import decoder_logits, reference_logits

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")


def equal(path: Path, model: Any) -> bool:
    got = decoder_logits(load(path, dtype="float32").target.decoder, range(3, 60))
    return torch.allclose(got, reference_logits(model, range(3, 60)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope.scaling.factor": 4.0}, r"the scaling of positions \(linear, 4.0\)"),
        ({"rope.scale_linear": 2.0}, r"the scaling of positions \(linear, 2.0\)"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, r"the scaling of positions \(linear\)"),
        ({"expert_used_count": 2}, r"the setting llama.expert_used_count \(2\)"),
        ({"attention.causal": False}, r"the setting llama.attention.causal \(False\)"),
        ({"attention.scale": 0.5}, "the setting llama.attention.scale"),
        ({"logit_scale": 0.25}, "the setting llama.logit_scale"),
        ({"final_logit_softcapping": 30.0}, "the setting llama.final_logit_softcapping"),
        ({"something.new": 1}, "the setting llama.something.new"),
        ({"attention.sliding_window": 100}, r"a sliding window \(100\)"),
        ({"attention.value_length": 16}, "heads whose values are not as wide as their keys"),
        ({"rope.dimension_count": 4}, "heads are rotated in part"),
        ({"attention.head_count_kv": [2, 2]}, "the setting attention.head_count_kv, one for each layer"),
    ],
)
def test_what_nobody_reads_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", settings=settings)
    with pytest.raises(UnsupportedArchitectureError, match=f"{message}.*; use the model's safetensors"):
        load(tmp_path / "tiny.gguf")


def test_experts_are_named(tmp_path: Path) -> None:
    """A file of Mixtral calls itself llama."""
    write_gguf(tmp_path / "tiny.gguf", settings={"expert_count": 8, "expert_used_count": 2})
    with pytest.raises(UnsupportedArchitectureError, match=r"6 of its weights \(first layers.0.mlp.down_proj.weight\)"):
        load(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_the_base_of_the_rotary_frequencies(tmp_path: Path, architecture: str) -> None:
    model = write_gguf(
        tmp_path / "tiny.gguf",
        architecture,
        {"rope.freq_base": 500.0},
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        rope_theta=500.0,
    )
    assert equal(tmp_path / "tiny.gguf", model)
    model = write_gguf(tmp_path / "default.gguf", architecture, leave_out=("rope.freq_base",))
    assert equal(tmp_path / "default.gguf", model)


def test_what_changes_nothing_is_no_obstacle(tmp_path: Path) -> None:
    settings = {
        "rope.scaling.type": "none",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 128,
        "expert_count": 0,
        "attention.causal": True,
        "logit_scale": 1.0,
        "attention.sliding_window": 4096,
        "tensor_data_layout": "Meta AI original pth",
    }
    assert equal(tmp_path / "a.gguf", write_gguf(tmp_path / "a.gguf", settings=settings))
    settings = {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}
    assert equal(tmp_path / "b.gguf", write_gguf(tmp_path / "b.gguf", settings=settings))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_heads_may_be_wider_than_their_share(tmp_path: Path, architecture: str) -> None:
    """As those of Mistral Nemo, whose hidden size is not that of its heads together."""
    model = write_gguf(tmp_path / "tiny.gguf", architecture, head_dim=16)
    assert equal(tmp_path / "tiny.gguf", model)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "phi3"])
def test_every_head_has_its_own_keys_unless_the_file_says_otherwise(tmp_path: Path, architecture: str) -> None:
    """llama.cpp permutes Llama's queries and keys, and transformers reorders them only by a number in the file."""
    left_out = ("attention.head_count_kv",)
    model = write_gguf(tmp_path / "tiny.gguf", architecture, leave_out=left_out, num_key_value_heads=6)
    assert equal(tmp_path / "tiny.gguf", model)


@pytest.mark.parametrize("key", ["rope.dimension_count", "attention.key_length", "vocab_size"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "phi3"])
def test_what_follows_from_other_settings_may_be_missing(tmp_path: Path, architecture: str, key: str) -> None:
    assert equal(tmp_path / "tiny.gguf", write_gguf(tmp_path / "tiny.gguf", architecture, leave_out=(key,)))


def test_no_heads_of_keys_are_none(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", settings={"attention.head_count_kv": 0})
    with pytest.raises(ModelError, match=r"the GGUF file says attention.head_count_kv 0; fetch it again"):
        load(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("key", ["context_length", "block_count", "attention.layer_norm_rms_epsilon"])
def test_a_missing_setting_is_not_made_up(tmp_path: Path, key: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", leave_out=(key,))
    with pytest.raises(ModelError, match=f"the GGUF file lacks llama.{key}"):
        load(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("blk.0.attn_q.bias", r"1 of its weights \(first layers.0.self_attn.q_proj.bias\)"),
        ("blk.0.attn_q_norm.weight", r"1 of its weights \(first blk.0.attn_q_norm.weight\)"),
        ("blk.0.attn_sub_norm.weight", r"1 of its weights \(first blk.0.attn_sub_norm.weight\)"),
        ("rope_factors_long.weight", r"1 of its weights \(first rope_factors_long.weight\)"),
        ("blk.0.attn_q.scale", r"1 of its weights \(first blk.0.attn_q.scale\)"),
    ],
)
def test_tensors_that_nobody_reads(tmp_path: Path, tensor: str, message: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", more={tensor: torch.ones(48)})
    with pytest.raises(
        UnsupportedArchitectureError, match=f"{message}.*cannot be read .*; use the model's safetensors"
    ):
        load(tmp_path / "tiny.gguf")


def test_rotary_factors_of_another_family_are_not_dropped(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "qwen2", more={"rope_freqs.weight": torch.ones(4)})
    with pytest.raises(UnsupportedArchitectureError, match=r"first rope_freqs.weight"):
        load(tmp_path / "tiny.gguf")


def test_a_part_of_a_split_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m-00001-of-00003.gguf", general={"split.no": 0, "split.count": 3})
    with pytest.raises(
        ModelError, match=r"is part 1 of 3 of a split GGUF file; merge the parts \(llama-gguf-split --m"
    ):
        load(tmp_path / "m-00001-of-00003.gguf")
    with pytest.raises(ModelError, match=r"into one folder: m-00002-of-00003.gguf and 1 more is missing there"):
        load(tmp_path / "m-00001-of-00003.gguf")


@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
def test_a_file_that_is_no_model(tmp_path: Path, kind: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", general={"general.type": kind})
    with pytest.raises(UnsupportedArchitectureError, match=f"holds no model but something of the type '{kind}'"):
        load(tmp_path / "tiny.gguf")


def test_a_folder_of_gguf_files_names_them(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    with pytest.raises(ModelNotFoundError, match=r"name the GGUF file itself: .*a\.gguf"):
        load(tmp_path)
    (tmp_path / "b.GGUF").write_bytes((tmp_path / "a.gguf").read_bytes())
    with pytest.raises(ModelNotFoundError, match=r"has 2 GGUF files; name the one you want, such as .*a\.gguf"):
        load(tmp_path)
    assert load(tmp_path / "b.GGUF").draft is None


def test_a_type_of_blocks_that_cannot_be_taken_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError

    write_gguf(tmp_path / "tiny.gguf", quantized=gguf.GGMLQuantizationType.Q8_0, hidden_size=96, intermediate_size=64)
    load(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf, "dequantize", refuse)
    with pytest.raises(UnsupportedArchitectureError, match="weights stored as Q8_0 cannot be read"):
        load(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("number", [31, 36, max(gguf.GGMLQuantizationType) + 1, 255])
def test_a_type_of_blocks_that_the_gguf_package_does_not_know(tmp_path: Path, number: int) -> None:
    """Such as those that llama.cpp wrote for some processors in 2024, or will write next year."""
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    content, tensor = path.read_bytes(), b"blk.0.ffn_down.weight"
    place = content.index(tensor) + len(tensor) + struct.calcsize("<IQQ")
    path.write_bytes(content[:place] + struct.pack("<I", number) + content[place + 4 :])
    message = f"weights stored as type {number} cannot be read from a GGUF file; use the model's safetensors"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        load(path)


@pytest.mark.parametrize("version", [1, 4])
def test_another_version_of_the_format(tmp_path: Path, version: int) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    content = path.read_bytes()
    path.write_bytes(content[:4] + struct.pack("<I", version) + content[8:])
    message = (
        f"version {version} of the GGUF format cannot be read .supported are 2, 3.; use the model's safetensors or"
    )
    with pytest.raises(UnsupportedArchitectureError, match=message):
        load(path)


@pytest.mark.parametrize("name", ["mistral", "Mistral", "llama", "t5", ""])
def test_a_files_name_is_no_architecture(tmp_path: Path, name: str) -> None:
    """transformers would make a Mistral of the first, whose window of 4,096 tokens no file states."""
    model = write_gguf(tmp_path / "tiny.gguf", general={"general.name": name}, max_position_embeddings=5_000)
    assert equal(tmp_path / "tiny.gguf", model)
    assert load(tmp_path / "tiny.gguf").max_context == 5_000


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n")
    with pytest.raises(ModelError, match="is a Git LFS pointer, not the file itself; run git lfs pull"):
        load(tmp_path / "tiny.gguf")
