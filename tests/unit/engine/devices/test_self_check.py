"""What a worker tries of a device before it trusts it."""

from __future__ import annotations

import json
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.devices import devices
from helix_jobs.engine.devices.self_check import check_device
from helix_jobs.engine.loading import load_engine
from helix_jobs.errors import ConfigurationError
from helix_jobs.settings import Settings
from tests.unit.engine.devices.operator_rules import operator_name
from tests.unit.engine.devices.simulated_directml import DIRECTML, DirectmlTensor, SimulatedDirectml
from tests.unit.engine.tiny_models import CPU

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def torch_directml(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torch_directml")
    for name, value in {"is_available": True, "device_count": 1, "device": DIRECTML, "device_name": "Radeon"}.items():
        setattr(module, name, lambda *_, value=value: value)
    monkeypatch.setitem(sys.modules, "torch_directml", module)


class FaultyDirectml(SimulatedDirectml):
    """``max`` loses NaN, as a comparison that is always false for it does; or ranks the last of equals first."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, _types, args, kwargs)
        if operator_name(func) == "aten::max" and isinstance(args[0], DirectmlTensor):
            values, indices = (one.host for one in result)
            if self.fault == "loses NaN":
                values.nan_to_num_(nan=0.0)
            else:
                host = args[0].host
                last = host.shape[-1] - 1 - host.flip(-1).argmax(dim=-1)
                indices.copy_(torch.where(host.gather(-1, last.unsqueeze(-1)).squeeze(-1) == values, last, indices))
        return result


def test_a_sound_device_is_tried_once(tmp_path: Path) -> None:
    told: list[str] = []
    with SimulatedDirectml() as device:
        check_device(DIRECTML, torch.float16, tmp_path, told.append)
        assert "scatter" in device.operators
    assert not device.breaches
    with SimulatedDirectml() as again:
        check_device(DIRECTML, torch.float16, tmp_path, told.append)
    assert not again.operators
    assert told == ["trying what DirectML: Radeon computes, once for this driver"]


def test_another_driver_is_tried_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    for driver in ("1.0", "2.0", "1.0"):
        monkeypatch.setattr("helix_jobs.engine.devices.self_check.driver_version", lambda _, driver=driver: driver)
        with SimulatedDirectml():
            check_device(DIRECTML, torch.float16, tmp_path, told.append)
    assert len(told) == 2


def test_a_device_that_loses_nan_is_refused_at_every_start(tmp_path: Path) -> None:
    """Broken logits would be given out as tokens."""
    for _ in range(2):
        with FaultyDirectml("loses NaN"), pytest.raises(ConfigurationError) as caught:
            check_device(DIRECTML, torch.float16, tmp_path)
        assert "DirectML: Radeon computes 2 of " in str(caught.value)
        assert "(first max of NaN in float32 differs: NaN or infinity where there is none" in str(caught.value)
        assert "update its driver and torch, or give --device cpu" in str(caught.value)
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text())["verdict"] == "wrong"
    with SimulatedDirectml():  # the driver was mended without a new number
        check_device(DIRECTML, torch.float16, tmp_path)


def test_equals_ranked_otherwise_are_only_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with FaultyDirectml("ranks the last first"):
        check_device(DIRECTML, torch.float16, tmp_path)
    assert "DirectML: Radeon: max, argmax of equals in float32 differs" in caplog.text


def test_a_damaged_verdict_is_made_again(tmp_path: Path) -> None:
    with SimulatedDirectml():
        check_device(DIRECTML, torch.float16, tmp_path)
        (kept,) = tmp_path.iterdir()
        for content in ("{", "[]", '{"verdict": "sound"}'):
            kept.write_text(content)
            told: list[str] = []
            check_device(DIRECTML, torch.float16, tmp_path, told.append)
            assert told


def test_the_cpu_is_not_compared_with_itself(tmp_path: Path) -> None:
    check_device(CPU, torch.float32, tmp_path, pytest.fail)
    assert not list(tmp_path.iterdir())


def test_a_worker_does_not_load_models_onto_a_device_that_computes_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_engine, "load_models", lambda *_, **__: pytest.fail("models were loaded"))
    settings = Settings.from_environment({"HELIX_HOME": str(tmp_path), "HELIX_DEVICE": "directml"})
    with FaultyDirectml("loses NaN"), pytest.raises(ConfigurationError, match="operators wrong"):
        load_engine.load_engine(settings)


def test_sums_are_not_narrowed_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul = torch.backends.cuda.matmul
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    before = {name: getattr(matmul, name) for name in names}
    try:
        for name in names:
            setattr(matmul, name, True)
        devices.prepare_device(torch.device("cuda", 0))
        assert [getattr(matmul, name) for name in names] == [False, False]
    finally:
        for name, value in before.items():
            setattr(matmul, name, value)
