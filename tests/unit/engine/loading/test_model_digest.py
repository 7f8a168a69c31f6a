"""A model's digest is that of its files: the same under any name, another one for other files."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.engine.loading import model_digest as module
from helix_jobs.engine.loading.model_digest import model_digest, served_digests
from helix_jobs.settings import Settings
from tests.unit.engine.model_files import save_checkpoint
from tests.unit.engine.tiny_models import tiny_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "model", tiny_model())


def digest(folder: Path, home: Path, said: list[str] | None = None) -> str:
    found = model_digest(str(folder), home, (said if said is not None else []).append)
    assert found is not None
    return found


def test_it_is_the_list_that_sha256sum_prints(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text("not read with it", encoding="utf-8")
    files = sorted(file for file in folder.iterdir() if file.suffix in {".safetensors", ".json", ".jinja"})
    listed = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    assert digest(folder, tmp_path) == hashlib.sha256(listed.encode()).hexdigest()


def test_a_copy_has_the_same_and_other_weights_or_another_template_have_not(folder: Path, tmp_path: Path) -> None:
    first = digest(folder, tmp_path)
    assert digest(shutil.copytree(folder, tmp_path / "other"), tmp_path) == first
    assert digest(save_checkpoint(tmp_path / "third", tiny_model(seed=1)), tmp_path) != first
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert digest(folder, tmp_path) != first


def test_a_large_file_is_read_once_until_it_changes(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_LARGE", 10_000)
    said: list[str] = []
    first = digest(folder, tmp_path / "home", said)
    assert said == [f"reading {folder} for its digest, once"]
    assert digest(folder, tmp_path / "home", said) == first
    assert len(said) == 1
    save_checkpoint(folder, tiny_model(seed=1))
    assert digest(folder, tmp_path / "home", said) != first
    assert len(said) == 2


def test_a_model_of_many_large_files_is_told_once(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_LARGE", 1)
    said: list[str] = []
    first = digest(folder, tmp_path / "home", said)
    assert len(said) == 1
    assert digest(folder, tmp_path / "home", said) == first
    assert len(said) == 1


def test_a_copy_of_the_target_and_no_draft_have_none(folder: Path, tmp_path: Path) -> None:
    def settings(draft: str) -> Settings:
        values = {"HELIX_HOME": str(tmp_path), "HELIX_TARGET_MODEL": str(folder), "HELIX_DRAFT_MODEL": draft}
        return Settings.from_environment(values)

    found = served_digests(settings("lookup+int8"), print)
    assert (found.target, found.draft, found.adapters) == (digest(folder, tmp_path), None, {})
    assert served_digests(settings(f"lookup+{folder}"), print).draft == found.target
