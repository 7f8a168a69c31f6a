"""Batches that pause by themselves: their brakes, what those count from, and why one has paused its batch.

The columns may be NULL, so neither database rewrites the table for them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_BRAKED = sa.text("brakes IS NOT NULL")


def upgrade() -> None:
    op.add_column("batches", sa.Column("paused_why", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("brakes", sa.JSON(), nullable=True))
    op.add_column("batches", sa.Column("brake_ledger", sa.JSON(), nullable=True))
    op.create_index("ix_batches_braked", "batches", ["id"], sqlite_where=_BRAKED, postgresql_where=_BRAKED)


def downgrade() -> None:
    op.drop_index("ix_batches_braked", "batches")
    op.drop_column("batches", "brake_ledger")
    op.drop_column("batches", "brakes")
    op.drop_column("batches", "paused_why")
