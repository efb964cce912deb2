"""Sorted dumps: the same bytes for the same data, whatever order the server chose."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.engines.base import EngineUnsupported
from strongroom.engines.redis import rdb, sorting
from strongroom.engines.redis.pacing import Pace
from support.redis_dumps import Quiet, aux, dump, library, pairs, record, select, sorted_dump, string, strings

Value = tuple[int, object]  # type of the record, and what it holds
values = st.one_of(
    st.tuples(st.just(0), st.binary(max_size=80)),
    st.tuples(st.just(1), st.lists(st.binary(max_size=9), min_size=1, max_size=5)),
    st.tuples(st.just(2), st.sets(st.binary(max_size=9), min_size=1, max_size=9)),
    st.tuples(st.just(4), st.dictionaries(st.binary(max_size=9), st.binary(max_size=9), min_size=1, max_size=9)),
)
keyed = st.dictionaries(st.binary(max_size=20), st.tuples(values, st.none() | st.integers(0, 1 << 45)), max_size=15)
instances = st.dictionaries(st.integers(0, 20), keyed.filter(bool), max_size=4)


def encoded(data: dict[int, dict[bytes, tuple[Value, int | None]]], shuffle: random.Random, stamp: bytes) -> bytes:
    """The instance as a server with this hash seed and at this time would dump it."""

    def mixed(items: Iterable[Any]) -> list[Any]:
        listed = list(items)
        shuffle.shuffle(listed)
        return listed

    def value_bytes(kind: int, value: Any) -> bytes:
        if kind == 0:
            return string(value)
        if kind == 1:
            return strings(*value)
        if kind == 2:
            return strings(*mixed(value))
        return pairs(dict(mixed(value.items())))

    parts = [aux(b"redis-ver", b"7.0.15"), aux(b"ctime", stamp), aux(b"used-mem", stamp), aux(b"repl-id", stamp)]
    parts += mixed([library(b"#!lua name=one"), library(b"#!lua name=two")])
    for db in sorted(data):
        parts.append(select(db, len(data[db]), 0))
        for key, ((kind, value), expires) in mixed(data[db].items()):
            hints = b"\xf9" + bytes([shuffle.randrange(256)])
            parts.append(record(key, kind, value_bytes(kind, value), expires=expires, hints=hints))
    return dump(*parts)


def test_the_progress_of_sorting_ends_where_the_last_record_does(tmp_path: Path) -> None:
    """Of a small dump too, which is told of once."""
    job, data = Quiet(), dump(select(0, 2, 0), record(b"one", 0, string(b"1")), record(b"two", 0, string(b"2")))
    (tmp_path / "dump").write_bytes(data)
    paces = (Pace(job, "sort", len(data)), Pace(job, "save"))
    sorting.sort_dump(str(tmp_path / "dump"), str(tmp_path), lambda _piece: None, paces)
    assert [told for told in job.told if told[0] == "sort"] == [("sort", len(data) - rdb.FOOTER_BYTES, len(data))]


@settings(max_examples=150, deadline=None)
@given(data=instances, seeds=st.tuples(st.integers(), st.integers()), budget=st.sampled_from([400, 2000, sorting.RECORD_BUDGET]))
def test_two_dumps_of_the_same_data_sort_to_the_same_bytes(
    data: dict[int, dict[bytes, tuple[Value, int | None]]], seeds: tuple[int, int], budget: int
) -> None:
    """Other hash seeds, another time, another memory budget (so runs in files): not a byte differs."""
    with tempfile.TemporaryDirectory() as folder:
        one, _ = sorted_dump(encoded(data, random.Random(seeds[0]), b"1700000000"), Path(folder))
        two, _ = sorted_dump(encoded(data, random.Random(seeds[1]), b"1800000000"), Path(folder), budget)
        assert one == two
        assert list(Path(folder).iterdir()) == []


@settings(max_examples=150, deadline=None)
@given(data=instances, seed=st.integers())
def test_a_sorted_dump_is_valid_and_holds_the_same_data(
    data: dict[int, dict[bytes, tuple[Value, int | None]]], seed: int
) -> None:
    """It passes the end test, every key is there with its type, members and expiry, and sorting it again changes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        out, contents = sorted_dump(encoded(data, random.Random(seed), b"1"), Path(folder))
        path = Path(folder) / "sorted.rdb"
        path.write_bytes(out)
        assert rdb.verify(str(path), lambda _: None).checked
        path.unlink()
        assert decoded(out) == data
        assert contents.keys == {db: len(keys) for db, keys in data.items()}
        assert contents.functions == 2
        assert contents.head["ctime"] == "1"
        assert contents.size == len(out)
        assert sorted_dump(out, Path(folder))[0] == out


def decoded(raw: bytes) -> dict[int, dict[bytes, tuple[Value, int | None]]]:
    """Reads a dump back with code that knows only the types used here."""
    found: dict[int, dict[bytes, tuple[Value, int | None]]] = {}
    for part in rdb.walk(raw, lambda: None):
        if not isinstance(part, rdb.Record):
            continue
        kind, at = raw[part.start], part.start + 1
        key, at = rdb.text(raw, at, 1000), rdb.skip_string(raw, at)
        count = 1
        if kind != 0:
            count, at = rdb.length(raw, at)
        texts = []
        while at < part.end:
            texts.append(rdb.text(raw, at, 1000))
            at = rdb.skip_string(raw, at)
        shapes: dict[int, Callable[[list[bytes]], object]] = {
            0: lambda items: items[0],
            1: list,
            2: set,
            4: lambda items: dict(zip(items[::2], items[1::2], strict=True)),
        }
        value = shapes[kind](texts)
        assert len(texts) == count * (2 if kind == 4 else 1)
        expires = int.from_bytes(part.expiry[1:], "little", signed=True) if part.expiry else None
        found.setdefault(part.db, {})[key] = ((kind, value), expires)
    return found


def test_records_come_by_database_and_key_with_sizes_made_anew(tmp_path: Path) -> None:
    """The exact bytes of a small sorted dump."""
    raw = dump(
        aux(b"repl-offset", b"77"),
        aux(b"redis-ver", b"7.0.15"),
        library(b"zz"),
        library(b"aa"),
        select(9, 1, 0),
        record(b"only"),
        select(0, 99, 99),
        record(b"b", 2, strings(b"y", b"x")),
        record(b"a", 4, pairs({b"g": b"1", b"f": b"2"}), expires=5, hints=b"\xf8\x07"),
    )
    assert sorted_dump(raw, tmp_path)[0] == dump(
        aux(b"redis-ver", b"7.0.15"),
        library(b"aa"),
        library(b"zz"),
        select(0, 2, 1),
        record(b"a", 4, pairs({b"f": b"2", b"g": b"1"}), expires=5),
        record(b"b", 2, strings(b"x", b"y")),
        select(9, 1, 0),
        record(b"only"),
    )


def test_keys_are_ordered_by_their_text_however_they_are_encoded(tmp_path: Path) -> None:
    """A key written as a number or compressed stands where its text belongs, so neighbours stay neighbours."""
    number = b"\x00\xc1\x39\x30\x01v"  # the key "12345" as a 16-bit integer
    packed = b"\x00\xc3\x05\x0a\x00a\xe0\x00\x00\x01v"  # the key "aaaaaaaaaa" compressed
    raw = dump(select(0, 5), record(b"b"), packed, record(b"13"), number, record(b"a"))
    out, _ = sorted_dump(raw, tmp_path)
    assert out == dump(select(0, 5), number, record(b"13"), record(b"a"), packed, record(b"b"))


def test_an_empty_instance_sorts_to_an_empty_dump(tmp_path: Path) -> None:
    """No keys, no databases, still a whole dump."""
    assert sorted_dump(dump(aux(b"ctime", b"1")), tmp_path)[0] == dump()


def test_many_runs_on_several_levels_merge_into_one_order(tmp_path: Path) -> None:
    """Thousands of tiny runs, so that merged runs are merged again; large values are copied from the dump itself."""
    keys = [b"%05d" % number for number in range(3000)]
    parts = [record(key, 0, string(key * (20_000 if number % 500 == 0 else 1))) for number, key in enumerate(keys)]
    ordered = dump(select(0, len(parts)), *parts)
    random.Random(1).shuffle(parts)
    out, _ = sorted_dump(dump(select(0, len(parts)), *parts), tmp_path, budget=600)
    assert out == ordered
    assert list(tmp_path.iterdir()) == []


def test_a_huge_set_is_sorted_through_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The members of one value obey the memory bound as records do."""
    monkeypatch.setattr(sorting, "MEMBER_BUDGET", 2000)
    members = [b"member %06d" % number for number in range(5000)]
    ordered = dump(select(0, 1), record(b"k", 2, strings(*members)))
    random.Random(2).shuffle(members)
    assert sorted_dump(dump(select(0, 1), record(b"k", 2, strings(*members))), tmp_path)[0] == ordered


def test_a_failed_sort_leaves_no_files(tmp_path: Path) -> None:
    """A module's value at the very end: refused, and the runs spilled before it are gone."""
    parts = [record(b"%05d" % number) for number in range(2000)]
    with pytest.raises(EngineUnsupported):
        sorted_dump(dump(select(0), *parts, record(b"m", 7, b"\x00")), tmp_path, budget=2000)
    assert [path.name for path in tmp_path.iterdir()] == ["raw.rdb"]


def test_the_job_is_looked_at_inside_one_large_value() -> None:
    """A single list of a hundred thousand elements gives the job several chances to stop."""
    control = Quiet()
    raw = dump(select(0), record(b"k", 1, strings(*[b"x"] * 100_000)))
    list(rdb.walk(raw, control.check))
    assert control.checks >= 4


MEASURE = """
import sys, resource
sys.path[:0] = [{tests!r}]
from pathlib import Path
from support.redis_dumps import Quiet
from strongroom.engines.redis.pacing import Pace
from strongroom.engines.redis.sorting import sort_dump

def anonymous():
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) // 1024

before, most, job = anonymous(), 0, Quiet()
def write(data):
    global most
    most = max(most, anonymous())
sort_dump({path!r}, {scratch!r}, write, (Pace(job, "a"), Pace(job, "b")))
print(max(most, anonymous()) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sorting_stays_under_a_hundred_mebibytes(tmp_path: Path) -> None:
    """600,000 keys, a set of 300,000 members and a value of 200 MiB: anonymous memory of a process of its own, in MiB."""
    chooser = random.Random(3)
    parts = [record(b"user:%012d" % chooser.randrange(1 << 40), 0, string(b"v" * 100)) for _ in range(600_000)]
    members = strings(*{b"member:%012d" % chooser.randrange(1 << 40) for _ in range(300_000)})
    path = tmp_path / "big.rdb"
    path.write_bytes(
        dump(select(0), *dict.fromkeys(parts), record(b"set", 2, members), record(b"blob", 0, string(bytes(200 << 20))))
    )
    del parts, members
    script = MEASURE.format(tests=str(Path(__file__).parents[1]), path=str(path), scratch=str(tmp_path))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 100
