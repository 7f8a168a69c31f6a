"""Metrics in Prometheus' text form, over HTTP, on a port that is off unless it is set.

A scrape reads the worker's own figures from memory and the queue's from the database at that moment; nothing is polled.
It runs on a few threads of the server's own (``scrape_server``), with its own database connection, a time limit and at
most one query a second. So neither scrapers nor a hanging database can hold up the worker; ``helix_database_up`` shows
such a hang.

Trade-off: each worker of a database also serves the same queue figures; take their ``max()``, not ``sum()``. A separate
exporter would be one more process to keep alive.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from helix_jobs._version import __version__
from helix_jobs.errors import ConfigurationError
from helix_jobs.worker.scrape_server import ScrapeServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric as Family

    from helix_jobs.storage.records import QueueFigures
    from helix_jobs.worker.figures import WorkerFigures

logger = logging.getLogger(__name__)

T = TypeVar("T")

DATABASE_SECONDS: Final = 5.0
# How long the queue's figures serve other scrapes too.
FRESH_SECONDS: Final = 1.0


class Kind(StrEnum):
    """The Prometheus types used here."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is scraped and documented.

    Attributes:
        name: Its name, with the unit, and ``_total`` for counters.
        kind: Its type.
        meaning: Its help text.
        labels: The names of its labels.
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()


# Label values -> value; without labels the key is empty.
Samples = dict[tuple[str, ...], float]

_QUEUE: Final = (
    Metric("helix_database_up", Kind.GAUGE, "1 if the database answered this scrape, else 0."),
    Metric("helix_jobs_queued", Kind.GAUGE, "Jobs that wait, by the database."),
    Metric("helix_jobs_running", Kind.GAUGE, "Jobs under a lease, of all workers."),
    Metric(
        "helix_jobs_ended",
        Kind.GAUGE,
        "Jobs that stand in a final state: succeeded, cancelled, or failed by error code.",
        ("outcome",),
    ),
    Metric("helix_oldest_queued_job_age_seconds", Kind.GAUGE, "How long the oldest waiting job waits; 0 if none does."),
    Metric("helix_oldest_running_job_age_seconds", Kind.GAUGE, "How long the oldest lease is held; 0 if none is."),
    Metric(
        "helix_oldest_heartbeat_age_seconds",
        Kind.GAUGE,
        "The oldest last heartbeat of a worker that lives or holds leases; 0 if there is none.",
    ),
    Metric("helix_workers", Kind.GAUGE, "Workers that neither stopped nor were declared lost."),
)
_WORKER: Final = (
    Metric(
        "helix_worker_info",
        Kind.GAUGE,
        "1; what this worker is.",
        ("worker", "version", "target_model", "draft_model", "device", "dtype"),
    ),
    Metric("helix_worker_slots", Kind.GAUGE, "Batch slots."),
    Metric("helix_worker_slots_used", Kind.GAUGE, "Batch slots that requests use, one for each choice they ask for."),
    Metric("helix_worker_memory_bytes", Kind.GAUGE, "Memory in use, and the device's whole memory.", ("kind",)),
    Metric("helix_worker_jobs_ended_total", Kind.COUNTER, "Jobs this worker brought to an end.", ("outcome",)),
    Metric("helix_worker_refused_answers_total", Kind.COUNTER, "Answers that the jobs' own acceptance rules refused."),
    Metric("helix_worker_stored_answers_total", Kind.COUNTER, "Jobs that took a stored answer, and cost nothing."),
    Metric("helix_worker_messages_total", Kind.COUNTER, "Messages delivered that name a job, repeated ones included."),
    Metric("helix_worker_void_messages_total", Kind.COUNTER, "Of these, with nothing to do: duplicates, ended jobs."),
    Metric("helix_worker_rejected_messages_total", Kind.COUNTER, "Messages dropped because they name no job."),
    Metric(
        "helix_worker_postponed_total",
        Kind.COUNTER,
        "Times a job at its last attempt waited in vain to run alone and was put off.",
    ),
    Metric("helix_worker_fenced_total", Kind.COUNTER, "Endings dropped because the lease had moved on."),
    Metric("helix_worker_reclaimed_total", Kind.COUNTER, "Jobs this worker took from lost workers."),
    Metric("helix_worker_published_total", Kind.COUNTER, "Job ids this worker sent to the broker."),
    Metric("helix_worker_republished_total", Kind.COUNTER, "Jobs whose ids are sent again, as they seemed lost."),
    Metric("helix_worker_reconciler_errors_total", Kind.COUNTER, "Times broker or database did not answer it."),
    Metric("helix_worker_reconnections_total", Kind.COUNTER, "Times the watchdog connected to the broker anew."),
    Metric("helix_worker_writes_waiting", Kind.GAUGE, "Writes kept because the database takes none; 0 in good times."),
    Metric("helix_worker_write_retries_total", Kind.COUNTER, "Times writes were tried again."),
    Metric("helix_engine_steps_total", Kind.COUNTER, "Engine steps."),
    Metric("helix_engine_prompt_tokens_total", Kind.COUNTER, "Prompt tokens of admitted requests."),
    Metric("helix_engine_cached_prompt_tokens_total", Kind.COUNTER, "Of these, shared instead of computed."),
    Metric("helix_engine_completion_tokens_total", Kind.COUNTER, "Tokens generated."),
    Metric("helix_engine_draft_tokens_total", Kind.COUNTER, "Tokens drafted."),
    Metric("helix_engine_accepted_tokens_total", Kind.COUNTER, "Of these, accepted by the target."),
    Metric("helix_engine_forced_tokens_total", Kind.COUNTER, "Of the drafted tokens, those that a grammar forced."),
    Metric("helix_engine_accepted_forced_tokens_total", Kind.COUNTER, "Of these, accepted by the target."),
    Metric("helix_engine_acceptance_ratio", Kind.GAUGE, "Accepted over drafted since the start; NaN before a draft."),
    Metric("helix_engine_tokens_per_second", Kind.GAUGE, "Tokens generated in the run under way; 0 when idle."),
    Metric("helix_engine_preemptions_total", Kind.COUNTER, "Times a request lost its cache blocks and was set back."),
    Metric(
        "helix_engine_phase_seconds_total",
        Kind.COUNTER,
        "Time in steps: schedule, draft, target (attention is a part of it), verify.",
        ("phase",),
    ),
    Metric("helix_engine_idle_seconds_total", Kind.COUNTER, "Time the engine had nothing to do."),
)
METRICS: Final = (*_QUEUE, *_WORKER)


def queue_samples(figures: QueueFigures, now: datetime) -> dict[str, Samples]:
    """The queue's figures by the metrics' names. Ages are by this machine's clock, never below 0."""

    def age(moment: datetime | None) -> Samples:
        return _one(0.0 if moment is None else max(0.0, (now - moment).total_seconds()))

    return {
        "helix_jobs_queued": _one(figures.queued),
        "helix_jobs_running": _one(figures.running),
        "helix_jobs_ended": _labelled(figures.ended),
        "helix_oldest_queued_job_age_seconds": age(figures.oldest_queued_at),
        "helix_oldest_running_job_age_seconds": age(figures.oldest_claimed_at),
        "helix_oldest_heartbeat_age_seconds": age(figures.oldest_heartbeat_at),
        "helix_workers": _one(figures.live_workers),
    }


def worker_samples(figures: WorkerFigures) -> dict[str, Samples]:
    """A worker's figures by the metrics' names."""
    info, jobs, totals = figures.engine, figures.jobs, figures.counters
    labels = (
        figures.worker_id,
        __version__,
        info.target_model,
        info.draft_model or "none",
        info.device,
        info.dtypes,
    )
    phases = ("schedule", "draft", "target", "attention", "verify")
    return {
        "helix_worker_info": {labels: 1.0},
        "helix_worker_slots": _one(info.max_batch_size),
        "helix_worker_slots_used": _one(figures.slots_used),
        "helix_worker_memory_bytes": _labelled(figures.memory),
        "helix_worker_jobs_ended_total": _labelled(jobs.outcomes),
        "helix_worker_refused_answers_total": _one(jobs.refused_answers),
        "helix_worker_stored_answers_total": _one(jobs.from_cache + figures.from_cache),
        "helix_worker_messages_total": _one(jobs.delivered),
        "helix_worker_void_messages_total": _one(jobs.void_messages),
        "helix_worker_rejected_messages_total": _one(jobs.rejected_messages),
        "helix_worker_postponed_total": _one(jobs.postponed),
        "helix_worker_fenced_total": _one(jobs.fenced),
        "helix_worker_reclaimed_total": _one(figures.reclaimed),
        "helix_worker_published_total": _one(figures.published),
        "helix_worker_republished_total": _one(figures.republished),
        "helix_worker_reconciler_errors_total": _one(figures.reconciler_errors),
        "helix_worker_reconnections_total": _one(figures.reconnections),
        "helix_worker_writes_waiting": _one(figures.writes_waiting),
        "helix_worker_write_retries_total": _one(figures.write_retries),
        "helix_engine_steps_total": _one(totals.steps),
        "helix_engine_prompt_tokens_total": _one(totals.prompt_tokens),
        "helix_engine_cached_prompt_tokens_total": _one(totals.cached_prompt_tokens),
        "helix_engine_completion_tokens_total": _one(totals.completion_tokens),
        "helix_engine_draft_tokens_total": _one(totals.draft_tokens),
        "helix_engine_accepted_tokens_total": _one(totals.accepted_tokens),
        "helix_engine_forced_tokens_total": _one(totals.forced_tokens),
        "helix_engine_accepted_forced_tokens_total": _one(totals.accepted_forced_tokens),
        "helix_engine_acceptance_ratio": _one(
            float("nan") if totals.acceptance_rate is None else totals.acceptance_rate
        ),
        "helix_engine_tokens_per_second": _one(figures.tokens_per_second),
        "helix_engine_preemptions_total": _one(totals.preemptions),
        "helix_engine_phase_seconds_total": {(phase,): getattr(totals, f"{phase}_seconds") for phase in phases},
        "helix_engine_idle_seconds_total": _one(figures.idle_seconds),
    }


class MetricsServer:
    """Serves the metrics from its creation on; a worker's own figures from the call of ``show`` on.

    Args:
        host: The address to listen on.
        port: The port; 0 takes a free one.

    Raises:
        ConfigurationError: The port is in use, or there is no such address.
    """

    def __init__(self, host: str, port: int) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app

        self._collector = _Collector()
        registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        registry.register(self._collector)
        try:
            self._server = ScrapeServer(host, port, make_wsgi_app(registry))
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(_refusal(host, port, error)) from error
        self.port = int(self._server.server_port)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"

    def show(self, read_worker: Callable[[], WorkerFigures], read_queue: Callable[[], QueueFigures]) -> None:
        """Serve these figures from now on.

        Args:
            read_worker: Reads from memory; must not wait.
            read_queue: Reads from the database, with a connection of its own; may raise and may hang.
        """
        self._collector.sources = (read_worker, _Limited(read_queue, DATABASE_SECONDS))

    def close(self) -> None:
        """Stop serving."""
        self._server.close()


class _Collector:
    """Gives the registry its metrics at each scrape."""

    def __init__(self) -> None:
        self.sources: tuple[Callable[[], WorkerFigures], Callable[[], QueueFigures]] | None = None

    def collect(self) -> Iterator[Family]:
        if self.sources is None:
            return
        read_worker, read_queue = self.sources
        yield from _families(_WORKER, worker_samples(read_worker()))
        try:
            samples = queue_samples(read_queue(), datetime.now(UTC))
        except Exception as error:  # noqa: BLE001  (whatever it is, it belongs in the metrics, not in the scrape)
            logger.debug("metrics: the database did not answer: %s", error)
            samples = {}
        yield from _families(_QUEUE, {"helix_database_up": _one(1 if samples else 0), **samples})


class _Limited(Generic[T]):
    """Calls a function on a thread of its own and waits for so many seconds. While a call hangs, no other begins.

    A value is shared with all callers within ``FRESH_SECONDS``; an error is not.
    """

    def __init__(self, function: Callable[[], T], seconds: float) -> None:
        self._function = function
        self._seconds = seconds
        self._lock = threading.Lock()
        self._call: Future[T] | None = None
        self._done_at = 0.0

    def __call__(self) -> T:
        """The function's value, shared with other callers meanwhile.

        Raises:
            TimeoutError: The function takes too long.
        """
        with self._lock:
            call = self._call
            if call is None or (call.done() and not self._is_fresh(call)):
                call = Future()
                threading.Thread(target=self._run, args=(call,), name="helix-metrics", daemon=True).start()
                self._call = call  # only now: without a thread its value would never be set
        return call.result(self._seconds)

    def _is_fresh(self, call: Future[T]) -> bool:
        return call.exception() is None and time.monotonic() - self._done_at < FRESH_SECONDS

    def _run(self, call: Future[T]) -> None:
        try:
            value = self._function()
            self._done_at = time.monotonic()
            call.set_result(value)
        except BaseException as error:  # noqa: BLE001  (handed on to whoever waits)
            call.set_exception(error)


def _families(metrics: Iterable[Metric], samples: Mapping[str, Samples]) -> Iterator[Family]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    classes: dict[Kind, Any] = {Kind.GAUGE: GaugeMetricFamily, Kind.COUNTER: CounterMetricFamily}
    for metric in metrics:
        if metric.name in samples:
            family: Family = classes[metric.kind](metric.name, metric.meaning, labels=metric.labels)
            for values, value in samples[metric.name].items():
                family.add_metric(values, value)  # type: ignore[attr-defined]  # both classes have it, their base not
            yield family


def _one(value: float) -> Samples:
    return {(): float(value)}


def _labelled(values: Mapping[str, int]) -> Samples:
    return {(name,): float(value) for name, value in values.items()}


def _refusal(host: str, port: int, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return (
            f"metrics port {port} on {host} is in use, by another worker perhaps; give each worker a --metrics-port "
            "(HELIX_METRICS_PORT) of its own"
        )
    reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    return f"metrics cannot be served on {host} port {port}: {reason}; correct HELIX_METRICS_HOST or HELIX_METRICS_PORT"
