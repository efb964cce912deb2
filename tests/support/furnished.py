"""A vault with something in every table that a snapshot of the catalog holds."""

from __future__ import annotations

import sqlalchemy as sa
from pyroaring import BitMap

from strongroom.backups import holding, kept, policies
from strongroom.catalog import tables as t
from strongroom.catalog.lifespans import suspect
from strongroom.identity import accounts, audit, totp
from strongroom.identity import tables as identity
from strongroom.notifications import outbox
from strongroom.repository.lines import LineWriter, read_lines
from support.vault import Vault, noise

DATA = {"a": noise(40_000, 1), "b": noise(9_000, 2)}
POLICY = '{"Version": "5.0", "Statement": [{"Effect": "Allow", "Action": ["nosql:backup:list"]}]}'


def furnish(vault: Vault) -> None:
    """Something in every table that a snapshot holds."""
    ctx, clock = vault.ctx, vault.ambient
    held, free = vault.backup(DATA), vault.backup(DATA | {"b": noise(9_000, 3)})
    holding.hold(ctx, vault.project, held, holding.Hold("the audit of May"), lambda conn: None)
    with vault.catalog.write() as conn:
        account = str(conn.scalar(sa.select(identity.account.c.id)))
        user = accounts.create_user(conn, clock, account, "ann", "a hash")
        accounts.create_access_key(conn, clock, ctx.sealer, user)
        totp.enrol(conn, clock, ctx.sealer, user)
        policy = accounts.put_policy(conn, clock, account, "looks", POLICY)
        group = clock.hex_id()
        conn.execute(identity.group.insert().values(id=group, account=account, name="lookers", created_at=clock.now()))
        conn.execute(identity.membership.insert().values(group=group, user=user))
        accounts.grant(conn, clock, group, policy, vault.project)
        sealed = ctx.sealer.seal(b"secret-word", "instance", vault.source)
        conn.execute(sa.update(t.instance).where(t.instance.c.id == vault.source).values(secret=sealed, labels='{"a":"b"}'))
        conn.execute(t.quota.insert().values(project=vault.project, kind="backup", allowed=7))
        conn.execute(t.recycle_policy.insert().values(project=vault.project, days=3))
        conn.execute(t.deletion_policy.insert().values(project=vault.project, undelete_hours=0, second_person=False))
        conn.execute(
            t.recording.insert().values(
                instance=vault.source, enabled=False, interval=10, keep_days=2, updated_at=clock.now(), chains=0
            )
        )
        conn.execute(t.limits.insert().values(subject=vault.source, bytes_per_second=1 << 40, jobs=None))
        secret = ctx.sealer.seal(b"signs", "webhook", "w" * 32)
        conn.execute(
            t.webhook.insert().values(
                id="w" * 32, project=vault.project, name="team", url="https://example.org/hook", events="backup_failed",
                secret=secret, created_at=clock.now(),
            )
        )  # fmt: skip
        outbox.begin_receiver(conn, "w" * 32)
        conn.execute(t.backup_age.insert().values(subject=vault.source, hours=30.0))
        conn.execute(t.backup_overdue.insert().values(instance=vault.source, told_at=clock.now(), newest=None))
        lineage, pack = conn.execute(sa.select(t.pack.c.lineage, t.pack.c.id).order_by(t.pack.c.id)).all()[-1]
        suspect(conn, lineage, pack, BitMap([0]))
    policies.put(ctx, vault.project, vault.source, policies.Policy(3, "02:00-03:00", "1,2,3,4,5,6,7"), lambda conn: None)
    happen(vault, 3)
    assert free in vault.wanted


def happen(vault: Vault, count: int) -> None:
    """Audit events, each in a transaction of its own."""
    with vault.catalog.read() as conn:
        account = str(conn.scalar(sa.select(identity.account.c.id).order_by(identity.account.c.created_at)))
    for number in range(count):
        with vault.catalog.write() as conn:
            audit.append(conn, vault.ambient, audit.Entry("event", "thing", f"{number}", account=account))


def said(vault: Vault) -> str:
    """All that a snapshot of now holds, as a digest."""
    return _written(vault).digest


def rows(vault: Vault) -> list[str]:
    """The same row by row, in an order that no database has a say in."""
    return sorted(f"{table}: {sorted(row.items())}" for table, row in read_lines(_written(vault).finish(), "it"))


def _written(vault: Vault) -> LineWriter:
    writer = LineWriter()
    with vault.catalog.read() as conn:
        kept.write_rows(conn, writer)
    return writer
