"""An operator's own dump files, put into real servers and clusters; what is no whole dump never reaches them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from strongroom.engines.base import CaptureBroken, EngineError, EngineUnsupported, Importer, Summary, Target
from strongroom.engines.redis import RedisEngine
from support.redis_cluster import redis_cluster
from support.redis_dumps import Quiet, aux, dump, record, select
from support.redis_server import RedisServer, few_binaries, label_of, redis_server

ENGINE = RedisEngine()

pytestmark = pytest.mark.skipif(not few_binaries(), reason="no redis-server here")


@pytest.fixture(scope="module", params=few_binaries(), ids=label_of)
def binary(request: pytest.FixtureRequest) -> str:
    """The oldest and the newest servers of this machine in turn."""
    return str(request.param)


@pytest.fixture
def server(tmp_path: Path, binary: str) -> Iterator[RedisServer]:
    """A target with a little data of its own."""
    with redis_server(tmp_path, binary=binary) as running:
        with running.client() as client:
            client.mset({"old": "data", "kept": "yes"})
        yield running


def imported(target: Target, files: dict[str, Path], folder: Path, control: Quiet | None = None) -> Summary:
    scratch = folder / f"scratch-{len(list(folder.glob('scratch-*')))}"
    scratch.mkdir()
    try:
        return ENGINE.import_files(target, {name: str(path) for name, path in files.items()}, control or Quiet(), str(scratch))
    finally:
        assert os.listdir(scratch) == []


def saved(server: RedisServer, to: Path) -> Path:
    """The server's own dump file, as SAVE makes it."""
    with server.client() as client:
        client.save()
    to.write_bytes((server.folder / "dump.rdb").read_bytes())
    return to


def assert_untouched(server: RedisServer) -> None:
    with server.client() as client:
        assert client.mget("old", "kept") == [b"data", b"yes"]
        assert client.dbsize() == 2
        assert client.info("replication")["role"] == "master"


def test_a_file_that_a_server_saved_becomes_what_the_instance_holds(server: RedisServer, tmp_path: Path, binary: str) -> None:
    """All of it, with expiries and databases, and nothing of before."""
    assert isinstance(ENGINE, Importer)
    with redis_server(tmp_path, binary=binary) as source:
        with source.client(db=3) as client:
            client.sadd("set", *(f"member {number}" for number in range(1000)))
            client.set("expiring", "v", px=100_000_000)
        with source.client() as client:
            client.mset({f"key:{number}": "x" * number for number in range(500)})
            expected = client.execute_command("DEBUG", "DIGEST")
        summary = imported(Target(server.address), {"a.rdb": saved(source, tmp_path / "a.rdb")}, tmp_path)
    with server.client() as client:
        assert client.execute_command("DEBUG", "DIGEST") == expected
    assert summary.facts["keys"] == {"0": 500, "3": 2}
    assert not summary.warnings


def test_the_files_of_a_clusters_nodes_go_into_a_server_and_into_a_cluster_together(
    server: RedisServer, tmp_path: Path, binary: str
) -> None:
    """Each node's file holds its slots only."""
    with redis_cluster(tmp_path, 3, binary=binary) as source, redis_cluster(tmp_path, 2, binary=binary) as other:
        pairs = {f"key:{number}": str(number) for number in range(1000)}
        source.set_many(pairs)
        files = {f"{number}.rdb": saved(node, tmp_path / f"{number}.rdb") for number, node in enumerate(source.masters)}
        imported(other.target, files, tmp_path)
        assert other.keys() == source.keys()
    imported(Target(server.address), files, tmp_path)
    with server.client() as client:
        assert {key.decode(): client.get(key).decode() for key in client.scan_iter()} == pairs  # type: ignore[union-attr]


GOOD = dump(select(0), record(b"new"), version=9)


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (GOOD[:-20], CaptureBroken, "ends after 10 bytes"),
        (GOOD[:-6], CaptureBroken, "no end mark"),
        (GOOD[:12] + b"?" + GOOD[13:], CaptureBroken, "checksum does not match"),
        (b"", EngineUnsupported, "not a dump"),
        (b"PK\x03\x04 an archive of something", EngineUnsupported, "not a dump"),
        (b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n", EngineUnsupported, "append-only file"),
        (dump(aux(b"aof-base", b"1"), select(0), record(b"new"), version=9), EngineUnsupported, "base of an append-only file"),
        (dump(select(0), record(b"new", 7, b"\x00"), version=9), EngineUnsupported, "module"),
        (dump(select(0), record(b"new", 0, b"\x09short"), version=9), CaptureBroken, "structure"),
        (dump(version=99), EngineUnsupported, "newer than"),
        (GOOD + b"more", CaptureBroken, "no end mark"),
    ],
)
def test_what_is_no_whole_dump_is_refused_by_name_and_never_sent(
    server: RedisServer, tmp_path: Path, content: bytes, error: type[EngineError], says: str
) -> None:
    """A good file beside it helps nothing."""
    (tmp_path / "good").write_bytes(GOOD)
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(error, match=rf"file folder/bad: .*{says}.*nothing was sent"):
        imported(Target(server.address), {"folder/good": tmp_path / "good", "folder/bad": tmp_path / "bad"}, tmp_path)
    assert_untouched(server)


def test_a_key_in_two_files_is_named_and_nothing_is_sent(server: RedisServer, tmp_path: Path) -> None:
    """Nobody can tell which of its values is right."""
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(dump(select(0), record(b"same"), record(name.encode()), version=9))
    with pytest.raises(EngineUnsupported, match="b'same' of database 0 is in one and in two"):
        imported(Target(server.address), {name: tmp_path / name for name in ("one", "two")}, tmp_path)
    assert_untouched(server)


def test_a_file_without_a_checksum_is_taken_with_a_warning(server: RedisServer, tmp_path: Path) -> None:
    """Of a server with rdbchecksum no; what is sent to the target has one."""
    (tmp_path / "a").write_bytes(dump(select(0), record(b"new"), version=9, checksum=False))
    summary = imported(Target(server.address), {"a": tmp_path / "a"}, tmp_path)
    assert any("a carries no checksum" in warning for warning in summary.warnings)
    with server.client() as client:
        assert client.keys() == [b"new"]


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: os.truncate(path, 9)])
def test_a_file_that_changes_once_it_is_copied_changes_nothing(
    server: RedisServer, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """What was proved is what is sent."""
    path = tmp_path / "a"
    path.write_bytes(GOOD)

    class Changing(Quiet):
        def progress(self, phase: str, done: int, total: int | None = None) -> None:
            if phase == "sort" and path.exists() and path.stat().st_size > 9:
                change(path)

    imported(Target(server.address), {"a": path}, tmp_path, Changing())
    with server.client() as client:
        assert client.keys() == [b"new"]


def test_a_file_that_cannot_be_read_is_named(server: RedisServer, tmp_path: Path) -> None:
    """It went away between the request and the job."""
    with pytest.raises(EngineUnsupported, match="file gone: it cannot be read"):
        imported(Target(server.address), {"gone": tmp_path / "gone"}, tmp_path)
    assert_untouched(server)
