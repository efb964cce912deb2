"""Clusters without servers: slots of keys, what CLUSTER NODES tells, and dumps that are put together."""

from __future__ import annotations

from pathlib import Path

import pytest

from strongroom.engines.base import EngineUnsupported, Target
from strongroom.engines.redis import rdb
from strongroom.engines.redis.merging import Sorted, library_name, merge, survey
from strongroom.engines.redis.pacing import Pace
from strongroom.engines.redis.topology import Node, parse_nodes, slot_of, target_of
from strongroom.engines.redis.wire import Place
from support.redis_dumps import Quiet, aux, dump, library, pairs, record, select, sorted_dump

ASKED = Place("here", 7000, None, tls=False)


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 0x31C3),  # the check value that the specification gives
        (b"foo", 12182),
        (b"{foo}bar", 12182),
        (b"a{foo}{bar}", 12182),
        (b"foo{}", 5542),  # an empty tag is none
        (b"{foo", 13308),  # nor is one that does not end
        (b"", 0),
    ],
)
def test_a_key_is_in_the_slot_of_its_tag(key: bytes, slot: int) -> None:
    """Known values; `CLUSTER KEYSLOT` of a real server says the same."""
    assert slot_of(key) == slot


LINES = """\
aa 10.0.0.1:6379@16379,host.example myself,master - 0 0 3 connected 0-5460 6000 [93->-bb] [77-<-cc]
bb ::1:6380@16380 master,fail? - 0 1 2 connected 5461-5999
dd 10.0.0.9:6379@16379 slave aa 0 1 3 connected
ee :0 master,noaddr - 1 0 0 disconnected
"""


def test_what_nodes_tell_is_taken_apart() -> None:
    """Ranges and single slots, slots on their way, names of hosts, IPv6, replicas, nodes without an address."""
    aa, bb, dd, ee = parse_nodes(LINES, ASKED)
    assert (aa.host, aa.port, aa.epoch) == ("10.0.0.1", 6379, 3)
    assert aa.ranges == ((0, 5460), (6000, 6000))
    assert aa.moving == ("[93->-bb]", "[77-<-cc]")
    assert bb.failing
    assert (bb.host, bb.port) == ("::1", 6380)
    assert (dd.master, dd.ranges) == ("aa", ())
    assert (ee.host, ee.port) == ("here", 7000)


def test_a_lone_node_that_does_not_know_its_address_is_entered_where_it_was_found() -> None:
    """It has met no other that could tell it."""
    (node,) = parse_nodes("aa :7000@17000 myself,master - 0 0 0 connected 0-16383\n", ASKED)
    assert (node.host, node.port) == ("here", 7000)


def test_an_unknown_form_is_refused() -> None:
    """A proxy that answers something of its own is no cluster."""
    with pytest.raises(EngineUnsupported, match="CLUSTER NODES"):
        parse_nodes("OK\n", ASKED)


def test_other_nodes_are_entered_as_the_registered_one_is() -> None:
    """The same user, password, options and TLS; IPv6 in brackets."""
    target = Target("rediss://some%40one@here:7000", "pw", {"ca": "text"})
    node = Node("aa", "::1", 7001, frozenset(), "", 0)
    entered = target_of(target, node)
    assert entered == Target("rediss://some%40one@[::1]:7001", "pw", {"ca": "text"})


def sorted_files(folder: Path, *raws: bytes) -> list[Sorted]:
    found = []
    for number, raw in enumerate(raws):
        data, contents = sorted_dump(raw, folder)
        path = folder / f"{number}.rdb"
        path.write_bytes(data)
        again = survey(str(path), f"file {number}", Pace(Quiet(), "survey"))
        assert again.contents == contents
        found.append(again)
    return found


def merged(folder: Path, *raws: bytes) -> bytes:
    out = bytearray()
    merge(sorted_files(folder, *raws), str(folder), out.extend, Pace(Quiet(), "merge"))
    return bytes(out)


def test_dumps_put_together_are_what_one_server_with_all_of_it_would_have_given(tmp_path: Path) -> None:
    """To the byte: keys, databases, counts, expiries, members, libraries and heads once."""
    head = aux(b"redis-bits", b"64") + library(b"#!lua name=one\n")
    hash_ = record(b"h", 4, pairs({b"z": b"1", b"a": b"2"}))
    one = dump(head, select(0, 2, 1), record(b"b", expires=5), hash_, select(3, 1), record(b"x"))
    two = dump(head, select(0, 1), record(b"a"), select(2, 1), record(b"y"), version=9)
    both = dump(head, select(0), record(b"a"), record(b"b", expires=5), hash_, select(2), record(b"y"), select(3), record(b"x"))
    assert merged(tmp_path, one, two) == sorted_dump(both, tmp_path)[0]


def test_a_key_in_two_dumps_is_named(tmp_path: Path) -> None:
    """Which of the values would be right, nobody can tell."""
    with pytest.raises(EngineUnsupported, match=r"b'same' of database 2 is in file 0 and in file 1"):
        merged(tmp_path, dump(select(2), record(b"same")), dump(select(2), record(b"same")))
    merged(tmp_path, dump(select(2), record(b"same")), dump(select(3), record(b"same")))


def test_libraries_of_one_name_that_differ_are_refused(tmp_path: Path) -> None:
    """A server that loads such a dump exits."""
    assert library_name(b"#!lua  name=one engine=x\nrest name=two") == b"one"
    with pytest.raises(EngineUnsupported, match="library 'one' is not the same"):
        merged(tmp_path, dump(library(b"#!lua name=one\nreturn 1")), dump(library(b"#!lua name=one\nreturn 2")))


def test_dumps_of_which_no_server_reads_both_are_refused(tmp_path: Path) -> None:
    """Redis 7.4 and Valkey 9 have gone ways of their own; older ones fit either."""
    with pytest.raises(EngineUnsupported, match="cannot be put together"):
        merged(tmp_path, dump(select(0), record(b"a"), version=12), dump(select(0), record(b"b"), version=80))
    both = merged(tmp_path, dump(select(0), record(b"a"), version=11), dump(select(0), record(b"b"), version=80))
    assert rdb.version_of(both[:9]) == 80
