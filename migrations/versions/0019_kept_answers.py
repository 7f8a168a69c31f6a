"""Answers that outlive the purge of their batch, up to a size, for equal requests to take."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "kept_answers",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("answer_key", sa.String(40), nullable=False),
        sa.Column("setup_key", sa.String(32), nullable=False),
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_kept_answers"),
        sa.UniqueConstraint("answer_key", "setup_key", name="uq_kept_answers_answer_key_setup_key"),
    )
    op.create_index("ix_kept_answers_last_used_at", "kept_answers", ["last_used_at"])
    op.create_table(
        "kept_results",
        sa.Column("answer_id", _ID, autoincrement=False, nullable=False),
        sa.Column("choice", sa.Integer(), autoincrement=False, nullable=False),
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
        sa.Column("is_valid", sa.Boolean(), nullable=True),
        sa.Column("reasoning_text", sa.Text(), nullable=True),
        sa.Column("reasoning_tokens", sa.Integer(), nullable=True),
        sa.Column("tool_calls", sa.JSON(), nullable=True),
        sa.Column("cumulative_logprob", sa.Double(), nullable=True),
        sa.Column("logprobs", sa.LargeBinary(), nullable=True),
        sa.Column("prompt_logprobs", sa.LargeBinary(), nullable=True),
        sa.Column("scores", sa.JSON(), nullable=True),
        sa.Column("dropped_prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("from_cache", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["answer_id"], ["kept_answers.id"], name="fk_kept_results_answer_id_kept_answers", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("answer_id", "choice", name="pk_kept_results"),
    )


def downgrade() -> None:
    op.drop_table("kept_results")
    op.drop_table("kept_answers")
