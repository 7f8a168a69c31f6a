"""The processor's name, for reports. Does not import torch: a bench of the queue needs none."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

_CPU_INFO: Final = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """The processor's name as its maker gives it, if the system reports it."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
