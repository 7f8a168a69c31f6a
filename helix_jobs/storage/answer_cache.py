"""The answer cache: queued jobs take the stored answers of equal ones, and equal jobs do not run side by side.

What a batch keeps is what others may have; answers of purged batches may be kept longer (``kept_answers``).
``jobs.answer_key`` says what an answer depends on in the request, ``jobs.setup_key``, written with the answer, what it
depends on in the worker. Only an answer to a job's first try is shared, as later tries are drawn from another seed; and
for the same reason only a job that has had no answer refused takes one.

A job that takes an answer goes from ``queued`` to ``succeeded`` in one transaction with the copied rows. Its lease
rises as at a claim. Of a claim and a take at the same moment one matches no row.

*Twins* are jobs with the same key. One is *under way* while it runs, or while it waits with a message in the broker.
Twins of it are not published, and not claimed while it runs. Nothing that is under way waits for a twin that only
waits, so no two jobs wait for each other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, String, bindparam, text

from helix_jobs.storage import kept_answers, result_rows
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.kept_answers import KEPT_SOURCE
from helix_jobs.storage.schema import HAS_ANSWER_TO_SHARE, IS_UNDER_WAY, results
from helix_jobs.storage.states import JobState
from helix_jobs.storage.utc_datetime import UTCDateTime

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, TextualSelect


@dataclass(frozen=True, slots=True)
class AnswerSetup:
    """What a worker's answers depend on beside the request, and whose answers it takes.

    Attributes:
        key: ``jobs.setup_key`` of its own answers.
        low: The first of the keys whose answers it takes.
        high: The last of them.
    """

    key: str
    low: str
    high: str


def _of(alias: str, condition: str) -> str:
    """One of the schema's conditions, about the columns of this alias."""
    for column in ("state", "answer_key", "setup_key", "published_at"):
        condition = condition.replace(column, f"{alias}.{column}")
    return condition


# What a job must be so that it may take an answer, and its batch; ``j`` is the job.
_MAY_TAKE: Final = """
    j.state = 'queued' AND j.tries = 0 AND j.answer_key IS NOT NULL
    AND EXISTS (SELECT 1 FROM batches b WHERE b.id = j.batch_id AND b.total IS NOT NULL
                AND b.cancelled_at IS NULL AND b.paused_at IS NULL)
"""
# A batch whose purge has begun gives no answers any more.
_SOURCE: Final = f"""
    SELECT s.id FROM jobs s JOIN batches o ON o.id = s.batch_id
    WHERE s.answer_key = {{key}} AND s.setup_key BETWEEN :low AND :high AND {_of("s", HAS_ANSWER_TO_SHARE)}
      AND (o.total IS NOT NULL OR o.cancelled_at IS NULL) LIMIT 1
"""  # noqa: S608  (constants)
_RUNNING_TWIN: Final = f"""
    SELECT 1 FROM jobs u WHERE u.answer_key = {{key}} AND u.state = 'running' AND {_of("u", IS_UNDER_WAY)}
"""  # noqa: S608
TWIN_UNDER_WAY: Final = f"""
    SELECT 1 FROM jobs u WHERE u.answer_key = j.answer_key AND u.priority >= j.priority AND u.id <> j.id
                               AND {_of("u", IS_UNDER_WAY)}
"""  # noqa: S608

_IDS: Final = {
    "sqlite": "(SELECT value FROM json_each(:ids))",
    "postgresql": "(SELECT CAST(value AS bigint) FROM json_array_elements_text(CAST(:ids AS json)))",
}


def _pairs(lock: str = "") -> dict[str, TextualSelect]:
    """Jobs with the one whose answer each may take, or the negative id of a kept one, or NULL; locked on Postgres."""
    return {
        dialect: text(
            f"SELECT j.id AS job_id, coalesce(({_SOURCE.format(key='j.answer_key')}),"  # noqa: S608
            f" ({KEPT_SOURCE.format(key='j.answer_key')})) AS source FROM jobs j"
            f" WHERE j.id IN {ids} AND {_MAY_TAKE}{lock if dialect == 'postgresql' else ''}"
        ).columns(job_id=BigInteger, source=BigInteger)
        for dialect, ids in _IDS.items()
    }


_LOOK: Final = _pairs()
# Postgres: a row that another transaction holds is being claimed, or purged; waiting for it could deadlock.
_PAIRS: Final = _pairs(" FOR UPDATE OF j SKIP LOCKED")
_FOUND: Final = {
    (dialect, table): text(
        f"SELECT s.id, s.setup_key, s.worker_id FROM {table} s WHERE s.id IN {_IDS[dialect]}"  # noqa: S608
        f"{condition}{lock}"
    ).columns(id=BigInteger, setup_key=String, worker_id=String)
    for table, condition, held in (
        ("jobs", f" AND {_of('s', HAS_ANSWER_TO_SHARE)}", "SHARE"),
        # Only its removal must wait: others take it at the same moment, and note that they did.
        ("kept_answers", "", "KEY SHARE"),
    )
    for dialect, lock in (("sqlite", ""), ("postgresql", f" FOR {held} SKIP LOCKED"))
}
_TAKEN: Final = {
    "sqlite": """
        SELECT json_extract(value, '$.job') AS job, json_extract(value, '$.source') AS source,
               json_extract(value, '$.setup') AS setup, json_extract(value, '$.worker') AS worker
        FROM json_each(:pairs)""",
    "postgresql": """
        SELECT job, source, setup, worker FROM json_to_recordset(CAST(:pairs AS json))
               AS given (job bigint, source bigint, setup text, worker text)""",
}
# Columns of a copied row that differ from the answer's own: nothing was computed for this job.
_INSTEAD: Final = {
    "job_id": "p.job",
    "run_id": "NULL",
    "cached_prompt_tokens": "r.prompt_tokens",
    "queue_seconds": "0",
    "ttft_seconds": "NULL",
    "decode_seconds": "0",
    "total_seconds": "0",
    "tokens_per_second": "NULL",
    "draft_tokens": "0",
    "accepted_tokens": "0",
    "acceptance_rate": "NULL",
    "mean_acceptance_length": "NULL",
    "created_at": ":now",
}
_COLUMNS: Final = (*(column.name for column in results.c if column.name != "from_cache"), "from_cache")
_NOW: Final = bindparam("now", type_=UTCDateTime)
_COPY: Final = {
    (dialect, table): text(
        f"INSERT INTO results ({', '.join(_COLUMNS)})"  # noqa: S608
        f" SELECT {', '.join(_INSTEAD.get(name, f'r.{name}') for name in _COLUMNS if name != 'from_cache')}, {origin}"
        f" FROM ({taken}) p JOIN {rows} r ON r.{owner} = p.source"
    ).bindparams(_NOW)
    for dialect, taken in _TAKEN.items()
    for table, rows, owner, origin in (
        ("jobs", "results", "job_id", "coalesce(r.from_cache, r.job_id)"),
        ("kept_answers", "kept_results", "answer_id", "r.from_cache"),
    )
}
_SUCCEED: Final = {
    dialect: text(
        "UPDATE jobs SET state = 'succeeded', lease = lease + 1, worker_id = p.worker, setup_key = p.setup,"  # noqa: S608
        f" claimed_at = :now, finished_at = :now FROM ({taken}) p WHERE jobs.id = p.job"
    ).bindparams(_NOW)
    for dialect, taken in _TAKEN.items()
}
_SHARES: Final = {
    dialect: text(
        "SELECT j.batch_id, j.worker_id, sum(CASE WHEN r.choice = 0 THEN 1 ELSE 0 END) AS jobs,"  # noqa: S608
        " sum(CASE WHEN r.finish_reason = 'length' THEN 1 ELSE 0 END) AS cut_off"
        f" FROM jobs j JOIN results r ON r.job_id = j.id WHERE j.id IN {ids} GROUP BY j.batch_id, j.worker_id"
    )
    for dialect, ids in _IDS.items()
}
_LEAVE: Final = text(
    "UPDATE jobs SET published_at = NULL WHERE id = :job_id AND state = 'queued' AND tries = 0"  # noqa: S608
    f" AND EXISTS ({_RUNNING_TWIN.format(key='jobs.answer_key')})"
)
_STORED_KEYS: Final = {
    dialect: text(
        f"SELECT given.value FROM {keys} WHERE EXISTS ({_SOURCE.format(key='given.value')})"  # noqa: S608  (constants)
        f" OR EXISTS ({KEPT_SOURCE.format(key='given.value')})"
    )
    for dialect, keys in (
        ("sqlite", "json_each(:keys) given"),
        ("postgresql", "json_array_elements_text(CAST(:keys AS json)) given (value)"),
    )
}
# For a claim: no stored answer and no running twin is in the way.
NOTHING_TO_TAKE: Final = text(
    "(jobs.answer_key IS NULL OR jobs.tries > 0"
    f" OR NOT (EXISTS ({_SOURCE.format(key='jobs.answer_key')})"
    f" OR EXISTS ({KEPT_SOURCE.format(key='jobs.answer_key')})"
    f" OR EXISTS ({_RUNNING_TWIN.format(key='jobs.answer_key')})))"
)


def take_answers(c: Connection, job_ids: Collection[int], setup: AnswerSetup, now: datetime) -> set[int]:
    """Have queued jobs succeed with stored answers of equal jobs. Returns which did; the others are left alone.

    The answers stand under the worker that computed them, in results and in counters.

    Args:
        c: A write transaction.
        job_ids: The jobs, some thousand at most.
        setup: Whose answers may be taken.
        now: The time written.
    """
    dialect = c.dialect.name
    result_rows.flush(c)
    given: dict[str, Any] = {"ids": json.dumps(list(job_ids)), "low": setup.low, "high": setup.high}
    wanted = {row.job_id: row.source for row in c.execute(_PAIRS[dialect], given) if row.source is not None}
    if not wanted:
        return set()
    stored = {job_id: source for job_id, source in wanted.items() if source > 0}
    kept = {job_id: -source for job_id, source in wanted.items() if source < 0}
    done = [*_take(c, "jobs", stored, now), *_take(c, "kept_answers", kept, now)]
    if kept:
        kept_answers.use(c, set(kept.values()), now)
    counters.add(c, *_shares(c, done, now))
    return set(done)


def _take(c: Connection, table: str, wanted: Mapping[int, int], now: datetime) -> list[int]:
    """Have jobs take the answers of these rows of the table; returns which did."""
    if not wanted:
        return []
    dialect = c.dialect.name
    ids = {"ids": json.dumps(sorted(set(wanted.values())))}
    sources = {row.id: row for row in c.execute(_FOUND[dialect, table], ids).all()}
    pairs = [
        {"job": job_id, "source": source, "setup": sources[source].setup_key, "worker": sources[source].worker_id}
        for job_id, source in wanted.items()
        if source in sources
    ]
    taken = {"pairs": json.dumps(pairs), "now": now}
    c.execute(_COPY[dialect, table], taken)
    c.execute(_SUCCEED[dialect], taken)
    return [pair["job"] for pair in pairs]


def has_answers(c: Connection, job_ids: Collection[int], setup: AnswerSetup) -> bool:
    """Whether one of the jobs could take a stored answer."""
    given = {"ids": json.dumps(list(job_ids)), "low": setup.low, "high": setup.high}
    return any(row.source is not None for row in c.execute(_LOOK[c.dialect.name], given))


def stored_keys(c: Connection, keys: Collection[str], setup: AnswerSetup) -> set[str]:
    """Those of these ``jobs.answer_key`` for which there is an answer to take."""
    given = {"keys": json.dumps(sorted(keys)), "low": setup.low, "high": setup.high}
    return set(c.execute(_STORED_KEYS[c.dialect.name], given).scalars())


def leave_to_twin(c: Connection, job_id: int) -> bool:
    """Take the mark of publication off a queued job while an equal one runs; False if none does.

    It is published once that one has ended, unless it takes its answer.
    """
    return c.execute(_LEAVE, {"job_id": job_id}).rowcount > 0


def _shares(c: Connection, job_ids: Sequence[int], now: datetime) -> list[counters.Share]:
    return [
        counters.Share(
            batch_id=row.batch_id,
            writer=row.worker_id,
            outcome=JobState.SUCCEEDED.value,
            jobs=int(row.jobs),
            from_cache=int(row.jobs),
            cut_off=int(row.cut_off),
            started_at=now,
            finished_at=now,
        )
        for row in c.execute(_SHARES[c.dialect.name], {"ids": json.dumps(job_ids)})
    ]
