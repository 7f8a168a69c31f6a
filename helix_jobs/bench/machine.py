"""Machine: the hardware and software of a measurement, and the memory that it took."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch

from helix_jobs._version import __version__
from helix_jobs.bench.process_memory import reset_process_peak
from helix_jobs.bench.processor import cpu_name


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
    reset_process_peak()
    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).reset_peak_memory_stats(device)


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
