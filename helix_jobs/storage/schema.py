"""The tables, for SQLite and Postgres alike."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    false,
    or_,
    text,
)

from helix_jobs.storage.columns import BigId
from helix_jobs.storage.columns import column as _column
from helix_jobs.storage.columns import json_or_null as _json_or_null
from helix_jobs.storage.columns import partial_index as _partial_index
from helix_jobs.storage.utc_datetime import UTCDateTime

# The migration that makes these tables. A test holds it equal to Alembic's head, so commands need not import Alembic.
SCHEMA_REVISION: Final = "0019"

NAMING_CONVENTION: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

metadata = MetaData(naming_convention=NAMING_CONVENTION)


# One row, made by the migration: the id that tells this database from all others (``queue_names.py``).
installation = Table(
    "installation",
    metadata,
    _column("singleton", Integer, primary_key=True, autoincrement=False),
    _column("id", String(32)),
    _column("created_at", UTCDateTime),
    CheckConstraint("singleton = 1", name="singleton"),
)

batches = Table(
    "batches",
    metadata,
    _column("id", String(32), primary_key=True),
    _column("name", Text, nullable=True),
    _column("source", Text, nullable=True),
    _column("created_at", UTCDateTime),
    _column("cancelled_at", UTCDateTime, nullable=True),
    # NULL until every line is stored: jobs of an unsealed batch are never published.
    _column("total", Integer, nullable=True),
    _column("defaults", JSON),
    _column("metadata", JSON),
    _column("idempotency_key", String(255), nullable=True, unique=True),
    # SHA-256 over the accepted lines: tells a repeated submission from another one under the same idempotency key.
    _column("content_digest", String(64), nullable=True),
    # One request of a person who waits for its answer. Lists of batches leave it out.
    _column("interactive", Boolean, server_default=false()),
    # While this is set, no job of the batch begins.
    _column("paused_at", UTCDateTime, nullable=True),
    # Why a brake has paused it; NULL where a person has.
    _column("paused_why", Text, nullable=True),
    # When it is to be done, and when a worker said that it will probably be later (storage/deadlines.py).
    _column("deadline", UTCDateTime, nullable=True),
    _column("deadline_told_at", UTCDateTime, nullable=True),
    # When it is to pause by itself (brakes.py), and what that counts from (storage/brake_ledger.py).
    _json_or_null("brakes", dict),
    _json_or_null("brake_ledger", dict),
    # When its end, and that its jobs fail, became a notice; a retry that queues jobs again clears both.
    _column("end_noted_at", UTCDateTime, nullable=True),
    _column("failing_noted_at", UTCDateTime, nullable=True),
    Index("ix_batches_created_at", "created_at"),
    _partial_index("ix_batches_open", "id", where="end_noted_at IS NULL AND interactive = false"),
    _partial_index("ix_batches_braked", "id", where="brakes IS NOT NULL"),
    _partial_index("ix_batches_deadline", "deadline", where="deadline IS NOT NULL"),
)

# Jobs of other batches are neither published nor claimed.
TAKES_JOBS: Final = and_(batches.c.total.is_not(None), batches.c.cancelled_at.is_(None), batches.c.paused_at.is_(None))

# False once `helix purge` has begun to remove the batch: all other code treats it as gone (storage/purging.py).
BATCH_IS_THERE: Final = or_(batches.c.total.is_not(None), batches.c.cancelled_at.is_(None))


# Conditions of two indexes, for queries to repeat.
HAS_ANSWER_TO_SHARE: Final = "state = 'succeeded' AND setup_key IS NOT NULL"
IS_UNDER_WAY: Final = (
    "answer_key IS NOT NULL AND (state = 'running' OR (state = 'queued' AND published_at IS NOT NULL))"
)

jobs = Table(
    "jobs",
    metadata,
    _column("id", BigId, primary_key=True, autoincrement=True),
    _column("batch_id", String(32), ForeignKey("batches.id", ondelete="CASCADE")),
    _column("line", Integer),
    _column("custom_id", Text, nullable=True),
    _column("request", JSON),
    _column("state", String(16)),
    _column("priority", Integer, server_default=text("0")),
    _column("attempts", Integer, server_default=text("0")),
    _column("max_attempts", Integer, server_default=text("3")),
    # Answers that the job's own acceptance rule refused; apart from attempts, which are lost with their workers.
    _column("tries", Integer, server_default=text("0")),
    # The fence: every claim raises it, and a write must carry the current value.
    _column("lease", Integer, server_default=text("0")),
    _column("worker_id", String(64), nullable=True),
    _column("queued_at", UTCDateTime),
    # NULL: the broker is not known to hold a message.
    _column("published_at", UTCDateTime, nullable=True),
    _column("claimed_at", UTCDateTime, nullable=True),
    _column("finished_at", UTCDateTime, nullable=True),
    _column("error_code", String(32), nullable=True),
    _column("error_message", Text, nullable=True),
    # What the answer depends on: the request's part, and that of whoever answered it. NULL: the answer is not to be
    # taken for another job (storage/answer_cache.py).
    _column("answer_key", String(40), nullable=True),
    _column("setup_key", String(32), nullable=True),
    UniqueConstraint("batch_id", "line"),
    UniqueConstraint("batch_id", "custom_id"),
    CheckConstraint("priority BETWEEN 0 AND 9", name="priority"),
    # Each index below holds the few rows that one query looks for, in a table of mostly final states.
    _partial_index(
        "ix_jobs_unpublished", "batch_id", "priority", "id", where="state = 'queued' AND published_at IS NULL"
    ),
    _partial_index("ix_jobs_published", "published_at", where="state = 'queued' AND published_at IS NOT NULL"),
    _partial_index("ix_jobs_running", "worker_id", "batch_id", where="state = 'running'"),
    _partial_index("ix_jobs_unsuccessful", "batch_id", "state", "line", where="state IN ('failed', 'cancelled')"),
    _partial_index("ix_jobs_completion", "batch_id", "finished_at", "id", where="finished_at IS NOT NULL"),
    _partial_index("ix_jobs_answers", "answer_key", "setup_key", where=HAS_ANSWER_TO_SHARE),
    _partial_index("ix_jobs_under_way", "answer_key", "priority", where=IS_UNDER_WAY),
)

# Nullable columns are NULL where the value is unknown: in a run under way, and in a run that an older version wrote.
# Trade-off: a column for each part of the time needs a migration for a new part, but plain SQL can add and divide the
# parts on both databases. The reasons for depths are JSON, as they may change with the controller.
runs = Table(
    "runs",
    metadata,
    _column("id", BigId, primary_key=True, autoincrement=True),
    _column("worker_id", String(64), ForeignKey("workers.id")),
    _column("started_at", UTCDateTime),
    _column("finished_at", UTCDateTime, nullable=True),
    _column("steps", Integer, server_default=text("0")),
    _column("jobs_finished", Integer, server_default=text("0")),
    _column("prompt_tokens", BigInteger, server_default=text("0")),
    _column("completion_tokens", BigInteger, server_default=text("0")),
    _column("draft_tokens", BigInteger, server_default=text("0")),
    _column("accepted_tokens", BigInteger, server_default=text("0")),
    _column("mean_batch_size", Double, nullable=True),
    _column("mean_depth", Double, nullable=True),
    _column("peak_blocks", Integer, nullable=True),
    _column("tokens_per_second", Double, nullable=True),
    _column("cached_prompt_tokens", BigInteger, server_default=text("0")),
    _column("preemptions", Integer, nullable=True),
    # Reason -> number of steps; {} with a fixed depth.
    _column("depth_reasons", JSON, nullable=True),
    _column("schedule_seconds", Double, nullable=True),
    _column("draft_seconds", Double, nullable=True),
    _column("target_seconds", Double, nullable=True),
    # Part of target_seconds; NULL also where the device cannot measure it.
    _column("attention_seconds", Double, nullable=True),
    _column("verify_seconds", Double, nullable=True),
    # What the device took meanwhile; NULL where nobody counts.
    _column("energy_joules", Double, nullable=True),
    # What its steps took, by the number of sequences in them (forecast/step_costs.py).
    _json_or_null("step_costs", dict),
)


def _answer() -> list[Column[Any]]:
    """What an answer is, and how it was computed."""
    return [
        _column("output_text", Text),
        _column("finish_reason", String(16)),
        _column("prompt_tokens", Integer),
        _column("cached_prompt_tokens", Integer),
        _column("completion_tokens", Integer),
        _column("queue_seconds", Double),
        _column("ttft_seconds", Double, nullable=True),
        _column("decode_seconds", Double),
        _column("total_seconds", Double),
        _column("tokens_per_second", Double, nullable=True),
        _column("draft_tokens", Integer),
        _column("accepted_tokens", Integer),
        _column("acceptance_rate", Double, nullable=True),
        _column("mean_acceptance_length", Double, nullable=True),
        _column("target_model", Text),
        _column("draft_model", Text, nullable=True),
        _column("device", Text),
        _column("dtype", String(32)),
        _column("worker_id", String(64)),
        _column("created_at", UTCDateTime),
        # Whether the answer keeps its constraint whole; false where max_tokens cut it off.
        _column("is_valid", Boolean, nullable=True),
        _column("reasoning_text", Text, nullable=True),
        _column("reasoning_tokens", Integer, nullable=True),
        _json_or_null("tool_calls", list),
        # Of all tokens of the answer: the sum of their log probabilities.
        _column("cumulative_logprob", Double, nullable=True),
        _column("logprobs", LargeBinary, nullable=True),
        _column("prompt_logprobs", LargeBinary, nullable=True),
        _json_or_null("scores", dict),
        _column("dropped_prompt_tokens", Integer, nullable=True),
        # The job whose answer this is, where it was not computed for this one. No foreign key: that job may be purged.
        _column("from_cache", BigInteger, nullable=True),
    ]


# A row for each answer of a job; most jobs have one. The prompt's tokens count in the first answer's row alone, so that
# plain SQL can add them up. Nullable columns behind `created_at` are NULL where the request did not ask for them.
results = Table(
    "results",
    metadata,
    _column("job_id", BigId, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    _column("choice", Integer, primary_key=True, autoincrement=False, server_default=text("0")),
    _column("run_id", BigId, ForeignKey("runs.id"), nullable=True),
    *_answer(),
    Index("ix_results_created_at", "created_at"),
    # Without this index, each removal of a run would scan all results for references to it.
    Index("ix_results_run_id", "run_id"),
)

# Answers of purged batches that equal requests may still take (storage/kept_answers.py), and their rows.
kept_answers = Table(
    "kept_answers",
    metadata,
    _column("id", BigId, primary_key=True, autoincrement=True),
    _column("answer_key", String(40)),
    _column("setup_key", String(32)),
    _column("worker_id", String(64)),
    _column("bytes", BigInteger),
    _column("last_used_at", UTCDateTime),
    UniqueConstraint("answer_key", "setup_key"),
    Index("ix_kept_answers_last_used_at", "last_used_at"),
)
kept_results = Table(
    "kept_results",
    metadata,
    _column(
        "answer_id", BigId, ForeignKey("kept_answers.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    ),
    _column("choice", Integer, primary_key=True, autoincrement=False),
    *_answer(),
)

workers = Table(
    "workers",
    metadata,
    _column("id", String(64), primary_key=True),
    _column("hostname", Text),
    _column("pid", Integer),
    # The worker's process: see process_identity.py. NULL in rows of older versions, and where the system does not tell.
    _column("boot_id", Text, nullable=True),
    _column("pid_namespace", Text, nullable=True),
    _column("process_started", Text, nullable=True),
    _column("device", Text),
    _column("target_model", Text),
    _column("draft_model", Text, nullable=True),
    _column("slots", Integer),
    _column("started_at", UTCDateTime),
    _column("heartbeat_at", UTCDateTime),
    _column("stopped_at", UTCDateTime, nullable=True),
    # What its answers depend on, for the manifests of batches. NULL in rows of older versions. JSON, as what there is
    # to say changes with each release.
    _json_or_null("setup", dict),
)

# Status reads these sums instead of counting a million jobs. A transaction that stores jobs or moves one into or out of
# a final state also updates this table; `running` is counted from its small index, `queued` is the rest. `outcome` is
# "stored", "succeeded", "cancelled" or an error code. One row may be negative (a retry subtracts what a worker added);
# only the sum over `writer` has a meaning.
# Trade-off: a row for each writer costs a sum at each read, but no two workers ever wait for the same row.
batch_counters = Table(
    "batch_counters",
    metadata,
    _column("batch_id", String(32), ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    _column("writer", String(64), primary_key=True),
    _column("outcome", String(32), primary_key=True),
    _column("jobs", BigInteger, server_default=text("0")),
    _column("prompt_tokens", BigInteger, server_default=text("0")),
    _column("cached_prompt_tokens", BigInteger, server_default=text("0")),
    _column("completion_tokens", BigInteger, server_default=text("0")),
    _column("draft_tokens", BigInteger, server_default=text("0")),
    _column("accepted_tokens", BigInteger, server_default=text("0")),
    # Answers whose finish_reason is "length".
    _column("cut_off", BigInteger, server_default=text("0")),
    # Answers that the jobs' own acceptance rules refused.
    _column("refused", BigInteger, server_default=text("0")),
    # Jobs whose answers were another job's. They add no tokens.
    _column("from_cache", BigInteger, server_default=text("0")),
    # Earliest claim and latest end among the jobs counted in this row.
    _column("started_at", UTCDateTime, nullable=True),
    _column("finished_at", UTCDateTime, nullable=True),
)

# What people are told of, and whether they were (storage/notices.py).
notices = Table(
    "notices",
    metadata,
    # The same however often it is sent: whoever gets it twice knows it by this.
    _column("id", String(40), primary_key=True),
    _column("batch_id", String(32), ForeignKey("batches.id", ondelete="CASCADE"), nullable=True),
    _column("kind", String(64)),
    _column("data", JSON),
    _column("created_at", UTCDateTime),
    _column("attempts", Integer, server_default=text("0")),
    # When somebody is to send it. NULL: it was sent, or given up.
    _column("due_at", UTCDateTime, nullable=True),
    # The channels that have taken it.
    _json_or_null("reached", list),
    _column("delivered_at", UTCDateTime, nullable=True),
    _column("error", Text, nullable=True),
    Index("ix_notices_batch_id", "batch_id"),
    _partial_index("ix_notices_due", "due_at", where="due_at IS NOT NULL"),
)

# Files that were uploaded over HTTP. `bytes` is NULL until every part is stored, and again once the file's removal has
# begun: such a file is not there for anybody (storage/api_files.py).
# Trade-off: parts in the database pass through its log, which costs twice the writing of a plain file. In return every
# server of the database has them, a backup has them, and nobody has to share a disk.
api_files = Table(
    "api_files",
    metadata,
    _column("id", String(40), primary_key=True),
    _column("owner", String(32)),
    _column("filename", Text),
    _column("purpose", String(32)),
    _column("bytes", BigInteger, nullable=True),
    _column("created_at", UTCDateTime),
    # When the newest part came: an upload that gains none for long has broken off.
    _column("touched_at", UTCDateTime),
    _column("expires_at", UTCDateTime, nullable=True),
    Index("ix_api_files_owner_created_at", "owner", "created_at"),
)

api_file_parts = Table(
    "api_file_parts",
    metadata,
    _column("file_id", String(40), ForeignKey("api_files.id", ondelete="CASCADE"), primary_key=True),
    # From 0.
    _column("number", Integer, primary_key=True, autoincrement=False),
    _column("data", LargeBinary),
    # Whoever reads whole rows page by page holds so many at most: each has a megabyte.
    info={"page_rows": 8},
)

# Batches that were asked for over HTTP. Once the lines are accepted, `batch_id` names the batch, and its jobs say how
# far it is.
api_batches = Table(
    "api_batches",
    metadata,
    _column("id", String(40), primary_key=True),
    _column("owner", String(32)),
    # Without a foreign key: the file may go before the batch.
    _column("input_file_id", String(40)),
    _column("endpoint", String(64)),
    _column("completion_window", String(16)),
    _column("metadata", JSON),
    # Seconds after the batch's end.
    _column("output_expires_after", Integer, nullable=True),
    _column("idempotency_key", String(255), nullable=True, unique=True),
    _column("created_at", UTCDateTime),
    _column("expires_at", UTCDateTime),
    # When a server has to look at it. Whoever works at it keeps this in the future, so that another server takes over
    # once it no longer does. NULL: nothing is left to do.
    _column("due_at", UTCDateTime, nullable=True),
    _column("batch_id", String(32), ForeignKey("batches.id", ondelete="CASCADE"), nullable=True, unique=True),
    _column("in_progress_at", UTCDateTime, nullable=True),
    _json_or_null("errors", list),
    _column("failed_at", UTCDateTime, nullable=True),
    _column("cancelling_at", UTCDateTime, nullable=True),
    # Set here only where there is no batch whose jobs could say it.
    _column("cancelled_at", UTCDateTime, nullable=True),
    _column("expired_at", UTCDateTime, nullable=True),
    Index("ix_api_batches_owner_created_at", "owner", "created_at"),
    _partial_index("ix_api_batches_due", "due_at", where="due_at IS NOT NULL"),
)
