"""QueueSession: runs one bench of the queue, part by part, and keeps the results so far if it is interrupted."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import psutil
from sqlalchemy import select, text

from helix_jobs._version import __version__
from helix_jobs.bench.processor import cpu_name
from helix_jobs.bench.queue.installation import Installation, tail
from helix_jobs.bench.queue.probes import Sampler, Samples, broker_bytes, cpu_seconds, read_latencies
from helix_jobs.bench.queue.report import (
    BrokerFigures,
    CancelFigures,
    CeleryFigures,
    DrainFigures,
    ExportFigures,
    Host,
    Latencies,
    QueueReport,
    SubmitFigures,
)
from helix_jobs.errors import HelixError
from helix_jobs.storage.records import PublishableJob
from helix_jobs.storage.schema import runs
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from helix_jobs.bench.queue.plan import QueuePlan
    from helix_jobs.client.client import HelixClient

_POLL_SECONDS: Final = 0.2
_CELERY_JOBS: Final = 20_000
_CELERY_PUBLISH: Final = 1000
_TENTHS: Final = 10
# Time limit for the end of runs; a run ends half a second after its last step.
_RUN_ENDS_SECONDS: Final = 30.0
_READS_WHILE_DRAINING: Final = 20


class QueueSession:
    """One call of ``helix bench queue``.

    Args:
        plan: The measurements to make.
        say: Receives one line for each thing that is done.
    """

    def __init__(self, plan: QueuePlan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._report = QueueReport(
            command=plan.command,
            started_at=datetime.now(UTC).isoformat(),
            host=_host(),
            database="sqlite" if plan.database_url is None else "postgresql",
            broker="",
            workload=plan.workload_json(),
        )
        self._samples: list[Samples] = []

    def report(self) -> QueueReport:
        """The results so far."""
        return self._report

    def run(self) -> None:
        """Measure everything.

        Raises:
            HelixError: A process of the bench ended, or a service does not answer.
        """
        with Installation(self._plan) as installation, installation.client() as client:
            self._note(database=_database_name(installation), broker=_broker_name(installation))
            idle_bytes = broker_bytes(installation)
            if self._plan.celery:
                self._say(f"Celery alone: {_CELERY_JOBS:,} empty tasks")
                self._note(celery=_celery_alone(installation))
            path = installation.home / "prompts.jsonl"
            with path.open("wb") as file:
                file.writelines(self._plan.lines())
            self._say(f"submitting {self._plan.jobs:,} jobs")
            batch_id, submitted = self._submit(installation, path)
            self._note(submit=submitted, reading=read_latencies(client, batch_id))
            self._say(f"draining with {self._plan.workers} worker process(es)")
            pids = installation.start_workers()
            self._note(drain=self._drain(installation, client, batch_id, pids))
            self._say("exporting the results")
            self._note(export=self._export(installation, batch_id))
            self._say(f"cancelling another {self._plan.jobs:,} jobs")
            self._note(cancel=self._cancel(installation, client, path))
            installation.check_workers()
            installation.stop_workers()
            self._note(
                broker_use=BrokerFigures(
                    peak_depth=max(seen.depth for seen in self._samples),
                    idle_bytes=idle_bytes,
                    peak_bytes=max(seen.broker_bytes for seen in self._samples),
                ),
                complete=True,
            )

    def _note(self, **found: Any) -> None:  # noqa: ANN401  (fields of the report)
        self._report = replace(self._report, **found)

    def _submit(self, installation: Installation, path: Path) -> tuple[str, SubmitFigures]:
        answer, samples, pid = self._client_process(installation, "submit", str(path))
        seconds = float(answer["seconds"])
        figures = SubmitFigures(
            jobs=self._plan.jobs,
            seconds=seconds,
            per_second=self._plan.jobs / seconds,
            slowest_tenth_per_second=slowest_tenth(answer["progress"]),
            memory=samples.memory(pid),
        )
        return str(answer["batch_id"]), figures

    def _drain(
        self, installation: Installation, client: HelixClient, batch_id: str, pids: Sequence[int]
    ) -> DrainFigures:
        reading = Latencies(None, None)
        cpu = cpu_seconds(pids)
        with Sampler(installation, pids) as sampler:
            while True:
                status = client.status(batch_id)
                if status.done:
                    break
                installation.check_workers()
                if reading.status is None and status.counts[JobState.SUCCEEDED] > self._plan.jobs // 2:
                    reading = read_latencies(client, batch_id, _READS_WHILE_DRAINING)
                time.sleep(_POLL_SECONDS)
        cpu = cpu_seconds(pids) - cpu
        self._samples.append(sampler.samples)
        if status.counts[JobState.SUCCEEDED] != self._plan.jobs:
            raise HelixError(
                f"of {self._plan.jobs} jobs {status.counts[JobState.SUCCEEDED]} succeeded: {status.counts}"
            )
        seconds = status.elapsed_seconds or 0.0
        use = None if self._plan.engine_is_null else _engine_use(installation)
        return DrainFigures(
            jobs=self._plan.jobs,
            seconds=seconds,
            per_second=self._plan.jobs / seconds,
            cpu_ms_per_job=1000 * cpu / self._plan.jobs,
            engine_idle_share=None if use is None else use.idle_share,
            slots_used_share=None if use is None else use.mean_batch_size / self._plan.batch_size,
            worker_memory=sampler.samples.largest_growth(pids),
            reading=reading,
        )

    def _export(self, installation: Installation, batch_id: str) -> ExportFigures:
        path = installation.home / "results.jsonl"
        answer, samples, pid = self._client_process(installation, "export", batch_id, str(path))
        rows, seconds = int(answer["rows"]), float(answer["seconds"])
        return ExportFigures(
            rows=rows,
            seconds=seconds,
            per_second=rows / seconds,
            bytes=path.stat().st_size,
            memory=samples.memory(pid),
        )

    def _cancel(self, installation: Installation, client: HelixClient, path: Path) -> CancelFigures:
        # Workers that start at the same time send some ids twice; these remaining messages must not count here.
        _wait_until_empty(installation)
        batch_id, _ = self._submit(installation, path)
        began = time.monotonic()
        answer, _, _ = self._client_process(installation, "cancel", batch_id)
        while client.status(batch_id).counts[JobState.RUNNING]:
            installation.check_workers()
            time.sleep(_POLL_SECONDS)
        _wait_until_empty(installation)
        return CancelFigures(
            jobs=int(answer["jobs"]), seconds=float(answer["seconds"]), settled_seconds=time.monotonic() - began
        )

    def _client_process(self, installation: Installation, *action: str) -> tuple[dict[str, Any], Samples, int]:
        """Run a client action; returns its answer, the samples taken meanwhile, and its process id."""
        log = installation.home / "client.log"
        process = installation.spawn("helix_jobs.bench.queue.client_process", *action, log=log)
        try:
            with Sampler(installation, [process.pid]) as sampler:
                code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        self._samples.append(sampler.samples)
        if code:
            raise HelixError(f"the client that should {action[0]} ended with exit code {code}: {tail(log)}")
        answer: dict[str, Any] = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
        return answer, sampler.samples, process.pid


@dataclass(frozen=True, slots=True)
class EngineUse:
    """Use of the engines of all runs: the idle part of the time from first to last run, and the mean batch."""

    idle_share: float
    mean_batch_size: float


def slowest_tenth(progress: Sequence[tuple[float, int]]) -> float:
    """Lines a second in the slowest of ten equal stretches of lines.

    Args:
        progress: Pairs of seconds and lines so far, ascending; a stretch ends at the first pair that reaches it.
    """
    total = progress[-1][1]
    rates = []
    began = progress[0]
    for tenth in range(1, _TENTHS + 1):
        ended = next(pair for pair in progress if pair[1] >= total * tenth / _TENTHS)
        if ended[1] > began[1] and ended[0] > began[0]:
            rates.append((ended[1] - began[1]) / (ended[0] - began[0]))
        began = ended
    return min(rates, default=0.0)


def _engine_use(installation: Installation) -> EngineUse | None:
    """Sum up the runs. Time outside steps is idle time: the engine waited for the queue, or for Python."""
    parts = (runs.c.schedule_seconds, runs.c.draft_seconds, runs.c.target_seconds, runs.c.verify_seconds)
    deadline = time.monotonic() + _RUN_ENDS_SECONDS
    while True:
        with installation.database.read() as c:
            rows = c.execute(select(runs)).all()
        if all(row.finished_at is not None for row in rows):
            break
        if time.monotonic() > deadline:
            raise HelixError("a run has not ended although no job is left")
        time.sleep(_POLL_SECONDS)
    steps = sum(row.steps for row in rows)
    if not steps:
        return None
    spans: dict[str, tuple[datetime, datetime]] = {}
    for row in rows:
        first, last = spans.get(row.worker_id, (row.started_at, row.finished_at))
        spans[row.worker_id] = (min(first, row.started_at), max(last, row.finished_at))
    whole = sum((last - first).total_seconds() for first, last in spans.values())
    busy = sum(getattr(row, part.name) or 0.0 for row in rows for part in parts)
    sequence_steps = sum((row.mean_batch_size or 0.0) * row.steps for row in rows)
    return EngineUse(idle_share=max(0.0, 1 - busy / whole), mean_batch_size=sequence_steps / steps)


def _celery_alone(installation: Installation) -> CeleryFigures:
    """Publish, then drain with one worker; messages that remain are dropped."""
    publisher = installation.publisher
    jobs = [PublishableJob(number, priority=0) for number in range(1, _CELERY_JOBS + 1)]
    began = time.perf_counter()
    for start in range(0, len(jobs), _CELERY_PUBLISH):
        publisher.publish(jobs[start : start + _CELERY_PUBLISH])
    published = time.perf_counter() - began
    log = installation.home / "celery.log"
    process = installation.spawn("helix_jobs.bench.queue.celery_alone", log=log)
    try:
        # Timed from the first tenth to the last, so that neither start nor end counts.
        began = _when_depth(installation, process, log, len(jobs) * 9 // _TENTHS)
        cpu = cpu_seconds([process.pid])
        seconds = _when_depth(installation, process, log, len(jobs) // _TENTHS) - began
        cpu = cpu_seconds([process.pid]) - cpu
    finally:
        process.kill()
        process.wait()
        publisher.reset_queue()
    drained = len(jobs) * 8 // _TENTHS
    return CeleryFigures(
        jobs=len(jobs),
        published_per_second=len(jobs) / published,
        drained_per_second=drained / seconds,
        cpu_ms_per_job=1000 * cpu / drained,
    )


def _wait_until_empty(installation: Installation) -> None:
    """Return when no message waits in the broker."""
    while installation.publisher.depth():
        installation.check_workers()
        time.sleep(_POLL_SECONDS)


def _when_depth(installation: Installation, process: Any, log: Path, depth: int) -> float:  # noqa: ANN401  (a Popen)
    while installation.publisher.depth() > depth:
        if process.poll() is not None:
            raise HelixError(f"Celery's worker ended: {tail(log)}")
        time.sleep(0.01)
    return time.perf_counter()


def _host() -> Host:
    return Host(
        cpu=cpu_name(),
        logical_cores=psutil.cpu_count(),
        memory_bytes=int(psutil.virtual_memory().total),
        platform=platform.platform(),
        python=platform.python_version(),
        helix=__version__,
        celery=version("celery"),
    )


def _database_name(installation: Installation) -> str:
    sqlite = installation.database.sqlite_file is not None
    with installation.database.read() as c:
        number = c.execute(text("SELECT sqlite_version()" if sqlite else "SHOW server_version")).scalar_one()
    return f"{installation.database.dialect} {number}"


def _broker_name(installation: Installation) -> str:
    info = installation.server_info()
    return f"valkey {info['valkey_version']}" if "valkey_version" in info else f"redis {info['redis_version']}"
