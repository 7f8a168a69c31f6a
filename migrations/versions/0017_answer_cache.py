"""Jobs whose answer is one that is stored already: what answers depend on, and which job one came from.

Jobs of older versions have no key, so nothing is computed for them. Columns may be NULL or have a constant default, so
neither database rewrites a table.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_ANSWERS = "state = 'succeeded' AND setup_key IS NOT NULL"
_UNDER_WAY = "answer_key IS NOT NULL AND (state = 'running' OR (state = 'queued' AND published_at IS NOT NULL))"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("answer_key", sa.String(40), nullable=True))
    op.add_column("jobs", sa.Column("setup_key", sa.String(32), nullable=True))
    op.add_column("results", sa.Column("from_cache", sa.BigInteger(), nullable=True))
    op.add_column(
        "batch_counters", sa.Column("from_cache", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    _index("ix_jobs_answers", ["answer_key", "setup_key"], _ANSWERS)
    _index("ix_jobs_under_way", ["answer_key", "priority"], _UNDER_WAY)


def downgrade() -> None:
    op.drop_index("ix_jobs_under_way", "jobs")
    op.drop_index("ix_jobs_answers", "jobs")
    op.drop_column("batch_counters", "from_cache")
    op.drop_column("results", "from_cache")
    op.drop_column("jobs", "setup_key")
    op.drop_column("jobs", "answer_key")


def _index(name: str, columns: list[str], where: str) -> None:
    op.create_index(name, "jobs", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
