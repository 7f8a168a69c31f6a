"""A GGUF file on the hub is looked at before it is downloaded: a real HTTP server, with ranges and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import huggingface_hub
import pytest
import torch

from helix_jobs.engine.loading import gguf_hub, hub_bytes, model_memory
from helix_jobs.engine.loading.checkpoint import fetched, find_checkpoint, find_local_checkpoint, look_up_checkpoint
from helix_jobs.engine.loading.gguf_hub import HubFile
from helix_jobs.engine.loading.model_outline import model_outline
from helix_jobs.errors import (
    InsufficientMemoryError,
    ModelError,
    ModelNotFoundError,
    UnsupportedArchitectureError,
)
from tests.unit.engine.loading.local_hub import LocalHub, library_hub
from tests.unit.engine.model_files import load, write_gguf
from tests.unit.engine.tiny_models import decoder_logits, reference_logits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPOSITORY, FILE = "someone/tiny-GGUF", "tiny-F32.gguf"
NAME = f"{REPOSITORY}:{FILE}"
# A file of 13 MB, of which the header takes some kilobytes.
WIDE = {"hidden_size": 192, "intermediate_size": 2048, "num_attention_heads": 6, "head_dim": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with library_hub(monkeypatch, tmp_path / "cache") as made:
        yield made


def add(hub: LocalHub, path: Path) -> None:
    """Put these files, and nothing else, into the repository."""
    hub.repositories[REPOSITORY] = {file.name: file.read_bytes() for file in path.parent.glob("*.gguf")}


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_file_is_described_by_its_header_alone(hub: LocalHub, tmp_path: Path, *, has_ranges: bool) -> None:
    hub.has_ranges = has_ranges
    path = tmp_path / FILE
    write_gguf(path, **WIDE)
    add(hub, path)
    outline, own = model_outline(NAME, tmp_path), model_outline(str(path), tmp_path)
    assert not outline.is_here
    assert (outline.sizes, outline.stored, outline.stored_name) == (own.sizes, own.stored, own.stored_name)
    assert outline.file_bytes == path.stat().st_size
    assert hub.fetched == [FILE]
    if has_ranges:
        assert hub.sent == 1 << 20
    else:  # what the sockets between hold is sent and never read
        assert hub.sent < path.stat().st_size
    # The cache has no part of it, so no later look takes it for a download that was broken off.
    assert find_local_checkpoint(NAME, tmp_path) is None


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_long_header_is_asked_for_piece_by_piece(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_ranges: bool
) -> None:
    """And the numbers behind it that belong to the configuration."""
    hub.has_ranges = has_ranges
    monkeypatch.setattr(gguf_hub, "_PREFIXES", (1000, 3000, 1 << 20))
    path = tmp_path / FILE
    write_gguf(path, rope_scaling=LLAMA3, **WIDE)
    add(hub, path)
    found, own = (look_up_checkpoint(name, tmp_path, print) for name in (NAME, str(path)))
    assert found.gguf is not None
    assert own.gguf is not None
    assert torch.equal(found.gguf.rotary["rope_freqs.weight"], own.gguf.rotary["rope_freqs.weight"])
    assert (found.tensors, found.gguf.vocabulary) == (own.tensors, own.gguf.vocabulary)
    assert hub.fetched == [FILE] * 4


def test_numbers_too_far_behind_need_ranges(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.has_ranges = False
    monkeypatch.setattr(hub_bytes, "REACH", 1 << 20)
    path = tmp_path / FILE
    write_gguf(path, rope_scaling=LLAMA3, **WIDE)
    add(hub, path)
    with pytest.raises(ModelNotFoundError, match=r"sends no parts of files.*download the file and name it"):
        model_outline(NAME, tmp_path)


def test_a_file_is_served_and_fetched_once(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / FILE
    model = write_gguf(path, rope_scaling=LLAMA3)
    add(hub, path)
    path.unlink()
    got = decoder_logits(load(NAME, dtype="float32").target.decoder)
    torch.testing.assert_close(got, reference_logits(model), rtol=1e-3, atol=1e-3)
    assert model_outline(NAME, tmp_path).is_here
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # the port that discards
    asked = list(hub.fetched)
    assert load(NAME, NAME, dtype="float32").draft is not None
    assert hub.fetched == asked


def test_what_is_not_served_is_not_downloaded(hub: LocalHub, tmp_path: Path) -> None:
    path = tmp_path / FILE
    write_gguf(path, **WIDE)
    path.write_bytes(path.read_bytes().replace(b"llama", b"bloom"))
    add(hub, path)
    with pytest.raises(UnsupportedArchitectureError, match="architecture 'bloom' cannot be served"):
        load(NAME)
    assert hub.sent == 1 << 20
    assert find_local_checkpoint(NAME, tmp_path) is None


def test_what_does_not_fit_is_not_downloaded(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / FILE
    write_gguf(path, **WIDE)
    add(hub, path)
    monkeypatch.setattr(model_memory, "free_memory", lambda _: 5_000_000)
    with pytest.raises(InsufficientMemoryError, match="need"):
        load(NAME)
    assert hub.sent == 1 << 20


def test_a_split_file_is_one_model(hub: LocalHub, tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf", part_size=8)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 2
    hub.repositories[REPOSITORY] = {f"F32/{part.name}": part.read_bytes() for part in parts}
    name, size = f"{REPOSITORY}:F32/{parts[1].name}", sum(part.stat().st_size for part in parts)
    for part in parts:
        part.unlink()
    assert model_outline(name, tmp_path).file_bytes == size
    got = decoder_logits(load(name, dtype="float32").target.decoder)
    torch.testing.assert_close(got, reference_logits(model), rtol=1e-3, atol=1e-3)
    assert find_checkpoint(name, tmp_path, print).file_bytes == size


def test_a_file_that_changes_while_it_is_fetched(hub: LocalHub, tmp_path: Path) -> None:
    path = tmp_path / FILE
    write_gguf(path)
    add(hub, path)
    found = look_up_checkpoint(NAME, tmp_path, print)
    write_gguf(path, intermediate_size=96)
    add(hub, path)
    with pytest.raises(ModelError, match="changed on the hub while it was fetched; start again"):
        fetched(found, print)


def test_what_is_no_file_there_says_so(hub: LocalHub, tmp_path: Path) -> None:
    hub.repositories[REPOSITORY] = {FILE: b"no GGUF" * 1000, "short.gguf": b"GGUF" + b"\x03" * 8}
    for name, error, message in (
        (NAME, ModelError, "is not a GGUF file"),
        (f"{REPOSITORY}:short.gguf", ModelError, "the GGUF file is damaged"),
        (f"{REPOSITORY}:other.gguf", ModelNotFoundError, "its repository on the hub has no such file; check the name"),
        (f"someone/else:{FILE}", ModelNotFoundError, "not on the hub; check the name"),
    ):
        for look in (model_outline, lambda name, home: find_checkpoint(name, home, print)):
            with pytest.raises(error, match=message):
                look(name, tmp_path)
    hub.gated.add(REPOSITORY)
    with pytest.raises(ModelNotFoundError, match="needs its licence accepted on the hub"):
        model_outline(NAME, tmp_path)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a/b:c.gguf", ("c.gguf",)),
        ("a/b:Q4/c d.GGUF", ("Q4/c d.GGUF",)),
        ("a/b:c-00002-of-00002.gguf", ("c-00001-of-00002.gguf", "c-00002-of-00002.gguf")),
        ("a/b:c-00003-of-00002.gguf", ("c-00003-of-00002.gguf",)),
        ("a/b:../c.gguf", None),
        ("a/b:/c.gguf", None),
        ("a/b", None),
        ("a/b:c.safetensors", None),
        ("b:c.gguf", None),
        ("C:\\a\\c.gguf", None),
        ("./a/b:c.gguf", None),
    ],
)
def test_names_of_files_on_the_hub(name: str, parts: tuple[str, ...] | None) -> None:
    found = HubFile.parse(name)
    assert (None if found is None else found.parts) == parts


def test_a_file_of_that_name_here_comes_first(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    write_gguf(tmp_path / NAME)
    assert model_outline(NAME, tmp_path).is_here
    assert hub.fetched == []
