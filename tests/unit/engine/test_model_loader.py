from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from model_files import GGUF_EOS, edit_config, load, logits, save_checkpoint, write_gguf
from tiny_models import ARCHITECTURES, CPU, EOS, VOCAB_SIZE, tiny_model, tokenizer

from helix_jobs.engine.model_loader import load_models
from helix_jobs.errors import UnsupportedArchitectureError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_directory_loads_with_the_weights_that_were_saved(tmp_path: Path, architecture: str) -> None:
    model = tiny_model(architecture)
    models = load(save_checkpoint(tmp_path / "m", model))
    assert torch.equal(logits(models.target.model), logits(model))
    assert models.target.name == str(tmp_path / "m")
    assert models.target.dtype == models.dtype == torch.float32
    assert models.target.parameter_bytes == sum(p.numel() for p in model.parameters()) * 4
    assert not models.target.model.training
    assert not any(p.requires_grad for p in models.target.model.parameters())
    assert models.draft is None
    assert models.max_context == 256
    # transformers' Qwen class adds a pad token of its own to any vocabulary.
    assert models.tokenizer.get_vocab().items() >= tokenizer().get_vocab().items()


def test_sharded_safetensors_load_alike(tmp_path: Path) -> None:
    model = tiny_model()
    folder = save_checkpoint(tmp_path, model, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load(folder).target.model), logits(model))


def test_an_asked_dtype_is_used_for_target_and_draft(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    models = load(folder, folder, dtype="bfloat16")
    assert models.draft is not None
    assert models.dtype == models.draft.dtype == torch.bfloat16
    assert {p.dtype for p in models.draft.model.parameters()} == {torch.bfloat16}


def test_the_int8_draft_is_a_smaller_copy_of_the_target(tmp_path: Path) -> None:
    models = load(save_checkpoint(tmp_path / "m"), "int8")
    assert models.draft is not None
    assert models.draft.name == f"{tmp_path / 'm'} (int8)"
    assert 0 < models.draft.parameter_bytes < models.target.parameter_bytes / 2
    assert models.draft.model.dtype == torch.float32


def test_float16_that_would_overflow_becomes_float32(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    model.model.layers[0].mlp.up_proj.weight[3, 4] = 1e6
    models = load(save_checkpoint(tmp_path, model), dtype="float16")
    assert models.dtype == torch.float32
    assert torch.equal(logits(models.target.model), logits(model))
    assert "does not fit float16's range" in caplog.text


def test_float16_that_fits_stays(tmp_path: Path) -> None:
    assert load(save_checkpoint(tmp_path), dtype="float16").dtype == torch.float16


def test_a_gguf_file_is_the_model_it_was_made_of(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    # Files of another model beside it must not be mixed in.
    save_checkpoint(tmp_path)
    models = load(tmp_path / "tiny.gguf", dtype="float32")
    assert torch.allclose(logits(models.target.model), logits(model), atol=1e-4)
    tok = models.tokenizer
    assert tok.eos_token == GGUF_EOS
    assert models.eos_token_ids == {tok.convert_tokens_to_ids(GGUF_EOS)}
    text = "hello  world , it's <|im_end|> é"
    ids = tok(text)["input_ids"]
    assert ids[0] == tok.convert_tokens_to_ids("he")  # no begin token was put before it
    assert tok.decode(ids) == text
    rendered = tok.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == "hi<|im_end|>"
    assert load(tmp_path / "tiny.gguf", "int8", dtype="float32").draft is not None


def test_the_draft_may_be_another_directory_with_a_wider_embedding(tmp_path: Path) -> None:
    target = save_checkpoint(tmp_path / "t")
    draft = save_checkpoint(tmp_path / "d", tiny_model("mistral", vocab_size=VOCAB_SIZE + 7))
    models = load(target, draft)
    assert models.draft is not None
    assert models.draft.model.config.vocab_size == models.target.model.config.vocab_size + 7


def test_end_tokens_come_from_generation_config_tokenizer_and_chat_template(tmp_path: Path) -> None:
    model, tok = tiny_model(), tokenizer()
    tok.add_tokens(["<end-of-turn>"], special_tokens=True)
    tok.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<end-of-turn>\n{% endfor %}"
    model.generation_config.eos_token_id = [5, 7]
    models = load(save_checkpoint(tmp_path, model, tok))
    assert models.eos_token_ids == {EOS, 5, 7, tok.convert_tokens_to_ids("<end-of-turn>")}


def test_a_template_that_cannot_render_adds_no_end_token(tmp_path: Path) -> None:
    tok = tokenizer()
    tok.chat_template = "{{ raise_exception('no assistant') }}"
    assert load(save_checkpoint(tmp_path, tok=tok)).eos_token_ids == {EOS}


def test_files_written_by_transformers_5_are_understood_by_either(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    edit_config(folder, rope_parameters={"rope_theta": 123456.0, "rope_type": "linear", "factor": 4.0})
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_theta", None)
    config.pop("rope_scaling", None)
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "TokenizersBackend"}))
    models = load(folder)
    expected = 1.0 / (123456.0 ** (torch.arange(0, 8, 2) / 8)) / 4
    assert torch.allclose(models.target.model.model.rotary_emb.inv_freq, expected)
    assert models.tokenizer.decode(models.tokenizer("hello!")["input_ids"]) == "hello!"


class _Hub:
    """A hub that holds one repository in a folder, and remembers what was asked of it."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.cache = repository, cache
        self.downloaded: set[str] = set()

    def snapshot_download(self, name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert name == "someone/tiny"
        assert ignore_patterns == ["*/*"]
        self.cache.mkdir(exist_ok=True)
        for file in self.repository.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copy(file, self.cache)
                self.downloaded.add(file.name)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Hub:
    made = _Hub(save_checkpoint(tmp_path / "repository"), tmp_path / "cache")
    (made.repository / "pytorch_model.bin").write_bytes(b"a pickle")
    monkeypatch.setattr("huggingface_hub.snapshot_download", made.snapshot_download)
    return made


def test_a_hub_id_is_downloaded_without_its_pickles(hub: _Hub) -> None:
    models = load("someone/tiny")
    assert torch.equal(logits(models.target.model), logits(tiny_model()))
    assert "model.safetensors" in hub.downloaded
    assert "pytorch_model.bin" not in hub.downloaded


def test_an_unsupported_hub_model_is_refused_before_its_weights_come(hub: _Hub) -> None:
    edit_config(hub.repository, model_type="mamba")
    with pytest.raises(UnsupportedArchitectureError, match="mamba"):
        load("someone/tiny")
    assert "model.safetensors" not in hub.downloaded


def test_progress_is_told_in_order(tmp_path: Path) -> None:
    folder = str(save_checkpoint(tmp_path))
    told: list[str] = []
    load_models(folder, "int8", device=CPU, dtype="auto", home=tmp_path, on_progress=told.append)
    assert told == [f"loading target {folder}", "making the int8 draft"]


def test_off_the_cpu_an_int8_draft_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models: Any = load_models(
        str(save_checkpoint(tmp_path)), "int8", device=torch.device("meta"), dtype="float32", home=tmp_path
    )
    assert models.draft is None
    assert models.target.model.device.type == "meta"
    assert "only faster on a CPU" in caplog.text
