"""The installation's id, which stands in the names of queue and keys; messages under the old names are sent again."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    table = op.create_table(
        "installation",
        sa.Column("singleton", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("singleton = 1", name=op.f("ck_installation_singleton")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_installation")),
    )
    op.bulk_insert(table, [{"singleton": 1, "id": secrets.token_hex(6), "created_at": datetime.now(UTC)}])
    _unmark_published()


def downgrade() -> None:
    op.drop_table("installation")
    _unmark_published()


def _unmark_published() -> None:
    """No message is known to lie under the names that count from now on."""
    op.execute("UPDATE jobs SET published_at = NULL WHERE state = 'queued' AND published_at IS NOT NULL")
