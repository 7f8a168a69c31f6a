"""Guess from its row whether a worker is alive: for commands, which cannot watch a heartbeat for half a minute."""

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
    """Say why a worker that has not stopped seems dead; None if it seems alive.

    Other hosts' clocks are trusted, and a heartbeat more than ``lease`` ahead counts like an old one: it says nothing
    about the last half minute. A wrong answer shows a needless notice or starts a needless worker, both safe.

    Args:
        heartbeat_at: The worker's last heartbeat.
        identity: The worker's process, if known.
        now: The time by this machine's clock.
        here: What this process can see of other processes.
        lease: Seconds; a worker whose heartbeat is older also loses its jobs.
    """
    if identity is not None and is_gone(identity, here):
        return "whose process is gone"
    silent = (now - heartbeat_at).total_seconds()
    if abs(silent) < lease:
        return None
    return f"silent for {silent:,.0f} s" if silent > 0 else f"whose clock is {-silent:,.0f} s ahead of this machine's"


def silence(worker: Worker) -> float:
    """Seconds since the worker's last heartbeat, by this machine's clock: to show, not to judge by."""
    return (datetime.now(UTC) - worker.heartbeat_at).total_seconds()


def seems_alive(worker: Worker, lease: float) -> bool:
    """Whether the worker's process exists, as far as this one can see, and its heartbeat is recent."""
    return why_dead(worker.heartbeat_at, worker.identity, now=datetime.now(UTC), here=here(), lease=lease) is None
