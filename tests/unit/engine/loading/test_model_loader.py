from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from helix_jobs.engine.loaded_models import LoadedModel, LoadedModels
from helix_jobs.engine.loading import model_loader
from helix_jobs.engine.loading.model_loader import load_models
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.text import prompt_encoder
from helix_jobs.engine.text.prompt_encoder import PromptLimits
from helix_jobs.errors import ModelError
from tests.unit.engine.model_files import GGUF_EOS, edit_config, load, save_checkpoint, write_gguf
from tests.unit.engine.tiny_models import (
    ARCHITECTURES,
    CPU,
    EOS,
    VOCAB_SIZE,
    decoder_logits,
    reference_logits,
    tiny_model,
    tokenizer,
)

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")


def close(models: LoadedModels, model: Any) -> bool:
    """Whether the loaded target computes what transformers' model does, up to float32's rounding."""
    return torch.allclose(decoder_logits(models.target.decoder), reference_logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.thorough(fast=8)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_directory_loads_with_the_weights_that_were_saved(tmp_path: Path, architecture: str) -> None:
    model = tiny_model(architecture)
    models = load(save_checkpoint(tmp_path / "m", model))
    assert close(models, model)
    assert models.target.name == str(tmp_path / "m")
    assert models.target.dtype_name == "float32"
    assert not models.target.is_int8
    assert models.draft is None
    assert models.vocab_size == VOCAB_SIZE
    assert models.max_context == 256
    # transformers' Qwen class adds a pad token of its own to any vocabulary.
    assert models.tokenizer.get_vocab().items() >= tokenizer().get_vocab().items()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sharded_safetensors_load_alike(tmp_path: Path, architecture: str) -> None:
    model = tiny_model(architecture)
    folder = save_checkpoint(tmp_path, model, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert close(load(folder), model)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what a process maps")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_loaded_model_keeps_no_file_mapped(tmp_path: Path, architecture: str) -> None:
    folder = save_checkpoint(tmp_path / "m", tiny_model(architecture))
    models = load(folder, "int8")
    assert str(folder) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert models.draft is not None


def test_an_asked_dtype_is_used_for_target_and_draft(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    models = load(folder, folder, dtype="bfloat16")
    assert models.draft is not None
    assert models.target.decoder.dtype == models.draft.decoder.dtype == torch.bfloat16
    assert models.target.dtype_name == "bfloat16"
    assert decoder_logits(models.target.decoder).dtype == torch.bfloat16


def weight_bytes(model: LoadedModel) -> int:
    return sum(linear.nbytes for linear in model.decoder.linears())


def test_the_int8_draft_is_a_smaller_copy_of_the_target(tmp_path: Path) -> None:
    models = load(save_checkpoint(tmp_path / "m"), "int8")
    assert models.draft is not None
    assert models.draft.name == f"{tmp_path / 'm'} (int8)"
    assert models.draft.is_int8
    assert 0 < weight_bytes(models.draft) < weight_bytes(models.target) / 2
    assert models.draft.decoder.dtype == torch.float32
    assert models.draft.decoder.embedding is models.target.decoder.embedding


def test_a_draft_model_on_a_cpu_is_int8(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    models = load(folder, folder)
    assert models.draft is not None
    assert models.draft.is_int8
    assert models.draft.dtype_name == "int8"
    assert weight_bytes(models.draft) < weight_bytes(models.target) / 2


def test_an_int8_target_is_close_to_the_model_and_has_no_int8_draft(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model()
    models = load(save_checkpoint(tmp_path, model), "int8", dtype="int8")
    assert models.target.is_int8
    assert models.target.dtype_name == "int8"
    assert models.target.decoder.dtype == torch.float32
    expected = reference_logits(model)
    assert 0 < (decoder_logits(models.target.decoder) - expected).norm() < 0.1 * expected.norm()
    assert models.draft is None
    assert "an int8 draft of an int8 target is the target itself" in caplog.text


def test_float16_that_would_overflow_becomes_float32(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    model.model.layers[0].mlp.up_proj.weight[3, 4] = 1e6
    models = load(save_checkpoint(tmp_path, model), dtype="float16")
    assert models.target.decoder.dtype == torch.float32
    assert close(models, model)
    assert "does not fit float16's range" in caplog.text


def test_float16_that_fits_stays(tmp_path: Path) -> None:
    assert load(save_checkpoint(tmp_path), dtype="float16").target.decoder.dtype == torch.float16


def test_a_gguf_file_is_the_model_it_was_made_of(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    # Files of another model beside it must not be mixed in.
    save_checkpoint(tmp_path)
    models = load(tmp_path / "tiny.gguf", dtype="float32")
    assert close(models, model)
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
    assert models.draft.decoder.vocab_size == models.target.decoder.vocab_size + 7
    assert models.vocab_size == VOCAB_SIZE


@pytest.mark.parametrize("space", ["", " ", "\n"])  # Llama 2 writes a space there
def test_end_tokens_come_from_generation_config_and_tokenizer_the_end_of_a_turn_from_the_chat_template(
    tmp_path: Path, space: str
) -> None:
    model, tok = tiny_model(), tokenizer()
    tok.add_tokens(["<end-of-turn>"], special_tokens=True)
    turn = "[{{ m['role'] }}]{{ m['content'] + '" + space + "<end-of-turn>' }}"
    tok.chat_template = "{% for m in messages %}" + turn + "{% endfor %}"
    model.generation_config.eos_token_id = [5, 7]
    models = load(save_checkpoint(tmp_path, model, tok))
    assert models.eos_token_ids == {EOS, 5, 7}
    assert models.turn_end_ids == {tok.convert_tokens_to_ids("<end-of-turn>")}


def test_a_template_that_cannot_render_adds_no_end_token(tmp_path: Path) -> None:
    tok = tokenizer()
    tok.chat_template = "{{ raise_exception('no assistant') }}"
    models = load(save_checkpoint(tmp_path, tok=tok))
    assert (models.eos_token_ids, models.turn_end_ids) == ({EOS}, frozenset())


@pytest.mark.parametrize(("token", "special"), [("\n", False), ("\n", True), ("end", False)])
def test_the_end_of_a_turn_is_a_special_token_and_no_white_space(tmp_path: Path, token: str, *, special: bool) -> None:
    """Gemma has line breaks among its added tokens: answers would end at their first line."""
    tok = tokenizer()
    tok.add_tokens([AddedToken(token, special=special)], special_tokens=special)
    tok.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] + '" + token + "' }}{% endfor %}"
    models = load(save_checkpoint(tmp_path, tok=tok))
    assert (models.eos_token_ids, models.turn_end_ids) == ({EOS}, frozenset())


def test_a_template_that_does_not_end_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_encoder, "DEFAULT_LIMITS", PromptLimits(seconds=1.0))
    tok = tokenizer()
    tok.chat_template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    folder = save_checkpoint(tmp_path, tok=tok)
    with pytest.raises(ModelError, match="trying them, the process took more than 1 s of processor time"):
        load(folder)


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
    (rotary,) = models.target.decoder.attention.spec.rotaries
    cos, _ = rotary.tables(1)
    positions = torch.arange(len(cos), dtype=torch.float32)
    assert torch.allclose(cos[:, 0, :4], (positions[:, None] * expected).cos(), atol=1e-4)
    assert models.tokenizer.decode(models.tokenizer("hello!")["input_ids"]) == "hello!"


def test_progress_is_told_in_order(tmp_path: Path) -> None:
    folder = str(save_checkpoint(tmp_path))
    told: list[str] = []
    load_models(folder, "int8", device=CPU, dtype="auto", home=tmp_path, on_progress=told.append)
    assert told == [f"loading target {folder}", "making the int8 draft"]


def test_off_the_cpu_an_int8_draft_is_left_out_and_other_drafts_keep_their_dtype(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The meta device stands for any that is not the CPU.
    elsewhere = replace(build_decoder(tiny_model()), device=torch.device("meta"))
    assert model_loader._int8_copy(LoadedModel("target", elsewhere), pytest.fail, keeps_blocks=True) is None
    assert "only faster on a CPU" in caplog.text
    assert model_loader._draft("draft", elsewhere, keeps_blocks=True) == LoadedModel("draft", elsewhere)


def test_a_configuration_is_built_once_for_layout_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_checkpoint(tmp_path)
    built: list[Any] = []
    build = AutoModelForCausalLM.from_config
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_config", lambda *args, **kwargs: built.append(args) or build(*args, **kwargs)
    )
    load(folder)
    assert len(built) == 1
