"""Machine: the hardware and software of a measurement, and the memory that it took."""

from __future__ import annotations

import contextlib
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil
import torch

from helix_jobs._version import __version__
from helix_jobs.bench.processor import cpu_name

_PROC: Final = Path("/proc")
_RESET_PEAK: Final = "5"  # see proc(5), clear_refs


@dataclass(frozen=True, slots=True)
class Machine:
    """The processor, the software, and how many threads torch uses."""

    cpu: str
    physical_cores: int | None
    logical_cores: int | None
    memory_bytes: int
    platform: str
    python: str
    helix: str
    torch: str
    transformers: str
    threads: int

    @classmethod
    def here(cls) -> Machine:
        """Describe this machine."""
        return cls(
            cpu=cpu_name(),
            physical_cores=psutil.cpu_count(logical=False),
            logical_cores=psutil.cpu_count(),
            memory_bytes=int(psutil.virtual_memory().total),
            platform=platform.platform(),
            python=platform.python_version(),
            helix=__version__,
            torch=str(torch.__version__),
            transformers=_version("transformers"),
            threads=torch.get_num_threads(),
        )


def reset_peak_memory(device: torch.device) -> None:
    """Start the high-water marks anew, where that is possible (Linux; CUDA and XPU)."""
    with contextlib.suppress(OSError):  # another system, or no permission: the mark stays as it is
        (_PROC / "self" / "clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).reset_peak_memory_stats(device)


def peak_memory() -> int:
    """The most resident memory of this process so far, in bytes."""
    peak = getattr(psutil.Process().memory_info(), "peak_wset", None)
    if peak is not None:  # Windows
        return int(peak)
    with contextlib.suppress(OSError):
        for line in (_PROC / "self" / "status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def peak_device_memory(device: torch.device) -> int | None:
    """The most memory allocated on the device so far, in bytes; None if it has none of its own or does not tell."""
    if device.type in ("cuda", "xpu"):
        return int(getattr(torch, device.type).max_memory_allocated(device))
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
