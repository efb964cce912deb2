"""Holds say their kind, who placed them, since when and until when.

A hold of before is a pin without an end, or what a rebuild held; who placed it and when nobody wrote down.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Columns of the backup. The first comes with its check, which SQLite takes in no other way without making the table anew."""
    op.execute(
        "ALTER TABLE backup ADD COLUMN held_kind TEXT "
        "CONSTRAINT ck_backup_held_kind CHECK (held_kind IN ('legal', 'pin', 'recovered'))"
    )
    op.add_column("backup", sa.Column("held_by", sa.Text(), nullable=True))
    op.add_column("backup", sa.Column("held_at", sa.Double(), nullable=True))
    op.add_column("backup", sa.Column("held_until", sa.Double(), nullable=True))
    op.execute(
        "UPDATE backup SET held_kind = CASE WHEN held = 'recovered by a catalog rebuild' THEN 'recovered' ELSE 'pin' END "
        "WHERE held IS NOT NULL"
    )
