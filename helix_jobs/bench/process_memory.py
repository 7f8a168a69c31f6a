"""The most resident memory that a process has had."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Final

import psutil

_PROC: Final = Path("/proc")
_RESET_PEAK: Final = "5"  # see proc(5), clear_refs


def reset_process_peak() -> None:
    """Start this process's high-water mark anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):  # another system, or no permission: the mark stays as it is
        (_PROC / "self" / "clear_refs").write_text(_RESET_PEAK, encoding="ascii")


def peak_memory(process: psutil.Process | None = None) -> int:
    """The most resident memory so far of a process, or of this one, in bytes.

    A process that has ended counts 0. A system that keeps no mark for other processes (macOS) tells what such a process
    holds now.
    """
    own = process is None
    process = process or psutil.Process()
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    peak = getattr(memory, "peak_wset", None)
    if peak is not None:  # Windows
        return int(peak)
    with contextlib.suppress(OSError):
        for line in (_PROC / str(process.pid) / "status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if not own:
        return int(memory.rss)
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
