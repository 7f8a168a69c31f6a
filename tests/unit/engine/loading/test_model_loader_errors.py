"""Each way a model can be wrong, with the sentence a person reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from helix_jobs.engine.loading import model_loader, model_memory, model_source
from helix_jobs.engine.loading.checkpoint import find_local_checkpoint
from helix_jobs.engine.loading.model_loader import load_models
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.families.registry import describe
from helix_jobs.engine.model.model_words import subject
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.errors import (
    ConfigurationError,
    InsufficientMemoryError,
    ModelError,
    ModelNotFoundError,
    TokenizerMismatchError,
)
from tests.unit.engine.model_files import edit_config, load, save_checkpoint, write_gguf
from tests.unit.engine.tiny_models import CPU, tiny_model, tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"model directory .*/absent does not exist; check the path"):
        load(tmp_path / "absent")


def test_no_such_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"absent.gguf does not exist"):
        load(tmp_path / "absent.gguf")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("hello")
    with pytest.raises(ModelNotFoundError, match="is a file that is not GGUF"):
        load(tmp_path / "model.txt")


@pytest.mark.parametrize(("content", "message"), [(b"not gguf", "not a GGUF file"), (b"GGUF\3\0\0\0", "is damaged")])
def test_a_gguf_file_with_other_content(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "m.gguf")


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"has no config.json; give a transformers model directory"):
        load(tmp_path)


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_damaged_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x")


def with_damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text("[")


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def with_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "damage", [without_config, with_damaged_weights, with_damaged_config, without_tokenizer, with_pickles]
)
def test_a_message_has_the_path_once(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = save_checkpoint(tmp_path / "m")
    damage(folder)
    with pytest.raises(ModelError) as told:
        load(folder)
    assert str(told.value).count(str(folder)) == 1


@pytest.mark.parametrize("name", ["models--Qwen--Qwen2.5-0.5B", "a..b", "a-", "a/b.git", "x" * 120])
def test_a_name_that_the_hub_gives_to_no_model(tmp_path: Path, name: str) -> None:
    """The first is that of a directory in the hub library's cache, without its path."""
    with pytest.raises(ModelNotFoundError, match="is no directory here and no name on the hub; check the name"):
        find_local_checkpoint(name, tmp_path)
    with pytest.raises(ModelNotFoundError, match="is no directory here and no name on the hub; check the name"):
        load(name)


def test_a_model_of_the_hub_is_named_with_the_place_of_its_files() -> None:
    assert subject("org/name", Path("/cache/x/config.json")) == "model org/name: /cache/x/config.json"
    assert subject("/m", Path("/m/sub/config.json")) == "model /m: sub/config.json"
    assert subject("~nobody-here/m", Path("/m")) == "model ~nobody-here/m: /m"


def test_weights_only_as_a_pickle_are_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match="only as pickles, which can run code when opened; convert them"):
        load(folder)


def test_a_directory_with_only_gguf_names_the_file(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    (folder / "model.safetensors").unlink()
    write_gguf(folder / "tiny.gguf")
    with pytest.raises(ModelNotFoundError, match=r"name the GGUF file itself: .*tiny\.gguf"):
        load(folder)


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, max_shard_size="20KB")
    sorted(folder.glob("*.safetensors"))[1].unlink()
    with pytest.raises(ModelNotFoundError, match=r"lacks 1 of \d+ weight files \(first model-00002"):
        load(folder)


def test_a_truncated_download(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match="is cut short; fetch the model again"):
        load(folder)


def test_a_file_that_only_calls_itself_safetensors(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    (folder / "model.safetensors").write_bytes(b"<html>please log in</html>")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        load(folder)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights \(first model.layers.1.mlp.up_proj.weight\)"):
        load(folder)


def test_no_tokenizer(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ModelNotFoundError, match="tokenizer files included"):
        load(tmp_path)


def test_a_config_that_is_not_json(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json is not JSON"):
        load(folder)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("proxy says no"), r"could not be fetched from the hub \(ConnectionError\); check the name"),
        (ValueError("bad"), r"could not be fetched from the hub \(ValueError\)"),
    ],
)
def test_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelNotFoundError, match=message):
        load("someone/nothing")


def test_a_package_that_transformers_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ImportError("\n requires the protobuf library\n but it was not found")

    monkeypatch.setattr(model_source, "read_tokenizer", fail)
    with pytest.raises(ModelError, match="a Python package that is not installed: requires the protobuf library but"):
        load(save_checkpoint(tmp_path))


def test_an_untied_head_that_is_missing(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks its output head .*\"tie_word_embeddings\": true in config"):
        load(folder)
    decoder = load(edit_config(folder, tie_word_embeddings=True)).target.decoder
    assert torch.allclose(
        decoder.logits(hidden := torch.randn(1, 48)), decoder.final_norm(hidden) @ decoder.embedding.t()
    )


def test_vocabularies_that_differ(tmp_path: Path) -> None:
    other = json.loads(tokenizer().backend_tokenizer.to_str())
    vocabulary = other["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    swapped = tokenizer().__class__(
        tokenizer_object=tokenizer().backend_tokenizer.from_str(json.dumps(other)),
        eos_token="<eos>",
        unk_token="<unk>",
    )
    target = save_checkpoint(tmp_path / "t")
    draft = save_checkpoint(tmp_path / "d", tok=swapped)
    with pytest.raises(TokenizerMismatchError) as caught:
        load(target, draft)
    assert "2 ids differ, the first is 2 ('a' in the target, 'b' in the draft)" in str(caught.value)
    assert "int8 or none" in str(caught.value)


def test_a_draft_with_an_extra_token(tmp_path: Path) -> None:
    larger = tokenizer()
    larger.add_tokens(["<think>"])
    draft = save_checkpoint(tmp_path / "d", tok=larger)
    with pytest.raises(
        TokenizerMismatchError, match=r"1 ids differ, .* \(None in the target, '<think>' in the draft\)"
    ):
        load(save_checkpoint(tmp_path / "t"), draft)


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("draft", ["none", "int8", "same"])
def test_too_little_memory_is_found_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draft: str
) -> None:
    folder = save_checkpoint(tmp_path)
    model = tiny_model()
    parameters = sum(p.numel() for p in model.parameters())
    cache = 256 * describe(model.config).geometry.block_bytes(1, torch.float32)
    int8 = sum(linear.nbytes for linear in quantize(build_decoder(model)).linears())
    need, remedy = {
        "none": (4 * parameters + cache, "--dtype int8"),
        "int8": (4 * parameters + int8 + 2 * cache, "--draft none"),
        # A draft of its own is read as it computes, and then made int8.
        "same": (8 * parameters + int8, "--draft none"),
    }[draft]
    name = folder if draft == "same" else draft

    monkeypatch.setattr(model_memory, "free_memory", lambda _: need)
    load(folder, name)

    def never(*_: object) -> None:
        pytest.fail("weights were read")

    monkeypatch.setattr(model_loader, "read_weights", never)
    monkeypatch.setattr(model_memory, "free_memory", lambda _: need - 1)
    with pytest.raises(InsufficientMemoryError, match=rf"GB free; use .*{remedy}"):
        load(folder, name)
    monkeypatch.setattr(model_memory, "free_memory", lambda _: 1)
    with pytest.raises(InsufficientMemoryError, match="GB free; use a smaller model; no dtype of this one fits here"):
        load(folder, name)


def test_memory_nobody_can_tell_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_memory, "free_memory", lambda _: None)
    assert load(save_checkpoint(tmp_path)).draft is None


def test_an_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="dtype 'int4' is unknown"):
        load_models(str(save_checkpoint(tmp_path)), "none", device=CPU, dtype="int4", home=tmp_path)
