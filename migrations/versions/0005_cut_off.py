"""How many answers of a batch ended at max_tokens or at the context's end, among its counters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batch_counters", sa.Column("cut_off", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    connection = op.get_bind()
    there = connection.execute(
        sa.text(
            "SELECT jobs.batch_id, count(*) AS cut_off FROM results JOIN jobs ON jobs.id = results.job_id "
            "WHERE results.finish_reason = 'length' GROUP BY jobs.batch_id"
        )
    ).all()
    # Only the sum over writers means something: one of them takes what all of them had.
    for batch_id, cut_off in there:
        connection.execute(
            sa.text(
                "UPDATE batch_counters SET cut_off = :cut_off WHERE batch_id = :batch AND outcome = 'succeeded' "
                "AND writer = (SELECT min(writer) FROM batch_counters WHERE batch_id = :batch "
                "AND outcome = 'succeeded')"
            ),
            {"cut_off": cut_off, "batch": batch_id},
        )


def downgrade() -> None:
    op.drop_column("batch_counters", "cut_off")
