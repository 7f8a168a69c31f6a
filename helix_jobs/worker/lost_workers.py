"""The reconciler's decisions as pure functions: which workers are lost or dead, and when to publish.

Silence is measured on this process's monotonic clock, sample by sample (``observe``): a worker lives if its heartbeat
*changes* between two samples. Clocks of two machines are never compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_jobs.storage.process_identity import is_gone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from helix_jobs.storage.process_identity import Here
    from helix_jobs.storage.records import Worker


@dataclass(frozen=True, slots=True)
class Observation:
    """A worker's last seen heartbeat, and for how long it has been seen unchanged."""

    heartbeat: datetime | None
    silent_seconds: float = 0.0


def observe(
    previous: Mapping[str, Observation], heartbeats: Mapping[str, datetime | None], elapsed: float
) -> dict[str, Observation]:
    """Add one sample of the heartbeats.

    Args:
        previous: The observations so far.
        heartbeats: The heartbeats in the database now.
        elapsed: Watched seconds since the previous sample. Unwatched time (this process suspended, the database away)
            must not be passed in: a living worker could not be seen in it.
    """
    return {
        worker_id: Observation(heartbeat, previous[worker_id].silent_seconds + elapsed)
        if worker_id in previous and previous[worker_id].heartbeat == heartbeat
        else Observation(heartbeat)
        for worker_id, heartbeat in heartbeats.items()
    }


def lost_workers(
    observations: Mapping[str, Observation], own_id: str | None, *, lease: float, own_silence: float
) -> list[str]:
    """The workers to reclaim: silent for a ``lease``, while this worker's own heartbeats get through.

    Args:
        observations: Of every worker.
        own_id: This worker, which is never lost; None if it has no row.
        lease: Seconds without a new heartbeat after which a worker is lost.
        own_silence: Seconds without a new heartbeat of this worker's own after which no worker is lost: then the
            database takes no writes.
    """
    own = observations.get(own_id) if own_id is not None else None
    if own is not None and own.silent_seconds > own_silence:
        return []
    return sorted(
        worker_id
        for worker_id, observation in observations.items()
        if worker_id != own_id and observation.silent_seconds >= lease
    )


def dead_predecessors(workers: Sequence[Worker], *, own_id: str | None, here: Here) -> list[str]:
    """The workers whose process is certainly gone: at start their leases need not run out first."""
    return sorted(worker.id for worker in workers if worker.id != own_id and is_gone(worker.identity, here))


def runs_low(depth: int, window: int) -> bool:
    """Whether a tenth of the window is missing in the broker, or all of it: for less nothing is published."""
    return depth == 0 or (window - depth) * 10 >= window
