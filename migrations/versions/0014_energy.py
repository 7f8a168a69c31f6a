"""What the device took during a run, where the device or its driver counts it.

The column may be NULL, so neither database rewrites the table for it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("energy_joules", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("runs", "energy_joules")
