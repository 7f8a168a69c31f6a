"""Check that the workers that hold jobs are alive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.doctor.verdict import Level, Verdict
from helix_jobs.storage.liveness import why_dead
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from helix_jobs.storage.process_identity import Here
    from helix_jobs.storage.records import LeaseHolder


def judge_leases(
    holders: Sequence[LeaseHolder],
    *,
    waiting: int,
    now: datetime,
    here: Here,
    lease: float,
) -> list[Verdict]:
    """Tell living workers from dead ones that still hold jobs.

    Args:
        holders: Every live worker, and every other worker that holds a lease.
        waiting: Number of queued jobs.
        now: The time, roughly by the clock that wrote the heartbeats.
        here: What this process can see of other processes.
        lease: Seconds without a heartbeat after which a worker is lost.
    """
    reasons = {holder.worker_id: _why_dead(holder, now=now, here=here, lease=lease) for holder in holders}
    dead = {worker_id: reason for worker_id, reason in reasons.items() if reason is not None}
    living = [holder for holder in holders if holder.worker_id not in dead]
    held = sum(holder.leases for holder in living)
    finding = f"{len(living)} alive, {counted(held, 'job')} running, {waiting:,} waiting"
    verdicts = [Verdict("workers", Level.OK, finding)]
    stale = [holder for holder in holders if holder.worker_id in dead and holder.leases]
    if not stale:
        return [*verdicts, Verdict("leases", Level.OK, "none of a dead worker")]
    finding = "; ".join(f"{holder.leases} of {holder.worker_id}, {dead[holder.worker_id]}" for holder in stale)
    remedy = f"the running workers take these jobs over within {lease:.0f} s"
    if not living:
        own = "it takes over the jobs of dead workers of its own host at once"
        remedy = f"start a worker: {own}, others after {lease:.0f} s"
    return [*verdicts, Verdict("leases", Level.WARNING, finding, remedy)]


def _why_dead(holder: LeaseHolder, *, now: datetime, here: Here, lease: float) -> str | None:
    if holder.heartbeat_at is None:
        return "which nobody knows"
    if not holder.is_live:
        return "which has stopped"
    return why_dead(holder.heartbeat_at, holder.identity, now=now, here=here, lease=lease)
