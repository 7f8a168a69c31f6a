"""Plan: what is done to a process under test before its own code runs. The product itself knows nothing of it."""

from __future__ import annotations

import functools
import json
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import wall_clock
from boundaries import install

from helix_jobs.storage import process_identity

FENCE = "fence"
RECONCILER = "reconciler"
SOLITUDE = "solitude"
ANSWERS = "answers"
CLOSING = "closing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds, in place of the product's: ``silence`` is the length of a lease."""

    beat: float
    check: float
    interval: float
    silence: float
    unseen: float
    own_silence: float
    idle_transaction: float
    statement: float
    answer_margin: float
    audit: float


REAL_SILENCE = 30.0
QUICK_TIMES = Times(
    beat=0.2,
    check=0.1,
    interval=0.1,
    silence=2.0,
    unseen=1.0,
    own_silence=1.2,
    idle_transaction=1.2,
    statement=5.0,
    answer_margin=0.5,
    audit=1.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Attributes:

    die_at: A boundary (``boundaries.py``) at which the process sends itself SIGKILL.
    freeze_at: A boundary at which it sends itself SIGSTOP, while no thread of it has a transaction open, unless the
        boundary lies in one.
    after: At which passing of the boundary.
    late: Seconds from there to the death; meanwhile the process goes on.
    hostname: What the process takes for its host's name and for the id of its boot; a worker of another host cannot be
        taken for a predecessor.
    times: Shorter leases; None keeps the product's.
    broker_options: Added to the broker transport's options.
    clock_file: A file with the seconds by which the process's wall clock is off.
    max_step_seconds: In place of the product's: how long a step of the engine may take; 0 keeps it.
    answer_seconds: In place of the product's: what a statement may take; other limits on silence of the database
        become shorter with it. 0 keeps them.
    purge_rows: In place of the product's: jobs that a purge removes in a step; 0 keeps it.
    solitude_seconds: In place of the product's: how long a job at its last attempt waits to run alone; 0 keeps it.
    without: Protections taken away, to show that the scenarios notice: ``fence``, ``reconciler``, ``solitude``,
        ``answers`` (the limit on how long an answer is waited for), ``closing`` (of calls that are out for too long).
    """

    die_at: str = ""
    freeze_at: str = ""
    after: int = 1
    late: float = 0.0
    hostname: str = ""
    times: Times | None = None
    broker_options: dict[str, Any] = field(default_factory=dict)
    clock_file: str = ""
    max_step_seconds: float = 0.0
    answer_seconds: float = 0.0
    solitude_seconds: float = 0.0
    purge_rows: int = 0
    without: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        values = json.loads(text)
        times = values.pop("times")
        without = tuple(values.pop("without"))
        return cls(**values, without=without, times=None if times is None else Times(**times))

    def apply(self) -> None:
        """Patch this process."""
        if self.hostname:
            socket.gethostname = lambda: self.hostname
            process_identity._boot_id = lambda: self.hostname
        if self.times is not None:
            _set_times(self.times)
        if self.clock_file:
            wall_clock.set_by(Path(self.clock_file))
        for value, change in (
            (self.max_step_seconds, _set_max_step),
            (self.answer_seconds, _set_answers),
            (self.solitude_seconds, _set_solitude),
            (self.purge_rows, _set_purge_rows),
        ):
            if value:
                change(value)
        if self.broker_options:
            _add_broker_options(self.broker_options)
        for protection in self.without:
            _REMOVALS[protection]()
        if self.die_at or self.freeze_at:
            install(self.die_at or self.freeze_at, self.after, freeze=bool(self.freeze_at), late=self.late)


def _set_times(times: Times) -> None:
    from helix_jobs.storage import database, postgres_engine
    from helix_jobs.worker import heartbeat
    from helix_jobs.worker import process as worker
    from helix_jobs.worker.reconciler import Reconciler, ReconcilerConfig

    heartbeat.BEAT_SECONDS, heartbeat.CHECK_SECONDS = times.beat, times.check  # type: ignore[misc]
    postgres_engine.IDLE_TRANSACTION_SECONDS = times.idle_transaction  # type: ignore[misc]
    database.STATEMENT_SECONDS = times.statement  # type: ignore[misc]
    postgres_engine.ANSWER_MARGIN_SECONDS = postgres_engine.PING_SECONDS = times.answer_margin  # type: ignore[misc]
    postgres_engine.BoundedConnection.answer_seconds = times.answer_margin
    config = ReconcilerConfig(
        interval=times.interval,
        silence=times.silence,
        unseen=times.unseen,
        own_silence=times.own_silence,
        audit=times.audit,
    )
    worker.Reconciler = functools.partial(Reconciler, config=config)  # type: ignore[assignment,misc]


def _set_max_step(seconds: float) -> None:
    from helix_jobs.worker import process as worker

    worker.MAX_STEP_SECONDS = seconds  # type: ignore[misc]


def _set_solitude(seconds: float) -> None:
    from helix_jobs.worker import gate as job_gate
    from helix_jobs.worker import process as worker

    job_gate.PATIENCE_SECONDS = seconds  # type: ignore[misc]
    worker.POSTPONED_SECONDS = seconds / 2  # type: ignore[misc]


def _set_purge_rows(rows: float) -> None:
    from helix_jobs.client import purge

    purge.ROWS = int(rows)  # type: ignore[misc]


def _set_answers(seconds: float) -> None:
    from helix_jobs.storage import database, postgres_engine
    from helix_jobs.storage import group_commit as result_writer
    from helix_jobs.worker import dead_man

    database.STATEMENT_SECONDS = seconds  # type: ignore[misc]
    postgres_engine.PING_SECONDS = postgres_engine.BoundedConnection.answer_seconds = seconds  # type: ignore[misc]
    postgres_engine.ANSWER_MARGIN_SECONDS = 0.5  # type: ignore[misc]
    result_writer.IDLE_SECONDS = seconds  # type: ignore[misc]
    dead_man.CLOSE_SECONDS, dead_man.END_SECONDS = 2 * seconds, 8 * seconds  # type: ignore[misc]


def _remove_answer_limits() -> None:
    """The client waits for an answer for as long as the connection stands."""
    from helix_jobs.storage import postgres_engine

    postgres_engine._until = lambda gen, _deadline: gen


def _remove_closing() -> None:
    """Whatever waits for an answer goes on waiting."""
    from helix_jobs.storage.calls_in_flight import CallsInFlight

    CallsInFlight.close_overdue = lambda _self, _seconds: 0  # type: ignore[method-assign]


def _add_broker_options(options: dict[str, Any]) -> None:
    from helix_jobs.broker import publisher as broker
    from helix_jobs.broker.celery import app as celery_app

    original = broker.transport_options
    broker.transport_options = celery_app.transport_options = lambda url, names: original(url, names) | options


def _remove_fence() -> None:
    """A result is written whoever holds the job by now."""
    from sqlalchemy import bindparam, update

    from helix_jobs.storage import leases
    from helix_jobs.storage.schema import jobs

    leases._FINISH = (  # type: ignore[misc]
        update(jobs)
        .where(jobs.c.id == bindparam("job_id"))
        .values(
            state=bindparam("new_state"),
            finished_at=bindparam("now"),
            error_code=bindparam("code"),
            error_message=bindparam("message"),
        )
        .returning(jobs.c.batch_id, jobs.c.claimed_at)
    )


def _remove_solitude() -> None:
    """A last attempt runs beside others, as every other does."""
    from helix_jobs.storage import leases

    leases._CLAIM_UNLESS_LAST = leases._CLAIM  # type: ignore[misc]


def _remove_reconciler() -> None:
    from helix_jobs.worker import process as worker

    class NoReconciler:
        """Neither reclaims nor publishes."""

        def __init__(self, *_: object, **__: object) -> None: ...

        def reclaim_predecessors(self, *_: object) -> int:
            return 0

        def start(self) -> None: ...

        def stop(self) -> bool:
            return True

        def wake(self) -> None: ...

    worker.Reconciler = NoReconciler  # type: ignore[assignment,misc]


_REMOVALS = {
    FENCE: _remove_fence,
    RECONCILER: _remove_reconciler,
    SOLITUDE: _remove_solitude,
    ANSWERS: _remove_answer_limits,
    CLOSING: _remove_closing,
}
