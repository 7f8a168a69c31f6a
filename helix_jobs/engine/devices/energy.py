"""Energy counters of devices: how many joules a run has cost, where the device or its driver counts them.

Counted are whole devices: what other programs did on them meanwhile, and what an idle device takes, is included. Of a
CPU these are its packages without the memory beside them. Nothing is estimated: a device that tells its power alone
(DirectML, MPS, older AMD cards) has no energy here.

Sources: Linux' powercap (https://docs.kernel.org/power/powercap/powercap.html), hwmon's ``energy1_input``
(https://docs.kernel.org/hwmon/sysfs-interface.html), and NVML's ``nvmlDeviceGetTotalEnergyConsumption``.
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


_POWERCAP: Final = Path("/sys/class/powercap")
_PCI: Final = Path("/sys/bus/pci/devices")
_NVML: Final = "libnvidia-ml.so.1"
_MICRO: Final = 1e-6
_MILLI: Final = 1e-3


class SysfsMeter:
    """Counters in files, in microjoules, each of which begins anew at 0 behind its largest value.

    It has to be read again before a counter has gone round. One of 262,144 J, as processors have it, takes eleven
    minutes for that at 400 W; a run is read after one.

    Args:
        counters: Each counter's file, and its largest value; 0 for one that does not begin anew.
    """

    def __init__(self, counters: Sequence[tuple[Path, int]]) -> None:
        self._counters = counters
        self._last: dict[Path, int] = {}
        self._total = 0

    def joules(self) -> float | None:
        """What all counters have counted since the first call."""
        for path, largest in self._counters:
            try:
                now = int(path.read_text(encoding="ascii"))
            except (OSError, ValueError):
                return None
            before = self._last.get(path, now)
            self._total += now - before if now >= before or not largest else now + largest - before
            self._last[path] = now
        return self._total * _MICRO


class NvmlMeter:
    """The counter of an NVIDIA GPU, kept by its driver.

    Args:
        library: NVML.
        device: Its handle of the GPU.
    """

    def __init__(self, library: ctypes.CDLL, device: ctypes.c_void_p) -> None:
        self._library = library
        self._device = device

    def joules(self) -> float | None:
        """What the GPU has taken since the driver was loaded."""
        found = ctypes.c_ulonglong()
        failed = self._library.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(found))
        return None if failed else found.value * _MILLI


Meter = SysfsMeter | NvmlMeter


def find_energy_meter(device: torch.device) -> Meter | None:
    """The meter of a device; None where nobody counts, or this process may not read it."""
    meter: Meter | None = None
    if device.type == "cpu":
        meter = processor_meter()
    elif device.type == "cuda":
        card: Any = torch.cuda.get_device_properties(device)  # whose types lack the place on the bus
        if torch.version.hip is None:
            meter = nvidia_meter(f"GPU-{card.uuid}")
        else:
            places = (card.pci_domain_id, card.pci_bus_id, card.pci_device_id)
            meter = card_meter("{:04x}:{:02x}:{:02x}.0".format(*places))
    return meter if meter is not None and meter.joules() is not None else None


def processor_meter() -> Meter | None:
    """The meter of this machine's processors."""
    counters = []
    for zone in sorted(_POWERCAP.glob("intel-rapl:*")):  # AMD's packages have this name, too
        if zone.name.count(":") == 1:  # a package; its parts have two
            with contextlib.suppress(OSError, ValueError):
                largest = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
                counters.append((zone / "energy_uj", largest))
    return SysfsMeter(counters) if counters else None


def card_meter(pci: str) -> Meter | None:
    """The meter of the card at an address of the bus, such as ``0000:03:00.0``."""
    found = sorted((_PCI / pci / "hwmon").glob("hwmon*/energy1_input"))
    return SysfsMeter([(found[0], 0)]) if found else None


def nvidia_meter(uuid: str) -> Meter | None:
    """The meter of an NVIDIA GPU, by the name that NVML has for it."""
    try:
        library = ctypes.CDLL(_NVML)
        device = ctypes.c_void_p()
        if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(device)):
            return None
    except (OSError, AttributeError):  # no driver, or one that is older than this function
        return None
    return NvmlMeter(library, device)
