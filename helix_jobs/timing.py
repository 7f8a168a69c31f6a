"""Timing: every span of time that has to be longer or shorter than another one, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from helix_jobs.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class _Rule:
    """The sum of the spans ``shorter`` stays below the span ``longer``; ``or_equal`` lets it reach it."""

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
class Timing:
    """Spans of time, in seconds. What is alone in its own rule stays a constant beside the code that obeys it.

    Attributes:
        heartbeat: Between two heartbeats of a worker.
        lease_check: Between two comparisons of the jobs that run here with the leases in the database; how soon a
            cancelled job stops taking up a slot.
        lease: Without a new heartbeat, after which a worker is lost and its jobs go to others.
        own_silence: Without a new heartbeat of this worker's own, after which it judges no other: then it is the
            database that takes no writes.
        reconcile: Between two ticks of the reconciler.
        republish: How long the broker must have been empty before published jobs count as lost messages.
        audit: Between two looks for messages that were lost while the broker is busy.
        idle_transaction: How long a writer may stand idle in a transaction before Postgres ends it. A process that is
            stopped or suspended in the middle of a write would lock every other worker out of its rows.
        statement: What a statement may take on Postgres, lock waits included, before the server cancels it.
        answer_margin: How much longer the client waits for an answer, the server's "cancelled" included.
        sign_of_life: What a connection that was idle may take to answer before it is used.
        free_connection: How long a thread waits for a connection while all are in use.
        idle_writer: How often the writer's thread comes round although there is nothing to write.
        close_call: Without a round of some loop, after which calls to the database that are out for so long are closed.
        end_process: Without a round of some loop, after which the process ends for its supervisor.
        longest_step: No step of an engine that works takes longer. The longest honest one, a full prompt chunk on an
            old CPU, takes seconds.
        watchdog_window: How long jobs may wait beside idle slots without a delivery before something is done.
        watchdog_look: Between two looks of the watchdog.
        solitude: How long a job at its last attempt keeps others waiting so as to run alone, the first time.
        postponed: Between two looks for jobs that were put off because they could not run alone.
        submitter_silence: Without a new line, after which a submission counts as dead. It looks like one that reads a
            slow pipe.
    """

    heartbeat: float = 5.0
    lease_check: float = 1.0
    lease: float = 30.0
    own_silence: float = 10.0
    reconcile: float = 1.0
    republish: float = 30.0
    # Trade-off: two looks at the same missing message must pass, so a shorter time finds it sooner, and each look
    # reads every id that is in the broker.
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
                raise ConfigurationError(f"timing: {field.name} is {getattr(self, field.name)} s; it is below zero")
        for rule in _RULES:
            shorter = sum(getattr(self, name) for name in rule.shorter)
            longer = getattr(self, rule.longer)
            if shorter > longer or (shorter == longer and not rule.or_equal):
                limit = "at most" if rule.or_equal else "less than"
                raise ConfigurationError(
                    f"timing: {' + '.join(rule.shorter)} is {shorter:g} s and {rule.longer} is {longer:g} s; "
                    f"the first has to be {limit} the second: {rule.reason}"
                )


DEFAULT_TIMING: Final = Timing()
