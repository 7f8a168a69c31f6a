"""Damaged and hostile model files: a ModelError, in bounded time and memory, and never anything else."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.engine.loading import checkpoint
from helix_jobs.engine.loading.gguf_header import read_gguf_header
from helix_jobs.errors import ModelError, ModelNotFoundError
from tests.unit.engine.model_files import edit_config, load, save_checkpoint, write_gguf
from tests.unit.engine.quantized_files import compressed_tensors_config, pack_quantized, quantized, write_quantized
from tests.unit.engine.tiny_models import tiny_model
from tests.unit.engine.tiny_towers import tiny_tower
from tests.worker_box import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")

DEEP = "[" * 100_000 + "]" * 100_000
TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
FUZZED_IN_SUITE = 40
FUZZED_IN_FULL = 4_000


def safetensors(folder: Path, header: str, data: bytes = b"") -> None:
    encoded = header.encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


@pytest.mark.parametrize(
    "header",
    [
        *("[]", "5", "null", '"x"', "{", DEEP, '{"a": 5}', '{"a": []}', '{"a": {}}', f'{{"a": {DEEP}}}'),
        *(
            json.dumps({"a": {**TENSOR, **change}})
            for change in (
                *({"shape": "abc"}, {"shape": None}, {"shape": [-1]}, {"shape": [1.5]}, {"shape": [True]}),
                *({"shape": [[1]]}, {"shape": [2**62, 2**62]}, {"shape": [10**400]}, {"shape": [1] * 1000}),
                *({"dtype": ["F32"]}, {"dtype": {}}, {"dtype": 5}, {"dtype": None}),
                *(
                    {"data_offsets": "ab"},
                    {"data_offsets": [4, 0]},
                    {"data_offsets": [0]},
                    {"data_offsets": [0, 2**70]},
                ),
            )
        ),
    ],
)
def test_a_safetensors_header(tmp_path: Path, header: str) -> None:
    folder = save_checkpoint(tmp_path)
    safetensors(folder, header, b"\0" * 8)
    with pytest.raises(ModelError, match=r"is not a safetensors file|is cut short"):
        load(folder)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**40, 2**63, 2**64 - 1])
def test_the_length_of_a_safetensors_header(tmp_path: Path, length: int) -> None:
    folder = save_checkpoint(tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + content[8:])
    with pytest.raises(ModelError, match=r"is not a safetensors file|is cut short"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer.json"])
@pytest.mark.parametrize(
    "content", [DEEP, "[]", "5", "", '{"a": ' + "9" * 5_000 + "}", "\0\1", "\ud800".encode("utf-8", "surrogatepass")]
)
def test_json_that_is_none_or_too_deep(tmp_path: Path, name: str, content: str | bytes) -> None:
    folder = save_checkpoint(tmp_path)
    if name.startswith("model"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError):
        load(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
)
def test_a_description_larger_than_any(tmp_path: Path, name: str) -> None:
    folder = save_checkpoint(tmp_path)
    with (folder / name).open("ab") as stream:
        stream.truncate(200_000_000)  # without taking room on the disk
    with pytest.raises(ModelError, match=rf"{name} has 200 MB, and no such file has more than \d+ MB"):
        load(folder)


@pytest.mark.skipif(os.name == "nt", reason="there are no pipes with names")
@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "generation_config.json"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    folder = save_checkpoint(tmp_path)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match=f"{name} is not a regular file"):
        load(folder)


@pytest.mark.thorough(fast=10)
@pytest.mark.parametrize("content", ["", "{", "[]", "5", "\0\1", '{"eos_token_id": [0, 7'])
@pytest.mark.parametrize("form", ["plain", "tower", "quantised"])
def test_settings_of_generation_that_cannot_be_read(tmp_path: Path, form: str, content: str) -> None:
    """Without them an answer might not end where it should."""
    if form == "quantised":
        config = compressed_tensors_config("pack-quantized", 4, strategy="group", group_size=32)
        model = tiny_model(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
        write_quantized(tmp_path, model, lambda weight: pack_quantized(quantized(weight, 4, 32)), config)
    else:
        tower = tiny_tower("qwen3_vl_moe", "qwen3_moe", {"initializer_range": 0.2}) if form == "tower" else None
        save_checkpoint(tmp_path, tower)
    load(tmp_path)
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be read .*; fetch the model again"):
        load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": 10**9},
        {"num_key_value_heads": 4},
        {"hidden_size": 10**12},
        {"intermediate_size": 10**15},
        {"vocab_size": 10**12},
        {"head_dim": 10**11},
        {"head_dim": -8},
        {"max_position_embeddings": 10**18},
        {"max_position_embeddings": "many"},
        {"rms_norm_eps": "small"},
        {"rms_norm_eps": -1.0},
        {"eos_token_id": "x"},
        {"eos_token_id": [[1]]},
        {"sliding_window": "x"},
        {"rope_parameters": {"rope_type": "yarn", "factor": 0.0, "rope_theta": 10000.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 0, "rope_theta": "x"}},
        {"rope_parameters": 5},
        {"architectures": 5},
        {"model_type": ["llama"]},
        {"hidden_act": ["silu"]},
        {"tie_word_embeddings": "x"},
    ],
)
def test_numbers_in_config_json(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Some releases of transformers take some of these; none may end in anything but a model or a ModelError."""
    folder = edit_config(save_checkpoint(tmp_path), **changes)
    try:
        load(folder)
    except ModelError as error:
        assert "Traceback" not in str(error)  # noqa: PT017  (loading is as good)


@pytest.mark.parametrize("name", ["a" * 5_000, "/" + "a" * 5_000, "a/" * 3_000 + "m.gguf", "a" * 5_000 + ".gguf"])
def test_a_name_no_file_can_have(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        load(name)


def test_files_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    folder = save_checkpoint(tmp_path)
    monkeypatch.setattr(checkpoint, "read_safetensors_header", refuse)
    with pytest.raises(
        ModelNotFoundError, match=r"cannot be opened \(Permission denied\); check the path and its rights"
    ):
        load(folder)


def gguf(path: Path, settings: bytes, num_settings: int = 1, num_tensors: int = 0) -> None:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_settings) + settings)


def setting(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    "settings",
    [
        setting("a", 9, struct.pack("<IQ", 4, 2**40)),
        setting("a", 9, struct.pack("<IQ", 8, 2**40)),
        setting("a", 9, struct.pack("<IQ", 9, 1) * 50_000),
        setting("a", 9, struct.pack("<IQ", 77, 1)),
        setting("a", 8, struct.pack("<Q", 2**62)),
        setting("a", 8, struct.pack("<Q", 2) + b"\xff\xfe"),
        setting("a", 77, b"\0" * 8),
        setting("a", 4, b""),
        setting("a", 4, b"\0" * 4) * 2,
    ],
)
@pytest.mark.parametrize("count", [1, 2, 2**40, 2**64 - 1])
def test_a_gguf_header(tmp_path: Path, settings: bytes, count: int) -> None:
    gguf(tmp_path / "m.gguf", settings, count)
    with pytest.raises(ModelError, match=r"the GGUF file is damaged|the architecture None"):
        load(tmp_path / "m.gguf")


def array(key: str, kind: int, count: int, element: bytes) -> bytes:
    return setting(key, 9, struct.pack("<IQ", kind, count) + element * count)


# Each takes the gguf package's reader gigabytes or a minute.
@pytest.mark.parametrize(
    ("settings", "num_settings", "num_tensors", "message"),
    [
        (array("a", 0, 3_000_000, b"\0"), 1, 0, "arrays longer than any model's"),
        (array("a", 0, 2_000_000, b"\0") + array("b", 7, 2_000_000, b"\0"), 2, 0, "arrays longer than any model's"),
        (array("a", 8, 1_300_000, b"\0" * 8), 1, 0, "arrays longer than any model's"),
        (setting("a", 8, struct.pack("<Q", 5_000_000) + b"a" * 5_000_000), 1, 0, "a text of 5,000,000 bytes"),
        (b"\0" * 2_000_000, 70_000, 0, "70,000 settings"),
        (b"\0" * 2_000_000, 0, 70_000, "70,000 tensors"),
    ],
    ids=["numbers", "numbers-together", "strings", "text", "settings", "tensors"],
)
def test_a_gguf_header_that_holds_more_than_any(
    tmp_path: Path, settings: bytes, num_settings: int, num_tensors: int, message: str
) -> None:
    gguf(tmp_path / "m.gguf", settings, num_settings, num_tensors)
    with pytest.raises(ModelError, match=f"the GGUF file is damaged .its header has {message}"):
        load(tmp_path / "m.gguf")


def test_a_gguf_header_of_the_largest_vocabulary(tmp_path: Path) -> None:
    """262,144 tokens with scores and types, and 514,000 merges; numbers stand for strings, two for each."""
    lengths = {"tokens": 2 * 262_144, "scores": 262_144, "types": 262_144, "merges": 2 * 514_000}
    settings = b"".join(array(key, 0, length, b"\0") for key, length in lengths.items())
    gguf(tmp_path / "m.gguf", settings, len(lengths))
    header = read_gguf_header("m", tmp_path / "m.gguf")
    assert {key: len(value) for key, value in header.settings.items()} == lengths


@pytest.mark.parametrize(
    "entry",
    [
        struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 2**63, 0, 0),
        struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 0, 0, 0),
        struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 2**31, 1, 0, 0),
        struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 33, 2, 0),
        struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 4, 999, 0),
        struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 4, 0, 2**60),
    ],
)
def test_a_gguf_table_of_tensors(tmp_path: Path, entry: bytes) -> None:
    architecture = setting("general.architecture", 8, struct.pack("<Q", 5) + b"llama")
    gguf(tmp_path / "m.gguf", architecture + entry, 1, 1)
    with pytest.raises(ModelError, match=r"the GGUF file is (damaged|cut short)"):
        load(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("settings", "general"),
    [
        ({"attention.head_count": 0}, {}),
        ({"attention.head_count": 10**9}, {}),
        ({"block_count": 10**9}, {}),
        ({"block_count": 0}, {}),
        ({"embedding_length": 2**31}, {}),
        ({"context_length": "x"}, {}),
        ({"attention.key_length": 2**30}, {}),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, {}),
        ({"rope.freq_base": -1.0}, {}),
        ({}, {"general.alignment": 0}),
        ({}, {"general.alignment": 2**31}),
        ({}, {"tokenizer.ggml.eos_token_id": 2**31}),
        ({}, {"tokenizer.ggml.tokens": ["a"]}),
        ({}, {"tokenizer.ggml.merges": ["zz zz"]}),
        ({}, {"tokenizer.chat_template": 5}),
        ({}, {"split.count": "many"}),
    ],
)
def test_settings_of_a_gguf_file(tmp_path: Path, settings: dict[str, Any], general: dict[str, Any]) -> None:
    write_gguf(tmp_path / "m.gguf", settings=settings, general=general)
    with pytest.raises(ModelError):
        load(tmp_path / "m.gguf")


def test_a_vocabulary_of_endless_pieces(tmp_path: Path) -> None:
    """Each piece is tried at every place where it can be cut: a million characters would take hours."""
    pieces = ["<unk>", "</s>", "a", "a" * 1_000_000]
    write_gguf(
        tmp_path / "m.gguf",
        "phi3",
        general={
            "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.token_type": [2, 3, 1, 1],
            "tokenizer.ggml.scores": [0.0] * 4,
        },
    )
    with pytest.raises(ModelError):
        load(tmp_path / "m.gguf")


def fuzz(folder: Path, first: int, count: int, limit: float) -> str:
    """Run the fuzzer in a process of its own, whose memory is limited."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.engine.loading.fuzz_model_files", str(folder), str(first), str(count)],
        capture_output=True,
        text=True,
        check=False,
        timeout=limit,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-600:] + done.stderr[-3_000:]
    return done.stdout


@pytest.mark.thorough
@pytest.mark.skipif(os.name == "nt", reason="memory cannot be limited")
def test_files_damaged_at_random(tmp_path: Path) -> None:
    assert f"{FUZZED_IN_SUITE} files: " in fuzz(tmp_path, 0, FUZZED_IN_SUITE, 300)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="memory cannot be limited")
def test_many_files_damaged_at_random(tmp_path: Path) -> None:
    assert f"{FUZZED_IN_FULL} files: " in fuzz(tmp_path, 1_000, FUZZED_IN_FULL, 3 * 3600)
