"""Probes: a thread that samples processes and the broker while something else is measured."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

import psutil

from helix_jobs.bench.percentiles import Percentiles
from helix_jobs.bench.queue.report import Latencies, Memory
from helix_jobs.errors import HelixError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from helix_jobs.bench.queue.installation import Installation
    from helix_jobs.client.client import HelixClient

SAMPLE_SECONDS: Final = 0.1
# Up to this part of the samples a process still imports and warms its caches.
_EARLY_SHARE: Final = 0.1


@dataclass(slots=True)
class Samples:
    """The samples taken.

    Attributes:
        resident: Resident bytes of each process, in order of time.
        depth: Most messages that waited in the broker.
        broker_bytes: Most memory the broker used.
    """

    resident: dict[int, list[int]] = field(default_factory=dict)
    depth: int = 0
    broker_bytes: int = 0

    def memory(self, pid: int) -> Memory:
        """A process's memory; zeros if it ended before the first sample."""
        seen = self.resident.get(pid) or [0]
        return Memory(early=seen[int(len(seen) * _EARLY_SHARE)], late=seen[-1], peak=max(seen))

    def largest_growth(self, pids: Sequence[int]) -> Memory:
        """The memory of the process that grew most."""
        return max((self.memory(pid) for pid in pids), key=lambda memory: memory.late - memory.early)


class Sampler:
    """Samples in the background while its ``with`` block runs."""

    def __init__(self, installation: Installation, pids: Sequence[int]) -> None:
        self._installation = installation
        self._processes = [psutil.Process(pid) for pid in pids]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="helix-bench-sampler", daemon=True)
        self.samples = Samples()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _main(self) -> None:
        while True:
            self._look()
            if self._stop.wait(SAMPLE_SECONDS):
                return

    def _look(self) -> None:
        for process in self._processes:
            with suppress(psutil.Error):
                # A process that has ended but was not waited for has no memory.
                if resident := process.memory_info().rss:
                    self.samples.resident.setdefault(process.pid, []).append(resident)
        with suppress(HelixError):
            self.samples.depth = max(self.samples.depth, self._installation.publisher.depth())
            self.samples.broker_bytes = max(self.samples.broker_bytes, broker_bytes(self._installation))


def cpu_seconds(pids: Sequence[int]) -> float:
    """Processor time that running processes have used, in user and system mode."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(each.user + each.system for each in times)


def broker_bytes(installation: Installation) -> int:
    """Memory that the broker's server uses."""
    return int(installation.server_info()["used_memory"])


def read_latencies(client: HelixClient, batch_id: str, times: int = 40) -> Latencies:
    """Time ``status`` and ``list`` one after another."""
    return Latencies(
        status=Percentiles.of([_time(lambda: client.status(batch_id)) for _ in range(times)]),
        list=Percentiles.of([_time(client.list) for _ in range(times)]),
    )


def _time(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
