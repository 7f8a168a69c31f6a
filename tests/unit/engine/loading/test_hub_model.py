"""A model with safetensors on the hub is looked at before its weights are downloaded: a real HTTP server."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from helix_jobs.engine.loading import hub_model, model_memory
from helix_jobs.engine.loading.checkpoint import fetched, find_checkpoint, find_local_checkpoint, look_up_checkpoint
from helix_jobs.engine.loading.model_outline import model_outline
from helix_jobs.errors import InsufficientMemoryError, ModelError, ModelNotFoundError, UnsupportedArchitectureError
from tests.unit.engine.loading.local_hub import LocalHub, library_hub
from tests.unit.engine.model_files import edit_config, load, save_checkpoint
from tests.unit.engine.quantized_files import compressed_tensors_config, pack_quantized, quantized, write_quantized
from tests.unit.engine.tiny_models import decoder_logits, reference_logits, tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "someone/tiny"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the repository holds: a model of one file, and a pickle of it."""
    made = save_checkpoint(tmp_path / "repository")
    (made / "pytorch_model.bin").write_bytes(b"a pickle")
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with library_hub(monkeypatch, tmp_path / "cache") as made:
        yield made


def add(hub: LocalHub, folder: Path) -> None:
    """Put the files of a directory, and nothing else, into the repository."""
    hub.repositories[NAME] = {file.name: file.read_bytes() for file in folder.iterdir()}


def split(folder: Path) -> list[str]:
    """Store the weights in two files; returns their names."""
    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / SINGLE).unlink()
    return list(parts)


def weights_fetched(hub: LocalHub) -> list[str]:
    return [file for file in hub.fetched if file.endswith((".safetensors", ".bin"))]


@pytest.mark.parametrize("is_split", [False, True])
def test_a_model_is_served_and_fetched_once(hub: LocalHub, folder: Path, *, is_split: bool) -> None:
    files = split(folder) if is_split else [SINGLE]
    add(hub, folder)
    first = load(NAME)
    assert Counter(weights_fetched(hub)) == dict.fromkeys(files, 2)  # its header, then all of it
    second = load(NAME)
    assert Counter(weights_fetched(hub)) == dict.fromkeys(files, 2)
    for models in (first, second):
        computed = decoder_logits(models.target.decoder)
        assert torch.allclose(computed, reference_logits(tiny_model()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("has_ranges", [True, False])
def test_what_headers_say_is_what_files_say(hub: LocalHub, folder: Path, *, is_split: bool, has_ranges: bool) -> None:
    hub.has_ranges = has_ranges
    if is_split:
        split(folder)
    add(hub, folder)
    there = look_up_checkpoint(NAME, folder, print)
    here = find_checkpoint(str(folder), folder, print)
    assert there.on_hub is not None
    assert (there.tensors, there.file_bytes, there.dtype) == (here.tensors, here.file_bytes, here.dtype)
    made = fetched(there, print)
    assert (made.tensors, made.file_bytes, made.on_hub) == (here.tensors, here.file_bytes, None)


def test_a_header_longer_than_the_first_request(hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_model, "_PREFIX", 100)
    add(hub, folder)
    there = look_up_checkpoint(NAME, folder, print)
    assert there.tensors == find_checkpoint(str(folder), folder, print).tensors
    assert weights_fetched(hub) == [SINGLE] * 2


def test_what_does_not_fit_is_not_downloaded(hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(hub, folder)
    monkeypatch.setattr(hub_model, "_PREFIX", 5000)
    monkeypatch.setattr(model_memory, "free_memory", lambda _: 1000)
    with pytest.raises(InsufficientMemoryError, match="the models need"):
        load(NAME)
    assert weights_fetched(hub) == [SINGLE]
    assert hub.sent < (folder / SINGLE).stat().st_size // 10
    assert find_local_checkpoint(NAME, folder) is None  # though the cache has its description
    assert not model_outline(NAME, folder).is_here


def test_a_second_copy_in_another_layout_stays_there(hub: LocalHub, folder: Path) -> None:
    add(hub, folder)
    hub.repositories[NAME]["consolidated.safetensors"] = b"another layout"
    load(NAME)
    assert weights_fetched(hub) == [SINGLE] * 2


def test_one_file_comes_before_an_index(hub: LocalHub, folder: Path) -> None:
    whole = (folder / SINGLE).read_bytes()
    split(folder)
    (folder / SINGLE).write_bytes(whole)
    add(hub, folder)
    load(NAME)
    assert weights_fetched(hub) == [SINGLE] * 2


def test_an_index_that_names_what_is_not_there(hub: LocalHub, folder: Path) -> None:
    split(folder)
    (folder / "b.safetensors").unlink()
    add(hub, folder)
    with pytest.raises(ModelNotFoundError, match=r"lacks 1 of 2 weight files \(first b\.safetensors\)"):
        load(NAME)


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 8 + b"{}", b"\x02\0\0\0\0\0\0\0[]", b"<html>not here</html>"]
)
def test_what_is_no_safetensors_file_says_so(hub: LocalHub, folder: Path, content: bytes) -> None:
    (folder / SINGLE).write_bytes(content)
    add(hub, folder)
    with pytest.raises(
        ModelError, match=r"model\.safetensors (is not a safetensors file|is cut short);|tell the size"
    ) as caught:
        load(NAME)
    assert "helix-hub-" not in str(caught.value)


def test_a_model_that_changes_between_header_and_file(hub: LocalHub, folder: Path) -> None:
    add(hub, folder)
    there = look_up_checkpoint(NAME, folder, print)
    save_file({"model.norm.weight": torch.zeros(1)}, folder / SINGLE)
    add(hub, folder)
    with pytest.raises(ModelError, match="changed on the hub while it was fetched; start again"):
        fetched(there, print)


def test_what_is_not_served_is_not_downloaded(hub: LocalHub, folder: Path) -> None:
    edit_config(folder, model_type="mamba")
    add(hub, folder)
    with pytest.raises(UnsupportedArchitectureError, match="mamba"):
        load(NAME)
    assert weights_fetched(hub) == []


@pytest.mark.parametrize("announced_by", ["config.json", "hf_quant_config.json"])
def test_a_quantisation_that_is_not_read_is_not_downloaded(hub: LocalHub, folder: Path, announced_by: str) -> None:
    if announced_by == "config.json":
        edit_config(folder, quantization={"bits": 4})
    else:
        (folder / announced_by).write_text("{}")
    add(hub, folder)
    with pytest.raises(UnsupportedArchitectureError, match=f"is quantised with .*{announced_by}"):
        load(NAME)
    assert weights_fetched(hub) == []


@pytest.mark.parametrize("form", ["in words of 4 bits", "in bytes"])
def test_a_format_whose_headers_do_not_tell_shapes_is_downloaded_first(
    hub: LocalHub, tmp_path: Path, form: str
) -> None:
    def store(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        if form == "in bytes":
            one = quantized(weight, 8)
            return {"weight": (one.codes - 128).to(torch.int8), "weight_scale": one.scale}, one.dense
        return pack_quantized(quantized(weight, 4, 32))

    config = (
        compressed_tensors_config("int-quantized", 8)
        if form == "in bytes"
        else compressed_tensors_config("pack-quantized", 4, strategy="group", group_size=32)
    )
    folder = tmp_path / "quantised"
    write_quantized(
        folder, tiny_model(hidden_size=64, intermediate_size=96, head_dim=16, num_attention_heads=4), store, config
    )
    add(hub, folder)
    found, here = look_up_checkpoint(NAME, tmp_path, print), find_checkpoint(str(folder), tmp_path, print)
    assert (found.on_hub is None) == (form == "in words of 4 bits")
    assert found.tensors == here.tensors
    assert found.blocks == here.blocks
    assert fetched(found, print).tensors == here.tensors
