"""Cassandra's rules that need no node: what is taken over unread, what counts as a whole snapshot, addresses, CQL."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, load_pem_private_key

from strongroom.engines.base import CaptureBroken, EngineUnsupported, Entry, Target
from strongroom.engines.cassandra import layout
from strongroom.engines.cassandra.capture import _Reading
from strongroom.engines.cassandra.connection import Address, Member, connected, parse, require_version
from strongroom.engines.cassandra.options import JmxEntry, Trust, jmx_entry_of, trust_of
from strongroom.engines.cassandra.restore import read_contents, require_one_user
from strongroom.engines.cassandra.roles import resource
from strongroom.engines.cassandra.schema import Keyspace, Schema, Table, split
from strongroom.engines.cassandra.snapshots import Identity, list_snapshot, require_folders
from support.certificates import Authority

TABLE = Table("shop", "orders", "0" * 32)
NAME = "nb-1-big-Data.db"


class Sink:
    """Remembers what was read and what was adopted; its parent is a dictionary."""

    history = "h"

    def __init__(self, parent: Mapping[str, Entry]) -> None:
        self.parent, self.adopted, self.read = parent, list[str](), dict[str, bytes]()
        self.facts: dict[str, Mapping[str, Any]] = {}
        self.refuses = False

    @contextmanager
    def entry(self, name: str) -> Iterator[Any]:
        sink = self

        class Writer:
            def write(self, data: bytes) -> None:
                sink.read[name] = sink.read.get(name, b"") + bytes(data)

            def finish(self, facts: Mapping[str, Any]) -> None:
                sink.facts[name] = facts

        sink.read[name] = b""
        yield Writer()

    def parent_entry(self, name: str) -> Entry | None:
        return self.parent.get(name)

    def adopt_entry(self, name: str) -> bool:
        if self.refuses:
            return False
        self.adopted.append(name)
        return True


class NoJob:
    def check(self) -> None: ...

    def progress(self, phase: str, done: int, total: int | None = None) -> None: ...


class Disk:
    """A table's folder with snapshots, as a node makes them."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.table = self.data / TABLE.folder
        self.table.mkdir(parents=True)

    def write(self, content: bytes, name: str = NAME) -> None:
        """A new file takes the name, as Cassandra does it."""
        draft = self.table / "draft"
        draft.write_bytes(content)
        draft.replace(self.table / name)

    def snapshot(self, tag: str, files: list[str] | None = None) -> None:
        place = self.table / "snapshots" / tag
        place.mkdir(parents=True)
        for path in self.table.iterdir():
            if path.is_file():
                os.link(path, place / path.name)
        listed = [NAME] if files is None else files
        (place / "manifest.json").write_text(json.dumps({"files": listed}))

    def capture(self, tag: str, parent: Sink | None = None, anchor: str | None = None, *, refuses: bool = False) -> Sink:
        known = (
            {} if parent is None else {name: Entry(name, len(parent.read[name]), facts) for name, facts in parent.facts.items()}
        )
        sink = Sink(known)
        sink.refuses = refuses
        _Reading(sink, NoJob(), list_snapshot([str(self.data)], [TABLE], tag), "host", anchor).read_all()
        return sink


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    made = Disk(tmp_path)
    made.write(b"first")
    made.snapshot("one")
    return made


ENTRY = f"host/{layout.DATA}/{TABLE.folder}/{NAME}"


def test_the_same_inode_as_in_the_anchor_is_taken_over_unread(disk: Disk) -> None:
    first = disk.capture("one")
    assert first.read == {ENTRY: b"first"}
    disk.snapshot("two")
    second = disk.capture("two", first, "one")
    assert (second.adopted, second.read) == ([ENTRY], {})


def test_another_file_of_the_same_name_size_and_time_is_read(disk: Disk) -> None:
    first = disk.capture("one")
    disk.write(b"other")
    was = (disk.table / "snapshots/one" / NAME).stat()
    os.utime(disk.table / NAME, ns=(was.st_atime_ns, was.st_mtime_ns))
    disk.snapshot("two")
    second = disk.capture("two", first, "one")
    assert (second.adopted, second.read) == ([], {ENTRY: b"other"})


def test_without_the_anchor_nothing_is_proven(disk: Disk) -> None:
    first = disk.capture("one")
    disk.snapshot("two")
    assert disk.capture("two", first, None).adopted == []
    assert disk.capture("two", first, "another").adopted == []
    assert disk.capture("two", None, "one").read == {ENTRY: b"first"}


def test_an_anchor_that_is_not_what_the_parent_was_read_from_proves_nothing(disk: Disk) -> None:
    """A folder of the anchor's name that was made anew, over a file that was restored in place."""
    first = disk.capture("one")
    disk.write(b"other")
    for path in (disk.table / "snapshots/one").iterdir():
        path.unlink()
    (disk.table / "snapshots/one").rmdir()
    disk.snapshot("one")
    disk.snapshot("two")
    assert disk.capture("two", first, "one").read == {ENTRY: b"other"}


def test_what_the_sink_will_not_adopt_is_read(disk: Disk) -> None:
    first = disk.capture("one")
    disk.snapshot("two")
    assert disk.capture("two", first, "one", refuses=True).read == {ENTRY: b"first"}


def test_a_snapshot_that_is_not_whole_is_refused(disk: Disk) -> None:
    data = [str(disk.data)]
    with pytest.raises(CaptureBroken, match="holds nothing"):
        list_snapshot(data, [TABLE], "none")
    disk.snapshot("lacks", [NAME, "nb-2-big-Data.db", ".index/nb-1-big-Data.db"])
    with pytest.raises(CaptureBroken, match="lacks nb-2"):
        list_snapshot(data, [TABLE], "lacks")
    disk.snapshot("full disk")
    (disk.table / "snapshots/full disk/manifest.json").write_text("")
    with pytest.raises(CaptureBroken, match="disk full"):
        list_snapshot(data, [TABLE], "full disk")
    whole = list_snapshot(data, [TABLE], "one")
    whole.require_whole()
    (disk.table / "snapshots/one/manifest.json").unlink()
    with pytest.raises(CaptureBroken, match="was removed"):
        whole.require_whole()


def test_data_folders_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(EngineUnsupported, match="no data folder"):
        require_folders([])
    with pytest.raises(EngineUnsupported, match="not on this host"):
        require_folders([str(tmp_path / "none")])
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(EngineUnsupported, match="symbolic link"):
        require_folders([str(tmp_path / "link")])
    require_folders([str(tmp_path)])


def test_a_restore_is_refused_where_the_node_is_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "system").mkdir()
    require_one_user([str(tmp_path)])
    if os.geteuid() == 0:
        os.chown(tmp_path / "system", 4243, -1)
    owner = (tmp_path / "system").stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    require_one_user([str(tmp_path)])
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(EngineUnsupported, match=f"belong to user {owner}"):
        require_one_user([str(tmp_path)])


def test_a_file_of_another_kind_has_no_identity(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert Identity.at(tmp_path / "file") is not None
    assert Identity.at(tmp_path / "link") is None
    assert Identity.at(tmp_path) is None
    assert Identity.at(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("cassandra://h", Address(None, [("h", 9042)])),
        ("cassandra://Bob%20x@h:1,g:2", Address("Bob x", [("h", 1), ("g", 2)])),
        ("cassandra://[::1]:9,[::2]", Address(None, [("::1", 9), ("::2", 9042)])),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse(text) == address


@pytest.mark.parametrize(
    "text",
    ["redis://h", "cassandra://", "cassandra://h/keyspace", "cassandra://h?x=1", "cassandra://u:secret@h", "cassandra://h:x"],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(EngineUnsupported) as refused:
        parse(text)
    assert "secret" not in str(refused.value)


def test_versions() -> None:
    def members(*versions: str) -> list[Member]:
        return [Member(str(number), "h", 1, version, "dc", "r", ()) for number, version in enumerate(versions)]

    assert require_version(members("5.0.6", "5.0.4")) == "5.0.4"
    with pytest.raises(EngineUnsupported, match="too old"):
        require_version(members("4.0.1"))
    with pytest.raises(EngineUnsupported, match="finish the upgrade"):
        require_version(members("4.1.10", "5.0.6"))


def test_statements_are_split_outside_quotes() -> None:
    text = """CREATE TABLE a ("x;""y" text) WITH comment = 'it''s; so';
    CREATE FUNCTION f() LANGUAGE java AS $$ return "a;b'"; $$;;  """
    assert list(split(text)) == [
        """CREATE TABLE a ("x;""y" text) WITH comment = 'it''s; so'""",
        """CREATE FUNCTION f() LANGUAGE java AS $$ return "a;b'"; $$""",
    ]


def test_a_schema_comes_back_and_loses_its_ids() -> None:
    id_ = "5ab4c1e0-0000-11f0-8000-000000000000"
    elements = [
        ("shop", "table", "orders", f"CREATE TABLE shop.orders (\n    id int\n) WITH ID = {id_}\n    AND comment = 'ID = 1'\n;"),
        ("shop", "index", "i", "CREATE CUSTOM INDEX i ON shop.orders (id) USING 'sai';"),
    ]
    schema = Schema([Keyspace("shop", {"class": "SimpleStrategy", "replication_factor": "1"})], [TABLE], elements)
    assert Schema.from_facts(json.loads(json.dumps(schema.to_facts()))) == schema
    assert list(schema.statements(indexes=False)) == ["CREATE TABLE shop.orders (\n    id int\n) WITH comment = 'ID = 1'"]
    assert list(schema.statements(indexes=True)) == ["CREATE CUSTOM INDEX i ON shop.orders (id) USING 'sai'"]
    assert id_ in schema.script()


CDC = "CREATE TABLE shop.orders (\n    \"cdc = true\" int\n) WITH cdc = {}\n    AND comment = 'cdc = true';"


def altered(cdc: str) -> Schema:
    """A schema as a node tells it that has or lacks the last ALTER of a table."""
    kept = {"class": "NetworkTopologyStrategy", "a": "3"}
    elements = [
        ("shop", "keyspace", "shop", "CREATE KEYSPACE shop WITH replication = {'class': 'NetworkTopologyStrategy', 'a': '3'};"),
        ("shop", "table", "orders", CDC.format(cdc)),
    ]
    return Schema([Keyspace("shop", kept)], [TABLE], elements)


def test_one_node_keeps_one_copy_and_captures_no_changes() -> None:
    alone = altered("true").for_one_node()
    assert [text for *_, text in alone.elements] == [
        "CREATE KEYSPACE shop WITH replication = {'class': 'SimpleStrategy', 'replication_factor': '1'};",
        CDC.format("false"),
    ]
    assert dict(alone.keyspaces[0].replication) == {"class": "SimpleStrategy", "replication_factor": "1"}


def test_parts_may_differ_in_what_one_node_is_late_to_say_and_in_nothing_else() -> None:
    """A node goes on saying what was true before its ALTER of `cdc`: what most say is taken."""

    def read(*schemas: Schema) -> Schema:
        parts = {f"{host}/schema.json": json.dumps(one.to_facts()) for host, one in zip("abc", schemas, strict=True)}
        return read_contents(Parts({**parts, "a/roles.cql": ""}), {}).schema

    new, old = altered("true"), altered("false")
    assert read(old, new, new) == new
    assert read(old, old, old) == old
    with pytest.raises(EngineUnsupported, match="changed between"):
        read(new, new, new.for_one_node())


class Parts:
    """Entries of a backup."""

    def __init__(self, kept: Mapping[str, str]) -> None:
        self._kept = kept

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        return (Entry(name, len(text)) for name, text in self._kept.items() if name.startswith(prefix))

    def read(self, name: str) -> Iterator[bytes]:
        return iter([self._kept[name].encode()])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("data", "ALL KEYSPACES"),
        ("data/shop", 'KEYSPACE "shop"'),
        ("data/shop/*", 'ALL TABLES IN KEYSPACE "shop"'),
        ('data/shop/O"d', 'TABLE "shop"."O""d"'),
        ("roles", "ALL ROLES"),
        ("roles/a/b", 'ROLE "a/b"'),
        ("functions", "ALL FUNCTIONS"),
        ("functions/shop", 'ALL FUNCTIONS IN KEYSPACE "shop"'),
        (
            "functions/shop/f[org.apache.cassandra.db.marshal.Int32Type^org.apache.cassandra.db.marshal.UTF8Type]",
            'FUNCTION "shop"."f"(int, text)',
        ),
        ("mbean", "ALL MBEANS"),
        ("mbean/java.lang:type=*", "MBEAN 'java.lang:type=*'"),
    ],
)
def test_resources_of_grants(path: str, words: str) -> None:
    assert resource(path) == words


def test_a_right_on_something_unknown_is_told() -> None:
    with pytest.raises(ValueError, match="moon"):
        resource("moon/base")


AUTHORITY = Authority("tests")
OWN = AUTHORITY.sign("client")
LOCKED = (
    load_pem_private_key(OWN.key.encode(), None)
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"p"))
    .decode()
)


@pytest.mark.parametrize(
    ("scheme", "options", "words"),
    [
        ("cassandras", {"sandbox": "yes"}, "unknown options for a Cassandra target: sandbox"),
        ("cassandras", {"cafile": "/x"}, "unknown options .*: cafile; known are ca, certificate, key"),
        ("cassandra", {"ca": AUTHORITY.pem}, 'the option "ca" is for TLS: the address must begin with cassandras://'),
        ("cassandra", {"check_hostname": "no"}, 'the option "check_hostname" is for TLS'),
        ("cassandras", {"certificate": OWN.certificate}, 'the options "certificate" and "key" go together'),
        ("cassandras", {"jmx_user": "u"}, 'the options "jmx_user" and "jmx_password" go together'),
        ("cassandras", {"check_hostname": "false"}, 'the option "check_hostname" is yes or no'),
        ("cassandras", {"jmx_tls": "on"}, 'the option "jmx_tls" is yes or no'),
        ("cassandras", {"ca": "/etc/ca.pem"}, 'the option "ca" is not a certificate in PEM text'),
        ("cassandras", {"certificate": OWN.certificate, "key": "hush"}, 'the option "key" is no private key'),
        ("cassandras", {"certificate": OWN.certificate, "key": LOCKED}, "or has a password"),
        ("cassandras", {"certificate": OWN.certificate, "key": AUTHORITY.sign("other").key}, "that belong together"),
    ],
)
def test_options_that_cannot_be_meant(scheme: str, options: dict[str, str], words: str) -> None:
    """Told before anything is spoken to, without what they hold."""
    with pytest.raises(EngineUnsupported, match=words) as raised, connected(Target(f"{scheme}://127.0.0.1:1", options=options)):
        pass
    assert "hush" not in str(raised.value)


def test_what_tls_is_checked_by() -> None:
    trust = trust_of(Target("cassandras://h", options={"ca": AUTHORITY.pem}), tls=True)
    assert trust is not None
    context = trust.context()
    assert (context.check_hostname, context.verify_mode, len(context.get_ca_certs())) == (True, ssl.CERT_REQUIRED, 1)
    free = trust_of(Target("cassandras://h", options={"check_hostname": "no"}), tls=True)
    assert free is not None
    assert (free.context().check_hostname, free.context().verify_mode) == (False, ssl.CERT_REQUIRED)
    assert trust_of(Target("cassandra://h"), tls=False) is None


def test_jmx_may_have_tls_where_cql_has_none() -> None:
    target = Target("cassandra://h", options={"ca": AUTHORITY.pem, "jmx_tls": "yes", "jmx_user": "u", "jmx_password": "p"})
    assert trust_of(target, tls=False) is None
    assert jmx_entry_of(target) == JmxEntry("u", "p", Trust(AUTHORITY.pem))
    assert jmx_entry_of(Target("cassandras://h", options={"ca": AUTHORITY.pem})) == JmxEntry()
