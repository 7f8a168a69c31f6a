"""TopRows: what ``helix top`` shows, as words. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.plain_text import printable, shorten
from helix_jobs.storage.states import JobState
from helix_jobs.wording import counted, duration, gigabytes, percent, rate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.client.snapshot import BatchNow, Snapshot, WorkerNow
    from helix_jobs.client.worker_metrics import WorkerMetrics

WORKER_TITLES: Final = ("WORKER", "DEVICE", "MODEL", "SLOTS", "TOKENS/S", "ACCEPTED", "MEMORY")
BATCH_TITLES: Final = ("BATCH", "STATE", "DONE", "", "FAILED", "TOKENS/S", "ACCEPTED", "LEFT", "NAME")
_UNKNOWN: Final = "-"
_NAME: Final = 40


@dataclass(frozen=True, slots=True)
class TopRows:
    """One look.

    Attributes:
        summary: All batches together, in one line.
        workers: A row of words for each worker, under ``WORKER_TITLES``.
        batches: A row of words for each batch, under ``BATCH_TITLES``.
        snapshot: What was read.
        metrics: Of the workers that serve them, by id.
        notice: What to say where no worker takes jobs.
    """

    summary: str
    workers: tuple[tuple[str, ...], ...]
    batches: tuple[tuple[str, ...], ...]
    snapshot: Snapshot
    metrics: Mapping[str, WorkerMetrics]
    notice: str = ""

    def to_json(self) -> dict[str, Any]:
        """The look for programs. Keys are stable: new ones may come, none is renamed."""
        from helix_jobs.cli.views import batch_json, worker_json

        snapshot = self.snapshot
        workers = []
        for one in snapshot.workers:
            known = self.metrics.get(one.worker.id)
            figures = {
                "slots_used": one.running if known is None or known.slots_used is None else known.slots_used,
                "tokens_per_second": None if known is None else known.tokens_per_second,
                "acceptance_rate": None if known is None else known.acceptance_rate,
                "memory": None if known is None else known.memory,
            }
            workers.append({**worker_json(one.worker), "alive": one.is_alive, **figures})
        return {
            "jobs": snapshot.totals.total,
            "ended": snapshot.totals.finished,
            "running": snapshot.running,
            "queued": snapshot.queued,
            "tokens_per_second": snapshot.pace.tokens_per_second,
            "workers": workers,
            "batches": [
                {**batch_json(one.status), "seconds_left": one.pace.eta_seconds} for one in snapshot.batches.values()
            ],
        }


def top_rows(snapshot: Snapshot, metrics: Mapping[str, WorkerMetrics], notice: str = "") -> TopRows:
    """What to show of a snapshot, with the metrics of those workers that serve them, by id, and a notice."""
    return TopRows(
        _summary(snapshot),
        tuple(_worker(one, metrics.get(one.worker.id)) for one in snapshot.workers),
        tuple(_batch(one) for one in snapshot.batches.values()),
        snapshot,
        metrics,
        notice,
    )


def _summary(snapshot: Snapshot) -> str:
    totals, pace = snapshot.totals, snapshot.pace
    parts = [f"{totals.finished:,} of {counted(totals.total, 'job')} ended", f"{snapshot.running:,} in slots"]
    parts.append(f"{snapshot.queued:,} wait")
    if pace.tokens_per_second is not None and snapshot.running:
        parts.append(f"{rate(max(0.0, pace.tokens_per_second))} tokens/s")
    if pace.eta_seconds is not None and snapshot.queued + snapshot.running:
        parts.append(f"about {duration(pace.eta_seconds)} left")
    return ", ".join(parts)


def _worker(one: WorkerNow, metrics: WorkerMetrics | None) -> tuple[str, ...]:
    worker = one.worker
    used = one.running if metrics is None or metrics.slots_used is None else metrics.slots_used
    speed = None if metrics is None else metrics.tokens_per_second
    accepted = None if metrics is None else metrics.acceptance_rate
    return (
        printable(worker.id),
        printable(worker.device),
        shorten(printable(worker.target_model), _NAME),
        f"{used}/{worker.slots}" if one.is_alive else "silent",
        _UNKNOWN if speed is None else rate(speed),
        _UNKNOWN if accepted is None else percent(accepted),
        _UNKNOWN if metrics is None else _memory(metrics.memory),
    )


def _memory(memory: Mapping[str, int]) -> str:
    if "device" in memory and "device_total" in memory:
        return f"{gigabytes(memory['device'])} of {gigabytes(memory['device_total'])}"
    return gigabytes(memory["process"]) if "process" in memory else _UNKNOWN


def _batch(one: BatchNow) -> tuple[str, ...]:
    status, pace = one.status, one.pace
    total = status.total
    left = None if status.done else pace.eta_seconds
    speed = pace.tokens_per_second
    return (
        status.id,
        str(status.state),
        f"{status.processed:,}/{'?' if total is None else f'{total:,}'}",
        percent(status.processed / total) if total else "",
        f"{status.counts[JobState.FAILED]:,}",
        _UNKNOWN if speed is None else rate(max(0.0, speed)),
        _UNKNOWN if status.acceptance_rate is None else percent(status.acceptance_rate),
        _UNKNOWN if left is None else duration(left),
        shorten(printable(status.name or status.source or ""), _NAME),
    )
