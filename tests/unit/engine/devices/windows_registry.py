"""The registry of a Windows machine: what its drivers wrote there about display adapters."""

from __future__ import annotations

import contextlib
import types
from typing import TYPE_CHECKING, Any

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
