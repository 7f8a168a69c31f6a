"""MachineUse: what other programs than this worker do on its machine and its device."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

from helix_jobs.engine.loading.open_engine import memory_of_others

if TYPE_CHECKING:
    from helix_jobs.settings import Settings


class MachineUse:
    """Satisfies ``others.Use``. The worker's own are its process and those that it has started.

    Args:
        settings: The worker's.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._own = psutil.Process()
        # Seconds of processor time of the whole machine, busy and idle ones, and of this worker.
        self._before: tuple[float, float, float] | None = None

    def load(self) -> float | None:
        """The share of the processors that others have used since the last call; None at the first."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts guests' time as user time, too.
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        before, now = self._before, (sum(times) - guests - idle, idle, self._own_seconds())
        self._before = now
        if before is None:
            return None
        busy, idle, own = (after - earlier for after, earlier in zip(now, before, strict=True))
        return max(0.0, busy - own) / (busy + idle) if busy + idle > 0 else None

    def memory(self) -> float | None:
        """The share of the device's memory that others hold; None if the device does not tell."""
        return memory_of_others(self._settings)

    def processes(self) -> frozenset[str]:
        """The names of all processes, in small letters, with and without ``.exe``."""
        found: set[str] = set()
        for process in psutil.process_iter(["name"]):
            name = (process.info["name"] or "").lower()
            found.update((name, name.removesuffix(".exe")))
        return frozenset(found)

    def _own_seconds(self) -> float:
        mine = self._own.cpu_times()
        # Children that have ended count from when they were waited for.
        seconds = float(mine.user + mine.system + mine.children_user + mine.children_system)
        for child in self._own.children(recursive=True):
            with suppress(psutil.Error):  # it has ended meanwhile
                times = child.cpu_times()
                seconds += times.user + times.system
        return seconds
