"""Deletions that can be called back, or need another user's word: a project's policy, and what is pending."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_STATES = "state IN ('BUILDING', 'COMPLETED', 'FAILED', 'PENDING', 'DELETING', 'DELETED')"

# SQLite changes a check in no other way than by making the table anew. Written out, since what was added to the table by hand
# (0002) stays a part of it.
_BACKUP = f"""
CREATE TABLE backup_anew (
    id TEXT NOT NULL,
    project TEXT NOT NULL,
    instance TEXT NOT NULL,
    instance_name TEXT NOT NULL,
    engine TEXT NOT NULL,
    engine_version TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    origin TEXT NOT NULL,
    scope TEXT NOT NULL,
    state TEXT NOT NULL,
    version BIGINT NOT NULL,
    begin_at DOUBLE NOT NULL,
    end_at DOUBLE,
    plain_bytes BIGINT NOT NULL,
    fail_reason TEXT,
    held TEXT,
    held_kind TEXT,
    held_by TEXT,
    held_at DOUBLE,
    held_until DOUBLE,
    CONSTRAINT pk_backup PRIMARY KEY (id),
    CONSTRAINT ck_backup_held_kind CHECK (held_kind IN ('legal', 'pin', 'recovered')),
    CONSTRAINT ck_backup_origin CHECK (origin IN ('Auto', 'Manual')),
    CONSTRAINT ck_backup_state CHECK ({_STATES})
)
"""
_COLUMNS = (
    "id, project, instance, instance_name, engine, engine_version, name, description, origin, scope, state, version, begin_at, "
    "end_at, plain_bytes, fail_reason, held, held_kind, held_by, held_at, held_until"
)


def upgrade() -> None:
    """A backup's state PENDING, and two tables."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(_BACKUP)
        op.execute(f"INSERT INTO backup_anew ({_COLUMNS}) SELECT {_COLUMNS} FROM backup")  # noqa: S608
        op.execute("DROP TABLE backup")
        op.execute("ALTER TABLE backup_anew RENAME TO backup")
        op.create_index(op.f("ix_backup_instance"), "backup", ["instance"], unique=False)
        op.create_index("ix_backup_list", "backup", ["project", "begin_at"], unique=False)
    else:
        op.drop_constraint(op.f("ck_backup_state"), "backup", type_="check")
        op.create_check_constraint(op.f("ck_backup_state"), "backup", _STATES)
    op.create_table(
        "deletion_policy",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("undelete_hours", sa.Integer(), nullable=False),
        sa.Column("second_person", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("project", name=op.f("pk_deletion_policy")),
    )
    op.create_table(
        "pending_deletion",
        sa.Column("backup", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("asked_by", sa.Text(), nullable=True),
        sa.Column("asked_name", sa.Text(), nullable=True),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.Column("lapses", sa.Double(), nullable=True),
        sa.Column("approved_by", sa.Text(), nullable=True),
        sa.Column("approved_name", sa.Text(), nullable=True),
        sa.Column("approved_at", sa.Double(), nullable=True),
        sa.Column("thorough", sa.Boolean(), nullable=False),
        sa.CheckConstraint("before IN ('COMPLETED', 'FAILED')", name=op.f("ck_pending_deletion_before")),
        sa.ForeignKeyConstraint(["backup"], ["backup.id"], name=op.f("fk_pending_deletion_backup_backup")),
        sa.PrimaryKeyConstraint("backup", name=op.f("pk_pending_deletion")),
    )
    op.create_index(op.f("ix_pending_deletion_project"), "pending_deletion", ["project"], unique=False)
