"""``helix models``: served types, and what a model needs here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from helix_jobs.doctor import model_report
from helix_jobs.doctor.model_report import Place
from helix_jobs.engine.devices import devices
from helix_jobs.engine.loading.gguf_registry import FAMILIES, SAID_AS
from helix_jobs.engine.loading.model_sizes import model_sizes
from helix_jobs.engine.loading.served_types import types_not_served
from helix_jobs.engine.model.architecture import SUPPORTED_MODEL_TYPES
from helix_jobs.engine.model.text_tower import TEXT_TOWERS
from tests.unit.engine.loading.local_hub import serve_hub
from tests.unit.engine.model_files import edit_config, save_checkpoint, write_gguf
from tests.unit.engine.tiny_models import tiny_config, tiny_model

PLENTY = 10**10
CPU = torch.device("cpu")
# Widths of which Q8_0 has whole blocks.
BLOCK_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
}


@pytest.fixture
def free(monkeypatch):
    """``free(n)``: the CPU has n bytes free."""

    def have(available):
        monkeypatch.setattr(model_report, "examine", lambda _: Place(CPU, "CPU: 2 threads", available))

    have(PLENTY)
    return have


def told(helix, *args, exit_code=0):
    result = helix("models", *args, "--dtype", "float32", "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.output)


def test_types_come_from_the_tables_that_decide(helix):
    shown = json.loads(helix("models", "--json").output)
    towers = {kind: tower.class_name for kind, tower in TEXT_TOWERS.items()}
    assert {one["model_type"]: one["class_name"] for one in shown["served"]} == SUPPORTED_MODEL_TYPES | towers
    assert {one["model_type"]: one["reason"] for one in shown["not_served"]} == types_not_served()
    assert not {one["model_type"] for one in shown["served"]} & types_not_served().keys()
    from_gguf = {one["model_type"] for one in shown["served"] if one["from_gguf"]}
    families = {family.model_type for family in FAMILIES.values()} | set(SAID_AS)
    readers = {kind for kind, tower in TEXT_TOWERS.items() if families & set(tower.families.values())}
    assert from_gguf == families | readers
    assert {"mistral3", "qwen3_vl"} <= readers
    assert {"llama", "mixtral", "qwen2_moe", "olmoe", "phi3", "gemma3_text"} <= from_gguf
    lines = helix("models").output.splitlines()
    assert lines[0].split() == ["SERVED", "CLASS", "FROM"]
    assert any(line.split() == ["zamba2", "layers", "of", "recurrent", "state"] for line in lines)


def test_a_model_in_each_format(helix, free, tmp_path):
    folder = save_checkpoint(tmp_path / "m")
    shown = told(helix, folder, "--draft", "none", "--context", 100)
    (model,) = shown["models"]
    sizes = model_sizes("m", tiny_config())
    assert (model["served"], model["fits"], model["is_here"], model["advice"]) == (True, True, True, [])
    assert (model["model_type"], model["stored_dtype"], model["context"]) == ("llama", "float32", 256)
    assert model["file_bytes"] == (folder / "model.safetensors").stat().st_size
    first = model["formats"][0]
    assert first["weights_bytes"] == 4 * sizes.weights == 4 * model["weights"]
    assert first["cache_bytes_per_1000_tokens"] == 256_000
    assert (first["dtype"], first["draft_bytes"], first["sequence_tokens"]) == ("float32", 0, 100)
    assert first["sequences"] == first["cache_tokens"] // 100 > 0
    assert first["max_batch_size"] == 32
    (model,) = told(helix, folder, "--max-batch-size", 7)["models"]
    assert model["formats"][0]["max_batch_size"] == 7
    assert [one["weights_bytes"] for one in model["formats"] if one["dtype"] == "int8"] == [
        sizes.int8_bytes(torch.float32)
    ]
    assert shown["free_bytes"] == PLENTY


def test_a_draft_counts_beside_its_target(helix, free, tmp_path):
    folder = save_checkpoint(tmp_path / "m")
    alone, copy, own, off = (
        told(helix, folder, *options)["models"][0]["formats"][0]
        for options in (
            ("--draft", "lookup"),
            ("--draft", "lookup+int8"),
            ("--draft", folder),
            ("--draft", "int8", "--speculation-depth", "0"),
        )
    )
    assert alone["draft_bytes"] == off["draft_bytes"] == 0 < copy["draft_bytes"] < own["draft_bytes"]
    assert copy["cache_bytes_per_1000_tokens"] == own["cache_bytes_per_1000_tokens"] == 512_000


def test_several_models_are_told_although_one_is_refused(helix, free, tmp_path):
    good = save_checkpoint(tmp_path / "good")
    bad = edit_config(save_checkpoint(tmp_path / "bad"), model_type="mamba")
    damaged = edit_config(save_checkpoint(tmp_path / "damaged"), vocab_size=-1)
    broken = save_checkpoint(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    shown = told(helix, good, bad, damaged, broken, tmp_path / "gone", exit_code=1)["models"]
    assert [one["served"] for one in shown] == [True, False, False, False, False]
    assert "recurrent state instead of attention" in shown[1]["reason"]
    assert "vocab_size -1" in shown[2]["reason"]
    assert ("is not JSON" in shown[3]["reason"], shown[3]["remedy"]) == (True, "fetch the model again")
    assert shown[4]["remedy"] == "check the path"
    text = helix("models", bad).output
    assert "not served: model " in text
    assert "supported are llama" in text


def test_recurrent_models_are_refused_on_directml(helix, monkeypatch, tmp_path):
    folder = save_checkpoint(tmp_path / "m", tiny_model("lfm2"))
    place = Place(torch.device("privateuseone", 0), "DirectML", None)
    monkeypatch.setattr(model_report, "examine", lambda _: place)
    (model,) = told(helix, folder, "--draft", "none", exit_code=1)["models"]
    assert (model["served"], model["remedy"]) == (False, "use --device cpu")
    assert "has recurrent layers, which Helix does not compute on DirectML" in model["reason"]


def test_a_gguf_file(helix, free, tmp_path):
    write_gguf(tmp_path / "m.gguf")
    (model,) = told(helix, tmp_path / "m.gguf")["models"]
    assert (model["served"], model["model_type"]) == (True, "llama")
    (tmp_path / "m.gguf").write_bytes(b"GGUF and nothing else")
    (model,) = told(helix, tmp_path / "m.gguf", exit_code=1)["models"]
    assert "damaged" in model["reason"]


def test_a_gguf_file_in_its_blocks(helix, free, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, blocks=lambda _: "Q8_0", **BLOCK_SIZES)
    (model,) = told(helix, path, "--draft", "none")["models"]
    (dense,) = [one for one in model["formats"] if one["dtype"] == "float32"]
    (packed,) = [one for one in model["formats"] if one["dtype"] == "packed"]
    assert dense["weights_bytes"] == 4 * model["weights"]
    assert packed["weights_bytes"] < dense["weights_bytes"] / 3
    shown = json.loads(helix("models", path, "--draft", "none", "--dtype", "auto", "--json").output)
    assert shown["models"][0]["formats"][0] == packed


def test_a_model_without_blocks_cannot_stay_in_them(helix, free, tmp_path):
    write_gguf(tmp_path / "m.gguf", blocks=lambda _: "Q8_0", **BLOCK_SIZES)
    folder = save_checkpoint(tmp_path / "m")
    result = helix("models", folder, tmp_path / "m.gguf", "--dtype", "packed", "--json")
    assert result.exit_code == 1, result.output
    dense, packed = json.loads(result.output)["models"]
    assert f"model {folder} has none" in dense["reason"]
    assert (dense["served"], dense["remedy"]) == (False, "use dtype auto")
    assert packed["formats"][0]["dtype"] == "packed"


@pytest.mark.parametrize("advice", ["use --dtype int8", "use --dtype bfloat16 or --dtype int8"])
def test_what_would_fit_is_said(helix, free, tmp_path, monkeypatch, advice):
    """Where a CPU computes bfloat16, that fits too: weights become bfloat16 one by one, and are read whole for int8."""
    monkeypatch.setattr(devices, "_computes_bfloat16", lambda _: "bfloat16" in advice)
    folder = save_checkpoint(tmp_path / "m")
    formats = told(helix, folder, "--draft", "none")["models"][0]["formats"]
    int8 = next(one for one in formats if one["dtype"] == "int8")
    free(int8["loading_bytes"] + 100)
    (model,) = told(helix, folder, "--draft", "none", exit_code=1)["models"]
    assert (model["fits"], model["advice"]) == (False, [advice])
    assert model["formats"][0]["sequences"] == 0
    free(1)
    (model,) = told(helix, folder, exit_code=1)["models"]
    assert model["advice"] == ["use a smaller model; no dtype of this one fits here"]
    text = helix("models", folder).output
    assert "-> use a smaller model" in text


def test_a_sequence_longer_than_the_cache_is_said(helix, free, tmp_path):
    folder = save_checkpoint(tmp_path / "m", max_shard_size="1GB")
    edit_config(folder, max_position_embeddings=8192)
    (model,) = told(helix, folder, "--draft", "none", "--kv-cache-mb", "1")["models"]
    assert (model["fits"], model["formats"][0]["cache_tokens"]) == (True, 3904)
    assert model["advice"] == ["keep prompt and output together below 3,904 tokens"]


def test_a_device_that_does_not_tell(helix, free, tmp_path):
    free(None)
    (model,) = told(helix, save_checkpoint(tmp_path / "m"))["models"]
    assert model["fits"] is None
    assert "unknown" in helix("models", tmp_path / "m").output


def test_the_demo_model_before_it_is_made(helix, free):
    (model,) = told(helix, "demo", exit_code=1)["models"]
    assert model["remedy"] == "start a worker once, which downloads it (93 MB)"


def test_a_draft_that_is_not_there_is_an_error(helix, free, tmp_path):
    result = helix("models", save_checkpoint(tmp_path / "m"), "--draft", tmp_path / "gone")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


@pytest.mark.slow
def test_a_hub_id_by_the_address_of_the_environment(tmp_path):
    """The library reads HF_ENDPOINT when it is imported, so a process of its own asks."""
    command = [sys.executable, "-m", "helix_jobs", "models", "someone/tiny", "--draft", "none", "--json"]
    with serve_hub() as hub:
        config = {**json.loads(tiny_config().to_json_string()), "architectures": ["LlamaForCausalLM"]}
        hub.add("someone/tiny", config, model_safetensors=2 * 38_928)
        hub.kinds["someone/tiny"] = {"BF16": 38_928}
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HELIX_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            command, env={**os.environ, **home}, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        (model,) = json.loads(done.stdout)["models"]
        assert (model["weights"], model["stored_dtype"], model["is_here"]) == (38_928, "bfloat16", False)
        assert hub.fetched == ["config.json"]
    assert done.stderr == ""
    assert not (tmp_path / "home").exists()


def test_adapters_count_beside_their_target_and_have_to_fit_it(helix, free, tmp_path):
    from tests.unit.engine.adapters import EVERYTHING, peft_model, save_adapter

    model = tiny_model()
    folder = save_checkpoint(tmp_path / "m", model)
    adapter = f"sql={save_adapter(tmp_path / 'sql', peft_model(model, target_modules=EVERYTHING))}"
    plain, adapted = (
        told(helix, folder, "--draft", "none", *options)["models"][0]["formats"][0]
        for options in ((), ("--adapter", adapter))
    )
    # Of two layers: rank 4 of three, one, two and one modules that are multiplied at once.
    columns = 4 * (3 * (48 + 80) + (48 + 48) + 2 * (48 + 160) + (80 + 48))
    assert (plain["adapter_bytes"], adapted["adapter_bytes"]) == (0, 4 * 2 * columns)
    assert adapted["cache_tokens"] <= plain["cache_tokens"]
    other = save_checkpoint(tmp_path / "other", tiny_model(hidden_size=96))
    shown = told(helix, other, "--draft", "none", "--adapter", adapter, exit_code=1)
    assert shown["models"][0]["remedy"] == "it is for another model"
