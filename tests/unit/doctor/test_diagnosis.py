from __future__ import annotations

import dataclasses
import errno
import sys
import warnings

import pytest
import torch
from packaging.version import Version

from helix_jobs.doctor import devices, software
from helix_jobs.doctor.diagnosis import diagnose
from helix_jobs.doctor.operators import judge_operators, try_operators
from helix_jobs.doctor.verdict import Level
from helix_jobs.engine.devices.operator_checks import OperatorStatus
from helix_jobs.errors import ConfigurationError
from helix_jobs.settings import Settings
from tests.unit.engine.devices.operator_rules import base_name, operator_name
from tests.unit.engine.devices.simulated_directml import DirectmlTensor, SimulatedDirectml


@pytest.fixture
def settings(tmp_path):
    return Settings.from_environment({"HELIX_HOME": str(tmp_path), "HELIX_COMPILE": "off"})


def by_subject(diagnosis):
    return {verdict.subject: verdict for verdict in diagnosis.verdicts}


class FaultyDevice(SimulatedDirectml):
    """silu is wrong, scatter throws, gelu has no kernel, argmax is off by one, max hides NaN."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = base_name(operator_name(func))
        on_device = any(isinstance(argument, DirectmlTensor) for argument in args)
        if on_device and name == "scatter":
            raise RuntimeError("The parameter is incorrect.\nand much more")
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if on_device and name in {"silu", "argmax"}:
            result.host.add_(1)
        if on_device and name == "max":
            result[0].host.nan_to_num_()
        if on_device and name == "gelu":
            warnings.warn(
                "The operator 'aten::gelu' is not currently supported on the DML backend and will fall back to run on "
                "the CPU.",
                stacklevel=1,
            )
        return result


def test_a_sound_machine_is_healthy(bare_machine, settings):
    diagnosis = diagnose(settings)
    assert diagnosis.is_healthy
    found = by_subject(diagnosis)
    assert found["torch"].finding == torch.__version__
    assert found["devices"].finding.startswith("CPU")
    assert "not installed" in found["directml"].finding
    assert found["device in use"].finding.startswith("cpu")
    assert found["compiled kernels"].finding == "switched off by HELIX_COMPILE"
    assert {verdict.status for verdict in diagnosis.operators} == {OperatorStatus.OK}
    assert "index_copy" in {verdict.operator for verdict in diagnosis.operators}


def test_directml_is_examined_by_its_own_operators_within_its_rules(directml, settings):
    with SimulatedDirectml() as device:
        diagnosis = diagnose(settings)
    assert not device.breaches
    assert diagnosis.is_healthy
    assert by_subject(diagnosis)["device in use"].finding == "privateuseone:0, DirectML: Radeon 0"
    assert "directml" not in by_subject(diagnosis)
    assert {verdict.dtype for verdict in diagnosis.operators} == {"float32", "float16"}
    operators = {verdict.operator for verdict in diagnosis.operators}
    assert "scatter" in operators
    assert "index_copy" not in operators


def test_what_a_device_computes_wrong_is_found(directml, settings):
    with FaultyDevice():
        tried = try_operators(settings)
    found = {verdict.operator: verdict for verdict in tried if verdict.status is not OperatorStatus.OK}
    assert {name: verdict.status for name, verdict in found.items()} == {
        "silu": OperatorStatus.DIFFERS,
        "argmax": OperatorStatus.DIFFERS,
        "max, argmax of equals": OperatorStatus.DIFFERS,
        "max of NaN": OperatorStatus.DIFFERS,
        "scatter": OperatorStatus.FAILS,
        "gelu": OperatorStatus.FALLS_BACK,
        "gelu, tanh": OperatorStatus.FALLS_BACK,
    }
    assert found["scatter"].detail == "RuntimeError: The parameter is incorrect."
    assert found["silu"].detail.startswith("off by")
    assert found["argmax"].detail == "5 of 5 values are wrong"
    (verdict,) = judge_operators(tried)
    assert verdict.level is Level.FAILED
    assert "not to be trusted" in verdict.remedy


def test_what_falls_back_to_the_cpu_is_a_warning(directml, settings):
    with FaultyDevice():
        tried = tuple(verdict for verdict in try_operators(settings) if verdict.operator.startswith("gelu"))
    (verdict,) = judge_operators(tried)
    assert verdict.level is Level.WARNING
    assert verdict.finding == "4 falls back"


def test_equals_that_are_ranked_otherwise_are_a_warning(directml, settings):
    with FaultyDevice():
        tried = tuple(verdict for verdict in try_operators(settings) if verdict.operator == "max, argmax of equals")
    (verdict,) = judge_operators(tried)
    assert verdict.level is Level.WARNING
    assert "a batch may choose another one than a job alone" in verdict.remedy


def test_without_a_device_no_operator_is_tried(bare_machine, settings):
    diagnosis = diagnose(dataclasses.replace(settings, device="cuda"))
    assert not diagnosis.is_healthy
    assert diagnosis.operators == ()
    verdict = by_subject(diagnosis)["device in use"]
    assert verdict.level is Level.FAILED
    assert "device 'cuda' is not available; there is cpu" in verdict.finding


def test_a_rocm_build_beside_directml_is_the_faster_one(directml, settings, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Radeon RX")
    listed, *_, used = devices.check_devices(settings)
    assert listed.finding.startswith("DirectML: Radeon 0, ROCm: Radeon RX, CPU")
    assert used.level is Level.WARNING
    assert "DirectML" in used.finding
    assert "ROCm build, which is faster" in used.finding
    assert "--device rocm" in used.remedy


@pytest.mark.parametrize(("when", "level"), [("auto", Level.WARNING), ("on", Level.FAILED)])
def test_kernels_that_cannot_be_compiled(bare_machine, settings, monkeypatch, when, level):
    def fails(*_):
        raise ConfigurationError("there is no C++ compiler (g++); install g++ or clang++")

    monkeypatch.setattr(devices, "load_kernels", fails)
    (verdict,) = devices.check_kernels(dataclasses.replace(settings, compile=when))
    assert verdict.level is level
    assert verdict.finding == "there is no C++ compiler (g++)"
    assert verdict.remedy == "install g++ or clang++"


@pytest.mark.parametrize(
    ("is_exact", "said"),
    [
        (True, "multiplied exactly, which is faster here for 8 sequences at once"),
        (False, "multiplied with rounded activations"),
    ],
)
def test_how_int8_multiplies_blocks_here(bare_machine, settings, monkeypatch, is_exact, said):
    monkeypatch.setattr(devices, "load_kernels", lambda *_: None)
    monkeypatch.setattr(devices, "is_exact_faster", lambda _, batch, __: is_exact and batch == 8)
    settings = dataclasses.replace(settings, compile="auto", dtype="int8", max_batch_size=8)
    (verdict,) = devices.check_kernels(settings)
    assert verdict.finding.endswith(f"; weights in blocks are {said}")
    (verdict,) = devices.check_kernels(dataclasses.replace(settings, dtype="auto"))
    assert "blocks" not in verdict.finding


def test_releases_that_do_not_go_together(settings, monkeypatch):
    monkeypatch.setattr(software, "_installed", {"torch": Version("2.4.1"), "transformers": Version("5.20.0")}.get)
    diagnosis = diagnose(settings)
    assert not diagnosis.is_healthy
    verdict = by_subject(diagnosis)["transformers"]
    assert verdict.finding == "5.20.0 needs torch 2.6 or newer, and torch is 2.4.1"
    assert "transformers>=4.57,<4.58" in verdict.remedy
    assert diagnosis.operators == ()


def test_a_torch_that_cannot_be_imported(settings, monkeypatch, tmp_path):
    real = software.importlib.import_module

    def damaged(name):
        if name == "torch":
            raise OSError("shm.dll is missing")
        return real(name)

    monkeypatch.setattr(software.importlib, "import_module", damaged)
    diagnosis = diagnose(settings)
    verdict = by_subject(diagnosis)["torch"]
    assert verdict.level is Level.FAILED
    assert "OSError: shm.dll is missing" in verdict.finding
    assert "devices" not in by_subject(diagnosis)


def test_torch_that_is_not_installed(settings, monkeypatch):
    monkeypatch.setattr(software, "_installed", lambda _: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [verdict.finding for verdict in diagnose(settings).verdicts[1:3]] == ["not installed", "not installed"]


def test_compiling_makes_a_private_home(bare_machine, settings, monkeypatch):
    seen = []
    monkeypatch.setattr(devices, "load_kernels", lambda folder, *_: seen.append(folder))
    home = settings.home / "new"
    devices.check_kernels(dataclasses.replace(settings, home=home, compile="auto"))
    assert seen == [home / "native"]
    assert home.stat().st_mode & 0o777 == 0o700


def test_services_are_examined_also_where_torch_is_not_there(settings, monkeypatch):
    monkeypatch.setattr(software, "_installed", lambda _: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert {"home", "database", "broker", "metrics port"} <= set(by_subject(diagnose(settings)))


def test_no_verdict_holds_a_password(bare_machine, settings):
    diagnosis = diagnose(
        dataclasses.replace(
            settings,
            redis_url="redis://worker:s3cret@127.0.0.1:1/0?password=s3cret",
            database_url="postgresql+psycopg://helix:s3cret@127.0.0.1:1/helix?sslpassword=s3cret",
        )
    )
    found = by_subject(diagnosis)
    assert (found["broker"].level, found["database"].level) == (Level.FAILED, Level.FAILED)
    assert "does not answer" in found["database"].finding
    assert "127.0.0.1:1" in found["broker"].finding
    assert not [verdict for verdict in diagnosis.verdicts if "s3cret" in f"{verdict.finding}{verdict.remedy}"]


def test_what_the_system_refuses_to_one_check_keeps_no_other_away(settings, monkeypatch):
    def refused(_):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/helix.db")

    monkeypatch.setattr(software, "_installed", lambda _: None)
    monkeypatch.setattr("helix_jobs.doctor.diagnosis.check_database", refused)
    found = by_subject(diagnose(settings))
    assert found["database"].level is Level.FAILED
    assert found["database"].finding == "cannot be examined: /somewhere/helix.db: Permission denied"
    assert {"home", "broker", "metrics port"} <= set(found)
