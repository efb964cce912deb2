"""The audit trail looked through, exported and proved from the export."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from strongroom.api import audit as border
from strongroom.identity import audit, trail
from strongroom.identity import tables as t
from strongroom.identity.audit import Entry, Head
from strongroom.identity.trail import Span
from support.border import NOON, House, build_house
from support.cli_server import OWN, FakeServer, refusal

HOUR = 3600


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Twelve events in two projects of the account and one of no project, an hour apart; another account has its own."""
    house = build_house(tmp_path, [border.router])
    for number in range(12):
        house.clock.seconds = NOON + number * HOUR
        event, outcome = ("NoSQLDeleteBackup", "OK") if number % 3 else ("NoSQLCreateBackup", "REFUSED")
        append(
            house, Entry(
                event, "backup", f"b{number}", f"name {number}", outcome, "Major" if number == 7 else "Normal",  # type: ignore[arg-type]
                account=house.first.founded.account, project=house.project if number % 2 else "elsewhere",
                user=f"u{number % 4}", user_name=f"ulla{number % 4}", request_id=f"r{number}", detail={"é": [1, 2.5, None]},
            ),
        )  # fmt: skip
        append(house, Entry("NoSQLDeleteBackup", "backup", f"x{number}", account="another", project=house.project))
    append(house, Entry("createToken", "user", "nobody", account=house.first.founded.account))
    return house


def append(house: House, entry: Entry) -> None:
    with house.services.catalog.write() as conn:
        audit.append(conn, house.clock, entry)


def ask(house: House, token: dict[str, str], **query: Any) -> Any:
    return house.request("GET", f"/strongroom/v1/{house.project}/audit", headers=token, params=query)


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [one["resource_id"] for one in answer.json()["records"] if one["event"].startswith("NoSQL")]


def time(hours: float) -> str:
    return f"2026-11-24T{12 + int(hours):02}:{round(hours % 1 * 60):02}:00+0000"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, range(11, -1, -1)),
        ({"event": "NoSQLCreateBackup"}, [9, 6, 3, 0]),
        ({"outcome": "REFUSED"}, [9, 6, 3, 0]),
        ({"level": "Major"}, [7]),
        ({"user": "u3"}, [11, 7, 3]),
        ({"user": "ulla3"}, [11, 7, 3]),
        ({"resource_id": "b4"}, [4]),
        ({"resource_type": "instance"}, []),
        ({"request_id": "r5"}, [5]),
        ({"start_time": time(2), "end_time": time(4)}, [3, 2]),
        ({"outcome": "OK", "user": "u1", "start_time": time(2)}, [5]),
    ],
)
def test_records_are_found_by_what_they_say(house: House, query: dict[str, str], found: Sequence[int]) -> None:
    """Newest first, and never another account's."""
    assert ids(ask(house, house.token(), **query)) == [f"b{number}" for number in found]


def test_an_administrator_looks_at_one_project(house: House) -> None:
    """By id, by name, and by the id of one that is gone. Who sees their own project alone sees nothing of another."""
    with house.services.catalog.read() as conn:
        name = conn.scalar(sa.select(t.project.c.name).where(t.project.c.id == house.project))
    token, odd = house.token(), [f"b{number}" for number in (11, 9, 7, 5, 3, 1)]
    assert ids(ask(house, token, project=house.project)) == odd
    assert ids(ask(house, token, project=name)) == odd
    assert ids(ask(house, token, project=name, user="u3")) == ["b11", "b7", "b3"]
    assert ids(ask(house, token, project="elsewhere")) == [f"b{number}" for number in (10, 8, 6, 4, 2, 0)]
    assert ids(ask(house, token, project="nowhere")) == []
    house.new_user("reader", "reader", house.project)
    reader = house.token("reader")
    assert ids(ask(house, reader, project=name)) == odd
    assert ids(ask(house, reader, project="elsewhere")) == []


def test_a_record_says_all_that_was_written(house: House) -> None:
    """With its detail as an object and its time in words."""
    (one,) = ask(house, house.token(), resource_id="b4").json()["records"]
    assert one["detail"] == {"é": [1, 2.5, None]}
    assert (one["at"], one["time"]) == (NOON + 4 * HOUR, "2026-11-24T16:00:00+0000")
    assert (one["user_name"], one["request_id"], one["level"]) == ("ulla0", "r4", "Normal")


def test_pages_stay_what_they_are_while_records_are_added(house: House) -> None:
    """Each page goes on where the one before ended."""
    token, before, found = house.token(), None, []
    while True:
        query = {"limit": 5} if before is None else {"limit": 5, "before": before}
        answer = ask(house, token, event="NoSQLDeleteBackup", **query)
        page = ids(answer)
        assert len(page) <= 5
        found += page
        append(house, Entry("NoSQLDeleteBackup", "backup", "later", account=house.first.founded.account))
        before = answer.json()["next"]
        if before is None:
            break
    assert found == [f"b{number}" for number in (11, 10, 8, 7, 5, 4, 2, 1)]


def test_who_may_list_sees_the_project_alone(house: House) -> None:
    """No other project's, and nothing that happened in none; the whole trail is for the administrator."""
    house.new_user("reader", "reader", house.project)
    token = house.token("reader")
    assert ids(ask(house, token)) == [f"b{number}" for number in (11, 9, 7, 5, 3, 1)]
    assert {one["project"] for one in ask(house, token).json()["records"]} == {house.project}
    for path in ("audit/export", "audit/verification"):
        assert house.request("GET", f"/strongroom/v1/{house.project}/{path}", headers=token).status_code == 403


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0}, {"limit": 1001}, {"limit": "many"}, {"before": -1}, {"before": 10**16}, {"outcome": "ok"}, {"level": "x"},
        {"start_time": "yesterday"}, {"event": "\x00"},
    ],
)  # fmt: skip
def test_a_wrong_filter_is_told(house: House, query: dict[str, Any]) -> None:
    """In the contract's form."""
    answer = ask(house, house.token(), **query)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error_code", "error_msg"}


# ---- exports ------------------------------------------------------------------------------------------------------------


def exported(house: House, after: int = 0) -> list[bytes]:
    answer = house.request("GET", f"/strongroom/v1/{house.project}/audit/export?after={after}", headers=house.token())
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return answer.content.splitlines(keepends=True)


def test_an_export_says_with_which_record_it_must_end(house: House) -> None:
    """So that the newest records, removed from the table, are missed; without the head what is left is sound."""
    token = house.token()
    head = head_of(house)
    with house.services.catalog.write() as conn:
        conn.execute(
            sa.delete(t.audit).where(t.audit.c.account == house.first.founded.account, t.audit.c.sequence >= head.sequence)
        )
    answer = house.request("GET", f"/strongroom/v1/{house.project}/audit/export", headers=token)
    assert answer.headers["X-Audit-Head"] == str(head)
    lines = answer.content.splitlines(keepends=True)
    assert trail.check_lines(lines, None).broken is None
    broken = trail.check_lines(lines, head).broken
    assert broken is not None
    assert (broken.sequence, broken.reason) == (head.sequence, "the newest rows are missing")


def head_of(house: House) -> Head:
    with house.services.catalog.read() as conn:
        return audit.head(conn, house.first.founded.account)


def test_an_export_is_whole_and_proves_itself(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oldest first, in as many transactions as it takes."""
    monkeypatch.setattr(trail, "_PAGE", 4)
    lines = exported(house)
    checked = trail.check_lines(lines, None)
    assert (checked.first, checked.last, checked.broken) == (1, head_of(house), None)
    assert [json.loads(line)["sequence"] for line in lines] == list(range(1, len(lines) + 1))
    assert not any(b"another" in line for line in lines)


def test_an_export_goes_on_where_the_last_one_ended(house: House) -> None:
    """The head of the first proves the second; without it only the second itself is proved."""
    lines = exported(house)
    first, second = lines[:6], exported(house, after=6)
    kept = trail.check_lines(first, None).last
    assert kept.sequence == 6
    assert trail.check_lines(second, kept).broken is None
    assert trail.check_lines(second, None).first == 7
    wrong = trail.check_lines(second, Head(6, "0" * 64)).broken
    assert wrong is not None
    assert "anew" in wrong.reason
    missing = trail.check_lines(second[1:], kept).broken
    assert missing is not None
    assert (missing.sequence, "missing" in missing.reason) == (7, True)


def test_nothing_to_export_is_nothing(house: House) -> None:
    """After the newest record, but for the login that asks."""
    assert len(exported(house, after=head_of(house).sequence)) == 1
    assert trail.check_lines([], None) == trail.Checked(0, Head(0, ""), None)


def _edited(lines: list[bytes]) -> list[bytes]:
    return [*lines[:4], lines[4].replace(b'"b4"', b'"b5"'), *lines[5:]]


def _detail(lines: list[bytes]) -> list[bytes]:
    return [*lines[:4], lines[4].replace(b"2.5", b"2.6"), *lines[5:]]


def _forged(lines: list[bytes]) -> list[bytes]:
    """With a digest that fits: the next record gives it away."""
    row = json.loads(lines[4])
    row["resource_id"] = "b5"
    plain = {name: value for name, value in row.items() if name not in ("digest", "time")}
    row["digest"] = audit._digest({**plain, "detail": json.dumps(row["detail"], sort_keys=True)})
    return [*lines[:4], json.dumps(row).encode(), *lines[5:]]


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (_edited, 5), (_detail, 5), (_forged, 6), (lambda lines: lines[:4] + lines[5:], 5),
        (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], 5), (lambda lines: [*lines[:5], lines[4], *lines[5:]], 6),
        (lambda lines: [*lines[:4], b"{}\n", *lines[5:]], 5), (lambda lines: [*lines[:4], b"\xff\n", *lines[5:]], 5),
        (lambda lines: [*lines[:4], lines[4][:-20], *lines[5:]], 5), (lambda lines: [*lines[:4], b"[1]\n", *lines[5:]], 5),
        (lambda lines: [lines[0].replace(b'"previous":""', b'"previous":"00"'), *lines[1:]], 1),
        (lambda lines: [line.replace(b'"account":"', b'"account":"x') if n == 4 else line for n, line in enumerate(lines)], 5),
    ],
)  # fmt: skip
def test_a_changed_export_is_told_by_its_first_wrong_record(
    house: House, change: Callable[[list[bytes]], list[bytes]], at: int
) -> None:
    """Edited, forged, removed, moved, doubled, no record at all, another account's."""
    broken = trail.check_lines(change(exported(house)), None).broken
    assert broken is not None
    assert broken.sequence == at


def test_a_cut_export_shows_by_a_kept_head(house: House) -> None:
    """Alone it is a sound beginning."""
    lines = exported(house)
    assert trail.check_lines(lines[:-1], None).broken is None
    broken = trail.check_lines(lines[:-1], head_of(house)).broken
    assert broken is not None
    assert "missing" in broken.reason


# ---- exports of a time span ---------------------------------------------------------------------------------------------


def span_of(house: House, begin: float | None, end: float | None) -> tuple[list[bytes], Head, Span]:
    """An export of what happened between two hours after noon; the head that it was told to end with, and the span."""
    asked = {"start_time": begin, "end_time": end}
    query = {name: time(hours) for name, hours in asked.items() if hours is not None}
    path = f"/strongroom/v1/{house.project}/audit/export"
    answer = house.request("GET", path, headers=house.token(), params=query)
    assert answer.status_code == 200, answer.text
    seconds = (None if hours is None else NOON + hours * HOUR for hours in (begin, end))
    return answer.content.splitlines(keepends=True), Head.parse(answer.headers["X-Audit-Head"]), Span(*seconds)


def exported_ids(lines: list[bytes]) -> list[str]:
    return [one["resource_id"] for one in map(json.loads, lines) if one["event"].startswith("NoSQL")]


@pytest.mark.parametrize(
    ("begin", "end", "first", "last"), [(2, 5, 1, 5), (None, 3, 0, 3), (9, None, 8, 11), (0, 1, 0, 1), (3, 3, 2, 3)]
)
def test_a_span_s_export_holds_all_of_it_and_a_record_on_either_side(
    house: House, begin: float | None, end: float | None, first: int, last: int
) -> None:
    """It proves itself; without its first or its last record it does not, though the rest is a sound chain."""
    lines, head, span = span_of(house, begin, end)
    assert exported_ids(lines) == [f"b{number}" for number in range(first, last + 1)]
    assert trail.check_lines(lines, head, span).broken is None
    if end is not None:
        assert trail.check_lines(lines, None, span).broken is None
        short = trail.check_lines(lines[:-1], None, span)
        assert trail.check_lines(lines[:-1], None).broken is None
        assert short.broken is not None
        assert short.broken.sequence == head.sequence
        assert "does not reach to the end" in short.broken.reason
    if begin and begin != end:
        cut = trail.check_lines(lines[1:], head, span)
        assert cut.broken is not None
        assert cut.broken.sequence == json.loads(lines[0])["sequence"]
        assert "does not reach back" in cut.broken.reason
    gap = trail.check_lines([*lines[:1], *lines[2:]], head, span)
    assert gap.broken is not None


def test_a_span_that_ends_with_the_trail_is_proved_by_its_head(house: House) -> None:
    """Nothing in the file says that nothing came after: the head that was told with it does."""
    lines, head, span = span_of(house, 9, 11.5)
    newest = trail.check_lines(lines, head, span)
    assert newest.broken is None
    append(house, Entry("createUser", "user", "later", account=house.first.founded.account))
    assert trail.check_lines(lines, head, span).broken is None
    before = lines[:-2]
    told = trail.check_lines(before, trail.check_lines(before, None).last, Span(span.begin, NOON + 20 * HOUR))
    assert told.broken is None, "whoever is given a head of an earlier time believes that the trail ended there"
    assert trail.check_lines(before, head, span).broken is not None


def test_a_clock_that_was_set_back_hides_nothing(house: House) -> None:
    """A record that says an earlier time than those before it is in the export of that time, with all in between."""
    house.clock.seconds = NOON + 3 * HOUR + 60
    append(house, Entry("NoSQLDeleteBackup", "backup", "odd", account=house.first.founded.account))
    lines, head, span = span_of(house, 3, 4)
    assert exported_ids(lines) == [*(f"b{number}" for number in range(2, 12)), "odd"]
    assert trail.check_lines(lines, head, span).broken is None


def test_a_span_without_records_is_the_pair_around_it(house: House) -> None:
    """Which shows that nothing was in between."""
    lines, head, span = span_of(house, 4.1, 4.9)
    assert exported_ids(lines) == ["b4", "b5"]
    assert trail.check_lines(lines, head, span).broken is None


def test_a_span_the_wrong_way_round_is_refused(house: House) -> None:
    path = f"/strongroom/v1/{house.project}/audit/export"
    answer = house.request("GET", path, headers=house.token(), params={"start_time": time(5), "end_time": time(4)})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DBS.201215")


def test_the_command_exports_and_checks_a_span(house: House, tmp_path: Path) -> None:
    """What the server sends must hold all of the span; so must a file later."""
    lines, head, _ = span_of(house, 2, 5)
    path, file = f"GET {OWN}/audit/export", tmp_path / "span.jsonl"
    headers = {"X-Audit-Head": str(head)}
    server = FakeServer({path: lambda request: httpx.Response(200, content=b"".join(lines), headers=headers)})
    words = ("--from", "2026-11-24T15:00:00+01:00", "--to", "2026-11-24 17:00")
    result = server.run("audit", "export", str(file), *words, "--json")
    assert result.exit_code == 0, result.output
    assert dict(server.requests[0].url.params) == {"after": "0", "start_time": time(2), "end_time": time(5)}
    nobody = FakeServer({})
    assert nobody.run("audit", "verify", "--file", str(file), *words).exit_code == 0
    longer = nobody.run("audit", "verify", "--file", str(file), "--from", "2026-11-24 17:00", "--to", "2026-11-24 20:00")
    assert (longer.exit_code, "does not reach to the end" in longer.stderr) == (1, True)
    earlier = nobody.run("audit", "verify", "--file", str(file), "--from", "2026-11-24 13:00")
    assert (earlier.exit_code, "does not reach back" in earlier.stderr) == (1, True)
    for wrong in (
        ("verify", "--from", "2026-11-24"),
        ("export", "x", "--after", "2", "--to", "2026-11-24"),
        ("export", "x", "--to", "y"),
    ):
        assert nobody.run("audit", *wrong).exit_code == 2
    cut = FakeServer({path: lambda request: httpx.Response(200, content=b"".join(lines[1:]), headers=headers)})
    result = cut.run("audit", "export", str(tmp_path / "cut.jsonl"), *words)
    assert (result.exit_code, "does not reach back" in result.stderr) == (1, True)


# ---- the command line -----------------------------------------------------------------------------------------------------


def test_the_command_lists_page_by_page() -> None:
    """With the filters that were given, on every page; so many records and no more."""
    record = {"sequence": 9, "time": time(0), "event": "createUser", "outcome": "OK", "user_name": "ulla", "resource_name": "x"}
    pages = [{"records": [record] * 1000, "next": 7}, {"records": [record] * 200, "next": None}]
    server = FakeServer({f"GET {OWN}/audit": lambda request: httpx.Response(200, json=pages.pop(0))})
    result = server.run("audit", "list", "--event", "createUser", "--limit", "1200", "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["records"]) == 1200
    assert [dict(request.url.params) for request in server.requests] == [
        {"event": "createUser", "limit": "1000"}, {"event": "createUser", "limit": "200", "before": "7"},
    ]  # fmt: skip


def test_an_export_is_written_whole_or_not_at_all(house: House, tmp_path: Path) -> None:
    """For its owner alone; a file that is there is not touched; a refusal leaves none; a broken trail is written, and told."""
    lines, path, file = exported(house), f"GET {OWN}/audit/export", tmp_path / "trail.jsonl"
    headers = {"X-Audit-Head": str(trail.check_lines(lines, None).last)}
    server = FakeServer({path: lambda request: httpx.Response(200, content=b"".join(lines), headers=headers)})
    result = server.run("audit", "export", str(file), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["outcome"], told["first"], told["records"]) == ("whole", 1, len(lines))
    assert file.read_bytes() == b"".join(lines)
    assert file.stat().st_mode & 0o777 == 0o600
    assert server.run("audit", "export", str(file)).exit_code == 1
    assert file.read_bytes() == b"".join(lines)
    other = tmp_path / "other.jsonl"
    broken = FakeServer({path: lambda request: httpx.Response(200, content=b"".join(_edited(lines)))})
    result = broken.run("audit", "export", str(other))
    assert (result.exit_code, "record 5" in result.stderr) == (1, True)
    assert other.read_bytes() == b"".join(_edited(lines))
    shorter = FakeServer({path: lambda request: httpx.Response(200, content=b"".join(lines[:-1]), headers=headers)})
    result = shorter.run("audit", "export", str(tmp_path / "shorter.jsonl"))
    assert (result.exit_code, "the newest rows are missing" in result.stderr) == (1, True)
    nothing = FakeServer({path: lambda request: httpx.Response(200, content=b"", headers=headers)})
    assert nothing.run("audit", "export", str(tmp_path / "nothing.jsonl")).exit_code == 1
    assert nothing.run("audit", "export", str(tmp_path / "up-to-date.jsonl"), "--after", str(len(lines))).exit_code == 0
    third = tmp_path / "third.jsonl"
    assert FakeServer({path: refusal(403, "DBS.280032", "no")}).run("audit", "export", str(third)).exit_code == 1
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith("third")] == []


def test_an_export_is_checked_without_a_server(house: House, tmp_path: Path) -> None:
    """By the head that an earlier one told, too."""
    file, lines = tmp_path / "trail.jsonl", exported(house)
    file.write_bytes(b"".join(lines))
    nobody = FakeServer({})
    result = nobody.run("audit", "verify", "--file", str(file), "--kept", str(head_of(house)), "--json")
    assert (result.exit_code, json.loads(result.stdout)["outcome"]) == (0, "whole")
    assert nobody.run("audit", "verify", "--file", str(file), "--kept", f"3:{'0' * 64}").exit_code == 1
    assert nobody.run("audit", "verify", "--file", str(file), "--kept", "x").exit_code == 2
    file.write_bytes(b"".join(_edited(lines)))
    result = nobody.run("audit", "verify", "--file", str(file))
    assert (result.exit_code, "record 5: a row was changed" in result.stderr) == (1, True)
    assert nobody.requests == []
