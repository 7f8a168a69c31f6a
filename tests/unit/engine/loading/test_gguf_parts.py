"""Split GGUF files: all parts are read as one model, or the part that does not fit is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import pytest
import torch

from helix_jobs.engine.loading.checkpoint import find_local_checkpoint
from helix_jobs.errors import ModelError
from tests.unit.engine.gguf_equality import check_equal
from tests.unit.engine.model_files import load, write_gguf

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")


def write(folder: Path, **more: Any) -> tuple[list[Path], Any]:
    """Three parts of a model."""
    folder.mkdir(exist_ok=True)
    model = write_gguf(folder / "m.gguf", part_size=8, **more)
    parts = sorted(folder.glob("m-*.gguf"))
    assert [part.name for part in parts] == [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    return parts, model


@pytest.mark.parametrize("given", [0, 2])
def test_parts_are_one_model_whichever_is_named(tmp_path: Path, given: int) -> None:
    parts, model = write(tmp_path)
    check_equal(parts[given], model)
    found = find_local_checkpoint(str(parts[given]), tmp_path)
    assert found is not None
    assert list(found.files) == parts


def test_rotary_factors_are_found_in_a_later_part(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    parts, model = write(tmp_path, rope_scaling=scaling)
    assert b"rope_freqs.weight" in parts[2].read_bytes()
    check_equal(parts[0], model)


@pytest.mark.parametrize("gone", [0, 1])
def test_a_missing_part_is_named(tmp_path: Path, gone: int) -> None:
    parts, _ = write(tmp_path)
    parts[gone].unlink()
    with pytest.raises(ModelError, match=rf"is part 3 of 3 .*: m-0000{gone + 1}-of-00003.gguf is missing there"):
        load(parts[2])


def test_a_part_by_another_name(tmp_path: Path) -> None:
    parts, _ = write(tmp_path)
    with pytest.raises(ModelError, match=r"is part 2 of 3 .*name each part as it was, like NAME-00002-of-00003.gguf"):
        load(parts[1].rename(tmp_path / "b.gguf"))


def test_a_part_that_is_another_files(tmp_path: Path) -> None:
    parts, _ = write(tmp_path)
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(ModelError, match=r"m-00002-of-00003.gguf does not say that it is part 2 of 3; fetch all"):
        load(parts[0])


def test_parts_of_two_models(tmp_path: Path) -> None:
    parts, _ = write(tmp_path / "a")
    others, _ = write(tmp_path / "b", more={"blk.0.attn_q_norm.weight": torch.ones(8)})
    parts[2].write_bytes(others[2].read_bytes())
    with pytest.raises(ModelError, match=r"its parts have \d+ tensors together, and the first says \d+; fetch all"):
        load(parts[0])


def test_numbers_that_no_part_has(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", general={"split.no": 5, "split.count": 3})
    with pytest.raises(ModelError, match="says that it is part 5 of 3"):
        load(tmp_path / "m.gguf")


def test_a_part_that_is_cut_short(tmp_path: Path) -> None:
    parts, _ = write(tmp_path)
    parts[1].write_bytes(parts[1].read_bytes()[:-200])
    with pytest.raises(ModelError, match="the GGUF file is cut short; fetch it again"):
        load(parts[0])


def test_matrices_of_a_later_part_stay_in_blocks(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "num_attention_heads": 4}
    parts, _ = write(tmp_path, blocks=lambda _: "Q8_0", **sizes)
    assert load(parts[0], dtype="packed").target.dtype_name == "q8_0"
    assert any(tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0 for tensor in gguf.GGUFReader(parts[1]).tensors)
