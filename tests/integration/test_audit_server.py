"""The audit trail's check by a real server and the command line, and the schedule that a server begins with."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import automation, recording
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
        regular = (forgetting.HOURLY, automation.HOURLY, recording.HOURLY, ages.REGULARLY)
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


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_records_that_are_removed_moved_or_put_in_between_are_found(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """By whoever writes the database beside a running server. Each is undone before the next; in the end the trail is whole."""
    url = request.getfixturevalue("postgres_url") if kind == "postgres" else None
    with ServerProcess(tmp_path / "data", {} if url is None else {"STRONGROOM_CATALOG_URL": url}) as server:
        for _ in range(6):
            assert server.token()
        head = server.cli("audit", "verify")["head"]
        newest = int(head.split(":")[0])
        assert newest >= 6
        for harm, at in HARMS:
            rows = of_trail(server)
            put_trail(server, harm(rows))
            told = server.cli("audit", "verify", "--kept", head, status=1)
            expected = newest if at is None else at
            assert (told["outcome"], told["broken"]["record"]) == ("broken", expected), harm
            put_trail(server, rows)
        assert server.cli("audit", "verify", "--kept", head)["outcome"] == "whole"
        plain = server.cli("audit", "verify")
        assert int(plain["head"].split(":")[0]) >= newest


Rows = list[dict[str, Any]]


def moved(rows: Rows) -> Rows:
    """The third and the fourth change places, digests and all."""
    third, fourth = rows[2], rows[3]
    return [*rows[:2], {**fourth, "sequence": 3}, {**third, "sequence": 4}, *rows[4:]]


def closed_up(rows: Rows) -> Rows:
    """The third is gone, and those after it count one less."""
    return [*rows[:2], *({**row, "sequence": row["sequence"] - 1} for row in rows[3:])]


def put_between(rows: Rows) -> Rows:
    """A copy of the second comes after it, and those behind count one more."""
    later = [{**row, "sequence": row["sequence"] + 1} for row in rows[2:]]
    return [*rows[:2], {**rows[1], "sequence": 3, "id": "put-in"}, *later]


def another_time(rows: Rows) -> Rows:
    """The second happened a second earlier."""
    return [rows[0], {**rows[1], "at": rows[1]["at"] - 1}, *rows[2:]]


HARMS: tuple[tuple[Callable[[Rows], Rows], int | None], ...] = (
    (lambda rows: [*rows[:2], *rows[3:]], 3),
    (lambda rows: rows[1:], 1),
    (lambda rows: rows[:-1], None),
    (moved, 3),
    (closed_up, 3),
    (put_between, 3),
    (another_time, 2),
)
"""What is done to the rows, and the first record that is wrong then; None: the newest."""


def of_trail(server: ServerProcess) -> Rows:
    """The rows of the owner's account."""
    mine = sa.select(identity.audit).where(identity.audit.c.account == server.owner.account)
    with server.catalog() as catalog, catalog.read() as conn:
        return [dict(row._mapping) for row in conn.execute(mine.order_by(identity.audit.c.sequence))]


def put_trail(server: ServerProcess, rows: Rows) -> None:
    """Has the database hold just these instead."""
    with server.catalog() as catalog, catalog.write() as conn:
        conn.execute(sa.delete(identity.audit).where(identity.audit.c.account == server.owner.account))
        conn.execute(sa.insert(identity.audit), rows)


def test_an_export_of_a_time_span_is_of_the_trail_that_the_server_has(tmp_path: Path) -> None:
    """It proves itself by its ends, and by its head that the server's trail leads through it."""
    with ServerProcess(tmp_path / "data") as server:
        for _ in range(3):
            assert server.token()
        time.sleep(1.1)
        begin = datetime.now(UTC).replace(microsecond=0)
        time.sleep(0.1)
        for _ in range(3):
            assert server.token()
        time.sleep(1.1)
        end = datetime.now(UTC).replace(microsecond=0)
        assert server.token()
        file = tmp_path / "span.jsonl"
        words = ("--from", begin.isoformat(), "--to", end.isoformat())
        told = server.cli("audit", "export", str(file), *words)
        assert told["outcome"] == "whole"
        assert 3 < told["records"] <= 5
        assert server.cli("audit", "verify", "--file", str(file), *words)["head"] == told["head"]
        assert server.cli("audit", "verify", "--kept", told["head"])["outcome"] == "whole"
        listed = server.cli("audit", "list", "--project", server.owner.project)["records"]
        assert all(one["project"] == server.owner.project for one in listed)


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
        assert len(rows) == 4
        assert all(row.next_due == 1.0 or row.kind in jobs for row in rows)
