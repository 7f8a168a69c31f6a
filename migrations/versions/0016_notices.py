"""Notices of what happens to batches, and marks of what was noted.

Batches that have ended already are marked: their end is no news. The columns may be NULL, so neither database rewrites
the table for them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_OPEN = sa.text("end_noted_at IS NULL AND interactive = false")
_DUE = sa.text("due_at IS NOT NULL")
_MARK_ENDED = """
    UPDATE batches SET end_noted_at = created_at
    WHERE interactive = false AND total IS NOT NULL AND (
        SELECT coalesce(sum(CASE WHEN outcome = 'stored' THEN jobs ELSE -jobs END), 0)
        FROM batch_counters WHERE batch_counters.batch_id = batches.id
    ) <= 0
"""


def upgrade() -> None:
    op.add_column("batches", sa.Column("end_noted_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("batches", sa.Column("failing_noted_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(_MARK_ENDED)
    op.create_index("ix_batches_open", "batches", ["id"], sqlite_where=_OPEN, postgresql_where=_OPEN)
    op.create_table(
        "notices",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("batch_id", sa.String(32), nullable=True),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reached", sa.JSON(), nullable=True),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name="fk_notices_batch_id_batches", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_notices"),
    )
    op.create_index("ix_notices_batch_id", "notices", ["batch_id"])
    op.create_index("ix_notices_due", "notices", ["due_at"], sqlite_where=_DUE, postgresql_where=_DUE)


def downgrade() -> None:
    op.drop_table("notices")
    op.drop_index("ix_batches_open", "batches")
    op.drop_column("batches", "failing_noted_at")
    op.drop_column("batches", "end_noted_at")
