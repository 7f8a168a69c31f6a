"""From settings to answers: a worker's engine on a device that is not the CPU."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.loading.load_engine import load_engine
from helix_jobs.settings import Settings
from tests.unit.engine.devices.simulated_directml import DIRECTML, SimulatedDirectml
from tests.unit.engine.devices.windows_registry import GIB, RADEON, registry
from tests.unit.engine.model_files import save_checkpoint
from tests.unit.engine.tiny_models import copy_of, request, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


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
