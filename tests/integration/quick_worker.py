"""Real workers that wait for seconds where others wait for a minute."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.worker_box import ROOT, WorkerProcess

if TYPE_CHECKING:
    from tests.worker_box import Box

# A real worker in every respect but how long it waits.
QUICK_WORKER = """
import sys
from helix_jobs.broker.celery import remote_control
from helix_jobs.time_limits import TimeLimits
remote_control.ANSWERED |= {answered!r}
{before}
sys.argv[0] = "worker.py"
from helix_jobs.cli import main
window = {window}
time_limits = TimeLimits(reconcile=0.2, republish=min(0.5, window / 2), watchdog_window=window, watchdog_look=0.2)
main(command="worker", time_limits=time_limits)
"""


def start_quick_worker(
    box: Box, window: float, answered: frozenset[str] = frozenset(), before: str = "", **environment: str
) -> WorkerProcess:
    """Start one whose watchdog acts after ``window`` seconds, and which answers these commands of Celery's as well.

    ``before`` is Python that its process runs before anything of the worker does.
    """
    log_path = box.temporary / f"worker-{len(box.started)}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", QUICK_WORKER.format(window=window, answered=answered, before=before)],
            cwd=box.temporary,
            env=box.environment | environment | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    worker = WorkerProcess(process, log_path)
    box.started.append(worker)
    worker.wait_ready()
    return worker
