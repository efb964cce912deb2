"""InfluxDB's forms without a server: tars, the metastore's message, the backup port's requests, addresses and InfluxQL."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.engines.base import EngineUnsupported, Target
from strongroom.engines.influxdb import metastore, port, tar
from strongroom.engines.influxdb.catalog import File, entry_name, pack, unpack
from strongroom.engines.influxdb.http import release_of
from strongroom.engines.influxdb.influxql import name, renamed_query, text, unquoted
from strongroom.engines.influxdb.metastore import Database, Group, Policy, Subscription, User
from strongroom.engines.influxdb.place import parse_target
from strongroom.engines.influxdb.protobuf import NotProtobuf, fields, message, signed


class Stream:
    """Bytes that come in pieces of any size."""

    def __init__(self, data: bytes, piece: int = 1 << 20) -> None:
        self._data, self._piece = io.BytesIO(data), piece

    def read_into(self, buffer: memoryview) -> int:
        got = self._data.read(min(self._piece, len(buffer)))
        buffer[: len(got)] = got
        return len(got)


def read(data: bytes, piece: int = 1 << 20) -> dict[str, bytes]:
    shard = tar.ShardTar(Stream(data, piece))
    return {member.name: b"".join(map(bytes, shard.pieces())) for member in shard.members()}


def packed(files: dict[str, bytes], form: int) -> bytes:
    """A tar as another program makes it, with exactly 1,024 zero bytes at its end."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as file:
        for key, data in files.items():
            info = tarfile.TarInfo(key)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        end = file.offset
    return out.getvalue()[:end] + tar.END


FILES = {
    "db/rp/1/000000001-000000001.tsm": b"x" * 1000,
    "db/rp/1/empty.tsm": b"",
    "db/" + "a" * 200 + "/1/long.tsm": b"y" * 512,
    "dätabase é/rp/1/000000002-000000001.tsm": b"z" * 513,
}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("piece", [1, 7, 512, 1 << 20])
def test_a_tar_is_read_whatever_wrote_it_and_however_it_comes(form: int, piece: int) -> None:
    """Long names and other letters in both forms; the file's name is what follows `database/policy/shard/`."""
    assert read(packed(FILES, form), piece) == FILES
    member = tar.Member("a/b/12/000000001-000000001.tsm", 0)
    assert member.file == "000000001-000000001.tsm"


def test_what_we_write_is_a_tar() -> None:
    """Read by Python's own reader and by ours."""
    data = b"".join(tar.head(key, len(content)) + content + tar.padding(len(content)) for key, content in FILES.items()) + tar.END
    assert read(data) == FILES
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        assert [one.name for one in file] == list(FILES)


def test_folders_and_links_are_passed_over() -> None:
    """As the folder of an index on disk."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        folder = tarfile.TarInfo("db/rp/1/index")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        file.addfile(tarfile.TarInfo("db/rp/1/a.tsm"))
        end = file.offset
    assert read(out.getvalue()[:end] + tar.END) == {"db/rp/1/a.tsm": b""}


def test_a_tar_cut_anywhere_is_never_whole() -> None:
    """No server tells an error: every beginning of a tar, and whatever goes on after its end, is refused."""
    whole = packed({"db/rp/1/a.tsm": b"x" * 700, "db/rp/1/b.tsm": b""}, tarfile.GNU_FORMAT)
    for size in range(len(whole)):
        with pytest.raises(tar.CutShort):
            read(whole[:size])
    for more in (b"\0", bytes(512), bytes(9216)):
        with pytest.raises(tar.CutShort, match="after the end"):
            read(whole + more)
    with pytest.raises(tar.CutShort, match="one block"):
        read(whole[:-512] + b"x" * 512)
    with pytest.raises(tar.CutShort, match="cannot be read"):
        read(b"garbage " * 64 + tar.END)


def test_an_empty_answer_is_told_from_a_cut_one() -> None:
    """A shard that is busy gives nothing at all."""
    for data, empty in ((b"", True), (b"x", False), (bytes(512), False)):
        shard = tar.ShardTar(Stream(data))
        with pytest.raises(tar.CutShort):
            list(shard.members())
        assert shard.empty is empty
    assert list(tar.ShardTar(Stream(tar.END)).members()) == []


# The metastore


@settings(deadline=None)  # machines that tests run on are shared
@given(st.lists(st.tuples(st.integers(1, 1000), st.one_of(st.integers(-(2**63), 2**63 - 1), st.binary(max_size=300)))))
def test_fields_come_back(items: list[tuple[int, int | bytes]]) -> None:
    """Any numbers and bytes, in order."""
    found = [(number, signed(value) if isinstance(value, int) else value) for number, value in fields(message(items))]
    assert found == items


@settings(deadline=None)  # machines that tests run on are shared
@given(st.binary(max_size=60))
def test_garbage_is_refused_and_never_hangs(data: bytes) -> None:
    """Or read as fields by chance."""
    try:
        list(fields(data))
        metastore.parse(data)
    except NotProtobuf:
        pass


DATABASE = Database(
    "shöp",
    "for ever",
    (
        Policy("for ever", 0, 7 * 24 * 3600 * 10**9, 1, (Group(-5, 10, (3,)), Group(10, 20, (4, 5), truncated=15))),
        Policy("week", 10**15, 10**14, 2, (Group(0, 9, (8,)),), (Subscription("s", "ALL", ("udp://a:1", "udp://b:2")),)),
    ),
)


def test_what_is_sent_for_a_restore_is_what_was_read() -> None:
    """Only the shards that are wanted, with the groups that still have one."""
    found = metastore.parse(metastore.import_blob(DATABASE, {3, 4, 5, 8})).database("shöp")
    assert found == DATABASE
    few = metastore.parse(metastore.import_blob(DATABASE, {5})).database("shöp")
    assert few is not None
    assert [shard for _, _, shard in few.shards()] == [5]
    assert [one.groups for one in few.policies] == [(Group(10, 20, (5,), truncated=15),), ()]
    assert metastore.parse(metastore.import_blob(DATABASE, {5})).database("shop") is None


def full_message() -> bytes:
    """As the server writes it: another database, deleted groups, queries, users with hashes and grants."""
    gone = message([(1, 9), (2, 0), (3, 1), (4, 77), (5, message([(1, 99)]))])
    policy = message([(1, "p"), (2, 0), (3, 1), (4, 1), (5, gone)])
    query = message([(1, "cq"), (2, "CREATE CONTINUOUS QUERY cq ON other BEGIN SELECT 1 END")])
    other = message([(1, "other"), (2, "p"), (3, policy), (4, query)])
    grants = [(4, message([(1, database), (2, right)])) for database, right in (("shöp", 1), ("other", 3), ("none", 0))]
    users = [message([(1, "ann"), (2, "$2a$secret"), (3, 0), *grants]), message([(1, "root"), (2, "$2a$hash"), (3, 1)])]
    body = next(value for number, value in fields(metastore.import_blob(DATABASE, {3, 4, 5, 8})) if number == 5)
    return message([(1, 0), (2, 1), (3, 2), (5, body), (5, other), *((6, user) for user in users), (7, 0), (8, 9), (9, 99)])


def test_the_servers_message_is_read() -> None:
    """Deleted groups are none; rights by their words."""
    found = metastore.parse(full_message())
    assert [one.name for one in found.databases] == ["shöp", "other"]
    assert list(found.databases[1].shards()) == []
    assert found.databases[1].queries == (("cq", "CREATE CONTINUOUS QUERY cq ON other BEGIN SELECT 1 END"),)
    assert found.users == (User("ann", False, (("shöp", "READ"), ("other", "ALL"))), User("root", True))


def test_a_message_of_one_database_holds_nothing_of_the_others() -> None:
    """Of the whole server it holds the users too."""
    one = metastore.narrowed(full_message(), lambda database: database == "other", with_users=False)
    assert metastore.parse(one).users == (User("ann", False, (("other", "ALL"),)),)
    assert [database.name for database in metastore.parse(one).databases] == ["other"]
    assert b"secret" not in one
    assert "shöp".encode() not in one
    whole = metastore.narrowed(full_message(), lambda _: True, with_users=True)
    assert whole == full_message()


# The backup port


@pytest.mark.parametrize("database", ["a", "x" * 255, "é" * 127, "🚀" * 63, '"' * 255])
@pytest.mark.parametrize("size", [1, 100, 10_000, 1_000_000])
def test_the_order_to_make_a_database_ends_beyond_the_first_piece_that_the_server_reads(database: str, size: int) -> None:
    """Its JSON must end neither with that piece, of 512 bytes, nor with the second one, of 1,024."""
    request = port.request(6, BackupDatabase=database, UploadSize=size).rjust(port.PAST_FIRST_READ)
    assert 512 < len(request) - 1 < 512 + 1024
    assert request.endswith(b"}\n")
    assert json.loads(request)["BackupDatabase"] == database


# The catalog


def test_a_catalog_comes_back() -> None:
    """And one that cannot be ours is refused."""
    shards = {12: [File("000000001-000000001.tsm", 5, "ab")], 3: []}
    assert unpack(pack(shards)) == shards
    assert entry_name(12, "a.tsm") == "shard/12/a.tsm"
    for wrong in (b"", b"[]", b'{"format":2,"shards":{}}', b'{"format":1,"shards":{"1":[["../a.tsm",1,"x"]]}}', b'{"format":1}'):
        with pytest.raises(EngineUnsupported):
            unpack(wrong)


# Addresses


def test_addresses_are_read() -> None:
    """What is left out has the usual ports."""
    place = parse_target(Target("influxdb://ann%20b@db.example", "pw"))
    assert (place.url, place.user, place.password) == ("http://db.example:8086", "ann b", "pw")
    assert (place.backup, place.database, place.tls) == (("db.example", 8088), None, None)
    assert not place.is_private
    assert "pw" not in repr(place)
    place = parse_target(Target("influxdbs://[::1]:9000/my%20db?backup=127.0.0.1:7"))
    assert (place.url, place.backup, place.database) == ("https://[::1]:9000", ("127.0.0.1", 7), "my db")
    assert place.tls is not None
    assert place.is_private
    assert place.covers("my db")
    assert not place.covers("other")
    whole = parse_target(Target("influxdb://localhost?backup=:99"))
    assert whole.backup == ("localhost", 99)
    assert [name for name in ("a", "_internal", "strongroom_restore_x") if whole.covers(name)] == ["a"]


@pytest.mark.parametrize(
    "address",
    [
        "redis://h", "influxdb://", "influxdb://h:x", "influxdb://u:secret@h", "influxdb://h/a/b", "influxdb://h/_internal",
        "influxdb://h?backup=h:x", "influxdb://h?other=1", "influxdb://h?x", "influxdb://h/strongroom_restore_1", "h:8086",
    ],
)  # fmt: skip
def test_addresses_that_are_none_are_refused(address: str) -> None:
    """Without repeating what may be a password."""
    with pytest.raises(EngineUnsupported) as refused:
        parse_target(Target(address))
    assert "secret" not in str(refused.value)


def test_options_that_are_none_are_refused() -> None:
    """So that a typing error is seen."""
    with pytest.raises(EngineUnsupported, match="tlsfile"):
        parse_target(Target("influxdb://h", None, {"tlsfile": "x"}))
    with pytest.raises(EngineUnsupported, match="PEM"):
        parse_target(Target("influxdbs://h", None, {"ca": "x"}))


def test_releases_are_compared_as_numbers() -> None:
    """1.10 is later than 1.9; no version is older than all."""
    assert release_of("1.10.3") > release_of("1.9.0") > release_of("nonsense")


# InfluxQL


@settings(deadline=None)  # machines that tests run on are shared
@given(st.text(max_size=20))
def test_names_come_back_from_their_quotes(value: str) -> None:
    """Whatever is in them."""
    assert unquoted(name(value)) == value


def test_texts_are_quoted() -> None:
    """Quotes and backslashes cannot end them."""
    assert text("it's \\ a\n") == "'it\\'s \\\\ a\\n'"
    assert unquoted("plain") == "plain"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (
            "CREATE CONTINUOUS QUERY q ON foo BEGIN SELECT mean(v) INTO foo.p.m FROM foo.p.cpu GROUP BY time(5m) END",
            'CREATE CONTINUOUS QUERY q ON "n w" BEGIN SELECT mean(v) INTO "n w".p.m FROM "n w".p.cpu GROUP BY time(5m) END',
        ),
        (
            "CREATE CONTINUOUS QUERY foo ON foo BEGIN SELECT foo AS foo INTO foo.foo.foo FROM foo..x WHERE a = 'foo.a.b' END",
            'CREATE CONTINUOUS QUERY foo ON "n w" BEGIN SELECT foo AS foo INTO "n w".foo.foo FROM "n w"..x '
            "WHERE a = 'foo.a.b' END",
        ),
        (
            'CREATE CONTINUOUS QUERY "a b" ON "foo" BEGIN SELECT max(v) INTO "foo"."p"./foo.a.b/ FROM "foo"."p".:MEASUREMENT END',
            'CREATE CONTINUOUS QUERY "a b" ON "n w" BEGIN SELECT max(v) INTO "n w"."p"./foo.a.b/ FROM "n w"."p".:MEASUREMENT END',
        ),
        (
            "CREATE CONTINUOUS QUERY q ON foo BEGIN SELECT v INTO bar.foo.m FROM (SELECT a / foo FROM foo.p.x, other.foo.x "
            "WHERE h =~ /foo.b.c/ AND foo.p = 1) END",
            'CREATE CONTINUOUS QUERY q ON "n w" BEGIN SELECT v INTO bar.foo.m FROM (SELECT a / foo FROM "n w".p.x, other.foo.x '
            "WHERE h =~ /foo.b.c/ AND foo.p = 1) END",
        ),
    ],
)  # fmt: skip
def test_continuous_queries_follow_their_database(query: str, expected: str) -> None:
    """After ON and in names of three parts; fields, strings, expressions and other databases stay."""
    assert renamed_query(query, "foo", "n w") == expected


def test_what_is_no_continuous_query_is_refused() -> None:
    """Whatever the metastore holds there."""
    for query in ("", "SELECT 1", "CREATE CONTINUOUS QUERY q"):
        with pytest.raises(ValueError, match="not a continuous query"):
            renamed_query(query, "foo", "bar")
