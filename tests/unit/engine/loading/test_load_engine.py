"""From settings to answers: a worker's engine on a device that is not the CPU."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from helix_jobs.doctor.model_report import Place, report_models
from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.loading import model_loader, model_memory
from helix_jobs.engine.loading.load_engine import load_engine
from helix_jobs.engine.loading.model_loader import load_models
from helix_jobs.engine.loading.peft_adapter import read_adapter
from helix_jobs.errors import ConfigurationError, InsufficientMemoryError, ModelError
from helix_jobs.settings import Settings
from tests.unit.engine.adapters import peft_model, save_adapter
from tests.unit.engine.devices.simulated_directml import DIRECTML, SimulatedDirectml
from tests.unit.engine.devices.windows_registry import GIB, RADEON, registry
from tests.unit.engine.model_files import save_checkpoint, write_gguf
from tests.unit.engine.tiny_models import CPU, copy_of, reference_greedy, request, tiny_model

if TYPE_CHECKING:
    from pathlib import Path


def test_a_fixed_depth_asks_the_draft_for_the_same_numbers_in_any_company(
    tmp_path: Path, compiled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_checkpoint(tmp_path / "model", copy_of(tiny_model(head_dim=16), torch.bfloat16))
    variables = {"HOME": tmp_path / "home", "TARGET_MODEL": folder, "DRAFT_MODEL": "int8", "SPECULATION_DEPTH": 4}
    variables |= {"DEVICE": "cpu", "DTYPE": "bfloat16", "COMPILE": "on", "REPRODUCIBLE": "on", "KV_CACHE_MB": 1}
    settings = Settings.from_environment({f"HELIX_{name}": str(value) for name, value in variables.items()})
    settings.make_home()
    monkeypatch.setattr(
        "helix_jobs.engine.loading.load_engine.load_kernels", lambda _, *rest: load_kernels(compiled_folder, *rest)
    )
    engine = load_engine(settings)
    assert engine.info.draft_model == f"{folder} (int8)"
    assert engine.info.is_reproducible
    engine.close()


@pytest.mark.parametrize(
    ("chosen", "drafts", "has_own_weights"),
    [
        ({"DRAFT_MODEL": "lookup+int8", "DTYPE": "packed"}, "lookup", False),
        ({"DRAFT_MODEL": "lookup+int8", "DTYPE": "float32"}, "lookup + {} (int8)", True),
        ({"DRAFT_MODEL": "int8", "DTYPE": "packed"}, "{} (int8)", False),
    ],
)
def test_beside_weights_in_blocks_an_int8_copy_has_to_be_asked_for_by_itself(
    tmp_path: Path,
    compiled_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    chosen: dict[str, str],
    drafts: str,
    *,
    has_own_weights: bool,
) -> None:
    """It shares the blocks, and costs a step nearly as much as the target: more than the default is to spend."""
    path = tmp_path / "m.gguf"
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 16, "num_key_value_heads": 16}
    write_gguf(path, blocks=lambda _: "Q4_K", num_hidden_layers=1, head_dim=16, **sizes)
    monkeypatch.setattr("helix_jobs.engine.loading.weight_format.resolve_dtype", lambda *_: torch.float32)
    monkeypatch.setattr(
        "helix_jobs.engine.loading.load_engine.load_kernels", lambda _, *rest: load_kernels(compiled_folder, *rest)
    )
    variables = {"HOME": tmp_path / "home", "TARGET_MODEL": path, "SPECULATION_DEPTH": 2, **chosen}
    variables |= {"DEVICE": "cpu", "COMPILE": "on", "KV_CACHE_MB": 8}
    settings = Settings.from_environment({f"HELIX_{name}": str(value) for name, value in variables.items()})
    settings.make_home()
    (report,) = report_models([str(path)], settings, Place(torch.device("cpu"), "CPU", None))
    told: list[str] = []
    engine = load_engine(settings, told.append)
    assert engine.info.draft_model == drafts.format(path)
    assert any("lookup drafts alone" in line for line in told) is (drafts == "lookup")
    assert (report.fits[0].memory.draft > 0) is has_own_weights
    engine.close()


@pytest.mark.thorough
def test_a_worker_starts_on_directml_and_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every default: the device is tried, costs are measured, the cache is sized by the card; all of it once."""
    module = types.ModuleType("torch_directml")
    for name, value in {"is_available": True, "device_count": 1, "device": DIRECTML, "device_name": RADEON}.items():
        setattr(module, name, lambda *_, value=value: value)
    monkeypatch.setitem(sys.modules, "torch_directml", module)
    card = {"DriverDesc": RADEON, "DriverVersion": "32.0", "HardwareInformation.qwMemorySize": 24 * GIB}
    monkeypatch.setitem(sys.modules, "winreg", registry({"0000": card}))
    model = copy_of(tiny_model(seed=3, tie_word_embeddings=True), torch.bfloat16)
    folder = save_checkpoint(tmp_path / "model", model)
    settings = Settings.from_environment({"HELIX_HOME": str(tmp_path / "home"), "HELIX_TARGET_MODEL": str(folder)})
    settings.make_home()
    answers = []
    told: list[list[str]] = []
    for _ in range(2):
        told.append([])
        with SimulatedDirectml() as device:
            engine = load_engine(settings, told[-1].append)
            (result,) = engine.generate([request("a", [3, 4, 5], max_tokens=20, ignore_eos=True)])
        assert not device.breaches
        assert result.error is None
        answers.append(result.output_token_ids)
        info = engine.info
        assert (info.device, info.dtype, info.draft_model) == (f"DirectML: {RADEON}", "float16", "lookup")
        assert (info.max_batch_size, info.speculation_depth) == (32, None)
        engine.close()
    assert answers[0] == answers[1]
    assert [line.split(" ")[0] for line in told[0]] == ["trying", "loading", "measuring"]
    assert [line.split(" ")[0] for line in told[1]] == ["loading"]


def test_adapters_are_served_beside_compiled_kernels_an_int8_draft_and_the_rest(
    tmp_path: Path, compiled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From files to answers, as a worker does it; each is PEFT's own, token for token."""
    model = tiny_model(seed=3, head_dim=16)
    made = {name: peft_model(model, seed, target_modules="all-linear") for seed, name in enumerate(("sql", "fr"))}
    adapters = ",".join(f"{name}={save_adapter(tmp_path / name, one)}" for name, one in made.items())
    variables = {"HOME": tmp_path / "home", "TARGET_MODEL": save_checkpoint(tmp_path / "model", model)}
    variables |= {"ADAPTERS": adapters, "DEVICE": "cpu", "DTYPE": "float32", "COMPILE": "on", "KV_CACHE_MB": 1}
    settings = Settings.from_environment({f"HELIX_{name}": str(value) for name, value in variables.items()})
    settings.make_home()
    monkeypatch.setattr(
        "helix_jobs.engine.loading.load_engine.load_kernels", lambda _, *rest: load_kernels(compiled_folder, *rest)
    )
    told: list[str] = []
    engine = load_engine(settings, told.append)
    assert "adding the adapters sql, fr" in told
    assert engine.info.adapters == ("sql", "fr")
    assert not engine.info.is_reproducible
    owners = ["sql", None, "fr", "sql"]
    asked = [
        replace(request(str(i), range(3, 9 + i), max_tokens=12, ignore_eos=True), adapter=owner)
        for i, owner in enumerate(owners)
    ]
    for one, result in zip(asked, engine.generate(asked), strict=True):
        reference = model if one.adapter is None else made[one.adapter]
        assert result.output_token_ids == reference_greedy(reference, one.prompt_token_ids, 13, eos_token_id=None)[:12]
    engine.close()
    with pytest.raises(ConfigurationError, match="--reproducible cannot be had beside adapters"):
        load_engine(replace(settings, reproducible="on"))


def test_an_adapter_is_refused_before_a_weight_of_the_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_checkpoint(tmp_path / "model", tiny_model())
    adapter = save_adapter(tmp_path / "sql", peft_model(tiny_model(hidden_size=96), target_modules=["o_proj"]))
    monkeypatch.setattr(model_loader, "_read", read)
    variables = {"HELIX_HOME": str(tmp_path / "home"), "HELIX_TARGET_MODEL": str(folder)}
    settings = Settings.from_environment({**variables, "HELIX_DEVICE": "cpu", "HELIX_ADAPTERS": f"sql={adapter}"})
    settings.make_home()
    with pytest.raises(ModelError, match=r"adapter sql changes .*; it is for another model"):
        load_engine(settings)


def test_adapters_that_do_not_fit_beside_the_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    folder = save_checkpoint(tmp_path / "model", model)
    big = read_adapter("big", save_adapter(tmp_path / "big", peft_model(model, r=4000, target_modules=["o_proj"])))
    weights = sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(model_memory, "free_memory", lambda _: 4 * 3 * weights + 256 * 256)
    monkeypatch.setattr(model_loader, "_read", read)
    with pytest.raises(ModelError, match="read"):
        load_models(str(folder), "none", device=CPU, dtype="float32", home=tmp_path)
    with pytest.raises(InsufficientMemoryError, match="the models need"):
        load_models(str(folder), "none", device=CPU, dtype="float32", home=tmp_path, adapters=[big])


def read(*_: object, **__: object) -> None:
    raise ModelError("read")
