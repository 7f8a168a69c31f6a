"""Batches with a deadline, and when a worker said that one will probably be missed.

The columns may be NULL, so neither database rewrites the table for them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_WITH = sa.text("deadline IS NOT NULL")


def upgrade() -> None:
    op.add_column("batches", sa.Column("deadline", sa.DateTime(timezone=True), nullable=True))
    op.add_column("batches", sa.Column("deadline_told_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_batches_deadline", "batches", ["deadline"], sqlite_where=_WITH, postgresql_where=_WITH)


def downgrade() -> None:
    op.drop_index("ix_batches_deadline", "batches")
    op.drop_column("batches", "deadline_told_at")
    op.drop_column("batches", "deadline")
