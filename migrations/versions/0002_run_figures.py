"""What a run shared, preempted and spent its time on, and why it drafted as it did; shared prompt tokens of a batch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Added and dropped in place: a rebuilt table would take as long as it has rows.
_RUN_FIGURES = (
    ("depth_reasons", sa.JSON),
    ("preemptions", sa.Integer),
    ("schedule_seconds", sa.Double),
    ("draft_seconds", sa.Double),
    ("target_seconds", sa.Double),
    ("attention_seconds", sa.Double),
    ("verify_seconds", sa.Double),
)


def upgrade() -> None:
    for name, kind in _RUN_FIGURES:
        op.add_column("runs", sa.Column(name, kind(), nullable=True))
    # Before this version no prompt token was shared: 0 is true of every row there is.
    for table in ("runs", "batch_counters"):
        op.add_column(
            table, sa.Column("cached_prompt_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
        )


def downgrade() -> None:
    for table in ("runs", "batch_counters"):
        op.drop_column(table, "cached_prompt_tokens")
    for name, _ in _RUN_FIGURES:
        op.drop_column("runs", name)
