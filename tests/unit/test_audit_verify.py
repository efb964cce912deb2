"""The audit trail's check through the API and the command line, and the hourly forgetting of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.api import audit as border
from strongroom.identity import audit, forgetting, tokens
from strongroom.identity import tables as t
from strongroom.identity.audit import Head
from strongroom.jobs.clock import AmbientClock
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.schedules import put_schedule
from strongroom.jobs.stepwise import StepwiseWorker
from support.border import House, build_house
from support.cli_server import OWN, FakeServer

COPY = [c.name for c in t.audit.c if c.name not in ("account", "sequence")]


@pytest.fixture
def house(tmp_path: Path) -> House:
    """An account with five events of its own, and one with its own trail beside it."""
    house = build_house(tmp_path, [border.router])
    for number in range(5):
        for account in (house.first.founded.account, "another"):
            write(house, account, number)
    return house


def write(house: House, account: str, number: int) -> None:
    with house.services.catalog.write() as conn:
        audit.append(conn, house.clock, audit.Entry("NoSQLDeleteBackup", "backup", f"b{number}", account=account))


def ask(house: House, token: Mapping[str, str], **query: str) -> Any:
    path = f"/strongroom/v1/{house.project}/audit/verification"
    return house.request("GET", path, headers=token, params=query)


def edit_rows(house: House, *statements: sa.Executable) -> None:
    with house.services.catalog.write() as conn:
        for statement in statements:
            conn.execute(statement)


def of(house: House, sequence: int) -> sa.ColumnElement[bool]:
    return sa.and_(t.audit.c.account == house.first.founded.account, t.audit.c.sequence == sequence)


def swap(house: House, one: int, other: int) -> None:
    """Two rows change places with everything that they say."""
    with house.services.catalog.write() as conn:
        rows = {
            number: dict(conn.execute(sa.select(*(t.audit.c[name] for name in COPY)).where(of(house, number))).one()._mapping)
            for number in (one, other)
        }
        conn.execute(sa.update(t.audit).where(of(house, one)).values(id="meanwhile"))
        conn.execute(sa.update(t.audit).where(of(house, other)).values(**rows[one]))
        conn.execute(sa.update(t.audit).where(of(house, one)).values(**rows[other]))


def test_a_trail_that_is_what_was_written_is_whole(house: House) -> None:
    """It tells how many records there are and the head; the login that asks is one of them."""
    token = house.token()
    told = ask(house, token).json()
    with house.services.catalog.read() as conn:
        head = audit.head(conn, house.first.founded.account)
    assert told == {"outcome": "whole", "records": head.sequence, "head": str(head), "broken": None}
    assert head.sequence >= 6
    assert ask(house, token, kept=told["head"]).json()["outcome"] == "whole"
    write(house, house.first.founded.account, 9)
    assert ask(house, token, kept=told["head"]).json() == {
        **told, "records": head.sequence + 1, "head": ask(house, token).json()["head"],
    }  # fmt: skip


def test_a_record_that_was_edited_removed_or_moved_is_named(house: House) -> None:
    """Each in a trail of its own: the first record that is wrong, and why."""
    token = house.token()
    told = {}
    with house.services.catalog.read() as conn:
        kept = conn.execute(sa.select(t.audit)).all()
    deeds: dict[str, Callable[[], None]] = {
        "edited": lambda: edit_rows(house, sa.update(t.audit).where(of(house, 3)).values(resource_id="other")),
        "removed": lambda: edit_rows(house, sa.delete(t.audit).where(of(house, 3))),
        "moved": lambda: swap(house, 2, 4),
    }
    for name, spoil in deeds.items():
        spoil()
        told[name] = ask(house, token).json()
        edit_rows(house, sa.delete(t.audit), *(sa.insert(t.audit).values(**row._mapping) for row in kept))
    assert {one["outcome"] for one in told.values()} == {"broken"}
    assert told["edited"]["broken"] == {"record": 3, "reason": "a row was changed"}
    assert told["removed"]["broken"] == {"record": 3, "reason": "a row is missing"}
    assert told["moved"]["broken"] == {"record": 2, "reason": "a row was changed"}
    assert ask(house, token).json()["outcome"] == "whole"


def test_the_newest_records_that_were_removed_with_the_head_show_by_a_kept_head(house: House) -> None:
    """The chain alone is whole again; the head that was kept is not in it any more."""
    token = house.token()
    told = ask(house, token).json()
    last, account = told["records"], house.first.founded.account
    with house.services.catalog.read() as conn:
        before = conn.scalar(sa.select(t.audit.c.digest).where(of(house, last - 1)))
    edit_rows(
        house,
        sa.delete(t.audit).where(of(house, last)),
        sa.update(t.audit_head).where(t.audit_head.c.account == account).values(sequence=last - 1, digest=before),
    )
    assert ask(house, token).json()["outcome"] == "whole"
    found = ask(house, token, kept=told["head"]).json()
    assert found["broken"] == {"record": last, "reason": "the newest rows are missing"}
    write(house, account, 7)  # something else takes its place
    found = ask(house, token, kept=told["head"]).json()
    assert (found["broken"]["record"], "written anew" in found["broken"]["reason"]) == (last, True)


def test_another_account_s_trail_is_not_this_one_s(house: House) -> None:
    """Its damage is not told."""
    token = house.token()
    edit_rows(house, sa.delete(t.audit).where(t.audit.c.account == "another", t.audit.c.sequence == 2))
    assert ask(house, token).json()["outcome"] == "whole"


def test_only_the_administrator_may_ask(house: House) -> None:
    """A policy that allows everything in a project does not suffice: the trail is the account's."""
    house.new_user("ulla", "administrator", house.project)
    answer = ask(house, house.token("ulla"))
    assert answer.status_code == 403
    assert "strongroom:audit:verify" in answer.text


@pytest.mark.parametrize("kept", ["", "x", "1", "1:XYZ", "1:" + "a" * 65, "-1:aa"])
def test_a_head_that_is_none_is_refused(house: House, kept: str) -> None:
    """As any other parameter."""
    assert ask(house, house.token(), kept=kept).status_code == 400


def test_a_head_is_what_it_says(house: House) -> None:
    """To text and back; nothing yet is 0."""
    assert str(Head.parse("12:ab")) == "12:ab"
    with house.services.catalog.read() as conn:
        assert audit.head(conn, "nobody") == Head(0, "")


def test_the_command_ends_with_1_where_the_trail_is_broken() -> None:
    """It tells the head, hands on the one that was kept, and says where the trail is broken."""
    path = f"GET {OWN}/audit/verification"
    whole = {"outcome": "whole", "records": 7, "head": "7:abc", "broken": None}
    broken = {**whole, "outcome": "broken", "broken": {"record": 3, "reason": "a row was changed"}}
    server = FakeServer({path: whole})
    result = server.run("audit", "verify", "--kept", "5:def")
    assert (result.exit_code, server.requests[0].url.params["kept"]) == (0, "5:def")
    assert "7:abc" in result.stdout
    result = FakeServer({path: broken}).run("audit", "verify", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, broken)
    assert "record 3: a row was changed" in result.stderr


# ---- tokens ----------------------------------------------------------------------------------------------------------------


def test_tokens_that_ended_a_day_ago_are_forgotten_every_hour(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches; what is valid, or ended of late, stays; the next tick forgets that too."""
    monkeypatch.setattr(forgetting, "_BATCH", 2)
    catalog, clock = house.services.catalog, house.clock
    jobs = LeasedJobs(catalog, clock, AmbientClock(clock))
    job = forgetting.ForgetTokensJob(catalog, clock)
    worker = StepwiseWorker(jobs, {forgetting.HOURLY.kind: job}, ["default"])
    with catalog.write() as conn:
        put_schedule(jobs, conn, forgetting.HOURLY)
    for _ in range(5):
        house.token()
    worker.tick()
    assert worker.step() is None, "it is not due"
    clock.sleep(tokens.LIFETIME + forgetting.KEEP - 10)
    late = house.token()
    worker.tick()
    assert worker.step() is not None
    assert count(house) == 6
    clock.sleep(3600)
    worker.tick()
    done = worker.step()
    assert done is not None
    with catalog.read() as conn:
        view = jobs.get(conn, done)
    assert view is not None
    assert (view.state, view.result) == ("DONE", {"tokens": 5, "keys": 0})
    assert count(house) == 1
    assert house.request("GET", "/v3/auth/projects", headers=late).status_code == 200
    job.give_up(None, "FAILED", "")  # type: ignore[arg-type]


def count(house: House) -> int:
    with house.services.catalog.read() as conn:
        return conn.execute(sa.select(sa.func.count()).select_from(t.token)).scalar_one()
