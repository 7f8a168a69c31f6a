"""Whether a worker's row means a worker: for commands, which cannot watch a heartbeat for half a minute first."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from helix_jobs.storage.process_identity import here, is_gone

if TYPE_CHECKING:
    from helix_jobs.storage.process_identity import Here, ProcessIdentity
    from helix_jobs.storage.records import Worker


def why_dead(
    heartbeat_at: datetime, identity: ProcessIdentity | None, *, now: datetime, here: Here, lease: float
) -> str | None:
    """Say why a worker that has not stopped is taken for dead; None if it seems to live.

    For other hosts their clock is taken at its word, and a heartbeat that is as far ahead is no better than an old one:
    it says nothing about the last half minute. If that is wrong, a notice too many is shown or a worker too many is
    started, which is safe.

    Args:
        heartbeat_at: Its last sign of life.
        identity: Which process it is, if that is known.
        now: By this machine's clock.
        here: Which processes can be seen from here.
        lease: Seconds; a worker whose heartbeat is older loses its jobs, too.
    """
    if identity is not None and is_gone(identity, here):
        return "whose process is gone"
    silent = (now - heartbeat_at).total_seconds()
    if abs(silent) < lease:
        return None
    return f"silent for {silent:,.0f} s" if silent > 0 else f"whose clock is {-silent:,.0f} s ahead of this machine's"


def silence(worker: Worker) -> float:
    """Seconds since the worker's last sign of life, by this machine's clock; good enough to show, not to judge."""
    return (datetime.now(UTC) - worker.heartbeat_at).total_seconds()


def seems_alive(worker: Worker, lease: float) -> bool:
    """Whether the worker's process is there, as far as this one can see, and its heartbeat is young."""
    return why_dead(worker.heartbeat_at, worker.identity, now=datetime.now(UTC), here=here(), lease=lease) is None
