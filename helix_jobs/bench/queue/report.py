"""QueueReport: the results of a bench of the queue, for the terminal and the JSON file. Data only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from helix_jobs.bench.percentiles import Percentiles

SCHEMA: Final = "helix-bench-queue/1"


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a process over a stretch of work, in bytes.

    Attributes:
        early: After a tenth of the time (a client) or of the jobs (a worker): the basic need of the process.
        late: At the end.
        peak: The largest sample.
    """

    early: int
    late: int
    peak: int


@dataclass(frozen=True, slots=True)
class SubmitFigures:
    """``helix submit`` of the whole file, in a separate process.

    Attributes:
        jobs: Number of jobs.
        seconds: From the first line read to the last message published; without the start of the interpreter.
        per_second: ``jobs / seconds``.
        slowest_tenth_per_second: The rate of the slowest tenth of the lines, while they were stored.
        memory: Memory of the client.
    """

    jobs: int
    seconds: float
    per_second: float
    slowest_tenth_per_second: float
    memory: Memory


@dataclass(frozen=True, slots=True)
class Latencies:
    """``status`` and ``list`` from a client with an open connection, in seconds."""

    status: Percentiles | None
    list: Percentiles | None


@dataclass(frozen=True, slots=True)
class DrainFigures:
    """The batch from the first claim to the last end.

    Attributes:
        jobs: Number of jobs.
        seconds: Duration by the database's own times.
        per_second: ``jobs / seconds``.
        cpu_ms_per_job: Processor time of the workers; steadier than ``per_second`` on a machine with other work.
        engine_idle_share: Part of the time in which the engine did nothing although jobs waited; None if the engine
            takes no time or the runs do not record it.
        slots_used_share: Mean batch divided by batch slots; None as above.
        worker_memory: Memory of the worker that grew most.
        reading: Latencies while the workers ran.
    """

    jobs: int
    seconds: float
    per_second: float
    cpu_ms_per_job: float
    engine_idle_share: float | None
    slots_used_share: float | None
    worker_memory: Memory
    reading: Latencies


@dataclass(frozen=True, slots=True)
class BrokerFigures:
    """The most messages and memory seen in the broker over the whole bench; ``idle`` is the server without messages."""

    peak_depth: int
    idle_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class ExportFigures:
    """``helix results`` into a jsonl file, in a separate process."""

    rows: int
    seconds: float
    per_second: float
    bytes: int
    memory: Memory


@dataclass(frozen=True, slots=True)
class CancelFigures:
    """A second batch of the same size, cancelled as soon as it was stored, while the workers ran.

    Attributes:
        jobs: Number of jobs that the command stopped.
        seconds: The command's own time, without the start of the interpreter.
        settled_seconds: Time until no job of the batch was running and the broker held no message.
    """

    jobs: int
    seconds: float
    settled_seconds: float

    @property
    def per_second(self) -> float:
        """Jobs stopped a second."""
        return self.jobs / self.seconds


@dataclass(frozen=True, slots=True)
class CeleryFigures:
    """Celery alone: empty tasks of one threads-pool worker on the same broker, acknowledged late."""

    jobs: int
    published_per_second: float
    drained_per_second: float
    cpu_ms_per_job: float


@dataclass(frozen=True, slots=True)
class Host:
    """The machine that the bench ran on."""

    cpu: str
    logical_cores: int | None
    memory_bytes: int
    platform: str
    python: str
    helix: str
    celery: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueReport:
    """One call of ``helix bench queue``. A part that was not reached is None.

    Attributes:
        command: The command line.
        started_at: UTC, ISO 8601.
        host: The machine that it ran on.
        database: ``sqlite`` or ``postgresql``, with its version.
        broker: The server's name and version.
        workload: The parameters.
        submit: Submission.
        reading: Latencies with every job stored and none run.
        drain: The workers' run.
        broker_use: The broker's depth and memory.
        export: Reading the results.
        cancel: Cancelling a batch.
        celery: Celery alone.
        complete: Whether every part was run.
    """

    command: str
    started_at: str
    host: Host
    database: str
    broker: str
    workload: dict[str, Any]
    submit: SubmitFigures | None = None
    reading: Latencies | None = None
    drain: DrainFigures | None = None
    broker_use: BrokerFigures | None = None
    export: ExportFigures | None = None
    cancel: CancelFigures | None = None
    celery: CeleryFigures | None = None
    complete: bool = False

    def to_json(self) -> dict[str, Any]:
        """The report for programs. Keys are stable: added, never renamed."""
        return {"schema": SCHEMA, **asdict(self)}
