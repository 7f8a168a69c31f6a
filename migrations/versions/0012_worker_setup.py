"""What a worker answers with: versions, digests of the models, kernels, and what else its answers depend on.

The column may be NULL, so neither database rewrites the table for it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("setup", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "setup")
