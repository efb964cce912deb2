"""From oplog entries to what is replayed, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bson
import pytest
from bson.timestamp import Timestamp

from strongroom.engines.base import EngineUnsupported
from strongroom.engines.log import Mark
from strongroom.engines.mongodb.connection import as_number
from strongroom.engines.mongodb.documents import NotBson, decode
from strongroom.engines.mongodb.recording import mark_of, order_of, time_of
from strongroom.engines.mongodb.translation import Command, Translator

SESSIONS = [{"id": bson.Binary(bytes([number]) * 16, 4), "uid": bytes(32)} for number in range(2)]
UUID = bson.Binary(bytes(16), 4)
SINCE = 10
SIMPLE = {"collation": {"locale": "simple"}}


def entry(time: int, op: str, ns: str, o: Any, **more: Any) -> dict[str, Any]:
    """As the server writes it, with what belongs to the source alone."""
    return {"op": op, "ns": ns, "ui": UUID, "o": o, "ts": Timestamp(0, time), "t": 1, "v": 2, **more}


def part(time: int, session: int, operations: list[dict[str, Any]], *, last: bool = False) -> dict[str, Any]:
    """One entry of a transaction that fills several."""
    o = {"applyOps": operations, **({} if last else {"partialTxn": True})}
    return entry(time, "c", "admin.$cmd", o, lsid=SESSIONS[session], txnNumber=7, prevOpTime={"ts": Timestamp(0, 1), "t": 1})


@pytest.fixture
def translator(tmp_path: Path) -> Translator:
    return Translator({"d.a", "d.b", "d.system.buckets.s", "d.system.views"}, str(tmp_path))


def steps(translator: Translator, *entries: dict[str, Any]) -> list[Any]:
    """What the entries become: operations of applyOps as dictionaries, and commands."""
    found: list[Any] = []
    for one in entries:
        for step in translator.operations(decode(bson.encode(one)), SINCE):
            found.append(bson.decode(step) if isinstance(step, bytes) else (step.database, _plain(step)))
    return found


def _plain(command: Command) -> Any:
    return bson.decode(bson.encode(command.body))


def test_what_belongs_to_the_source_alone_is_dropped(translator: Translator) -> None:
    """op, ns, o, o2 and b stay, byte for byte."""
    more = {"lsid": SESSIONS[0], "txnNumber": 1, "stmtId": 0, "prevOpTime": {"ts": Timestamp(0, 0), "t": -1}, "fromMigrate": True}
    change = {"$v": 2, "diff": {"u": {"n": 2}, "sl": {"a": True, "u2": 3}}}
    assert steps(
        translator,
        entry(11, "i", "d.a", {"_id": 1, "ui": 5}, o2={"_id": 1}, **more),
        entry(12, "u", "d.a", change, o2={"_id": 1}, needsRetryImage="preImage", **more),
        entry(13, "d", "d.system.buckets.s", {"_id": 1}, b=True, **more),
        entry(14, "i", "d.system.views", {"_id": "d.v", "viewOn": "a", "pipeline": []}, **more),
        entry(15, "n", "", {"msg": "periodic noop"}),
    ) == [
        {"op": "i", "ns": "d.a", "o": {"_id": 1, "ui": 5}, "o2": {"_id": 1}},
        {"op": "u", "ns": "d.a", "o": change, "o2": {"_id": 1}},
        {"op": "d", "ns": "d.system.buckets.s", "o": {"_id": 1}, "b": True},
        {"op": "i", "ns": "d.system.views", "o": {"_id": "d.v", "viewOn": "a", "pipeline": []}},
    ]


def test_the_servers_own_and_what_a_restore_leaves_on_its_way_are_passed_over(translator: Translator) -> None:
    """No such collection is in a backup either."""
    assert not steps(
        translator,
        entry(11, "u", "config.transactions", {}, o2={"_id": 1}),
        entry(12, "i", "admin.system.keys", {"_id": 1}),
        entry(13, "u", "admin.system.version", {}, o2={"_id": 1}),
        entry(14, "c", "admin.$cmd", {"create": "strongroom_restore"}),
        entry(15, "i", "admin.tempusers", {"_id": 1}),
        entry(16, "c", "admin.$cmd", {"createIndexes": "system.roles", "key": {"role": 1}, "name": "r"}),
        entry(17, "c", "admin.$cmd", {"drop": "strongroom_restore"}),
        entry(18, "c", "d.$cmd", {"dropDatabase": 1}),
        entry(19, "c", "config.$cmd", {"create": "x"}),
    )


def test_users_and_roles_go_to_a_place_apart(translator: Translator) -> None:
    """Inside a transaction, too: the server drops a role and its grants in one."""
    grant, gone = {"$v": 2, "diff": {"u": {"roles": []}}}, {"_id": "d.r"}
    inner = [
        {"op": "u", "ns": "admin.system.users", "ui": UUID, "o": grant, "o2": {"_id": "d.u"}},
        {"op": "d", "ns": "admin.system.roles", "ui": UUID, "o": gone},
    ]
    assert steps(translator, entry(11, "c", "admin.$cmd", {"applyOps": inner}, lsid=SESSIONS[0], txnNumber=0)) == [
        {"op": "u", "ns": "admin.tempusers", "o": grant, "o2": {"_id": "d.u"}},
        {"op": "d", "ns": "admin.temproles", "o": gone},
    ]


def test_a_transaction_of_several_entries_takes_effect_with_its_last(translator: Translator, tmp_path: Path) -> None:
    """Two that are interleaved, one of them begun before the backup; one without its end has never been."""

    def insert(number: int) -> dict[str, Any]:
        return {"op": "i", "ns": "d.a", "ui": UUID, "o": {"_id": number}}

    found = steps(
        translator,
        part(9, 0, [insert(1), insert(2)]),
        entry(10, "i", "d.a", {"_id": "in the backup"}),
        part(11, 1, [insert(10)]),
        part(12, 0, [insert(3)]),
        entry(13, "i", "d.a", {"_id": "between"}),
        part(14, 1, [insert(11)], last=True),
        part(15, 0, [insert(4)], last=True),
        part(16, 1, [insert(99)]),
    )
    assert [one["o"]["_id"] for one in found] == ["between", 10, 11, 1, 2, 3, 4]
    assert len(list(tmp_path.iterdir())) == 1
    translator.close()
    assert not list(tmp_path.iterdir())


def test_what_the_backup_holds_already_is_passed_over(translator: Translator) -> None:
    """Entries up to its time, and a transaction that ended by then."""
    inner = [{"op": "i", "ns": "d.a", "ui": UUID, "o": {"_id": 1}}]
    assert not steps(
        translator,
        entry(8, "c", "d.$cmd", {"create": "unknown here"}),
        part(9, 0, inner),
        part(10, 0, inner, last=True),
    )


def test_an_index_without_a_collation_says_so(translator: Translator) -> None:
    """Else the command would give it the collection's."""
    own = {"v": 2, "key": {"z": 1}, "name": "z_1", "collation": {"locale": "de"}}
    plain = {"v": 2, "key": {"x": 1}, "name": "x_1", "unique": True}
    simple = {**plain, **SIMPLE}
    assert steps(
        translator,
        entry(11, "c", "d.$cmd", {"commitIndexBuild": "a", "indexBuildUUID": UUID, "indexes": [own, plain]}),
        entry(12, "c", "d.$cmd", {"createIndexes": "b", **plain}),
    ) == [("d", {"createIndexes": "a", "indexes": [own, simple]}), ("d", {"createIndexes": "b", "indexes": [simple]})]


def test_index_builds_become_commands_when_they_end(translator: Translator) -> None:
    """Their beginning and their giving up are nothing; applyOps makes no index, and drops none."""
    x, y = {"v": 2, "key": {"x": 1}, "name": "x_1"}, {"v": 2, "key": {"y": 1}, "name": "y_1", "unique": True}
    assert steps(
        translator,
        entry(11, "c", "d.$cmd", {"startIndexBuild": "a", "indexBuildUUID": UUID, "indexes": [x, y]}),
        entry(12, "c", "d.$cmd", {"commitIndexBuild": "a", "indexBuildUUID": UUID, "indexes": [x, y]}),
        entry(13, "c", "d.$cmd", {"startIndexBuild": "b", "indexBuildUUID": UUID, "indexes": [x]}),
        entry(14, "c", "d.$cmd", {"abortIndexBuild": "b", "indexBuildUUID": UUID, "indexes": [x]}),
        entry(15, "c", "d.$cmd", {"createIndexes": "b", **y}),
        entry(16, "c", "d.$cmd", {"dropIndexes": "a", "index": "x_1"}, o2=x),
    ) == [
        ("d", {"createIndexes": "a", "indexes": [{**x, **SIMPLE}, {**y, **SIMPLE}]}),
        ("d", {"createIndexes": "b", "indexes": [{**y, **SIMPLE}]}),
        ("d", {"dropIndexes": "a", "index": "x_1"}),
    ]


def test_a_rename_drops_what_it_replaces_by_name(translator: Translator) -> None:
    """The entry names it by a UUID that the target does not have; later entries go by the new name."""
    rename = {"renameCollection": "d.a", "to": "d.b", "stayTemp": False, "dropTarget": UUID}
    assert steps(
        translator,
        entry(11, "c", "d.$cmd", rename, o2={"numRecords": 1}),
        entry(12, "i", "d.b", {"_id": 1}),
        entry(13, "c", "d.$cmd", {"create": "a", "idIndex": {"v": 2}}),
        entry(14, "i", "d.a", {"_id": 2}),
        entry(15, "c", "d.$cmd", {"drop": "a"}),
    ) == [
        {"op": "c", "ns": "d.$cmd", "o": {"drop": "b"}},
        {"op": "c", "ns": "d.$cmd", "o": {"renameCollection": "d.a", "to": "d.b", "stayTemp": False}, "o2": {"numRecords": 1}},
        {"op": "i", "ns": "d.b", "o": {"_id": 1}},
        {"op": "c", "ns": "d.$cmd", "o": {"create": "a", "idIndex": {"v": 2}}},
        {"op": "i", "ns": "d.a", "o": {"_id": 2}},
        {"op": "c", "ns": "d.$cmd", "o": {"drop": "a"}},
    ]
    with pytest.raises(EngineUnsupported, match=r"'d\.a', which neither"):
        steps(translator, entry(16, "i", "d.a", {"_id": 3}))


def test_the_collections_of_views_and_functions_are_made_once(translator: Translator) -> None:
    """A restore leaves them in the target; where they are not, the log makes them."""
    assert not steps(translator, entry(11, "c", "d.$cmd", {"create": "system.views"}))
    assert steps(translator, entry(12, "c", "e.$cmd", {"create": "system.views"})) == [
        {"op": "c", "ns": "e.$cmd", "o": {"create": "system.views"}}
    ]


def test_a_source_keeps_the_collection_of_views_when_the_last_is_gone(translator: Translator) -> None:
    """No backup has it then: it is made before the next view, and need not be dropped."""
    view = {"_id": "f.v", "viewOn": "a", "pipeline": []}
    assert not steps(translator, entry(11, "c", "g.$cmd", {"drop": "system.views"}))
    assert steps(translator, entry(12, "i", "f.system.views", view), entry(13, "d", "f.system.views", {"_id": "f.v"})) == [
        {"op": "c", "ns": "f.$cmd", "o": {"create": "system.views"}},
        {"op": "i", "ns": "f.system.views", "o": view},
        {"op": "d", "ns": "f.system.views", "o": {"_id": "f.v"}},
    ]


def test_what_a_command_was_filling_when_the_backup_was_taken_is_left_out_or_refused(translator: Translator) -> None:
    """A temporary collection is in no backup: as long as it comes to nothing that is no loss."""
    assert not steps(
        translator, entry(11, "i", "d.tmp.agg_out.1", {"_id": 1}), entry(12, "c", "d.$cmd", {"drop": "tmp.agg_out.1"})
    )
    assert translator.left_out == {"d.tmp.agg_out.1"}
    with pytest.raises(EngineUnsupported, match="next backup"):
        steps(translator, entry(13, "c", "d.$cmd", {"renameCollection": "d.tmp.agg_out.2", "to": "d.result"}))


@pytest.mark.parametrize(
    ("kind", "o", "words"),
    [
        ("c", {"applyOps": [], "prepare": True}, "sharded"),
        ("c", {"commitTransaction": 1}, "sharded"),
        ("c", {"importCollection": "a"}, "importCollection"),
        ("xi", {"_id": 1}, "'xi'"),
    ],
)
def test_what_cannot_be_replayed_is_refused(translator: Translator, kind: str, o: dict[str, Any], words: str) -> None:
    """By its name."""
    with pytest.raises(EngineUnsupported, match=words):
        steps(translator, entry(11, kind, "d.a", o))


@pytest.mark.parametrize(
    "broken",
    [
        {"ts": Timestamp(0, 11)},
        {"ts": Timestamp(0, 11), "op": "u", "ns": "d.a", "o": {"$v": 2}},
        {"ts": Timestamp(0, 11), "op": "c", "ns": "d.$cmd", "o": {}},
        {"ts": Timestamp(0, 11), "op": "c", "ns": "d.$cmd", "o": {"dropIndexes": "a"}},
        {"ts": Timestamp(0, 11), "op": "c", "ns": "admin.$cmd", "o": {"applyOps": [], "partialTxn": True}},
    ],
)
def test_an_entry_that_is_not_whole_is_seen(translator: Translator, broken: dict[str, Any]) -> None:
    """Never an error of another kind."""
    with pytest.raises(NotBson):
        steps(translator, broken)


def test_marks_order_as_cluster_times_and_fit_63_bits() -> None:
    """From the first that can be to the year 2072."""
    for seconds, increment in ((1 << 30, 0), (1_795_858_051, 14), ((1 << 30) + (1 << 31) - 1, 0xFFFFFFFF)):
        number = as_number(Timestamp(seconds, increment))
        assert 0 <= order_of(number) < 1 << 63
        assert time_of(order_of(number)) == number
    facts = {"history": "rs0/ab", "consistent_at": {"seconds": (1 << 30) + 5, "increment": 3}}
    assert mark_of(facts) == Mark("rs0/ab", 5 << 32 | 3, float((1 << 30) + 5))
    assert mark_of({"consistent_at": facts["consistent_at"]}) is None
