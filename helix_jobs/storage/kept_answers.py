"""Answers that outlive the purge of their batch, for equal requests to take; those not used for longest go first.

A purge keeps the answers that others may take (``answer_cache``), without their prompts, and removes older ones until
what is left fits the limit. Each stands once, under the keys of its request and of its setup.

Trade-off: an answer is copied once, when its batch goes, and not when it is stored: nothing is written twice for a
batch that stays. In return the size is held to its limit by purges alone, as nothing else makes it grow.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, delete, exists, func, select, text
from sqlalchemy.dialects import postgresql, sqlite

from helix_jobs.storage.schema import HAS_ANSWER_TO_SHARE, jobs, kept_answers, kept_results, results

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from sqlalchemy import Connection

# Where its id stands beside job ids, it is negative.
KEPT_SOURCE: Final = """
    SELECT -k.id FROM kept_answers k WHERE k.answer_key = {key} AND k.setup_key BETWEEN :low AND :high LIMIT 1
"""
# Rows looked at together for the oldest to go.
_STEP: Final = 1000
_SIZE: Final = {
    "sqlite": "length(CAST(coalesce({}, '') AS BLOB))",
    "postgresql": "octet_length(coalesce(CAST({} AS text), ''))",
}
_TEXTS: Final = ("output_text", "reasoning_text", "tool_calls", "scores")
_BYTES: Final = ("logprobs", "prompt_logprobs")
# The figures and keys of an answer, beside what its texts take.
_ROW_BYTES: Final = 400


def _bytes(dialect: str) -> str:
    sizes = [_SIZE[dialect].format(f"r.{name}") for name in _TEXTS]
    length = "length" if dialect == "sqlite" else "octet_length"
    sizes += [f"coalesce({length}(r.{name}), 0)" for name in _BYTES]
    return f"sum({_ROW_BYTES} + {' + '.join(sizes)})"


_TO_KEEP: Final = (
    select(jobs.c.id, jobs.c.answer_key, jobs.c.setup_key, jobs.c.worker_id)
    .where(jobs.c.batch_id == bindparam("batch"), jobs.c.line > bindparam("after"), jobs.c.line <= bindparam("last"))
    .where(text(HAS_ANSWER_TO_SHARE))
    # Somebody may have deleted rows by hand.
    .where(exists().where(results.c.job_id == jobs.c.id))
    .order_by(jobs.c.id.desc())
)
_INSERTS: Final[dict[str, Any]] = {"sqlite": sqlite.insert(kept_answers), "postgresql": postgresql.insert(kept_answers)}
_PAIRS: Final = {
    "sqlite": "SELECT json_extract(value, '$[0]') AS kept, json_extract(value, '$[1]') AS job FROM json_each(:pairs)",
    "postgresql": "SELECT CAST(value ->> 0 AS bigint) AS kept, CAST(value ->> 1 AS bigint) AS job"
    " FROM json_array_elements(CAST(:pairs AS json))",
}
_COLUMNS: Final = tuple(column.name for column in kept_results.c if column.name not in ("answer_id", "from_cache"))
_COPY: Final = {
    dialect: text(
        f"INSERT INTO kept_results (answer_id, from_cache, {', '.join(_COLUMNS)})"  # noqa: S608  (constants)
        f" SELECT p.kept, coalesce(r.from_cache, r.job_id), {', '.join(f'r.{name}' for name in _COLUMNS)}"
        f" FROM ({pairs}) p JOIN results r ON r.job_id = p.job"
    )
    for dialect, pairs in _PAIRS.items()
}
_MEASURE: Final = {
    dialect: text(
        f"UPDATE kept_answers SET bytes = (SELECT {_bytes(dialect)} FROM kept_results r"  # noqa: S608
        f" WHERE r.answer_id = kept_answers.id) WHERE id IN (SELECT kept FROM ({pairs}) p) RETURNING bytes"
    )
    for dialect, pairs in _PAIRS.items()
}


def keep_lines(c: Connection, batch_id: str, after: int, last: int, now: datetime) -> int:
    """Keep the answers of these lines (``after`` < line <= ``last``) that other jobs may take; returns their bytes.

    Of equal jobs the first gives its answer. One that is kept already stays, and is as good.
    """
    rows = c.execute(_TO_KEEP, {"batch": batch_id, "after": after, "last": last}).all()
    first = {(row.answer_key, row.setup_key): row for row in rows}
    if not first:
        return 0
    new = c.execute(
        _INSERTS[c.dialect.name]
        .on_conflict_do_nothing(index_elements=["answer_key", "setup_key"])
        .returning(kept_answers.c.id, kept_answers.c.answer_key, kept_answers.c.setup_key),
        [
            {"answer_key": key, "setup_key": setup, "worker_id": row.worker_id, "bytes": 0, "last_used_at": now}
            for (key, setup), row in sorted(first.items())
        ],
    ).all()
    pairs = {"pairs": json.dumps([[row.id, first[row.answer_key, row.setup_key].id] for row in new])}
    c.execute(_COPY[c.dialect.name], pairs)
    return sum(c.execute(_MEASURE[c.dialect.name], pairs).scalars())


def use(c: Connection, ids: Collection[int], now: datetime) -> None:
    """Note that these answers were taken. One that another transaction notes at this moment needs no second note."""
    used = select(kept_answers.c.id).where(kept_answers.c.id.in_(sorted(ids)))
    unheld = used.with_for_update(skip_locked=True, key_share=True)
    c.execute(kept_answers.update().where(kept_answers.c.id.in_(unheld)).values(last_used_at=now))


def kept_bytes(c: Connection) -> int:
    """What the kept answers take."""
    return int(c.execute(select(func.coalesce(func.sum(kept_answers.c.bytes), 0))).scalar_one())


def evict(c: Connection, too_many: int) -> int:
    """Remove answers that were not used for longest, a thousand at most; returns how many bytes that frees."""
    oldest = select(kept_answers.c.id, kept_answers.c.bytes).order_by(kept_answers.c.last_used_at, kept_answers.c.id)
    gone, freed = [], 0
    for row in c.execute(oldest.limit(_STEP)).all():
        if freed >= too_many:
            break
        gone.append(row.id)
        freed += row.bytes
    c.execute(delete(kept_results).where(kept_results.c.answer_id.in_(gone)))
    c.execute(delete(kept_answers).where(kept_answers.c.id.in_(gone)))
    return freed
