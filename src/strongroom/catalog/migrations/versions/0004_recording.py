"""Points in time: recordings, the pieces of log that they put into the store, and where backups stand in their sources' logs.

Backups of before do not say where they stand: nothing can be replayed after them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_KINDS = "kind IN ('pack', 'manifest', 'rewrite', 'grave', 'closed', 'key', 'log', 'owner', 'catalog', 'trail')"


def upgrade() -> None:
    """The kinds of objects stand in a check, which SQLite changes in no other way than by making the table anew."""
    with op.batch_alter_table("object") as table:
        table.drop_constraint(op.f("ck_object_kind"), type_="check")
        table.create_check_constraint(op.f("ck_object_kind"), _KINDS)
    op.add_column("part", sa.Column("log_stream", sa.Text(), nullable=True))
    op.add_column("part", sa.Column("log_order", sa.BigInteger(), nullable=True))
    op.add_column("part", sa.Column("log_at", sa.Double(), nullable=True))
    op.add_column("part", sa.Column("log_chain", sa.BigInteger(), nullable=True))
    op.create_table(
        "recording",
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("interval", sa.Integer(), nullable=False),
        sa.Column("keep_days", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("chains", sa.BigInteger(), nullable=False),
        sa.Column("lineage", sa.Text(), nullable=True),
        sa.Column("chain", sa.BigInteger(), nullable=True),
        sa.Column("began", sa.BigInteger(), nullable=True),
        sa.Column("stream", sa.Text(), nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("reached_at", sa.Double(), nullable=True),
        sa.Column("asked_at", sa.Double(), nullable=True),
        sa.Column("trouble", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["instance"], ["instance.id"], name=op.f("fk_recording_instance_instance")),
        sa.PrimaryKeyConstraint("instance", name=op.f("pk_recording")),
    )
    op.create_table(
        "segment",
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("chain", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("upto", sa.BigInteger(), nullable=False),
        sa.Column("piece", sa.Integer(), nullable=False),
        sa.Column("begin_at", sa.Double(), nullable=False),
        sa.Column("end_at", sa.Double(), nullable=False),
        sa.Column("plain_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["lineage"], ["lineage.id"], name=op.f("fk_segment_lineage_lineage")),
        sa.ForeignKeyConstraint(["object"], ["object.id"], name=op.f("fk_segment_object_object")),
        sa.PrimaryKeyConstraint("object", name=op.f("pk_segment")),
    )
    op.create_index("ix_segment_chain", "segment", ["lineage", "chain", "upto"], unique=False)
