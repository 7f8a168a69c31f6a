"""Rows that the protocol never writes, and their repairs. Each kind is a condition in SQL and its repair.

The order matters: a repair may bring a row under a later condition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, text

from helix_jobs.errors import ErrorCode
from helix_jobs.storage.states import FINAL_STATES, JobState
from helix_jobs.storage.utc_datetime import UTCDateTime

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection


@dataclass(frozen=True, slots=True)
class Impossible:
    """A kind of row that the protocol never writes.

    Attributes:
        what: The fault in words, for a person.
        table: The table.
        key: The column that identifies such a row.
        where: The condition. ``{asked}`` in it stands for ``_ASKED`` of the database at hand.
        repair: The repairing SQL, up to ``WHERE``.
        done: The repair in words.
    """

    what: str
    table: str
    key: str
    where: str
    repair: str
    done: str


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


_STATES: Final = _listed([state.value for state in JobState])
_FINAL: Final = _listed([state.value for state in FINAL_STATES])
_CODES: Final = _listed([code.value for code in ErrorCode])
# A job has answers when it succeeded, and when its last answer was kept although its acceptance rule refused it.
_MAY_HAVE_RESULT: Final = "(j.state = 'succeeded' OR (j.state = 'failed' AND j.error_code = 'not_accepted'))"
_HAS_RESULT: Final = "EXISTS (SELECT 1 FROM results r WHERE r.job_id = jobs.id)"
# How many answers a job asks for, as text; NULL where its request does not tell, because it was changed by hand. SQLite
# reads no JSON that is malformed. Postgres reads none whose strings hold \u0000, so escapes are cut out before.
_ASKED: Final = {
    "sqlite": "CASE WHEN json_valid(jobs.request) THEN CASE json_type(jobs.request, '$.sampling') WHEN 'object' "
    "THEN CAST(coalesce(json_extract(jobs.request, '$.sampling.n'), 1) AS text) END END",
    "postgresql": "(SELECT CASE json_typeof(plain.request -> 'sampling') WHEN 'object' "
    "THEN coalesce(plain.request -> 'sampling' ->> 'n', '1') END FROM (SELECT CASE "
    r"WHEN strpos(CAST(jobs.request AS text), '\u') = 0 THEN jobs.request "
    r"ELSE CAST(regexp_replace(CAST(jobs.request AS text), '\\.', '', 'g') AS json) END AS request) plain)",
}
# The numbers of n answers are 0 to n - 1. A request that does not tell its n may have any.
_HAS_OTHER_ANSWERS: Final = (
    "(SELECT count(*) > 0 AND NOT (min(r.choice) = 0 AND max(r.choice) = count(*) - 1 "
    "AND CAST(count(*) AS text) = coalesce({asked}, CAST(count(*) AS text))) "
    "FROM results r WHERE r.job_id = jobs.id)"
)
_LARGEST_LEASE: Final = 2_000_000_000
_FAIL: Final = (
    "UPDATE jobs SET state = 'failed', error_code = 'engine_error', "
    "error_message = 'its row was not as a worker leaves it; helix db check repaired it, retry it by hand', "
    "finished_at = COALESCE(finished_at, :now), published_at = NULL"
)

IMPOSSIBLE: Final = (
    Impossible(
        "jobs of no batch",
        "jobs",
        "id",
        "NOT EXISTS (SELECT 1 FROM batches b WHERE b.id = jobs.batch_id)",
        "DELETE FROM jobs",
        "removed",
    ),
    Impossible("jobs in no known state", "jobs", "id", f"state NOT IN ({_STATES})", _FAIL, "failed"),
    Impossible(
        "jobs that succeeded and have no result row",
        "jobs",
        "id",
        f"state = 'succeeded' AND NOT {_HAS_RESULT}",
        _FAIL,
        "failed",
    ),
    Impossible(
        "jobs that succeeded and have more or fewer answers than they asked for",
        "jobs",
        "id",
        f"state = 'succeeded' AND {_HAS_OTHER_ANSWERS}",
        _FAIL,
        "failed",
    ),
    Impossible(
        "jobs that were not accepted and have no result row",
        "jobs",
        "id",
        f"state = 'failed' AND error_code = 'not_accepted' AND NOT {_HAS_RESULT}",
        "UPDATE jobs SET error_code = 'engine_error'",
        "given engine_error",
    ),
    Impossible(
        "result rows of jobs that have no answer",
        "results",
        "job_id",
        f"NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = results.job_id AND {_MAY_HAVE_RESULT})",  # noqa: S608  (constants)
        "DELETE FROM results",
        "removed",
    ),
    Impossible(
        "failed jobs without a known error code",
        "jobs",
        "id",
        f"state = 'failed' AND (error_code IS NULL OR error_code NOT IN ({_CODES}))",
        "UPDATE jobs SET error_code = 'engine_error'",
        "given engine_error",
    ),
    Impossible(
        "jobs with an error code that did not fail",
        "jobs",
        "id",
        "state <> 'failed' AND error_code IS NOT NULL",
        "UPDATE jobs SET error_code = NULL, error_message = NULL",
        "taken off",
    ),
    Impossible(
        "ended jobs without an end",
        "jobs",
        "id",
        f"state IN ({_FINAL}) AND finished_at IS NULL",
        "UPDATE jobs SET finished_at = :now",
        "given one",
    ),
    Impossible(
        "jobs with an end that have not ended",
        "jobs",
        "id",
        "state IN ('queued', 'running') AND finished_at IS NOT NULL",
        "UPDATE jobs SET finished_at = NULL",
        "taken off",
    ),
    Impossible(
        "jobs whose lease cannot be raised",
        "jobs",
        "id",
        f"NOT (lease BETWEEN 0 AND {_LARGEST_LEASE})",
        "UPDATE jobs SET lease = 0",
        "set to 0",
    ),
    Impossible(
        "jobs with impossible attempts",
        "jobs",
        "id",
        "NOT (attempts BETWEEN 0 AND 1000000 AND max_attempts BETWEEN 1 AND 1000000)",
        "UPDATE jobs SET attempts = 0, max_attempts = 3",
        "set anew",
    ),
    Impossible(
        "jobs with impossible tries",
        "jobs",
        "id",
        "NOT (tries BETWEEN 0 AND 1000000)",
        "UPDATE jobs SET tries = 0",
        "set to 0",
    ),
    Impossible(
        "running jobs that no worker holds",
        "jobs",
        "id",
        "state = 'running' AND (worker_id IS NULL OR NOT EXISTS "
        "(SELECT 1 FROM workers w WHERE w.id = jobs.worker_id AND w.stopped_at IS NULL))",
        "UPDATE jobs SET state = 'queued', worker_id = NULL, claimed_at = NULL, published_at = NULL, queued_at = :now",
        "queued again",
    ),
    Impossible(
        "counters of no batch",
        "batch_counters",
        "batch_id",
        "NOT EXISTS (SELECT 1 FROM batches b WHERE b.id = batch_counters.batch_id)",
        "DELETE FROM batch_counters",
        "removed",
    ),
)


def count_impossible(c: Connection, kind: Impossible) -> tuple[int, list[str]]:
    """Count such rows; also returns the keys of the first five."""
    where = _where(c, kind)
    count = c.execute(text(f"SELECT count(*) FROM {kind.table} WHERE {where}")).scalar_one()  # noqa: S608  (our own words)
    if not count:
        return 0, []
    query = f"SELECT {kind.key} FROM {kind.table} WHERE {where} ORDER BY {kind.key} LIMIT 5"  # noqa: S608
    return int(count), [str(key) for key in c.execute(text(query)).scalars()]


def repair_impossible(c: Connection, kind: Impossible, now: datetime) -> None:
    """Repair all such rows."""
    statement = text(f"{kind.repair} WHERE {_where(c, kind)}")
    if ":now" in kind.repair:
        statement = statement.bindparams(bindparam("now", now, type_=UTCDateTime))
    c.execute(statement)


def _where(c: Connection, kind: Impossible) -> str:
    return kind.where.replace("{asked}", _ASKED[c.dialect.name])
