"""Claim, finish, reclaim, publishable, status, cancel, retry: all job SQL.

Functions take a ``Connection`` first; the caller owns the transaction (``Database.write()`` or ``.read()``). Times come
in as aware UTC datetimes. One noun a module: ``submission``, ``publishing``, ``leases``, ``workers``, ``control``,
``status``, ``output``; ``records`` holds what they take and return, ``counters`` what keeps status cheap.
"""

from __future__ import annotations

from helix_jobs.jobs.store.control import cancel_batch, cancel_job, resolve, retry_batch, unfinished_submission
from helix_jobs.jobs.store.counters import recount
from helix_jobs.jobs.store.leases import claim, finish_failed, finish_succeeded, held_leases, reclaim, release
from helix_jobs.jobs.store.output import get_job, iter_jobs, iter_results
from helix_jobs.jobs.store.publishing import (
    backlog,
    count_published_queued,
    deliveries_are_moot,
    latest_published_at,
    mark_published,
    publishable,
    republish_unseen,
    unmark_published,
)
from helix_jobs.jobs.store.records import (
    BatchStatus,
    ClaimedJob,
    FinishedJob,
    JobResult,
    JobSummary,
    NewBatch,
    NewJob,
    NewWorker,
    PublishableJob,
    Reclaimed,
    ResultRow,
    RunTotals,
    StoredBatch,
    Worker,
)
from helix_jobs.jobs.store.status import batch_status, list_batches
from helix_jobs.jobs.store.submission import (
    create_batch,
    delete_batch,
    find_by_idempotency_key,
    insert_jobs,
    new_batch_id,
    seal_batch,
)
from helix_jobs.jobs.store.workers import (
    finish_run,
    heartbeat,
    live_workers,
    register_worker,
    start_run,
    stop_worker,
    watched_workers,
    worker_heartbeats,
)

__all__ = [
    "BatchStatus",
    "ClaimedJob",
    "FinishedJob",
    "JobResult",
    "JobSummary",
    "NewBatch",
    "NewJob",
    "NewWorker",
    "PublishableJob",
    "Reclaimed",
    "ResultRow",
    "RunTotals",
    "StoredBatch",
    "Worker",
    "backlog",
    "batch_status",
    "cancel_batch",
    "cancel_job",
    "claim",
    "count_published_queued",
    "create_batch",
    "delete_batch",
    "deliveries_are_moot",
    "find_by_idempotency_key",
    "finish_failed",
    "finish_run",
    "finish_succeeded",
    "get_job",
    "heartbeat",
    "held_leases",
    "insert_jobs",
    "iter_jobs",
    "iter_results",
    "latest_published_at",
    "list_batches",
    "live_workers",
    "mark_published",
    "new_batch_id",
    "publishable",
    "reclaim",
    "recount",
    "register_worker",
    "release",
    "republish_unseen",
    "resolve",
    "retry_batch",
    "seal_batch",
    "start_run",
    "stop_worker",
    "unfinished_submission",
    "unmark_published",
    "watched_workers",
    "worker_heartbeats",
]
