"""What the registry says of a card, on a registry as Windows has it."""

from __future__ import annotations

import contextlib
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.devices.devices import devices
from helix_jobs.engine.devices.directml_adapter import DirectmlAdapter, find_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 1 << 30
CLASS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
RADEON = "AMD Radeon RX 7900 XTX"
ADAPTERS: dict[str, dict[str, object] | None] = {
    "0000": {"DriverDesc": "Intel(R) UHD Graphics 770", "DriverVersion": "31.0.101.5590"},
    "0001": {
        "DriverDesc": RADEON,
        "DriverVersion": "32.0.21025.1024",
        "HardwareInformation.qwMemorySize": 24 * GIB,
        "HardwareInformation.MemorySize": 0xFFF00000,
    },
    "0002": {
        "DriverDesc": "NVIDIA GeForce RTX 4070 ",
        "DriverVersion": "32.0.15.6094",
        "HardwareInformation.qwMemorySize": (12 * GIB).to_bytes(8, "little"),
    },
    "0003": {"DriverDesc": RADEON, "DriverVersion": "31.0.1", "HardwareInformation.qwMemorySize": 16 * GIB},
    "Configuration": {},
    "Properties": None,  # only the system may open it
}


def registry(adapters: dict[str, dict[str, object] | None]) -> types.ModuleType:
    """``winreg`` with these adapters."""
    module = types.ModuleType("winreg")
    names = list(adapters)

    @contextlib.contextmanager
    def open_key(parent: object, path: str) -> Iterator[object]:
        if parent == "HKLM":
            if path != CLASS:
                raise FileNotFoundError(path)
            yield "adapters"
            return
        if adapters[path] is None:
            raise PermissionError(path)
        yield adapters[path]

    def enum_key(_key: object, index: int) -> str:
        if index >= len(names):
            raise OSError(259, "No more data is available")
        return names[index]

    def query_value(key: dict[str, Any], name: str) -> tuple[Any, int]:
        if name not in key:
            raise FileNotFoundError(name)
        return key[name], 11

    module.HKEY_LOCAL_MACHINE = "HKLM"  # type: ignore[attr-defined]
    module.OpenKey = open_key  # type: ignore[attr-defined]
    module.EnumKey = enum_key  # type: ignore[attr-defined]
    module.QueryValueEx = query_value  # type: ignore[attr-defined]
    return module


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "winreg", registry(ADAPTERS))


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA GeForce RTX 4070", DirectmlAdapter(12 * GIB, "32.0.15.6094")),
        (f"{RADEON.upper()} ", DirectmlAdapter(16 * GIB, "31.0.1")),
        ("Intel(R) UHD Graphics 770", DirectmlAdapter(None, "31.0.101.5590")),
        ("Microsoft Basic Render Driver", None),
    ],
)
def test_a_card_is_found_by_its_name(name: str, expected: DirectmlAdapter | None) -> None:
    assert find_adapter(name) == expected


def test_without_a_registry_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "winreg", None)
    assert find_adapter(RADEON) is None


def test_without_display_adapters_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    module = registry({})
    module.OpenKey = lambda *_: contextlib.nullcontext(0 / 1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "winreg", module)
    assert find_adapter(RADEON) is None


@pytest.mark.usefixtures("windows")
def test_a_directml_device_has_its_memory_and_driver_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torch_directml")
    module.is_available = lambda: True  # type: ignore[attr-defined]
    module.device_name = ("NVIDIA GeForce RTX 4070", "Unknown").__getitem__  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_directml", module)
    first, second = torch.device("privateuseone", 0), torch.device("privateuseone", 1)
    assert (devices.total_memory(first), devices.driver_version(first)) == (12 * GIB, "32.0.15.6094")
    assert (devices.total_memory(second), devices.driver_version(second)) == (None, "")
