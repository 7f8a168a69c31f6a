"""A model's files are data: nothing in them is run, and nothing outside their directory is read."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import helix_jobs
from helix_jobs.errors import ModelError, ModelNotFoundError
from tests.unit.engine.model_files import edit_config, load, save_checkpoint
from tests.unit.engine.tiny_models import tiny_model


class Bomb:
    """Runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_pickles_are_refused_in_a_directory_and_by_name(tmp_path: Path, name: str) -> None:
    folder = save_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(ModelNotFoundError, match="only as pickles, which can run code when opened; convert them"):
        load(folder)
    with pytest.raises(ModelNotFoundError, match="is a pickle, which can run code when opened; give a directory"):
        load(folder / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "shard", ["pytorch_model-00001-of-00001.bin", "../m2/model.safetensors", "/etc/passwd", "a\\b.safetensors", 7, ""]
)
def test_an_index_that_names_anything_but_safetensors_beside_it_is_refused(tmp_path: Path, shard: object) -> None:
    save_checkpoint(tmp_path / "m2")
    folder = save_checkpoint(tmp_path / "m")
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model-00001-of-00001.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelNotFoundError, match=r"read only from \.safetensors files beside it .*convert the model"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_safetensors_is_never_opened(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_calls_itself_safetensors(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m")
    torch.save(tiny_model().state_dict(), folder / "model.safetensors")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        load(folder)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m")
    (folder / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})\nclass C: pass\n")
    classes = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    edit_config(folder, auto_map=dict.fromkeys(classes, "evil.C"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["evil.C", None]}}))
    try:
        load(folder)
    except ModelError as error:
        assert "Exception" not in str(error)  # noqa: PT017  (served without the code, or refused: both are fine)
    assert not (tmp_path / "ran").exists()


def test_nowhere_is_remote_code_trusted() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in Path(helix_jobs.__file__).parent.rglob("*.py")}
    values = [found for text in sources.values() for found in re.findall(r"trust_remote_code\W+(\w+)", text)]
    assert values
    assert set(values) == {"False"}
