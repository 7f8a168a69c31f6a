"""A DirectX 12 adapter's memory and driver, from Windows' registry. torch-directml tells neither."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

logger = logging.getLogger(__name__)

# The class of display adapters; each adapter that was ever installed has a numbered key in it.
_DISPLAY_ADAPTERS: Final = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
_NAME: Final = "DriverDesc"
_MEMORY: Final = "HardwareInformation.qwMemorySize"
_DRIVER: Final = "DriverVersion"


@dataclass(frozen=True, slots=True)
class DirectmlAdapter:
    """One display adapter.

    Attributes:
        memory_bytes: Its own memory; None when the registry does not say.
        driver: Version of its driver; empty when the registry does not say.
    """

    memory_bytes: int | None
    driver: str


def find_adapter(name: str) -> DirectmlAdapter | None:
    """Find an adapter by its name in torch-directml; None if there is no registry or no such adapter.

    Of several with that name (two cards of a kind, or a card that was moved to another slot) the least memory counts.
    """
    try:
        winreg = importlib.import_module("winreg")
    except ImportError:  # WSL
        return None
    found = [adapter for known, adapter in _adapters(winreg) if known.casefold() == name.strip().casefold()]
    return min(found, key=lambda adapter: adapter.memory_bytes or 0, default=None)


def _adapters(winreg: ModuleType) -> Iterator[tuple[str, DirectmlAdapter]]:
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _DISPLAY_ADAPTERS) as adapters:
            for index in count():
                key_name = winreg.EnumKey(adapters, index)  # OSError past the last one
                try:
                    with winreg.OpenKey(adapters, key_name) as key:
                        name = _value(winreg, key, _NAME)
                        if isinstance(name, str):
                            yield name.strip(), _adapter(winreg, key)
                except OSError:  # only the system may read "Properties"
                    continue
    except OSError:
        logger.debug("no further display adapters in the registry", exc_info=True)


def _adapter(winreg: ModuleType, key: object) -> DirectmlAdapter:
    memory = _value(winreg, key, _MEMORY)
    if isinstance(memory, bytes):  # some drivers write the number as it stands in memory
        memory = int.from_bytes(memory, "little")
    driver = _value(winreg, key, _DRIVER)
    return DirectmlAdapter(memory if isinstance(memory, int) and memory > 0 else None, str(driver or ""))


def _value(winreg: ModuleType, key: object, name: str) -> Any:  # noqa: ANN401  (whatever type the driver wrote)
    try:
        return winreg.QueryValueEx(key, name)[0]
    except OSError:
        return None
