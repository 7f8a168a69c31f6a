"""The index of failed and cancelled jobs has their lines, so that a list shows them in the order of the file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_NAME = "ix_jobs_unsuccessful"


def upgrade() -> None:
    _put_in_its_place("batch_id", "state", "line")


def downgrade() -> None:
    _put_in_its_place("batch_id", "state")


def _put_in_its_place(*columns: str) -> None:
    op.drop_index(_NAME, "jobs")
    few = sa.text("state IN ('failed', 'cancelled')")
    op.create_index(_NAME, "jobs", list(columns), sqlite_where=few, postgresql_where=few)
