"""What steps of a run cost, by the number of sequences in them: forecasts of running batches are made of it.

The column may be NULL, so neither database rewrites the table for it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("step_costs", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("runs", "step_costs")
