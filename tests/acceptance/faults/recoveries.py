"""Recoveries: how long what killed workers had in hand waits for another worker."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.worker_box import wait_until

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation
    from tests.acceptance.faults.oracle import Accepted
    from tests.worker_box import WorkerProcess


@dataclass
class Recoveries:
    """Follows when what killed workers had in hand is in hand again."""

    installation: Installation
    seconds: list[float] = field(default_factory=list)
    _pending: list[tuple[float, dict[int, int]]] = field(default_factory=list)

    def kill(self, worker: WorkerProcess) -> None:
        worker.kill()
        self._pending.append((time.monotonic(), self.installation.held_by(worker)))

    def wait_ended(self, batch: Accepted, count: int) -> None:
        """Wait until so many jobs have ended."""
        deadline = time.monotonic() + self.installation.patience
        left = len(batch.prompts)
        while (now_left := self.installation.unfinished(batch)) > len(batch.prompts) - count:
            if now_left < left:
                left, deadline = now_left, time.monotonic() + self.installation.patience
            assert time.monotonic() < deadline, "nothing goes on"
            self.follow(0.05)

    def wait_busy(self, worker: WorkerProcess) -> None:
        """Wait until a worker has ended one of the jobs that it took first.

        Not all of them: bulk jobs that it holds wait for as long as interactive ones keep its slots.
        """
        first: dict[int, int] = {}

        def took() -> bool:
            self.look()
            first.update(self.installation.held_by(worker))
            return bool(first)

        def ended() -> bool:
            self.look()
            return any(self.installation.taken_over({job_id: lease}) for job_id, lease in first.items())

        wait_until(took, lambda: f"nothing runs: {worker.log}")
        wait_until(ended, lambda: f"nothing ends: {worker.log}")

    def look(self) -> None:
        now = time.monotonic()
        for killed in list(self._pending):
            if self.installation.taken_over(killed[1]):
                self._pending.remove(killed)
                self.seconds.append(now - killed[0])

    def follow(self, seconds: float) -> None:
        """Look for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            time.sleep(0.02)

    def follow_all(self) -> None:
        deadline = time.monotonic() + self.installation.patience
        while self._pending:
            assert time.monotonic() < deadline, f"never taken over: {self._pending}"
            self.follow(0.1)
