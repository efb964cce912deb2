"""What is read out of oplog entries, and the notes kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bson
import pytest
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from strongroom.engines.base import EngineUnsupported
from strongroom.engines.mongodb.capped import Events
from strongroom.engines.mongodb.connection import as_number, as_timestamp
from strongroom.engines.mongodb.documents import decode, id_of, key_of
from strongroom.engines.mongodb.oplog import Change, OplogTail, Relisted, Reshaped, Reshapes, Touched, changes, earlier_part
from strongroom.engines.mongodb.touched import TouchedIds


def found(**entry: Any) -> list[Change]:
    return list(changes(decode(bson.encode(entry))))


def touched(namespace: str, value: Any) -> Touched:
    raw = id_of(bson.encode({"_id": value}))
    assert raw is not None
    return Touched(namespace, raw)


def test_inserts_updates_and_deletes_touch_their_document() -> None:
    """An update names it in o2, the others in o."""
    assert found(op="i", ns="d.a.b", o={"_id": 1, "x": 2}) == [touched("d.a.b", 1)]
    assert found(op="u", ns="d.c", o={"$v": 2}, o2={"_id": "k"}) == [touched("d.c", "k")]
    assert found(op="d", ns="d.c", o={"_id": {"a": 1}}) == [touched("d.c", {"a": 1})]


def test_what_cannot_be_asked_for_by_id_is_read_whole() -> None:
    """No `_id` at all."""
    assert found(op="i", ns="d.c", o={"x": 2}) == [Reshaped("d.c")]


def test_notes_and_the_servers_own_databases_touch_nothing() -> None:
    """local and config are not part of a backup."""
    assert found(op="n", ns="", o={"msg": "periodic noop"}) == []
    assert found(op="u", ns="config.transactions", o={}, o2={"_id": 1}) == []


def test_views_are_kept_in_a_collection_of_which_any_change_is_one_of_the_catalogue() -> None:
    """There is no command for them in the oplog."""
    assert found(op="i", ns="d.system.views", o={"_id": "d.v", "viewOn": "c"}) == [Relisted("d.system.views")]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ({"create": "c"}, [Reshaped("d.c")]),
        ({"drop": "c"}, [Reshaped("d.c")]),
        ({"dropDatabase": 1}, [Reshaped("d.")]),
        ({"renameCollection": "d.c", "to": "d.e.f", "dropTarget": False}, [Reshaped("d.c"), Reshaped("d.e.f")]),
        ({"convertToCapped": "c", "size": 1}, [Reshaped("d.c")]),
        ({"emptycapped": "c"}, [Reshaped("d.c")]),
        ({"collMod": "c", "validator": {}}, [Relisted("d.c")]),
        ({"createIndexes": "c", "name": "x_1"}, [Relisted("d.c")]),
        ({"startIndexBuild": "c"}, [Relisted("d.c")]),
        ({"commitIndexBuild": "c"}, [Relisted("d.c")]),
        ({"abortIndexBuild": "c"}, [Relisted("d.c")]),
        ({"dropIndexes": "c", "index": "x_1"}, [Relisted("d.c")]),
        ({"abortTransaction": 1}, []),
    ],
)
def test_commands_reshape_or_relist(command: dict[str, Any], expected: list[Change]) -> None:
    """Each command of the oplog and what it means for a capture."""
    assert found(op="c", ns="d.$cmd", o=command) == expected


def test_transactions_are_unrolled_at_any_depth() -> None:
    """Each inner operation has a namespace of its own; a part of a transaction counts like a whole one."""
    inner = [
        {"op": "i", "ns": "d.a", "o": {"_id": 1}},
        {"op": "u", "ns": "e.b", "o": {"$v": 2}, "o2": {"_id": 2}},
        {"op": "c", "ns": "e.$cmd", "o": {"create": "new"}},
        {"op": "c", "ns": "e.$cmd", "o": {"applyOps": [{"op": "d", "ns": "e.b", "o": {"_id": 3}}]}},
    ]
    expected = [touched("d.a", 1), touched("e.b", 2), Reshaped("e.new"), touched("e.b", 3)]
    assert found(op="c", ns="admin.$cmd", o={"applyOps": inner}) == expected
    assert found(op="c", ns="admin.$cmd", o={"applyOps": inner, "partialTxn": True}) == expected


@pytest.mark.parametrize(
    "entry",
    [
        {"op": "c", "ns": "admin.$cmd", "o": {"applyOps": [], "prepare": True}},
        {"op": "c", "ns": "admin.$cmd", "o": {"commitTransaction": 1}},
        {"op": "c", "ns": "d.$cmd", "o": {"somethingNew": "c"}},
        {"op": "xx", "ns": "d.c", "o": {}},
    ],
)
def test_what_is_not_known_is_refused_and_never_skipped(entry: dict[str, Any]) -> None:
    """A change that was overlooked would make a backup wrong in silence."""
    with pytest.raises(EngineUnsupported):
        found(**entry)


def test_a_part_of_a_transaction_names_the_one_before() -> None:
    """Only parts of transactions: retryable writes have such a link too, which means nothing here."""
    link = {"ts": Timestamp(7, 1), "t": 1}
    part = {"op": "c", "ns": "admin.$cmd", "o": {"applyOps": []}, "prevOpTime": link}
    write = {"op": "i", "ns": "d.c", "o": {"_id": 1}, "prevOpTime": link}
    first = {**part, "prevOpTime": {"ts": Timestamp(0, 0), "t": -1}}
    assert [earlier_part(decode(bson.encode(entry))) for entry in (part, write, first)] == [as_number(Timestamp(7, 1)), 0, 0]


def test_a_transaction_that_began_before_the_start_is_noted_whole(tmp_path: Path) -> None:
    """Its last part lies after T0 and makes all of it take effect; the earlier parts are looked up."""
    parts = {number: _part(number) for number in (3, 4, 5)}
    touched_ids = TouchedIds(str(tmp_path / "touched"))
    tail = _TailOfParts(as_number(Timestamp(4, 1)), touched_ids, parts)
    tail._take(None, [bson.encode(parts[5])])  # type: ignore[arg-type]
    found = [key for key, _ in touched_ids.page("d.c")]
    touched_ids.close()
    assert found == [key_of(touched("d.c", number).value) for number in (3, 4, 5)]


def _part(number: int) -> dict[str, Any]:
    operation = {"op": "d", "ns": "d.c", "o": {"_id": number}}
    command = {"applyOps": [operation], **({"partialTxn": True} if number < 5 else {})}
    before = Timestamp(number - 1, 1) if number > 3 else Timestamp(0, 0)
    return {"ts": Timestamp(number, 1), "op": "c", "ns": "admin.$cmd", "o": command, "prevOpTime": {"ts": before, "t": 1}}


class _TailOfParts(OplogTail):
    """Looks entries up in a dict."""

    def __init__(self, start: int, ids: TouchedIds, parts: dict[int, dict[str, Any]]) -> None:
        super().__init__(None, start, ids)  # type: ignore[arg-type]
        self._parts = parts

    def _entry_at(self, session: Any, time: Timestamp) -> RawBSONDocument:
        return decode(bson.encode(self._parts[time.time]))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_times_are_numbers_of_the_same_order(seconds: int, increment: int) -> None:
    """And come back."""
    moment = Timestamp(seconds, increment)
    assert as_timestamp(as_number(moment)) == moment
    assert as_number(moment) < as_number(Timestamp(seconds, increment)) + 1


def test_reshapes_count_in_their_interval_and_for_all_of_a_dropped_database() -> None:
    """(after, upto], by collection or by database."""
    notes = Reshapes()
    notes.add(Reshaped("d.a"), 10)
    notes.add(Reshaped("e."), 20)
    notes.add(Relisted("f.c"), 30)
    assert notes.reshaped("d.a", 9, 10)
    assert not notes.reshaped("d.a", 10, 99)
    assert not notes.reshaped("d.a", 0, 9)
    assert not notes.reshaped("d.b", 0, 99)
    assert notes.reshaped("e.any", 19, 20)
    assert not notes.reshaped("f.c", 0, 99)
    assert notes.relisted("f.c", 29)
    assert not notes.relisted("f.c", 30)
    assert notes.relisted("e.any", 0)
    assert notes.databases() == {"d": 10, "e": 20, "f": 30}


@given(st.lists(st.tuples(st.sampled_from("iud"), st.integers(0, 5), st.integers(0, 99)), max_size=30), st.data())
def test_events_of_a_capped_collection_fold_to_its_state(steps: list[tuple[str, int, int]], data: st.DataObject) -> None:
    """Against a plain ordered dict: who is alive at the end, in which order, and whose content must be read again."""
    before = data.draw(st.lists(st.integers(0, 5), unique=True))
    state = dict.fromkeys(before, -1)
    events, dirty = Events(), set()
    for kind, number, content in steps:
        if (kind == "i") == (number in state):
            continue  # the server would refuse, or match nothing
        events.fold(kind, bson.encode({"_id": number, "n": content} if kind == "i" else {"_id": number}))
        if kind == "i":
            state[number] = content
        elif kind == "u":
            state[number] = content
            dirty.add(number)
        if kind == "d":
            del state[number]
        if kind in "id":
            dirty.discard(number)
    key = {number: key_of(b"\x10" + number.to_bytes(4, "little")) for number in range(6)}
    kept = [number for number in before if key[number] not in events.changed]
    kept_updated = [n for n in before if key[n] in events.updated and key[n] not in events.inserted]
    order = [n for n in before if n in kept or n in kept_updated]
    order += [bson.decode(document)["_id"] for document in events.inserted.values()]
    assert order == list(state)
    assert {n for n in range(6) if key[n] in events.updated} == dirty
    for name, document in events.inserted.items():
        if name not in events.updated:
            fields = bson.decode(document)
            assert state[fields["_id"]] == fields["n"]
