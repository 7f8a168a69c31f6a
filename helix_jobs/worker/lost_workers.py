"""What the reconciler decides, and nothing it does: who is lost, who is dead, how much is published. Pure functions.

Silence is measured on this process's monotonic clock, look by look (``observe``): what counts is whether a worker's
heartbeat *changes* under the eyes of this one. Clocks of two machines are never compared.
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
    """A worker's last seen heartbeat and for how long it has been seen unchanged."""

    heartbeat: datetime | None
    silent_seconds: float = 0.0


def observe(
    previous: Mapping[str, Observation], heartbeats: Mapping[str, datetime | None], elapsed: float
) -> dict[str, Observation]:
    """Add one look at the heartbeats.

    Args:
        previous: What was known.
        heartbeats: What the database says now.
        elapsed: Seconds since the previous look that count as watched. Time nobody watched (this process stopped, the
            database away) must not be passed in: a worker could not be seen living in it.
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
    """Who is to be reclaimed: silent for a ``lease``, while this worker's own heartbeats get through.

    Args:
        observations: Of every worker.
        own_id: This worker, which is never lost; None if it has no row.
        lease: Seconds without a new heartbeat after which a worker is lost.
        own_silence: Seconds without a new heartbeat of this worker's own after which nobody is: then it is the database
            that takes no writes.
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
    """Whose process is certainly gone: at start there is no need to wait for their silence."""
    return sorted(worker.id for worker in workers if worker.id != own_id and is_gone(worker.identity, here))


def publish_room(depth: int, window: int) -> int:
    """How many more messages the broker should get; none for less than a tenth of the window, unless it runs dry."""
    room = max(0, window - depth)
    return room if depth == 0 or room * 10 >= window else 0
