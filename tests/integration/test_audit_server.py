"""The audit trail's check by a real server and the command line, and the schedule that a server begins with."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from strongroom.backups import automation
from strongroom.catalog import tables as t
from strongroom.identity import forgetting
from strongroom.identity import tables as identity
from strongroom.notifications import ages
from support.server import ServerProcess


def test_a_record_that_somebody_edits_in_the_database_ends_the_command_with_1(tmp_path: Path) -> None:
    """Logins make records; the trail is whole, its head is kept; an edit shows, and so does a trail that was written anew."""
    with ServerProcess(tmp_path / "data") as server:
        for _ in range(3):
            assert server.token()
        owner = server.owner
        with server.catalog() as catalog, catalog.read() as conn:
            kinds = {row.name: (row.kind, row.every) for row in conn.execute(sa.select(t.schedule))}
        regular = (forgetting.HOURLY, automation.HOURLY, ages.REGULARLY)
        assert kinds == {one.name: (one.kind, one.every) for one in regular}
        told = server.cli("audit", "verify")
        assert (told["outcome"], told["head"].split(":")[0]) == ("whole", str(told["records"]))
        assert told["records"] >= 3
        assert server.cli("audit", "verify", "--kept", told["head"])["outcome"] == "whole"
        with server.catalog() as catalog, catalog.write() as conn:
            here = sa.and_(identity.audit.c.account == owner.account, identity.audit.c.sequence == 1)
            conn.execute(sa.update(identity.audit).where(here).values(source="203.0.113.9"))
        broken = server.cli("audit", "verify", status=1)
        assert broken["broken"] == {"record": 1, "reason": "a row was changed"}
        with server.catalog() as catalog, catalog.write() as conn:
            conn.execute(sa.delete(identity.audit))
            conn.execute(sa.delete(identity.audit_head))
        assert server.cli("audit", "verify")["outcome"] == "whole"
        assert server.cli("audit", "verify", "--kept", told["head"], status=1)["outcome"] == "broken"


def test_a_server_that_starts_again_keeps_its_schedule(tmp_path: Path) -> None:
    """The tick that was due next is not put off by each start."""
    server = ServerProcess(tmp_path / "data")
    with server:
        with server.catalog() as catalog, catalog.write() as conn:
            conn.execute(sa.update(t.schedule).values(next_due=1.0))
        server.stop()
    with server, server.catalog() as catalog:
        with catalog.read() as conn:
            rows = conn.execute(sa.select(t.schedule)).all()
            jobs = conn.execute(sa.select(t.job.c.kind)).scalars().all()
        assert len(rows) == 3
        assert all(row.next_due == 1.0 or row.kind in jobs for row in rows)
