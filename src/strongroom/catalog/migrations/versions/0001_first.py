"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Every table of the catalog and of identity."""
    op.create_table(
        "account",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account")),
        sa.UniqueConstraint("name", name=op.f("uq_account_name")),
    )
    op.create_table(
        "audit",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("project", sa.Text(), nullable=True),
        sa.Column("user", sa.Text(), nullable=True),
        sa.Column("user_name", sa.Text(), nullable=True),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("resource_type", sa.Text(), nullable=False),
        sa.Column("resource_id", sa.Text(), nullable=False),
        sa.Column("resource_name", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("previous", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.CheckConstraint("level IN ('Normal', 'Major')", name=op.f("ck_audit_level")),
        sa.CheckConstraint("outcome IN ('OK', 'FAILED', 'REFUSED')", name=op.f("ck_audit_outcome")),
        sa.PrimaryKeyConstraint("account", "sequence", name=op.f("pk_audit")),
        sa.UniqueConstraint("id", name=op.f("uq_audit_id")),
    )
    op.create_index("ix_audit_project", "audit", ["project", "at"], unique=False)
    op.create_index("ix_audit_resource", "audit", ["resource_id"], unique=False)
    op.create_table(
        "audit_head",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("account", name=op.f("pk_audit_head")),
    )
    op.create_table(
        "backup",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("instance_name", sa.Text(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("engine_version", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("begin_at", sa.Double(), nullable=False),
        sa.Column("end_at", sa.Double(), nullable=True),
        sa.Column("plain_bytes", sa.BigInteger(), nullable=False),
        sa.Column("fail_reason", sa.Text(), nullable=True),
        sa.Column("held", sa.Text(), nullable=True),
        sa.CheckConstraint("origin IN ('Auto', 'Manual')", name=op.f("ck_backup_origin")),
        sa.CheckConstraint("state IN ('BUILDING', 'COMPLETED', 'FAILED', 'DELETING', 'DELETED')", name=op.f("ck_backup_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backup")),
    )
    op.create_index(op.f("ix_backup_instance"), "backup", ["instance"], unique=False)
    op.create_index("ix_backup_list", "backup", ["project", "begin_at"], unique=False)
    op.create_table(
        "installation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("owner", sa.BigInteger(), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("snapshot", sa.BigInteger(), nullable=False),
        sa.Column("snapshot_digest", sa.Text(), nullable=False),
        sa.Column("snapshot_events", sa.BigInteger(), nullable=False),
        sa.Column("snapshot_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
    )
    op.create_table(
        "instance",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=True),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.CheckConstraint("state IN ('REGISTERED', 'REMOVED')", name=op.f("ck_instance_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
    )
    op.create_index(op.f("ix_instance_project"), "instance", ["project"], unique=False)
    op.create_index(
        "uq_instance_name_registered",
        "instance",
        ["project", "name"],
        unique=True,
        sqlite_where=sa.text("state = 'REGISTERED'"),
        postgresql_where=sa.text("state = 'REGISTERED'"),
    )
    op.create_table(
        "job",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("args", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=True),
        sa.Column("instance", sa.Text(), nullable=True),
        sa.Column("backup", sa.Text(), nullable=True),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=True),
        sa.Column("unique_key", sa.Text(), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("run_after", sa.Double(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=True),
        sa.Column("cancel_asked", sa.Boolean(), nullable=False),
        sa.Column("deadline", sa.Double(), nullable=True),
        sa.Column("progress", sa.Text(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.CheckConstraint("state IN ('QUEUED', 'RUNNING', 'DONE', 'FAILED', 'CANCELLED')", name=op.f("ck_job_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
    )
    op.create_index("ix_job_backup", "job", ["backup"], unique=False)
    op.create_index("ix_job_claim", "job", ["state", "queue", "priority", "created_at"], unique=False)
    op.create_index("ix_job_instance", "job", ["instance"], unique=False)
    op.create_index("ix_job_project", "job", ["project", "created_at"], unique=False)
    op.create_index(
        "uq_job_serial_running",
        "job",
        ["serial"],
        unique=True,
        sqlite_where=sa.text("state = 'RUNNING'"),
        postgresql_where=sa.text("state = 'RUNNING'"),
    )
    op.create_index(
        "uq_job_unique_active",
        "job",
        ["unique_key"],
        unique=True,
        sqlite_where=sa.text("state IN ('QUEUED', 'RUNNING')"),
        postgresql_where=sa.text("state IN ('QUEUED', 'RUNNING')"),
    )
    op.create_table(
        "backup_policy",
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("keep_days", sa.Integer(), nullable=False),
        sa.Column("start_time", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("last_window", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["instance"], ["instance.id"], name=op.f("fk_backup_policy_instance_instance")),
        sa.PrimaryKeyConstraint("instance", name=op.f("pk_backup_policy")),
    )
    op.create_table(
        "limits",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("bytes_per_second", sa.BigInteger(), nullable=True),
        sa.Column("jobs", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_limits")),
    )
    op.create_table(
        "lineage",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("chunk_average", sa.Integer(), nullable=False),
        sa.Column("pack_target", sa.Integer(), nullable=False),
        sa.Column("sealed_keys", sa.LargeBinary(), nullable=True),
        sa.Column("stopped", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('OPEN', 'CLOSED')", name=op.f("ck_lineage_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lineage")),
    )
    op.create_index(op.f("ix_lineage_instance"), "lineage", ["instance"], unique=False)
    op.create_index(
        "uq_lineage_open",
        "lineage",
        ["instance", "scope", "node"],
        unique=True,
        sqlite_where=sa.text("state = 'OPEN'"),
        postgresql_where=sa.text("state = 'OPEN'"),
    )
    op.create_table(
        "object",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("live", sa.BigInteger(), nullable=False),
        sa.Column("dead_bytes", sa.BigInteger(), nullable=False),
        sa.Column("marked_by", sa.BigInteger(), nullable=True),
        sa.Column("marked_bytes", sa.BigInteger(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("late", sa.Boolean(), nullable=False),
        sa.Column("removal", sa.Text(), nullable=True),
        sa.Column("rewriting", sa.Text(), nullable=True),
        sa.Column("closing", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "kind IN ('pack', 'manifest', 'rewrite', 'grave', 'closed', 'key', 'owner', 'catalog', 'trail')",
            name=op.f("ck_object_kind"),
        ),
        sa.CheckConstraint("state IN ('PLANNED', 'STORED', 'CONDEMNED', 'LATE')", name=op.f("ck_object_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_object")),
        sa.UniqueConstraint("name", name=op.f("uq_object_name")),
    )
    op.create_index(
        "ix_object_dead",
        "object",
        ["lineage", "dead_bytes"],
        unique=False,
        sqlite_where=sa.text("dead_bytes > 0"),
        postgresql_where=sa.text("dead_bytes > 0"),
    )
    op.create_index("ix_object_lineage", "object", ["lineage", "kind", "seq"], unique=False)
    op.create_index("ix_object_removal", "object", ["removal", "state"], unique=False)
    op.create_index(
        "ix_object_rewriting",
        "object",
        ["rewriting"],
        unique=False,
        sqlite_where=sa.text("rewriting IS NOT NULL"),
        postgresql_where=sa.text("rewriting IS NOT NULL"),
    )
    op.create_table(
        "quota",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("allowed", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('instance', 'backup', 'stored_bytes')", name=op.f("ck_quota_kind")),
        sa.PrimaryKeyConstraint("project", "kind", name=op.f("pk_quota")),
    )
    op.create_table(
        "recycle_policy",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("days", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project", name=op.f("pk_recycle_policy")),
    )
    op.create_table(
        "webhook",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook")),
    )
    op.create_index("uq_webhook_name", "webhook", ["project", "name"], unique=True)
    op.create_table(
        "notification_receiver",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("delivered", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("given_up", sa.BigInteger(), nullable=False),
        sa.Column("dropped", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("resting_until", sa.Double(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("last_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notification_receiver")),
    )
    op.create_table(
        "backup_age",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("hours", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_backup_age")),
    )
    op.create_table(
        "backup_overdue",
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("told_at", sa.Double(), nullable=False),
        sa.Column("newest", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["instance"], ["instance.id"], name=op.f("fk_backup_overdue_instance_instance")),
        sa.PrimaryKeyConstraint("instance", name=op.f("pk_backup_overdue")),
    )
    op.create_table(
        "schedule",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("args", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=True),
        sa.Column("every", sa.Double(), nullable=False),
        sa.Column("next_due", sa.Double(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_schedule")),
    )
    op.create_table(
        "trail",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trail")),
    )
    op.create_index("uq_trail_account_last", "trail", ["account", "last"], unique=True)
    op.create_table(
        "decision",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("backup", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("before", sa.BigInteger(), nullable=False),
        sa.Column("after", sa.BigInteger(), nullable=True),
        sa.Column("removal", sa.Text(), nullable=False),
        sa.Column("swept", sa.Boolean(), nullable=False),
        sa.Column("undecided", sa.BigInteger(), nullable=False),
        sa.Column("undecided_upto", sa.BigInteger(), nullable=False),
        sa.Column("settled", sa.Boolean(), nullable=False),
        sa.Column("settled_freed", sa.BigInteger(), nullable=False),
        sa.Column("settled_waiting", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("cause IN ('DELETE', 'FAIL', 'COMMIT')", name=op.f("ck_decision_cause")),
        sa.ForeignKeyConstraint(["lineage"], ["lineage.id"], name=op.f("fk_decision_lineage_lineage")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decision")),
    )
    op.create_index(op.f("ix_decision_backup"), "decision", ["backup"], unique=False)
    op.create_index("ix_decision_unsettled", "decision", ["lineage", "settled"], unique=False)
    op.create_index("ix_decision_unswept", "decision", ["lineage", "swept"], unique=False)
    op.create_table(
        "deletion",
        sa.Column("backup", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("at_version", sa.Text(), nullable=False),
        sa.Column("owned", sa.BigInteger(), nullable=False),
        sa.Column("promised_freed", sa.BigInteger(), nullable=False),
        sa.Column("promised_waiting", sa.BigInteger(), nullable=False),
        sa.Column("promised_undecided", sa.BigInteger(), nullable=False),
        sa.Column("promised_objects", sa.BigInteger(), nullable=False),
        sa.Column("thorough", sa.Boolean(), nullable=False),
        sa.Column("promised_rewrite", sa.BigInteger(), nullable=False),
        sa.Column("freed", sa.BigInteger(), nullable=False),
        sa.Column("waiting", sa.BigInteger(), nullable=False),
        sa.Column("removed_objects", sa.BigInteger(), nullable=False),
        sa.Column("hidden", sa.BigInteger(), nullable=False),
        sa.Column("put_bytes", sa.BigInteger(), nullable=False),
        sa.Column("rewrite_read", sa.BigInteger(), nullable=False),
        sa.Column("rewrite_written", sa.BigInteger(), nullable=False),
        sa.Column("rewrite_dropped", sa.BigInteger(), nullable=False),
        sa.Column("verified", sa.Text(), nullable=True),
        sa.Column("accepted_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("fail_reason", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('RUNNING', 'FAILED', 'DONE')", name=op.f("ck_deletion_state")),
        sa.ForeignKeyConstraint(["backup"], ["backup.id"], name=op.f("fk_deletion_backup_backup")),
        sa.PrimaryKeyConstraint("backup", name=op.f("pk_deletion")),
    )
    op.create_index(op.f("ix_deletion_project"), "deletion", ["project"], unique=False)
    op.create_table(
        "holding",
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("pack", sa.BigInteger(), nullable=False),
        sa.Column("numbers", sa.LargeBinary(), nullable=True),
        sa.Column("sizes", sa.LargeBinary(), nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["object"], ["object.id"], name=op.f("fk_holding_object_object")),
        sa.PrimaryKeyConstraint("object", "lineage", "pack", name=op.f("pk_holding")),
    )
    op.create_index("ix_holding_pack", "holding", ["lineage", "pack"], unique=False)
    op.create_table(
        "pack",
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("born", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("stored", sa.Boolean(), nullable=False),
        sa.Column("chunks", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("gone", sa.LargeBinary(), nullable=True),
        sa.Column("gone_bytes", sa.BigInteger(), nullable=False),
        sa.Column("suspect", sa.LargeBinary(), nullable=True),
        sa.Column("moved", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["lineage"], ["lineage.id"], name=op.f("fk_pack_lineage_lineage")),
        sa.PrimaryKeyConstraint("lineage", "id", name=op.f("pk_pack")),
    )
    op.create_index("ix_pack_born", "pack", ["lineage", "born"], unique=False)
    op.create_table(
        "part",
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("backup", sa.Text(), nullable=False),
        sa.Column("parent", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("committed", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("root", sa.Text(), nullable=True),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("plain_bytes", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("adopted_bytes", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('BUILDING', 'COMPLETED', 'RETIRED')", name=op.f("ck_part_state")),
        sa.ForeignKeyConstraint(["backup"], ["backup.id"], name=op.f("fk_part_backup_backup")),
        sa.ForeignKeyConstraint(["lineage"], ["lineage.id"], name=op.f("fk_part_lineage_lineage")),
        sa.PrimaryKeyConstraint("lineage", "seq", name=op.f("pk_part")),
    )
    op.create_index(op.f("ix_part_backup"), "part", ["backup"], unique=False)
    op.create_index(
        "ix_part_chain",
        "part",
        ["lineage", "seq"],
        unique=True,
        sqlite_where=sa.text("state <> 'RETIRED'"),
        postgresql_where=sa.text("state <> 'RETIRED'"),
    )
    op.create_table(
        "policy",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name=op.f("fk_policy_account_account")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy")),
    )
    op.create_index("uq_policy_name", "policy", ["account", "name"], unique=True)
    op.create_table(
        "project",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name=op.f("fk_project_account_account")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_project")),
    )
    op.create_index("uq_project_name", "project", ["account", "name"], unique=True)
    op.create_table(
        "user",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("password", sa.Text(), nullable=True),
        sa.Column("administrator", sa.Boolean(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("wrong", sa.Integer(), nullable=False),
        sa.Column("locked_until", sa.Double(), nullable=True),
        sa.Column("totp", sa.LargeBinary(), nullable=True),
        sa.Column("totp_confirmed", sa.Boolean(), nullable=False),
        sa.Column("totp_last", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name=op.f("fk_user_account_account")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user")),
    )
    op.create_index("uq_user_name", "user", ["account", "name"], unique=True)
    op.create_table(
        "access_key",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("wrong", sa.Integer(), nullable=False),
        sa.Column("locked_until", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("session", sa.Text(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("mfa_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["user"], ["user.id"], name=op.f("fk_access_key_user_user")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_key")),
    )
    op.create_index(op.f("ix_access_key_expires_at"), "access_key", ["expires_at"], unique=False)
    op.create_index(op.f("ix_access_key_user"), "access_key", ["user"], unique=False)
    op.create_table(
        "death",
        sa.Column("lineage", sa.Text(), nullable=False),
        sa.Column("pack", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("closer", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("born", sa.BigInteger(), nullable=False),
        sa.Column("numbers", sa.LargeBinary(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["lineage", "pack"], ["pack.lineage", "pack.id"], name=op.f("fk_death_lineage_pack")),
        sa.PrimaryKeyConstraint("lineage", "pack", "last", "closer", "attempt", name=op.f("pk_death")),
    )
    op.create_index("ix_death_lifespan", "death", ["lineage", "born", "last", "pack"], unique=False)
    op.create_table(
        "token",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=True),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("issued_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.Column("mfa_at", sa.Double(), nullable=True),
        sa.CheckConstraint("method IN ('password', 'token')", name=op.f("ck_token_method")),
        sa.ForeignKeyConstraint(["project"], ["project.id"], name=op.f("fk_token_project_project")),
        sa.ForeignKeyConstraint(["user"], ["user.id"], name=op.f("fk_token_user_user")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_token")),
    )
    op.create_index(op.f("ix_token_expires_at"), "token", ["expires_at"], unique=False)
    op.create_index(op.f("ix_token_user"), "token", ["user"], unique=False)
    op.create_table(
        "user_group",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name=op.f("fk_user_group_account_account")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_group")),
    )
    op.create_index("uq_user_group_name", "user_group", ["account", "name"], unique=True)
    op.create_table(
        "membership",
        sa.Column("group", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["group"], ["user_group.id"], name=op.f("fk_membership_group_user_group")),
        sa.ForeignKeyConstraint(["user"], ["user.id"], name=op.f("fk_membership_user_user")),
        sa.PrimaryKeyConstraint("group", "user", name=op.f("pk_membership")),
    )
    op.create_index(op.f("ix_membership_user"), "membership", ["user"], unique=False)
    op.create_table(
        "policy_grant",
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("holder", "policy", "project", name=op.f("pk_policy_grant")),
    )
