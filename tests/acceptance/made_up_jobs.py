"""Jobs of made-up histories: how they are submitted, ended and answered, how their rows are read and counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from helix_jobs.new_job import NewJob
from helix_jobs.storage import claims
from helix_jobs.storage.records import FinishedJob
from helix_jobs.storage.schema import batch_counters, jobs, results
from tests.acceptance.store_model import Job
from tests.store_helpers import result_row

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from tests.acceptance.store_model import Answers, Claim

FINAL: Final = ("succeeded", "failed", "cancelled")
_JOBS: Final = select(*(jobs.c[name] for name in Job.__dataclass_fields__ if name not in ("answers", "from_cache")))
_ANSWERS: Final = select(results.c.job_id, results.c.choice, results.c.output_text, results.c.from_cache).order_by(
    results.c.choice
)
COUNTED: Final = select(
    batch_counters.c.batch_id,
    batch_counters.c.outcome,
    func.sum(batch_counters.c.jobs).label("jobs"),
    func.sum(batch_counters.c.completion_tokens).label("tokens"),
    func.sum(batch_counters.c.refused).label("refused"),
    func.sum(batch_counters.c.from_cache).label("from_cache"),
).group_by(batch_counters.c.batch_id, batch_counters.c.outcome)


def new_job(line: int) -> NewJob:
    return NewJob(
        line=line,
        custom_id=f"c{line}",
        request={"prompt": f"line {line}"},
        priority=line % 3,
        max_attempts=1 + line % 3,
        answer_key=None if line % 4 == 0 else f"k{line % 2}",
    )


def read_jobs(c: Connection) -> dict[int, Job]:
    """Every job with its answers."""
    found = {row.id: Job(**row._mapping) for row in c.execute(_JOBS)}
    for row in c.execute(_ANSWERS):
        found[row.job_id].answers += ((row.choice, row.output_text),)
        found[row.job_id].from_cache = row.from_cache
    return found


def answers_of(claim: Claim) -> Answers:
    """What only the holder of this lease would write: one answer for most jobs, three for every third."""
    number = 3 if claim.job_id % 3 == 0 else 1
    return tuple((n, f"{claim.job_id}.{claim.lease} by {claim.worker_id}, choice {n}") for n in range(number))


def end_claim(c: Connection, claim: Claim, end: str, code: str, now: datetime) -> bool:
    if end == "released":
        return claims.release(c, claim.job_id, claim.lease, claim.worker_id, now)
    if end == "given back":
        return claims.give_back(c, claim.job_id, claim.lease, claim.worker_id, now)
    job = FinishedJob(claim.job_id, claim.lease, claim.worker_id, claim.setup_key)
    if end == "refused":
        return claims.refuse(c, job, now)
    if end == "failed":
        return claims.finish_failed(c, job, code, "it broke", now)
    answers = [result_row(choice=choice, output_text=text) for choice, text in answers_of(claim)]
    if end == "not accepted":
        return claims.finish_not_accepted(c, job, answers, "no", now)
    return claims.finish_succeeded(c, job, answers, now)


def recounted(rows: dict[int, Job]) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    """Jobs, new tokens, refused and taken answers under each batch and outcome, as the counters should have them."""
    found: dict[tuple[str, str], tuple[int, int, int, int]] = {}
    for job in rows.values():
        outcomes = ["stored", job.error_code or job.state] if job.state in FINAL else ["stored"]
        for outcome in outcomes:
            count, tokens, refused, taken = found.get((job.batch_id, outcome), (0, 0, 0, 0))
            is_taken = outcome == "succeeded" and job.from_cache is not None
            more = result_row().completion_tokens * len(job.answers) if outcome == "succeeded" and not is_taken else 0
            refusals = job.tries if outcome == "stored" else 0
            found[job.batch_id, outcome] = (count + 1, tokens + more, refused + refusals, taken + is_taken)
    return found
