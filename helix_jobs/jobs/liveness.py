"""Whether a worker's row means a worker: for commands, which cannot watch a heartbeat for half a minute first."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from helix_jobs.jobs.process_identity import here, is_gone

if TYPE_CHECKING:
    from helix_jobs.jobs.store import Worker

# A worker whose heartbeat is older loses its jobs, too.
SILENT_SECONDS: Final = 30.0


def silence(worker: Worker) -> float:
    """Seconds since the worker's last sign of life, by this machine's clock; good enough to show, not to judge."""
    return (datetime.now(UTC) - worker.heartbeat_at).total_seconds()


def seems_alive(worker: Worker) -> bool:
    """Whether the worker's process is there, as far as this one can see, and its heartbeat is young.

    For other hosts their clock is taken at its word. If it is wrong, a notice too many is shown or a worker too many is
    started, which is safe.
    """
    return abs(silence(worker)) < SILENT_SECONDS and not is_gone(worker.identity, here())
