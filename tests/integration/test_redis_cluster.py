"""Clusters of real servers: what goes in comes out, whatever the number of shards, and what moves meanwhile is noticed."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from strongroom.ambient import Machine
from strongroom.engines.base import (
    CaptureBroken,
    EngineDenied,
    EngineUnreachable,
    EngineUnsupported,
    RestoreBroken,
    Summary,
    Target,
)
from strongroom.engines.redis import RedisEngine, cluster_capture
from strongroom.engines.redis.topology import slot_of
from strongroom.engines.redis.wire import open_wire
from support.redis_cluster import Cluster, redis_cluster, until
from support.redis_dumps import MemoryBackup, Quiet, dump, record, select
from support.redis_server import RedisServer, few_binaries, is_valkey, label_of, redis_server, version_of

ENGINE = RedisEngine()
LIBRARY = "#!lua name={0}\nredis.register_function('{0}', function(keys, args) return '{0}!' end)"
NEVER, LATER = 0, 4_000_000_000_123  # milliseconds since the epoch

pytestmark = pytest.mark.skipif(not few_binaries(), reason="no redis-server here")


@pytest.fixture(scope="module", params=few_binaries(), ids=label_of)
def binary(request: pytest.FixtureRequest) -> str:
    """The oldest and the newest servers of this machine in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def shared_source(tmp_path_factory: pytest.TempPathFactory, binary: str) -> Iterator[Cluster]:
    """Three shards with a replica each, and a password."""
    with redis_cluster(tmp_path_factory.mktemp("source"), 3, 1, binary=binary, password="pw") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared_other(tmp_path_factory: pytest.TempPathFactory, binary: str) -> Iterator[Cluster]:
    """Two shards without replicas."""
    with redis_cluster(tmp_path_factory.mktemp("other"), 2, binary=binary) as cluster:
        yield cluster


def wiped(cluster: Cluster) -> Cluster:
    for master in cluster.masters:
        with master.client() as client:
            client.flushall()
            if master.version >= (7,):
                client.execute_command("FUNCTION", "FLUSH")
    return cluster


@pytest.fixture
def source(shared_source: Cluster) -> Cluster:
    """The shared source, empty."""
    return wiped(shared_source)


@pytest.fixture
def other(shared_other: Cluster) -> Cluster:
    """The shared target, empty."""
    return wiped(shared_other)


@pytest.fixture
def own(tmp_path: Path, binary: str) -> Iterator[Cluster]:
    """A small cluster for a test that breaks it."""
    with redis_cluster(tmp_path, 2, 1, binary=binary) as cluster:
        yield cluster


class Acting(Quiet):
    """A job in which something happens once, when a phase has passed so many bytes."""

    def __init__(self, phase: str, act: Callable[[], object], after: int = 0) -> None:
        super().__init__()
        self._when, self._what, self.acted = (phase, after), act, False

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        super().progress(phase, done, total)
        if (phase, self.acted) == (self._when[0], False) and done >= self._when[1]:
            self.acted = True
            self._what()


def scratch_in(folder: Path) -> str:
    path = folder / f"scratch-{len(list(folder.glob('scratch-*')))}"
    path.mkdir()
    return str(path)


def captured(target: Target, folder: Path, control: Quiet | None = None) -> tuple[MemoryBackup, Summary]:
    backup, scratch = MemoryBackup(), scratch_in(folder)
    summary = ENGINE.capture(target, backup, control or Quiet(), scratch)
    assert os.listdir(scratch) == []
    return backup, summary


def restored(target: Target, backup: tuple[MemoryBackup, Summary], folder: Path, control: Quiet | None = None) -> Summary:
    scratch = scratch_in(folder)
    summary = ENGINE.restore(target, backup[0], backup[1].facts, control or Quiet(), scratch)
    assert os.listdir(scratch) == []
    return summary


def fill(cluster: Cluster) -> None:
    """Every type, odd keys and hash tags, with and without expiry, in all shards."""
    chooser = random.Random(7)
    cluster.set_many({f"key:{number}": number for number in range(2000)})
    for number in range(30):
        words = [f"word {chooser.randrange(1 << 40)}" for _ in range(3 if number % 2 else 300)]
        cluster.do("RPUSH", f"list:{number}", *words)
        cluster.do("SADD", f"set:{number}", *words)
        cluster.do("HSET", f"hash:{number}", *(part for word in words for part in (word, word * 2)))
        cluster.do("ZADD", f"scores:{number}", *(part for word in words for part in (chooser.random(), word)))
        cluster.do("XADD", f"stream:{number}", "*", "a", "b")
        with cluster.serving(f"stream:{number}").client() as client:
            client.xgroup_create(f"stream:{number}", "readers", "0")
        cluster.do("SET", f"{{tag{number}}}one", "same slot")
        cluster.do("SET", f"{{tag{number}}}two", "same slot")
        cluster.do("PEXPIREAT", f"list:{number}", LATER)
    cluster.do("SET", "compressible", "ab" * 5000)
    cluster.do("SET", "", "the empty key")
    cluster.do("SET", "key of half a mebibyte " + "k" * (512 << 10), "v")
    binary = cluster.masters[0].binary
    if is_valkey(binary) and version_of(binary) >= (9,):
        cluster.do("HPEXPIREAT", "hash:0", LATER, "FIELDS", 1, "word")
        cluster.do("HSET", "session", "f", "v", "g", "w")
        cluster.do("HPEXPIREAT", "session", LATER, "FIELDS", 1, "f")
    if version_of(binary) >= (7,):
        for master in cluster.masters:
            with master.client() as client:
                client.execute_command("FUNCTION", "LOAD", "REPLACE", LIBRARY.format("alpha"))


def contents(masters: list[RedisServer]) -> dict[bytes, tuple[bytes, int]]:
    """Every key with the server's own digest of its value, and when it expires, to the millisecond."""
    script = (
        "local t = redis.call('TIME') local p = redis.call('PTTL', KEYS[1]) if p < 0 then return 0 end "
        "return t[1] * 1000 + math.floor(t[2] / 1000) + p"
    )
    found = {}
    for master in masters:
        with master.client(single_connection_client=True) as client:
            if client.info("replication")["role"] == "slave":
                client.execute_command("READONLY")
            for key in client.scan_iter(count=1000):
                (digest,) = client.execute_command("DEBUG", "DIGEST-VALUE", key)
                expires = client.eval(script, 1, key) if key.startswith((b"list", b"key:1")) else NEVER
                found[key] = digest, round(expires / 10)  # reading the clock rounds
    return found


def libraries(server: RedisServer) -> list[Any]:
    if server.version < (7,):
        return []
    with server.client() as client:
        return [library[1] for library in client.function_list()]


def test_a_cluster_comes_back_equal_in_itself_in_one_of_other_shards_and_in_a_single_server(
    source: Cluster, other: Cluster, tmp_path: Path, binary: str
) -> None:
    """All types with their expiries, and functions on every master; what the targets held is gone."""
    fill(source)
    expected = contents(source.masters)
    assert len({source.serving(key.decode("utf-8", "replace")) for key in expected}) == 3
    backup = captured(source.target, tmp_path)
    source.set_many({f"key:{number}": "changed" for number in range(100)} | {"new": "gone afterwards"})
    source.do("DEL", "list:3")
    other.set_many({f"old:{number}": "data" for number in range(50)})
    summary = restored(other.target, backup, tmp_path)
    assert contents(other.masters) == expected
    assert summary.facts["keys"] == {"0": len(expected)}
    restored(source.target, backup, tmp_path)
    assert contents(source.masters) == expected
    with redis_server(tmp_path, binary=binary) as single:
        restored(Target(single.address), backup, tmp_path)
        assert contents([single]) == expected
        for server in (*other.masters, *source.masters, single):
            assert libraries(server) == ([b"alpha"] if server.version >= (7,) else [])
        back = captured(Target(single.address), tmp_path)
        wiped(source)
        restored(source.target, back, tmp_path)
        assert contents(source.masters) == expected
    # Replicas follow: what a fail-over would show is the same.
    replicas = [one for some in source.replicas for one in some]
    until(lambda: contents(replicas) == expected)


def test_the_map_of_slots_is_told_and_what_did_not_change_is_the_same_bytes(source: Cluster, tmp_path: Path) -> None:
    """Each shard's entry is named by its first slot; another capture, of the master instead, gives the same."""
    fill(source)
    first, summary = captured(source.target, tmp_path)
    assert first.names == ["rdb/00000", "rdb/05462", "rdb/10923"]
    assert summary.facts["mode"] == "Cluster"
    assert [shard["slots"] for shard in summary.facts["shards"]] == [[[0, 5461]], [[5462, 10922]], [[10923, 16383]]]
    assert sum(first.kept[name][1]["keys"]["0"] for name in first.names) == summary.facts["keys"]["0"]
    source.do("SET", "one more", "key")
    changed = [name for name, (data, _) in captured(source.target, tmp_path)[0].kept.items() if data != first.kept[name][0]]
    assert len(changed) == 1


def test_a_replica_that_keeps_up_is_read_and_one_that_does_not_answer_is_not(
    source: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masters are spared where that costs no freshness."""
    monkeypatch.setattr(cluster_capture, "CATCH_UP_SECONDS", 0.5)
    source.set_many({f"key:{number}": number for number in range(100)})
    _, summary = captured(source.target, tmp_path)
    assert [shard["replica"] for shard in summary.facts["shards"]] == [True, True, True]
    assert summary.facts["keys"] == {"0": 100}
    paused = source.replicas[1][0]
    os.kill(paused.pid, signal.SIGSTOP)
    try:
        _, summary = captured(source.target, tmp_path)
    finally:
        os.kill(paused.pid, signal.SIGCONT)
    assert [shard["replica"] for shard in summary.facts["shards"]] == [True, False, True]
    assert summary.facts["keys"] == {"0": 100}
    source.settle()


def test_a_capture_shows_nothing_from_before_it_began_and_no_half_transaction(source: Cluster, tmp_path: Path) -> None:
    """Beside a writer: what was acknowledged before is in the backup, and pairs of one slot agree."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def write() -> None:
        try:
            with source.serving("{pair}a").client() as client:
                while not stop.is_set():
                    pipe = client.pipeline(transaction=True)
                    pipe.incr("{pair}a")
                    pipe.incr("{pair}b")
                    pipe.execute()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        until(lambda: int(source.do("GET", "{pair}a") or 0) > 100)
        acknowledged = int(source.do("GET", "{pair}a"))
        backup = captured(source.target, tmp_path)
    finally:
        stop.set()
        thread.join()
    assert not errors
    restored(source.target, backup, tmp_path)
    assert source.do("GET", "{pair}a") == source.do("GET", "{pair}b")
    assert int(source.do("GET", "{pair}a")) >= acknowledged


def test_a_fail_over_in_the_middle_breaks_the_capture(own: Cluster, tmp_path: Path) -> None:
    """The new master may lack what the old one had: nothing is kept, and the next capture is whole."""
    own.set_many({f"key:{number}": number for number in range(100)})

    def fail_over() -> None:
        with own.replicas[0][0].client() as client:
            client.execute_command("CLUSTER", "FAILOVER")
            until(lambda: client.info("replication")["role"] == "master")
        own.settle()

    with pytest.raises(CaptureBroken, match="the cluster changed"):
        captured(own.target, tmp_path, Acting("read", fail_over))
    assert captured(own.target, tmp_path)[1].facts["keys"] == {"0": 100}


def move(cluster: Cluster, key: str, *, finish: bool = True) -> None:
    """Moves the slot of a key from the first master to the second, as redis-cli does."""
    slot = slot_of(key.encode())
    with cluster.masters[0].client() as giving, cluster.masters[1].client() as taking:
        ids = [client.execute_command("CLUSTER", "MYID").decode() for client in (giving, taking)]
        taking.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        giving.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        if not finish:
            return
        keys = giving.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
        giving.execute_command("MIGRATE", "127.0.0.1", cluster.masters[1].port, "", 0, 5000, "KEYS", *keys)
        for client in (taking, giving):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
    cluster.settle()


def key_of_the_first(cluster: Cluster) -> str:
    return next(key for key in (f"key:{number}" for number in range(100)) if cluster.serving(key) is cluster.masters[0])


def test_slots_that_move_in_the_middle_break_the_capture_and_are_waited_for_before(own: Cluster, tmp_path: Path) -> None:
    """A key on its way could be in two dumps, or in none."""
    own.set_many({f"key:{number}": number for number in range(100)})
    key = key_of_the_first(own)
    with pytest.raises(CaptureBroken, match="the cluster changed"):
        captured(own.target, tmp_path, Acting("read", lambda: move(own, key)))
    assert captured(own.target, tmp_path)[1].facts["keys"] == {"0": 100}
    another = next(key for key in (f"key:{n}" for n in range(100)) if own.serving(key) is own.masters[0] and slot_of(key.encode()) != slot_of(key_of_the_first(own).encode()))  # fmt: skip # noqa: E501
    with pytest.raises(CaptureBroken, match="slots are being moved"):
        captured(own.target, tmp_path, Acting("read", lambda: move(own, another, finish=False)))
    with pytest.raises(EngineUnreachable, match="slots are being moved"):
        captured(own.target, tmp_path)
    with pytest.raises(EngineUnreachable, match="slots are being moved"):
        ENGINE.probe(own.target)


def test_a_key_that_a_broken_move_left_behind_is_noticed(own: Cluster, tmp_path: Path) -> None:
    """It would come back to life in a restore."""
    key = key_of_the_first(own)
    own.do("SET", key, "where it belongs")
    move(own, key, finish=False)
    with own.masters[1].client() as client:
        client.execute_command("ASKING")
        client.execute_command("SET", key, "left behind")
    for master in own.masters:
        with master.client() as client:
            client.execute_command("CLUSTER", "SETSLOT", slot_of(key.encode()), "STABLE")
    with pytest.raises(CaptureBroken, match="holds a key of slot"):
        captured(own.target, tmp_path)


def test_a_cluster_that_does_not_serve_all_slots_is_not_captured(own: Cluster, tmp_path: Path) -> None:
    """A dead master without a successor."""
    for replica in own.replicas[1]:
        replica.kill()
    own.masters[1].kill()
    with pytest.raises(EngineUnreachable):
        captured(own.target, tmp_path)
    with pytest.raises(EngineUnreachable):
        ENGINE.probe(own.target)


def test_a_probe_tells_of_the_whole_cluster(source: Cluster, other: Cluster) -> None:
    """Its size is the sum of the masters', and a shard without a replica is told."""
    sizes = []
    for master in source.masters:
        with master.client() as client:
            sizes.append(client.info("memory")["used_memory_dataset"])
    probe = ENGINE.probe(source.target)
    assert probe.mode == "Cluster"
    assert probe.version == ".".join(map(str, source.masters[0].version))
    assert probe.size > max(sizes)
    assert not any("replica" in warning for warning in probe.warnings)
    assert any("2 of 2 shards have no replica" in warning for warning in ENGINE.probe(other.target).warnings)


def test_slots_are_the_servers_own(source: Cluster) -> None:
    """For keys with and without tags, whole and broken ones."""
    with source.masters[0].client() as client:
        for key in ("", "a", "{tag}a", "b{tag}", "{}a", "{tag", "a{b}{c}", "{a{b}}", "}{x}", "naïve {ключ}"):
            assert client.execute_command("CLUSTER", "KEYSLOT", key) == slot_of(key.encode())


def test_a_survey_tells_what_the_cluster_holds_and_what_does_not_fit(source: Cluster, other: Cluster, tmp_path: Path) -> None:
    """Keys of all masters; formats and databases that it lacks; and it changes nothing."""
    fill(source)
    _, summary = captured(source.target, tmp_path)
    assert ENGINE.survey(other.target, summary.facts, summary.bytes).holds is None
    other.set_many({f"old:{number}": "data" for number in range(50)})
    assert ENGINE.survey(other.target, summary.facts, summary.bytes).holds == "50 keys in 1 databases"
    newer = 80 if not is_valkey(other.masters[0].binary) else 12
    for misfit in ({"rdb_version": newer}, {"keys": {"3": 1}}):
        with pytest.raises(EngineUnsupported):
            ENGINE.survey(other.target, {**summary.facts, **misfit}, summary.bytes)
    for master in other.masters:
        with master.client() as client:
            client.config_set("maxmemory", 1 << 20)
    try:
        with pytest.raises(EngineUnsupported, match=r"maxmemory is 2\.0 MiB"):
            ENGINE.survey(other.target, {**summary.facts, "used_memory": 3 << 20}, summary.bytes)
    finally:
        for master in other.masters:
            with master.client() as client:
                client.config_set("maxmemory", 0)
    assert_old_data(other)


def test_an_export_has_a_file_for_each_shard_that_a_server_starts_from(source: Cluster, tmp_path: Path, binary: str) -> None:
    """Together they hold every key; which file has which slots is told."""
    pairs = {f"key:{number}": str(number) for number in range(300)}
    source.set_many(pairs)
    backup, summary = captured(source.target, tmp_path)
    folder = tmp_path / "export"
    folder.mkdir()
    told = ENGINE.export(backup, summary.facts, folder, Quiet())
    assert told.entries == 3
    found: dict[str, str] = {}
    for shard in told.facts["shards"]:
        with redis_server(tmp_path, {"dbfilename": str(shard["file"])}, binary=binary) as server:
            server.stop()
            (server.folder / shard["file"]).write_bytes((folder / shard["file"]).read_bytes())
            server.start()
            with server.client(decode_responses=True) as client:
                keys = list(client.scan_iter())
                assert {slot_of(key.encode()) in range(first, last + 1) for key in keys for first, last in shard["slots"]} == {
                    True
                }
                found.update({key: client.get(key) for key in keys})
    assert found == pairs


def test_a_clusters_restore_is_tried_out_in_one_server_and_compared(
    source: Cluster, tmp_path: Path, binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts and every record; and a difference is seen."""
    monkeypatch.setenv("STRONGROOM_REDIS_SERVER", binary)
    fill(source)
    backup = captured(source.target, tmp_path)
    folder = tmp_path / "sandbox"
    folder.mkdir()
    with ENGINE.sandbox(folder, Quiet()) as target:
        restored(target, backup, tmp_path)
        whole = ENGINE.compare(target, backup[0], backup[1].facts, Quiet(), scratch_in(tmp_path))
        assert whole.differences == []
        assert whole.digests > 2000
        with open_wire(target, Machine()) as wire:
            wire.command("SET", "key:7", "spoilt")
        spoilt = ENGINE.compare(target, backup[0], backup[1].facts, Quiet(), scratch_in(tmp_path))
        assert len(spoilt.differences) == 1


def test_the_limits_of_the_source_hold_for_all_shards_together(source: Cluster, tmp_path: Path) -> None:
    """What any shard sent is told once, but for the last piece of each: then the server is done with us."""
    dice = random.Random(3)
    source.set_many({f"key:{number}": dice.randbytes(5000) for number in range(600)})

    class Counting(Quiet):
        taken = 0

        def took(self, size: int) -> None:
            self.taken += size

    control = Counting()
    backup, _ = captured(source.target, tmp_path, control)
    kept = sum(len(data) for data, _ in backup.kept.values())
    assert 0.5 * kept < control.taken <= 1.1 * kept


def assert_old_data(cluster: Cluster) -> None:
    assert cluster.keys() == {b"old:%d" % number for number in range(50)}


def test_what_does_not_fit_is_refused_before_the_cluster_is_touched(other: Cluster, tmp_path: Path) -> None:
    """Other databases, formats that it does not read, two values of one key, a shard that is missing, rights."""
    other.set_many({f"old:{number}": "data" for number in range(50)})
    newer = 80 if not is_valkey(other.masters[0].binary) else 12
    a, b = dump(select(0), record(b"a"), version=9), dump(select(0), record(b"b"), version=9)
    facts = {"mode": "Cluster", "shards": [{"slots": [[0, 8191]]}, {"slots": [[8192, 16383]]}]}
    cases: list[tuple[MemoryBackup, dict[str, Any], str]] = [
        (MemoryBackup({"rdb": dump(select(0), record(b"a"), select(3), record(b"b"), version=9)}), {}, "database 3"),
        (MemoryBackup({"rdb": dump(select(0), record(b"a"), version=newer)}), {}, "the target"),
        (MemoryBackup({"rdb/00000": a, "rdb/08192": a}), facts, "in two of the dumps"),
        (MemoryBackup({"rdb/00000": a}), facts, "all of its shards"),
        (MemoryBackup({"rdb/00000": a, "rdb/08192": b[:-1] + b"x"}), facts, "checksum"),
    ]
    for backup, told, says in cases:
        with pytest.raises((EngineUnsupported, CaptureBroken), match=says):
            ENGINE.restore(other.target, backup, told, Quiet(), scratch_in(tmp_path))
        assert_old_data(other)


@pytest.mark.parametrize("missing", ["restore", "flushall"])
def test_a_right_that_is_missing_is_named_before_the_cluster_is_touched(other: Cluster, tmp_path: Path, missing: str) -> None:
    """Proved by commands that the server refuses only after it has looked at the rights."""
    other.set_many({f"old:{number}": "data" for number in range(50)})
    for master in other.masters:
        with master.client() as client:
            rights = ["+cluster", "+info", "+dbsize", "+select", "+restore", "+flushall"]
            rules = ["reset", "on", ">pw", "~*", "-@all", *(right for right in rights if right != f"+{missing}")]
            client.execute_command("ACL", "SETUSER", "filler", *rules)
    target = Target(other.target.address.replace("://", "://filler@"), "pw")
    backup = MemoryBackup({"rdb": dump(select(0), record(b"a"), version=9)})
    with pytest.raises(EngineDenied, match=rf"\+{missing}"):
        ENGINE.restore(target, backup, {}, Quiet(), scratch_in(tmp_path))
    assert_old_data(other)
    for master in other.masters:
        with master.client() as client:
            client.execute_command("ACL", "SETUSER", "filler", f"+{missing}")
    ENGINE.restore(target, backup, {}, Quiet(), scratch_in(tmp_path))
    assert other.keys() == {b"a"}


def test_a_user_for_captures_needs_no_more_than_the_documented_rights(own: Cluster, tmp_path: Path) -> None:
    """On every node: a replica is entered too."""
    own.set_many({f"key:{number}": number for number in range(100)})
    for node in own.nodes:
        with node.client() as client:
            rights = ["+cluster|nodes" if node.version >= (7,) else "+cluster", "+psync", "+replconf", "+ping", "+info"]
            client.execute_command("ACL", "SETUSER", "saver", "reset", "on", ">pw", "-@all", *rights)
    target = Target(own.target.address.replace("://", "://saver@"), "pw")
    assert ENGINE.probe(target).mode == "Cluster"
    _, summary = captured(target, tmp_path)
    assert summary.facts["keys"] == {"0": 100}
    assert [shard["replica"] for shard in summary.facts["shards"]] == [True, True]
    for node in own.nodes:
        with node.client() as client:
            client.execute_command("ACL", "SETUSER", "saver", "-cluster", "-info")
    with pytest.raises(EngineDenied, match="CLUSTER"):  # never taken for a single server, of which a part would be saved
        captured(target, tmp_path)


def big_backup() -> MemoryBackup:
    keys = [record(b"big:%04d" % number, 0, b"\x80" + (1 << 16).to_bytes(4, "big") + bytes(1 << 16)) for number in range(400)]
    return MemoryBackup({"rdb": dump(select(0), *keys, version=9)})


def test_a_restore_that_loses_a_node_says_what_the_cluster_holds_and_can_be_run_again(own: Cluster, tmp_path: Path) -> None:
    """There is no way back once it is emptied, and the text says so."""
    own.set_many({f"old:{number}": "data" for number in range(50)})
    for replica in own.replicas[1]:  # so that the master itself has to come back
        replica.kill()
    backup = big_backup()
    control = Acting("restore", own.masters[1].kill, 4 << 20)
    with pytest.raises(RestoreBroken, match="a part of the backup's data"):
        ENGINE.restore(own.target, backup, {}, control, scratch_in(tmp_path))
    own.masters[1].start()
    own.replicas[1][0].start()
    own.settle()
    ENGINE.restore(own.target, backup, {}, Quiet(), scratch_in(tmp_path))
    assert len(own.keys()) == 400


class Cancelled(Exception):
    """The job was cancelled."""


def cancel() -> None:
    raise Cancelled


@pytest.mark.parametrize("phase", ["read", "sort", "save"])
def test_a_capture_can_be_cancelled_in_every_phase(source: Cluster, tmp_path: Path, phase: str) -> None:
    """What the job raises passes through, the threads end, and nothing is kept."""
    with source.masters[0].client() as client:
        key = next(f"k{n}" for n in range(1000) if source.serving(f"k{n}") is source.masters[0])
        client.set(key, random.Random(1).randbytes(4 << 20))
    backup = MemoryBackup()
    with pytest.raises(Cancelled):
        ENGINE.capture(source.target, backup, Acting(phase, cancel), scratch_in(tmp_path))
    assert backup.names == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("redis-shard")]


def test_a_restore_that_is_cancelled_tells_the_state_in_a_note(other: Cluster, tmp_path: Path) -> None:
    """The job's own error keeps its type."""
    with pytest.raises(Cancelled) as caught:
        ENGINE.restore(other.target, big_backup(), {}, Acting("restore", cancel, 4 << 20), scratch_in(tmp_path))
    assert "a part of the backup's data" in "".join(caught.value.__notes__)
    ENGINE.recover(other.target)
    assert 0 < len(other.keys()) < 400


def test_an_expiry_that_is_past_is_not_brought_back_to_life(other: Cluster, tmp_path: Path) -> None:
    """As in a single server: such keys are gone."""
    data = dump(select(0), record(b"past", expires=1000), record(b"zero", expires=0), record(b"kept", expires=LATER), version=9)
    ENGINE.restore(other.target, MemoryBackup({"rdb": data}), {}, Quiet(), scratch_in(tmp_path))
    until(lambda: other.keys() == {b"kept"})
