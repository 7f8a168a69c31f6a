"""What the registry says of a card, on a registry as Windows has it."""

from __future__ import annotations

import contextlib
import sys
import types

import pytest
import torch

from helix_jobs.engine.devices import devices
from helix_jobs.engine.devices.directml_adapter import DirectmlAdapter, find_adapter
from tests.unit.engine.devices.windows_registry import ADAPTERS, GIB, RADEON, registry


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
