"""Plan: what is done to a process under test before its own code runs. The product itself knows nothing of it."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from helix_jobs.storage import process_identity
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS, TimeLimits
from tests.acceptance.faults import wall_clock
from tests.acceptance.faults.boundaries import install

FENCE = "fence"
RECONCILER = "reconciler"
SOLITUDE = "solitude"
ANSWERS = "answers"
CLOSING = "closing"


# Shorter leases, and shorter whatever has to be shorter than they are.
QUICK_TIME_LIMITS = TimeLimits(
    heartbeat=0.2,
    lease_check=0.1,
    reconcile=0.1,
    lease=2.0,
    republish=1.0,
    own_silence=1.2,
    idle_transaction=1.2,
    statement=5.0,
    answer_margin=0.5,
    sign_of_life=0.5,
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
    time_limits: The product's, or quicker ones.
    broker_options: Added to the broker transport's options.
    clock_file: A file with the seconds by which the process's wall clock is off.
    max_step_seconds: In place of its: how long a step of the engine may take; 0 keeps it.
    answer_seconds: In place of its: what a statement may take; other limits on silence of the database
        become shorter with it. 0 keeps them.
    solitude_seconds: In place of its: how long a job at its last attempt waits to run alone; 0 keeps it.
    purge_rows: In place of the product's: jobs that a purge removes in a step; 0 keeps it.
    without: Protections taken away, to show that the scenarios notice: ``fence``, ``reconciler``, ``solitude``,
        ``answers`` (the limit on how long an answer is waited for), ``closing`` (of calls that are out for too long).
    """

    die_at: str = ""
    freeze_at: str = ""
    after: int = 1
    late: float = 0.0
    hostname: str = ""
    time_limits: TimeLimits = DEFAULT_TIME_LIMITS
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
        time_limits, without = TimeLimits(**values.pop("time_limits")), tuple(values.pop("without"))
        return cls(**values, without=without, time_limits=time_limits)

    def effective_time_limits(self) -> TimeLimits:
        """The time limits that the process is started with."""
        time_limits = self.time_limits
        if self.max_step_seconds:
            time_limits = replace(time_limits, longest_step=self.max_step_seconds)
        if self.solitude_seconds:
            time_limits = replace(time_limits, solitude=self.solitude_seconds, postponed=self.solitude_seconds / 2)
        if self.answer_seconds:
            seconds = self.answer_seconds
            time_limits = replace(
                time_limits,
                statement=seconds,
                sign_of_life=seconds,
                idle_writer=seconds,
                answer_margin=0.5,
                free_connection=2 * seconds,
                close_call=2 * seconds,
                end_process=8 * seconds,
            )
        return time_limits

    def apply(self) -> None:
        """Patch this process."""
        if self.hostname:
            socket.gethostname = lambda: self.hostname
            process_identity._boot_id = lambda: self.hostname
        if self.clock_file:
            wall_clock.set_by(Path(self.clock_file))
        if self.purge_rows:
            _set_purge_rows(self.purge_rows)
        if self.broker_options:
            _add_broker_options(self.broker_options)
        for protection in self.without:
            _REMOVALS[protection]()
        if self.die_at or self.freeze_at:
            install(self.die_at or self.freeze_at, self.after, freeze=bool(self.freeze_at), late=self.late)


def _set_purge_rows(rows: int) -> None:
    from helix_jobs.client import purge

    purge.ROWS = rows  # type: ignore[misc]


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

    from helix_jobs.storage import claims
    from helix_jobs.storage.schema import jobs

    claims._FINISH = (  # type: ignore[misc]
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
    from helix_jobs.storage import claims

    claims._CLAIM_UNLESS_LAST = claims._CLAIM  # type: ignore[misc]
    claims._CLAIM_TO_ANSWER_UNLESS_LAST = claims._CLAIM_TO_ANSWER  # type: ignore[misc]


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
