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

    from tests.acceptance.store_model import Claim

FINAL: Final = ("succeeded", "failed", "cancelled")
JOBS: Final = select(
    *(jobs.c[name] for name in Job.__dataclass_fields__ if name != "answer"), results.c.output_text.label("answer")
).select_from(jobs.outerjoin(results, results.c.job_id == jobs.c.id))
COUNTED: Final = select(
    batch_counters.c.batch_id,
    batch_counters.c.outcome,
    func.sum(batch_counters.c.jobs).label("jobs"),
    func.sum(batch_counters.c.completion_tokens).label("tokens"),
    func.sum(batch_counters.c.refused).label("refused"),
).group_by(batch_counters.c.batch_id, batch_counters.c.outcome)


def new_job(line: int) -> NewJob:
    return NewJob(
        line=line,
        custom_id=f"c{line}",
        request={"prompt": f"line {line}"},
        priority=line % 3,
        max_attempts=1 + line % 3,
    )


def answer_of(claim: Claim) -> str:
    """What only the holder of this lease would write."""
    return f"{claim.job_id}.{claim.lease} by {claim.worker_id}"


def end_claim(c: Connection, claim: Claim, end: str, code: str, now: datetime) -> bool:
    if end == "released":
        return claims.release(c, claim.job_id, claim.lease, claim.worker_id, now)
    job = FinishedJob(claim.job_id, claim.lease, claim.worker_id)
    if end == "refused":
        return claims.refuse(c, job, now)
    if end == "not accepted":
        return claims.finish_not_accepted(c, job, [result_row(output_text=answer_of(claim))], "no", now)
    if end == "failed":
        return claims.finish_failed(c, job, code, "it broke", now)
    return claims.finish_succeeded(c, job, [result_row(output_text=answer_of(claim))], now)


def recounted(rows: dict[int, Job]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Jobs, new tokens and refused answers under each batch and outcome, as the counters should have them."""
    found: dict[tuple[str, str], tuple[int, int, int]] = {}
    for job in rows.values():
        outcomes = ["stored", job.error_code or job.state] if job.state in FINAL else ["stored"]
        for outcome in outcomes:
            count, tokens, refused = found.get((job.batch_id, outcome), (0, 0, 0))
            more = result_row().completion_tokens if outcome == "succeeded" else 0
            refusals = job.tries if outcome == "stored" else 0
            found[job.batch_id, outcome] = (count + 1, tokens + more, refused + refusals)
    return found
