"""Joules from counters in files and from a driver's library."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.devices import energy
from helix_jobs.engine.devices.energy import card_meter, find_energy_meter, nvidia_meter

if TYPE_CHECKING:
    from pathlib import Path

LARGEST = 262_143_328_850
NVML = r"""
#include <string.h>
static unsigned long long millijoules = 4000;
extern "C" {
int nvmlInit_v2() { return 0; }
int nvmlDeviceGetHandleByUUID(const char* uuid, void** device) {
    *device = &millijoules;
    return strcmp(uuid, "GPU-1234") == 0 ? 0 : 6;
}
int nvmlDeviceGetTotalEnergyConsumption(void* device, unsigned long long* found) {
    if (device != &millijoules) return 2;
    *found = millijoules += 1500;
    return millijoules <= 7000 ? 0 : 15;
}
}
"""


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n", encoding="ascii")
    return path


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two processors, whose counters are these files."""
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    counters = []
    for zone in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):  # the last is a part of the first
        write(tmp_path / zone / "max_energy_range_uj", LARGEST)
        counters.append(write(tmp_path / zone / "energy_uj", 5_000_000))
    return counters[:2]


def test_processors_are_added_up_from_the_first_look(packages: list[Path]) -> None:
    meter = find_energy_meter(torch.device("cpu"))
    assert meter is not None
    assert meter.joules() == 0.0
    write(packages[0], 6_000_000)
    write(packages[1], 5_500_000)
    assert meter.joules() == pytest.approx(1.5)


def test_a_counter_that_begins_anew_is_followed(packages: list[Path]) -> None:
    write(packages[0], LARGEST - 2_000_000)
    meter = find_energy_meter(torch.device("cpu"))
    assert meter is not None
    write(packages[0], 1_000_000)
    assert meter.joules() == pytest.approx(3.0)
    write(packages[0], 4_000_000)
    assert meter.joules() == pytest.approx(6.0)


@pytest.mark.parametrize("told", ["", "none", None])
def test_who_does_not_tell_has_no_meter(packages: list[Path], told: str | None) -> None:
    if told is None:
        packages[1].unlink()
    else:
        write(packages[1], told)
    assert find_energy_meter(torch.device("cpu")) is None


def test_a_counter_that_is_silent_later_gives_nothing(packages: list[Path]) -> None:
    meter = find_energy_meter(torch.device("cpu"))
    assert meter is not None
    packages[0].unlink()
    assert meter.joules() is None


def test_a_machine_without_counters_and_other_devices_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    assert find_energy_meter(torch.device("cpu")) is None
    assert find_energy_meter(torch.device("mps")) is None


def test_a_card_is_read_at_its_place_on_the_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_PCI", tmp_path)
    counter = write(tmp_path / "0000:03:00.0" / "hwmon" / "hwmon4" / "energy1_input", 10)
    meter = card_meter("0000:03:00.0")
    assert meter is not None
    assert meter.joules() == 0.0
    write(counter, 2_000_010)
    assert meter.joules() == pytest.approx(2.0)
    assert card_meter("0000:04:00.0") is None


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library with NVML's functions, which knows one GPU."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "nvml.cpp").write_text(NVML, encoding="ascii")
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "nvml.cpp"], check=True)
    monkeypatch.setattr(energy, "_NVML", str(library))


@pytest.mark.usefixtures("driver")
def test_a_gpu_of_nvidia_is_asked_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        uuid = "1234"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card())
    meter = find_energy_meter(torch.device("cuda", 0))
    assert meter is not None
    assert meter.joules() == pytest.approx(7.0)
    assert meter.joules() is None, "what the driver refuses is no figure"
    assert nvidia_meter("GPU-5678") is None


@pytest.mark.parametrize("driver_of", ["nothing", "another library"])
def test_without_the_driver_there_is_no_meter(driver_of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if driver_of == "nothing":
        monkeypatch.setattr(energy, "_NVML", "/nonexistent/libnvidia-ml.so.1")
    else:
        libraries: Any = ctypes.CDLL
        monkeypatch.setattr(ctypes, "CDLL", lambda _: libraries(None))  # this process itself
    assert nvidia_meter("GPU-1234") is None
