"""Several answers a job, and what a request may ask to know about an answer.

``results`` gets a row for each choice: its key becomes (job, choice). The other columns are nullable or have a constant
default, so neither database rewrites a table for them. SQLite cannot change a key in place: its table is copied once.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NONE = sa.text("0")
# The columns that revision 0006 leaves behind, in its order.
_KEPT = (
    "job_id, run_id, output_text, finish_reason, prompt_tokens, cached_prompt_tokens, completion_tokens, "
    "queue_seconds, ttft_seconds, decode_seconds, total_seconds, tokens_per_second, draft_tokens, accepted_tokens, "
    "acceptance_rate, mean_acceptance_length, target_model, draft_model, device, dtype, worker_id, created_at"
)


def _known_about_answers() -> list[sa.Column]:
    return [
        sa.Column("is_valid", sa.Boolean(), nullable=True),
        sa.Column("reasoning_text", sa.Text(), nullable=True),
        sa.Column("reasoning_tokens", sa.Integer(), nullable=True),
        sa.Column("tool_calls", sa.JSON(), nullable=True),
        sa.Column("cumulative_logprob", sa.Double(), nullable=True),
        sa.Column("logprobs", sa.LargeBinary(), nullable=True),
        sa.Column("prompt_logprobs", sa.LargeBinary(), nullable=True),
        sa.Column("scores", sa.JSON(), nullable=True),
        sa.Column("dropped_prompt_tokens", sa.Integer(), nullable=True),
    ]


def upgrade() -> None:
    op.add_column("jobs", sa.Column("tries", sa.Integer(), server_default=_NONE, nullable=False))
    op.add_column("batch_counters", sa.Column("refused", sa.BigInteger(), server_default=_NONE, nullable=False))
    if op.get_bind().dialect.name == "sqlite":
        choice = sa.Column("choice", sa.Integer(), server_default=_NONE, nullable=False)
        _copy_table(["job_id", "choice"], [choice, *_known_about_answers()])
        return
    op.add_column("results", sa.Column("choice", sa.Integer(), server_default=_NONE, nullable=False))
    for column in _known_about_answers():
        op.add_column("results", column)
    _change_key(["job_id", "choice"])


def downgrade() -> None:
    # The older version knows one answer a job: the first stays, and the others no longer count.
    _subtract_other_choices()
    op.execute("DELETE FROM results WHERE choice > 0")
    # It neither expects results of jobs that failed, nor knows that an answer may be refused.
    op.execute("DELETE FROM results WHERE job_id IN (SELECT id FROM jobs WHERE state = 'failed')")
    op.execute("UPDATE jobs SET error_code = 'engine_error' WHERE error_code = 'not_accepted'")
    _count_refused_as_failed()
    if op.get_bind().dialect.name == "sqlite":
        _copy_table(["job_id"], [])
    else:
        _change_key(["job_id"])
        for column in (*_known_about_answers(), sa.Column("choice", sa.Integer())):
            op.drop_column("results", column.name)
    op.drop_column("batch_counters", "refused")
    op.drop_column("jobs", "tries")


def _subtract_other_choices() -> None:
    connection = op.get_bind()
    sums = connection.execute(
        sa.text(
            "SELECT jobs.batch_id AS batch, sum(completion_tokens) AS completion, sum(draft_tokens) AS draft, "
            "sum(accepted_tokens) AS accepted, sum(CASE WHEN finish_reason = 'length' THEN 1 ELSE 0 END) AS cut "
            "FROM results JOIN jobs ON jobs.id = results.job_id WHERE choice > 0 AND jobs.state = 'succeeded' "
            "GROUP BY jobs.batch_id"
        )
    ).all()
    # Only the sum over writers means something: one of them loses what all of them had.
    for row in sums:
        connection.execute(
            sa.text(
                "UPDATE batch_counters SET completion_tokens = completion_tokens - :completion, "
                "draft_tokens = draft_tokens - :draft, accepted_tokens = accepted_tokens - :accepted, "
                "cut_off = cut_off - :cut WHERE batch_id = :batch AND outcome = 'succeeded' AND writer = "
                "(SELECT min(writer) FROM batch_counters WHERE batch_id = :batch AND outcome = 'succeeded')"
            ),
            dict(row._mapping),  # noqa: SLF001  (SQLAlchemy's documented name)
        )


def _count_refused_as_failed() -> None:
    """Move the counters of ``not_accepted`` to ``engine_error``, where a writer may have counted jobs already."""
    connection = op.get_bind()
    counters = sa.table(
        "batch_counters",
        sa.column("batch_id"),
        sa.column("writer"),
        sa.column("outcome"),
        sa.column("jobs"),
        sa.column("started_at", sa.DateTime(timezone=True)),
        sa.column("finished_at", sa.DateTime(timezone=True)),
    )
    refused = connection.execute(sa.select(counters).where(counters.c.outcome == "not_accepted")).all()
    for row in refused:
        this_writer = sa.and_(counters.c.batch_id == row.batch_id, counters.c.writer == row.writer)
        this_row = sa.and_(this_writer, counters.c.outcome == "not_accepted")
        there = sa.and_(this_writer, counters.c.outcome == "engine_error")
        failed = connection.execute(sa.select(counters).where(there)).first()
        if failed is None:
            connection.execute(sa.update(counters).where(this_row).values(outcome="engine_error"))
            continue
        connection.execute(sa.delete(counters).where(this_row))
        started = [moment for moment in (row.started_at, failed.started_at) if moment is not None]
        finished = [moment for moment in (row.finished_at, failed.finished_at) if moment is not None]
        connection.execute(
            sa.update(counters)
            .where(there)
            .values(
                jobs=row.jobs + failed.jobs,
                started_at=min(started, default=None),
                finished_at=max(finished, default=None),
            )
        )


def _change_key(key: list[str]) -> None:
    op.drop_constraint("pk_results", "results", type_="primary")
    op.create_primary_key("pk_results", "results", key)


def _copy_table(key: list[str], added: list[sa.Column]) -> None:
    """Make ``results`` anew on SQLite. No table refers to it, so nothing else changes."""
    is_empty = op.get_bind().execute(sa.text("SELECT 1 FROM results LIMIT 1")).first() is None
    if is_empty:  # the new table takes the old one's pages, and a new file has no free ones
        op.drop_table("results")
    else:
        op.rename_table("results", "old_results")
    op.create_table(
        "results",
        sa.Column("job_id", _BIG_ID, autoincrement=False, nullable=False),
        *[column for column in added if column.name in key],
        sa.Column("run_id", _BIG_ID, nullable=True),
        sa.Column("output_text", sa.Text(), nullable=False),
        sa.Column("finish_reason", sa.String(16), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("cached_prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("queue_seconds", sa.Double(), nullable=False),
        sa.Column("ttft_seconds", sa.Double(), nullable=True),
        sa.Column("decode_seconds", sa.Double(), nullable=False),
        sa.Column("total_seconds", sa.Double(), nullable=False),
        sa.Column("tokens_per_second", sa.Double(), nullable=True),
        sa.Column("draft_tokens", sa.Integer(), nullable=False),
        sa.Column("accepted_tokens", sa.Integer(), nullable=False),
        sa.Column("acceptance_rate", sa.Double(), nullable=True),
        sa.Column("mean_acceptance_length", sa.Double(), nullable=True),
        sa.Column("target_model", sa.Text(), nullable=False),
        sa.Column("draft_model", sa.Text(), nullable=True),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("dtype", sa.String(32), nullable=False),
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        *[column for column in added if column.name not in key],
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_results_job_id_jobs"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_results_run_id_runs")),
        sa.PrimaryKeyConstraint(*key, name=op.f("pk_results")),
    )
    if not is_empty:
        op.execute(f"INSERT INTO results ({_KEPT}) SELECT {_KEPT} FROM old_results ORDER BY job_id")  # noqa: S608  (constants)
        op.drop_table("old_results")
    op.create_index("ix_results_created_at", "results", ["created_at"])
    op.create_index("ix_results_run_id", "results", ["run_id"])
