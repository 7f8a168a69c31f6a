"""Which process a worker is, so that others can tell whether it has ended; see ``process_identity.py``."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COLUMNS = ("boot_id", "pid_namespace", "process_started")


def upgrade() -> None:
    for name in _COLUMNS:
        op.add_column("workers", sa.Column(name, sa.Text(), nullable=True))


def downgrade() -> None:
    for name in _COLUMNS:
        op.drop_column("workers", name)
