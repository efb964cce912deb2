"""The catalog's tables. The catalog is the only place that decides; each row's meaning stands here once.

Bytes are stored object bytes or sealed chunk bytes, never plain bytes, but for columns named `plain_*`. Times are seconds
since the epoch, UTC. Sets of chunk numbers are portable Roaring bitmaps.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, Column, Double, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def one_of(column: str, *words: str) -> sa.CheckConstraint:
    listed = ", ".join(f"'{word}'" for word in words)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=column)


# What this catalog knows of its store and of itself (one row).
installation = Table(
    "installation",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("owner", BigInteger, nullable=False),  # k of the newest owner/<k> object that this catalog put
    Column("incarnation", Text, nullable=False),  # equal to the incarnation file, or the database was restored or promoted
    Column("created_at", Double, nullable=False),
    Column("snapshot", BigInteger, nullable=False, default=0),  # n of the newest catalog/<k>.<n> that was planned
    Column("snapshot_digest", Text, nullable=False, default=""),  # of what it holds
    Column("snapshot_events", BigInteger, nullable=False, default=0),  # audit rows there were when the catalog was last compared
    Column("snapshot_at", Double, nullable=True),  # when it was last compared with its newest snapshot; NULL: never
)

instance = Table(
    "instance",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project", Text, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("address", Text, nullable=False),  # a URL without password
    Column("secret", LargeBinary, nullable=True),  # password and options (backups/credentials.py), sealed under the root key
    Column("mode", Text, nullable=False),
    Column("version", Text, nullable=False),  # the engine's, as last probed
    Column("state", Text, nullable=False),
    Column("labels", Text, nullable=False),  # JSON object; the API's tags
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),  # of a removed one: when it was removed
    one_of("state", "REGISTERED", "REMOVED"),
)
Index(
    "uq_instance_name_registered",
    instance.c.project,
    instance.c.name,
    unique=True,
    sqlite_where=sa.text("state = 'REGISTERED'"),
    postgresql_where=sa.text("state = 'REGISTERED'"),
)

# What a project may use at most; no row is no limit. Its row is the lock under which the use is counted: the first that a
# transaction takes.
quota = Table(
    "quota",
    metadata,
    Column("project", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("allowed", BigInteger, nullable=False),
    one_of("kind", "instance", "backup", "stored_bytes"),
)

# For how many days a project's unregistered instances stay in its recycle bin; no row is the default.
recycle_policy = Table(
    "recycle_policy",
    metadata,
    Column("project", Text, primary_key=True),
    Column("days", Integer, nullable=False),
)

# What a project's deletions wait for before they are decided; no row: nothing, they are decided at once.
deletion_policy = Table(
    "deletion_policy",
    metadata,
    Column("project", Text, primary_key=True),
    Column("undelete_hours", Integer, nullable=False),  # for so long each can be called back; 0: it cannot
    Column("second_person", Boolean, nullable=False),  # each needs another user's word
)

# Automated backups of an instance. No row: they are off.
backup_policy = Table(
    "backup_policy",
    metadata,
    Column("instance", Text, ForeignKey("instance.id"), primary_key=True),
    Column("keep_days", Integer, nullable=False),  # 1 … 35
    Column("start_time", Text, nullable=False),  # the window: "hh:mm-HH:MM", one hour, UTC
    Column("period", Text, nullable=False),  # days of the week on which it begins: "1,2,…,7", 1 is Monday
    Column("last_window", Double, nullable=False),  # begin of the newest window that has its backup, or that does not count
    Column("updated_at", Double, nullable=False),
)

# Points in time of an instance: whether its log of changes is recorded between backups, and where that stands. No row: it never
# was.
recording = Table(
    "recording",
    metadata,
    Column("instance", Text, ForeignKey("instance.id"), primary_key=True),
    Column("enabled", Boolean, nullable=False),
    Column("interval", Integer, nullable=False),  # minutes: at most so much is not in the store yet
    Column("keep_days", Integer, nullable=False),  # for how long moments can be restored
    Column("updated_at", Double, nullable=False),
    Column("chains", BigInteger, nullable=False),  # the last number given to a stretch of log without a hole; never goes back
    Column("lineage", Text, nullable=True),  # … where the newest one goes on; NULL, as the next five: it has to begin anew
    Column("chain", BigInteger, nullable=True),
    Column("began", BigInteger, nullable=True),  # the mark that it begins at, as part.log_order
    Column("stream", Text, nullable=True),
    Column("position", BigInteger, nullable=True),
    Column("reached_at", Double, nullable=True),  # when the source held what the log up to there leads to
    Column("asked_at", Double, nullable=True),  # when it last took a backup by itself, to begin after
    Column("trouble", Text, nullable=True),  # why it does not go on, for people; NULL: it does
)

# How kind captures are to their sources; without a row the defaults hold.
limits = Table(
    "limits",
    metadata,
    Column("subject", Text, primary_key=True),  # an instance's id, or "worker": each worker process
    Column("bytes_per_second", BigInteger, nullable=True),  # that captures take from sources; NULL: as fast as they come
    Column("jobs", Integer, nullable=True),  # backups and restores at once in a worker; NULL: as many as it has threads
)

# Where a project's administrator wants to be told.
webhook = Table(
    "webhook",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),  # without user and password
    Column("events", Text, nullable=False),  # "all", or some: "backup_failed,deletion_failed,…"
    Column("secret", LargeBinary, nullable=False),  # what deliveries are signed with, sealed under the root key
    Column("created_at", Double, nullable=False),
)
Index("uq_webhook_name", webhook.c.project, webhook.c.name, unique=True)

# What is known of a receiver. Counts only grow.
notification_receiver = Table(
    "notification_receiver",
    metadata,
    Column("id", Text, primary_key=True),  # a webhook's id, or "command": the operator's
    Column("delivered", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),  # tries that failed; most of them are followed by others
    Column("given_up", BigInteger, nullable=False),  # events that it was never told, after many tries
    Column("dropped", BigInteger, nullable=False),  # events that were not queued, since too many waited
    Column("failures", Integer, nullable=False),  # in a row, up to now
    Column("resting_until", Double, nullable=False),  # it is not tried before; 0: it may be
    Column("last_error", Text, nullable=True),  # why the last try failed; NULL: it did not
    Column("last_at", Double, nullable=True),  # of the last try
)

# After how many hours without a good backup is told of it. Without a row the next wider one holds.
backup_age = Table(
    "backup_age",
    metadata,
    Column("subject", Text, primary_key=True),  # an instance's id, or a project's
    Column("hours", Double, nullable=True),  # NULL: it is never told
)

# Instances of which it was told that they have no good backup, and not yet that they have one again.
backup_overdue = Table(
    "backup_overdue",
    metadata,
    Column("instance", Text, ForeignKey("instance.id"), primary_key=True),
    Column("told_at", Double, nullable=False),
    Column("newest", Double, nullable=True),  # when its newest good backup had ended then; NULL: it had none
)

lineage = Table(
    "lineage",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("instance", Text, nullable=False, index=True),
    Column("scope", Text, nullable=False),  # "" is the whole instance, else the JSON list of its tables
    Column("node", Text, nullable=False),  # "" where there is one server
    Column("state", Text, nullable=False),
    Column("counter", BigInteger, nullable=False),  # the last seq given away; never goes back
    Column("version", BigInteger, nullable=False),  # moves with every decision; what a preview carries
    Column("chunk_average", Integer, nullable=False),  # bytes, chosen at the first backup and kept
    Column("pack_target", Integer, nullable=False),  # sealed bytes
    Column("sealed_keys", LargeBinary, nullable=True),  # as in the key objects; NULL once closed
    Column("stopped", Text, nullable=True),  # why nothing may be freed here, e.g. the catalog is older than the store
    one_of("state", "OPEN", "CLOSED"),
)
Index(
    "uq_lineage_open",
    lineage.c.instance,
    lineage.c.scope,
    lineage.c.node,
    unique=True,
    sqlite_where=sa.text("state = 'OPEN'"),
    postgresql_where=sa.text("state = 'OPEN'"),
)

backup = Table(
    "backup",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("instance", Text, nullable=False, index=True),
    Column("instance_name", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("engine_version", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("origin", Text, nullable=False),  # the API's type in answers
    Column("scope", Text, nullable=False),  # as lineage.scope
    Column("state", Text, nullable=False),
    Column("version", BigInteger, nullable=False),  # its lock: UPDATE … SET version = version + 1
    Column("begin_at", Double, nullable=False),
    Column("end_at", Double, nullable=True),
    Column("plain_bytes", BigInteger, nullable=False),
    Column("fail_reason", Text, nullable=True),
    Column("held", Text, nullable=True),  # why it must not go; NULL is not held, and then the next four are NULL too
    Column("held_kind", Text, nullable=True),
    Column("held_by", Text, nullable=True),  # the name of the user who said so; NULL: the service itself
    Column("held_at", Double, nullable=True),  # NULL also of what 0.1.0 held
    Column("held_until", Double, nullable=True),  # from then on it may go; NULL: until it is released
    one_of("held_kind", "legal", "pin", "recovered"),
    one_of("origin", "Auto", "Manual"),
    one_of("state", "BUILDING", "COMPLETED", "FAILED", "PENDING", "DELETING", "DELETED"),
)
Index("ix_backup_list", backup.c.project, backup.c.begin_at)
VISIBLE = ("BUILDING", "COMPLETED", "FAILED")
"""States of backups that lists show."""
PRESENT = (*VISIBLE, "PENDING")
"""States of backups of which nothing is decided: a pending deletion can still be called back."""

part = Table(
    "part",
    metadata,
    Column("lineage", Text, ForeignKey("lineage.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("backup", Text, ForeignKey("backup.id"), nullable=False, index=True),
    Column("parent", BigInteger, nullable=False),  # seq of the chain's head at its beginning, 0 for none
    Column("attempt", BigInteger, nullable=False),  # raised by take-over, stop and failure: the fence
    Column("committed", BigInteger, nullable=True),  # the attempt that committed: makes its rows ahead count
    Column("state", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("root", Text, nullable=True),  # object id of its manifest
    Column("entries", BigInteger, nullable=False),
    Column("plain_bytes", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),  # what it put, packs and manifest
    Column("adopted_bytes", BigInteger, nullable=False),  # sealed bytes of the parent's chunks that it names
    Column("log_stream", Text, nullable=True),  # where in its source's log it stands; NULL, as the next two: it cannot be said
    Column("log_order", BigInteger, nullable=True),
    Column("log_at", Double, nullable=True),  # the moment that it shows
    Column("log_chain", BigInteger, nullable=True),  # the stretch of log that goes on from it; 0: cut off; NULL: none yet
    one_of("state", "BUILDING", "COMPLETED", "RETIRED"),
)
Index(
    "ix_part_chain",
    part.c.lineage,
    part.c.seq,
    unique=True,
    sqlite_where=sa.text("state <> 'RETIRED'"),
    postgresql_where=sa.text("state <> 'RETIRED'"),
)

pack = Table(
    "pack",
    metadata,
    Column("lineage", Text, ForeignKey("lineage.id"), primary_key=True),
    Column("id", BigInteger, primary_key=True),
    Column("born", BigInteger, nullable=False),  # seq of the part that wrote it; never rewritten
    Column("attempt", BigInteger, nullable=False),
    Column("stored", Boolean, nullable=False),  # its first object is durable: it may be shared
    Column("chunks", Integer, nullable=False),  # numbered 0 … chunks-1; 0 while planned
    Column("bytes", BigInteger, nullable=False),  # sealed bytes of all its chunks
    Column("gone", LargeBinary, nullable=True),  # numbers freed; NULL is none
    Column("gone_bytes", BigInteger, nullable=False),
    Column("suspect", LargeBinary, nullable=True),  # numbers found damaged: never shared again
    Column("moved", Boolean, nullable=False),  # rewriting has moved its chunks: what dies is counted object by object
)
Index("ix_pack_born", pack.c.lineage, pack.c.born)

death = Table(
    "death",
    metadata,
    Column("lineage", Text, primary_key=True),
    Column("pack", BigInteger, primary_key=True),
    Column("last", BigInteger, primary_key=True),  # the head stopped needing the numbers after this part
    Column("closer", BigInteger, primary_key=True),  # the part whose commit said so: counts once closer.committed = attempt
    Column("attempt", BigInteger, primary_key=True),
    Column("born", BigInteger, nullable=False),
    Column("numbers", LargeBinary, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["lineage", "pack"], ["pack.lineage", "pack.id"]),
)
Index("ix_death_lifespan", death.c.lineage, death.c.born, death.c.last, death.c.pack)

# A gap that opened in a chain: what lived from after `before` over `seq` to before `after` is dead. Swept in order of id.
decision = Table(
    "decision",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("lineage", Text, ForeignKey("lineage.id"), nullable=False),
    Column("cause", Text, nullable=False),
    Column("backup", Text, nullable=False, index=True),
    Column("seq", BigInteger, nullable=False),  # the part that left, or (COMMIT) the one that ended with its parent gone
    Column("before", BigInteger, nullable=False),  # neighbours in the chain when it was decided; 0 is none
    Column("after", BigInteger, nullable=True),  # NULL is none: it was the head
    Column("removal", Text, nullable=False),  # what removes the objects that the sweep condemns, as in object.removal
    Column("swept", Boolean, nullable=False),
    Column("undecided", BigInteger, nullable=False),  # bytes that the build `after` may still adopt
    Column("undecided_upto", BigInteger, nullable=False),  # … in packs born in (before, undecided_upto]
    Column("settled", Boolean, nullable=False),  # False while that build runs
    Column("settled_freed", BigInteger, nullable=False),
    Column("settled_waiting", BigInteger, nullable=False),
    one_of("cause", "DELETE", "FAIL", "COMMIT"),
)
Index("ix_decision_unswept", decision.c.lineage, decision.c.swept)
Index("ix_decision_unsettled", decision.c.lineage, decision.c.settled)

# A deletion that is asked for and not decided yet: its backup is PENDING, and all that it owns is where it was.
pending_deletion = Table(
    "pending_deletion",
    metadata,
    Column("backup", Text, ForeignKey("backup.id"), primary_key=True),
    Column("project", Text, nullable=False, index=True),
    Column("job", Text, nullable=False),  # decides it when its time has come, and carries it out
    Column("before", Text, nullable=False),  # the backup's state, and what it is again if this is called back
    Column("asked_by", Text, nullable=True),  # a user's id; NULL: the service itself
    Column("asked_name", Text, nullable=True),
    Column("asked_at", Double, nullable=False),
    Column("until", Double, nullable=False),  # it is decided then at the soonest
    Column("lapses", Double, nullable=True),  # it ends if nobody has approved it by then; NULL: it needs nobody's word
    Column("approved_by", Text, nullable=True),
    Column("approved_name", Text, nullable=True),
    Column("approved_at", Double, nullable=True),
    Column("thorough", Boolean, nullable=False),
    one_of("before", "COMPLETED", "FAILED"),
)

# What a delete promised and did; found by backup id for ever.
deletion = Table(
    "deletion",
    metadata,
    Column("backup", Text, ForeignKey("backup.id"), primary_key=True),
    Column("project", Text, nullable=False, index=True),
    Column("job", Text, nullable=False),  # the newest of its jobs
    Column("state", Text, nullable=False),
    Column("at_version", Text, nullable=False),  # the preview's version that it was accepted at
    Column("owned", BigInteger, nullable=False),
    Column("promised_freed", BigInteger, nullable=False),
    Column("promised_waiting", BigInteger, nullable=False),
    Column("promised_undecided", BigInteger, nullable=False),
    Column("promised_objects", BigInteger, nullable=False),
    Column("thorough", Boolean, nullable=False),  # rewrites all that waits in its lineages, whatever it costs
    Column("promised_rewrite", BigInteger, nullable=False),  # what that was said to cost; 0 for one within the budget
    Column("freed", BigInteger, nullable=False),  # bytes of objects removed and looked up to be gone
    Column("waiting", BigInteger, nullable=False),  # bytes marked dead inside objects that live on
    Column("removed_objects", BigInteger, nullable=False),
    Column("hidden", BigInteger, nullable=False),  # of `freed`: bytes that a versioning store keeps behind a 404
    Column("put_bytes", BigInteger, nullable=False),  # graves, closing marks and rewritten objects that it put
    Column("rewrite_read", BigInteger, nullable=False),
    Column("rewrite_written", BigInteger, nullable=False),
    Column("rewrite_dropped", BigInteger, nullable=False),  # bytes of the objects that rewriting replaced
    Column("verified", Text, nullable=True),  # JSON: what the check after it read and found; NULL: none was made
    Column("accepted_at", Double, nullable=False),
    Column("finished_at", Double, nullable=True),
    Column("fail_reason", Text, nullable=True),
    one_of("state", "RUNNING", "FAILED", "DONE"),
)

object_ = Table(
    "object",
    metadata,
    Column("id", Text, primary_key=True),
    Column("lineage", Text, nullable=False),  # "" for owner/<k>, snapshots of the catalog, and the audit trail's segments
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False, unique=True),
    Column("state", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),  # stored; 0 while planned
    Column("live", BigInteger, nullable=False),  # chunks in it that are not gone
    Column("dead_bytes", BigInteger, nullable=False),  # sealed bytes of chunks in it that are gone: waiting
    Column("marked_by", BigInteger, nullable=True),  # the decision whose sweep marked chunks in it dead last
    Column("marked_bytes", BigInteger, nullable=True),  # … and how many of dead_bytes that were
    Column("seq", BigInteger, nullable=False),  # of the part or grave that it belongs to, the number of a snapshot; 0 for none
    Column("attempt", BigInteger, nullable=False),  # of a snapshot: its owner's number
    Column("late", Boolean, nullable=False),  # a put of it may still arrive: was PLANNED when condemned, or retried
    Column("removal", Text, nullable=True),  # what removes it once condemned: "delete:<backup>" or "job:<id>"
    Column("rewriting", Text, nullable=True),  # the removal whose rewriter has chosen it: at most one at a time
    Column("closing", Text, nullable=True),  # of a LATE one: the reconciliation that came with the word that its writer is gone
    one_of("kind", "pack", "manifest", "rewrite", "grave", "closed", "key", "log", "owner", "catalog", "trail"),
    one_of("state", "PLANNED", "STORED", "CONDEMNED", "LATE"),
)
Index("ix_object_lineage", object_.c.lineage, object_.c.kind, object_.c.seq)
Index("ix_object_removal", object_.c.removal, object_.c.state)
_CHOSEN, _PARTLY_DEAD = sa.text("rewriting IS NOT NULL"), sa.text("dead_bytes > 0")
Index("ix_object_rewriting", object_.c.rewriting, sqlite_where=_CHOSEN, postgresql_where=_CHOSEN)
Index("ix_object_dead", object_.c.lineage, object_.c.dead_bytes, sqlite_where=_PARTLY_DEAD, postgresql_where=_PARTLY_DEAD)

# What an object holds, or will hold once it is STORED. After a rebuild two objects may hold the same chunk.
holding = Table(
    "holding",
    metadata,
    Column("object", Text, ForeignKey("object.id"), primary_key=True),
    Column("lineage", Text, primary_key=True),
    Column("pack", BigInteger, primary_key=True),
    Column("numbers", LargeBinary, nullable=True),  # NULL is all numbers of the pack: its first object
    Column("sizes", LargeBinary, nullable=True),  # sealed bytes of each number, ascending, as u16 or u32; NULL with `numbers`
    Column("bytes", BigInteger, nullable=False),  # their sealed bytes
)
Index("ix_holding_pack", holding.c.lineage, holding.c.pack)

# A piece of a source's log that a restore to a point in time replays: it lives while a part before its end can go on by it.
segment = Table(
    "segment",
    metadata,
    Column("object", Text, ForeignKey("object.id"), primary_key=True),
    Column("lineage", Text, ForeignKey("lineage.id"), nullable=False),
    Column("chain", BigInteger, nullable=False),
    Column("since", BigInteger, nullable=False),  # the mark that it begins at, as part.log_order
    Column("upto", BigInteger, nullable=False),  # … and the one that it ends at
    Column("piece", Integer, nullable=False),  # 0, 1, …: what lies between two marks and is too long for one object
    Column("begin_at", Double, nullable=False),  # the moments of those marks
    Column("end_at", Double, nullable=False),
    Column("plain_bytes", BigInteger, nullable=False),
)
Index("ix_segment_chain", segment.c.lineage, segment.c.chain, segment.c.upto)

# Rows of the audit trail that lie in the store, in an object that is never written again (kind "trail", the same id).
trail = Table(
    "trail",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account", Text, nullable=False),
    Column("first", BigInteger, nullable=False),  # sequences of its first and last row
    Column("last", BigInteger, nullable=False),
    Column("secret", LargeBinary, nullable=False),  # the object's own key, sealed under the root key
)
Index("uq_trail_account_last", trail.c.account, trail.c.last, unique=True)

job = Table(
    "job",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # the handler
    Column("args", Text, nullable=False),  # JSON
    Column("project", Text, nullable=True),  # NULL: internal, in nobody's list
    Column("instance", Text, nullable=True),
    Column("backup", Text, nullable=True),
    Column("queue", Text, nullable=False),
    Column("serial", Text, nullable=True),  # at most one running job per serial key
    Column("unique_key", Text, nullable=True),  # at most one queued or running job per unique key
    Column("priority", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("owner", Text, nullable=True),
    Column("epoch", BigInteger, nullable=False),  # raised by each claim: the fence
    Column("lease_until", Double, nullable=True),  # by the database's clock
    Column("run_after", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=True),  # NULL: for as long as it takes
    Column("cancel_asked", Boolean, nullable=False),
    Column("deadline", Double, nullable=True),
    Column("progress", Text, nullable=True),  # JSON
    Column("result", Text, nullable=True),  # JSON
    Column("error", Text, nullable=True),  # a sentence for people: fail_reason
    Column("created_at", Double, nullable=False),
    Column("started_at", Double, nullable=True),
    Column("finished_at", Double, nullable=True),
    one_of("state", "QUEUED", "RUNNING", "DONE", "FAILED", "CANCELLED"),
)
_ACTIVE = sa.text("state IN ('QUEUED', 'RUNNING')")
_RUNNING = sa.text("state = 'RUNNING'")
Index("ix_job_claim", job.c.state, job.c.queue, job.c.priority, job.c.created_at)
Index("uq_job_serial_running", job.c.serial, unique=True, sqlite_where=_RUNNING, postgresql_where=_RUNNING)
Index("uq_job_unique_active", job.c.unique_key, unique=True, sqlite_where=_ACTIVE, postgresql_where=_ACTIVE)
Index("ix_job_project", job.c.project, job.c.created_at)
Index("ix_job_backup", job.c.backup)
Index("ix_job_instance", job.c.instance)

schedule = Table(
    "schedule",
    metadata,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("args", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("serial", Text, nullable=True),
    Column("every", Double, nullable=False),  # seconds
    Column("next_due", Double, nullable=False),
    Column("paused", Boolean, nullable=False),
)
