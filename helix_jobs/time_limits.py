"""TimeLimits: every span of time that must be longer or shorter than another one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from helix_jobs.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class _Rule:
    """The sum of the spans ``shorter`` must stay below the span ``longer``, or may equal it with ``or_equal``."""

    shorter: tuple[str, ...]
    longer: str
    reason: str
    or_equal: bool = False


_RULES: Final = (
    _Rule(("lease_check",), "heartbeat", "the thread that beats comes round once a lease check", or_equal=True),
    _Rule(
        ("heartbeat", "lease_check", "reconcile"),
        "own_silence",
        "a heartbeat of a sound worker is this old when its own reconciler looks",
    ),
    _Rule(
        ("own_silence",),
        "lease",
        "a worker whose heartbeats do not get through stops judging before others count as lost",
    ),
    _Rule(("idle_transaction",), "lease", "rows that a stopped process locked are free when its lease ends"),
    _Rule(("statement", "answer_margin"), "close_call", "a call ends by its own limit first", or_equal=True),
    _Rule(("close_call",), "end_process", "a call that was closed has time to be tried again"),
    _Rule(
        ("idle_writer", "free_connection", "sign_of_life"),
        "end_process",
        "an idle writer that waits for a connection is no reason to end the process",
    ),
    _Rule(
        ("watchdog_look", "statement", "answer_margin"),
        "end_process",
        "a watchdog that waits for the database is no reason to end the process",
    ),
    _Rule(
        ("republish", "republish"),
        "watchdog_window",
        "lost messages are sent again before a worker that misses them connects anew",
        or_equal=True,
    ),
    _Rule(("watchdog_look",), "watchdog_window", "a stall is seen more than once before anything is done"),
    _Rule(("postponed",), "solitude", "a job that was put off asks again before the next one's patience is over"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """Spans of time, in seconds. A span that depends on no other stays a constant beside its code.

    Attributes:
        heartbeat: Between two heartbeats of a worker.
        lease_check: Between two comparisons of the jobs that run here with the leases in the database; how soon a
            cancelled job stops taking up a slot.
        lease: Time without a new heartbeat after which a worker is lost and its jobs go to others.
        own_silence: Time without a new heartbeat of this worker's own after which it judges no other: then the database
            takes no writes.
        reconcile: Between two ticks of the reconciler.
        republish: How long the broker must have been empty before published jobs count as lost messages.
        audit: Between two searches for lost messages while the broker is busy.
        idle_transaction: How long a writer may idle in a transaction before Postgres ends it. Otherwise a process
            suspended during a write would lock all other workers out of its rows.
        statement: How long a statement may take on Postgres, lock waits included, before the server cancels it.
        answer_margin: How much longer the client waits for an answer, which may be the server's "cancelled".
        sign_of_life: How long an idle connection may take to answer before it is used.
        free_connection: How long a thread waits for a connection while all are in use.
        idle_writer: How often the writer's thread comes round with nothing to write.
        close_call: Time without a round of some loop after which database calls that have been out for so long are
            closed.
        end_process: Time without a round of some loop after which the process ends for its supervisor.
        longest_step: No step of a sound engine takes longer. The longest real one, a full prompt chunk on an old CPU,
            takes seconds.
        watchdog_window: How long jobs may wait beside idle slots without a delivery before the watchdog acts.
        watchdog_look: Between two samples of the watchdog.
        solitude: How long a job at its last attempt first keeps others waiting so as to run alone.
        postponed: Between two checks for jobs that were postponed because they could not run alone.
        submitter_silence: Time without a new line after which a submission counts as dead. A submission that reads a
            slow pipe looks the same.
    """

    heartbeat: float = 5.0
    lease_check: float = 1.0
    lease: float = 30.0
    own_silence: float = 10.0
    reconcile: float = 1.0
    republish: float = 30.0
    # Trade-off: a missing message is found by two audits in a row, so a shorter time finds it sooner; but each audit
    # reads every id in the broker.
    audit: float = 120.0
    idle_transaction: float = 20.0
    statement: float = 45.0
    answer_margin: float = 15.0
    sign_of_life: float = 10.0
    free_connection: float = 30.0
    idle_writer: float = 10.0
    close_call: float = 60.0
    end_process: float = 120.0
    longest_step: float = 900.0
    watchdog_window: float = 60.0
    watchdog_look: float = 5.0
    solitude: float = 300.0
    postponed: float = 5.0
    submitter_silence: float = 30.0

    def __post_init__(self) -> None:
        """Refuse spans that break a rule.

        Raises:
            ConfigurationError: It names the spans of the rule and their values.
        """
        for field in fields(self):
            if not getattr(self, field.name) >= 0:
                raise ConfigurationError(
                    f"time limits: {field.name} is {getattr(self, field.name)} s; it is below zero"
                )
        for rule in _RULES:
            shorter = sum(getattr(self, name) for name in rule.shorter)
            longer = getattr(self, rule.longer)
            if shorter > longer or (shorter == longer and not rule.or_equal):
                limit = "at most" if rule.or_equal else "less than"
                raise ConfigurationError(
                    f"time limits: {' + '.join(rule.shorter)} is {shorter:g} s and {rule.longer} is {longer:g} s; "
                    f"the first has to be {limit} the second: {rule.reason}"
                )


DEFAULT_TIME_LIMITS: Final = TimeLimits()
