"""The Redis engine against real servers: what goes in comes out, and who may do it."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from strongroom.engines.base import EngineDenied, EngineError, EngineUnreachable, EngineUnsupported, Target
from strongroom.engines.redis import RedisEngine, rdb
from strongroom.engines.redis.versions import product_of, require_readable
from support.redis_cluster import cluster_port
from support.redis_dumps import MemoryBackup, Quiet
from support.redis_server import RedisServer, binaries, free_port, is_valkey, label_of, redis_server, version_of

ENGINE = RedisEngine()
FIELDS_EXPIRE = 4_000_000_000_123  # milliseconds since the epoch
CAPTURE_RIGHTS = ("-@all", "+psync", "+replconf", "+ping")
RESTORE_RIGHTS = ("-@all", "+info", "+replicaof", "+config|get", "+config|set", "+bgsave")

pytestmark = pytest.mark.skipif(not binaries(), reason="no redis-server here")


@pytest.fixture(params=binaries(), ids=label_of)
def binary(request: pytest.FixtureRequest) -> str:
    """Each redis-server of this machine in turn."""
    return str(request.param)


@pytest.fixture
def server(tmp_path: Path, binary: str) -> Iterator[RedisServer]:
    """An empty source."""
    with redis_server(tmp_path, binary=binary) as running:
        yield running


@pytest.fixture
def other(tmp_path: Path, binary: str) -> Iterator[RedisServer]:
    """An empty target."""
    with redis_server(tmp_path, binary=binary) as running:
        yield running


def target_of(server: RedisServer, user: str | None = None, password: str | None = None) -> Target:
    who = f"{user}@" if user else ""
    return Target(f"redis://{who}127.0.0.1:{server.port}", password if password is not None else server.password)


def scratch_in(folder: Path) -> str:
    path = folder / f"scratch-{len(list(folder.glob('scratch-*')))}"
    path.mkdir()
    return str(path)


def captured(server: RedisServer, folder: Path, target: Target | None = None) -> MemoryBackup:
    backup = MemoryBackup()
    scratch = scratch_in(folder)
    ENGINE.capture(target or target_of(server), backup, Quiet(), scratch)
    assert list(Path(scratch).iterdir()) == []
    return backup


def restored(server: RedisServer, backup: MemoryBackup, folder: Path, target: Target | None = None) -> None:
    scratch = scratch_in(folder)
    ENGINE.restore(target or target_of(server), backup, backup.kept["rdb"][1], Quiet(), scratch)
    assert list(Path(scratch).iterdir()) == []


def digests(server: RedisServer, dbs: tuple[int, ...] = (0, 1, 9)) -> list[bytes]:
    """Redis' own digest of everything, and what each of these databases holds beside it."""
    found: list[bytes] = []
    for db in dbs:
        with server.client(db=db) as client:
            found.append(b"%d keys" % client.dbsize())
    with server.client() as client:
        found.append(client.execute_command("DEBUG", "DIGEST"))
    return found


def fill(server: RedisServer) -> None:
    """Every type in its small and its large encoding, in three databases, with odd keys and expiries."""
    chooser = random.Random(5)
    for db in (0, 1, 9):
        with server.client(db=db) as client:
            pipe = client.pipeline(transaction=False)
            for size in (3, 3000):
                words = [f"word {chooser.randrange(1 << 40)}" for _ in range(size)]
                pipe.rpush(f"list:{size}", *words)
                pipe.sadd(f"set:{size}", *words)
                pipe.sadd(f"numbers:{size}", *range(size))
                pipe.hset(f"hash:{size}", mapping={word: word * 3 for word in words})
                pipe.zadd(f"scores:{size}", {word: chooser.random() * 1e6 for word in words})
                pipe.pfadd(f"hyperloglog:{size}", *words)
                for number, word in enumerate(words):
                    pipe.xadd(f"stream:{size}", {"n": str(number), "w": word})
            pipe.zadd("infinite", {"low": "-inf", "high": "inf", "small": 5e-324})
            pipe.geoadd("places", (13.361389, 38.115556, "Palermo"))
            pipe.setbit("bits", 100_000, 1)
            pipe.set("number", -123456789012345)
            pipe.set("compressible", "ab" * 5000)
            pipe.set(b"\x00\xff\r\n binary \xc3", b"\r\n$EOF:\x00")
            pipe.set("", "the empty key")
            for number in range(2000):
                pipe.set(f"key:{number}", number, px=100_000_000 + number if number % 3 == 0 else None)
            pipe.execute()
            streams_with_readers(client)
    with server.client() as client:
        if expires_fields(server.binary):
            client.hset("session", mapping={f"field:{number}": number for number in range(1000)})
            client.execute_command("HPEXPIREAT", "session", FIELDS_EXPIRE, "FIELDS", "2", "field:7", "field:8")
        client.set(b"K" * 512 * 1024, "a key of half a mebibyte")
        client.set("huge", random.Random(6).randbytes(20 << 20))


def expires_fields(binary: str) -> bool:
    """Whether single fields of a hash can have an expiry that can be saved."""
    return is_valkey(binary) and version_of(binary) >= (9,)


def streams_with_readers(client: redis.Redis) -> None:
    """Groups, two consumers, entries pending and acknowledged, entries deleted."""
    client.xgroup_create("stream:3000", "first", "0")
    client.xgroup_create("stream:3000", "second", "$")
    read: Any = client.xreadgroup("first", "ann", {"stream:3000": ">"}, count=50)
    client.xreadgroup("first", "bob", {"stream:3000": ">"}, count=20)
    ids = [entry for entry, _ in read[0][1]]
    client.xack("stream:3000", "first", *ids[:30])
    client.xdel("stream:3000", ids[0], ids[40])


def expiries(server: RedisServer) -> dict[bytes, int]:
    """When each key with an expiry expires, in milliseconds since the epoch."""
    with server.client() as client:
        keys = [f"key:{number}".encode() for number in range(0, 2000, 3)]
        if server.version >= (7,):
            return {key: client.pexpiretime(key) for key in keys}
        script = "local out = {} for i, k in ipairs(KEYS) do out[i] = redis.call('PTTL', k) end local t = redis.call('TIME') " \
            "table.insert(out, t[1] * 1000 + math.floor(t[2] / 1000)) return out"  # fmt: skip
        *left, now = client.eval(script, len(keys), *keys)
        return {key: now + ttl for key, ttl in zip(keys, left, strict=True)}


def test_everything_comes_back_equal(server: RedisServer, other: RedisServer, tmp_path: Path) -> None:
    """All types and encodings, three databases, odd keys, stream groups with pending entries: Redis' own digest is equal."""
    fill(server)
    backup = captured(server, tmp_path)
    restored(other, backup, tmp_path)
    assert digests(other) == digests(server)
    with server.client() as one, other.client() as two:
        assert two.xinfo_groups("stream:3000") == one.xinfo_groups("stream:3000")
        pending = [client.xpending_range("stream:3000", "first", "-", "+", 100) for client in (one, two)]
        assert [entry["message_id"] for entry in pending[0]] == [entry["message_id"] for entry in pending[1]]
        assert len(pending[1]) == 40
        assert two.get(b"K" * 512 * 1024) == b"a key of half a mebibyte"
        assert two.info("replication")["role"] == "master"
    there, here = expiries(other), expiries(server)
    assert max(abs(there[key] - here[key]) for key in here) <= 1  # reading the clock rounds by up to one millisecond


def test_two_backups_of_the_same_data_are_the_same_bytes_also_after_a_restart(server: RedisServer, tmp_path: Path) -> None:
    """Other hash seeds, other time, other memory, other replication id: nothing of it reaches the backup."""
    fill(server)
    first = captured(server, tmp_path)
    with server.client() as client:
        client.execute_command("DEBUG", "RELOAD")
    assert captured(server, tmp_path).rdb == first.rdb
    server.restart()
    assert captured(server, tmp_path).rdb == first.rdb


def test_a_backup_of_a_restored_server_is_the_same_bytes(server: RedisServer, other: RedisServer, tmp_path: Path) -> None:
    """Backup, restore, backup: the circle closes to the byte."""
    fill(server)
    backup = captured(server, tmp_path)
    restored(other, backup, tmp_path)
    assert captured(other, tmp_path).rdb == backup.rdb


def test_facts_tell_version_keys_and_time(server: RedisServer, tmp_path: Path) -> None:
    """What a person wants to know of a backup without restoring it."""
    fill(server)
    backup, control = MemoryBackup(), Quiet()
    before = int(time.time())
    summary = ENGINE.capture(target_of(server), backup, control, scratch_in(tmp_path))
    assert summary.entries == 1
    assert summary.bytes == len(backup.rdb)
    assert summary.facts["version"] == ".".join(map(str, server.version))
    assert summary.facts["product"] == ("Valkey" if is_valkey(server.binary) else "Redis")
    assert summary.facts["rdb_version"] == int(backup.rdb[:9].lstrip(b"REDISVALKEY"))
    with server.client() as client:
        assert summary.facts["keys"] == {db: client.info("keyspace")[f"db{db}"]["keys"] for db in ("0", "1", "9")}
        assert summary.facts["replid"] == client.info("replication")["master_replid"]
    assert before - 1 <= summary.facts["time"] <= time.time() + 1
    assert {phase for phase, _, _ in control.told} == {"read", "check", "sort", "save"}
    assert control.checks > 20


def test_what_the_target_held_is_gone_after_a_restore(server: RedisServer, other: RedisServer, tmp_path: Path) -> None:
    """A restore replaces; it does not mix."""
    with server.client() as client:
        client.set("same", "from the backup")
    for db in (0, 7):
        with other.client(db=db) as client:
            client.mset({"same": "old", "old": "old"})
    restored(other, captured(server, tmp_path), tmp_path)
    with other.client() as client:
        assert client.keys() == [b"same"]
        assert client.get("same") == b"from the backup"
        assert list(client.info("keyspace")) == ["db0"]


def test_functions_are_saved_and_restored(server: RedisServer, other: RedisServer, tmp_path: Path) -> None:
    """Redis 7.0: libraries are callable on the target, and older ones there are gone."""
    if server.version < (7,):
        pytest.skip(f"functions came with 7.0; this is {server.version}")
    body = "#!lua name={0}\nredis.register_function('{0}', function(keys, args) return '{0}!' end)"
    with server.client() as client:
        for name in ("zeta", "alpha"):
            client.function_load(body.format(name))
    with other.client() as client:
        client.function_load(body.format("old"))
    backup = captured(server, tmp_path)
    assert backup.kept["rdb"][1]["functions"] == 2
    restored(other, backup, tmp_path)
    with other.client() as client:
        assert client.fcall("alpha", 0) == b"alpha!"
        assert sorted(library[1] for library in client.function_list()) == [b"alpha", b"zeta"]
    server.restart()
    assert captured(server, tmp_path).rdb == backup.rdb


def test_fields_that_expire_come_back_with_their_times(server: RedisServer, other: RedisServer, tmp_path: Path) -> None:
    """Valkey 9.0: to the millisecond, and the fields beside them without one."""
    if not expires_fields(server.binary):
        pytest.skip("no fields that expire before Valkey 9.0; those of Redis 7.4 are refused")
    fill(server)
    restored(other, captured(server, tmp_path), tmp_path)
    with other.client() as client:
        fields = ("field:7", "field:8", "field:9")
        assert client.execute_command("HPEXPIRETIME", "session", "FIELDS", 3, *fields) == [FIELDS_EXPIRE, FIELDS_EXPIRE, -1]
        assert client.hlen("session") == 1000


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(binaries(), 2)), ids=label_of)
def test_a_backup_goes_into_every_server_that_reads_it(old: str, new: str, tmp_path: Path) -> None:
    """Between Redis and Valkey, old and new: equal data, or a refusal before the target is touched."""
    with redis_server(tmp_path, binary=old) as source, redis_server(tmp_path, binary=new) as target:
        with source.client() as client:
            client.mset({f"key:{number}": number for number in range(100)})
            client.sadd("set", *(f"member {number}" for number in range(500)))
            client.xadd("stream", {"a": "b"})
            client.xgroup_create("stream", "readers", "0")
            client.xreadgroup("readers", "ann", {"stream": ">"})
        with target.client() as client:
            client.set("old", "data")
            product = product_of({name: str(value) for name, value in client.info().items()})
        backup = captured(source, tmp_path)
        try:
            require_readable(product, backup.kept["rdb"][1]["rdb_version"])
        except EngineUnsupported:
            with pytest.raises(EngineUnsupported, match="the target"):
                restored(target, backup, tmp_path)
            with target.client() as client:
                assert client.keys() == [b"old"]
            return
        restored(target, backup, tmp_path)
        with target.client() as client:
            assert client.dbsize() == 102
            assert client.scard("set") == 500
            assert client.xpending("stream", "readers")["pending"] == 1
            assert client.get("key:42") == b"42"


def test_keys_under_eviction_do_not_change_a_backup(server: RedisServer, tmp_path: Path) -> None:
    """With an LRU policy the server notes how idle each key is, which changes by the second; backups stay equal."""
    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.mset({f"k{number}": number for number in range(100)})
        first = captured(server, tmp_path)
        time.sleep(2.1)
        client.get("k7")
    assert captured(server, tmp_path).rdb == first.rdb
    assert any("evicted" in warning for warning in ENGINE.probe(target_of(server)).warnings)


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_both_ways_of_sending_a_dump_are_read(tmp_path: Path, binary: str, diskless: str) -> None:
    """From memory (`$EOF:` and a mark) and from a file (`$` and a size)."""
    with redis_server(tmp_path, {"repl-diskless-sync": diskless}, binary=binary) as server:
        fill(server)
        control = Quiet()
        backup = MemoryBackup()
        ENGINE.capture(target_of(server), backup, control, scratch_in(tmp_path))
        sizes = {total for phase, _, total in control.told if phase == "read"}
        assert (None in sizes) == (diskless == "yes")
        restored(server, backup, tmp_path)
        assert captured(server, tmp_path).rdb == backup.rdb


def test_a_slow_start_of_the_dump_is_waited_for(tmp_path: Path, binary: str) -> None:
    """The server's pause before it sends from memory shows as keep-alive newlines, not as silence or as data."""
    config = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "3", "repl-ping-replica-period": "1"}
    with redis_server(tmp_path, config, binary=binary) as server:
        with server.client() as client:
            client.set("k", "v")
        assert captured(server, tmp_path).kept["rdb"][1]["keys"] == {"0": 1}


def test_a_server_without_checksums_is_saved_with_a_warning(tmp_path: Path, binary: str) -> None:
    """Its dump cannot be proved against damage on the way; the backup itself gets a checksum."""
    with redis_server(tmp_path, {"rdbchecksum": "no"}, binary=binary) as server:
        with server.client() as client:
            client.set("k", "v")
        backup = MemoryBackup()
        summary = ENGINE.capture(target_of(server), backup, Quiet(), scratch_in(tmp_path))
        assert "rdbchecksum" in summary.warnings[0]
        path = tmp_path / "out.rdb"
        path.write_bytes(backup.rdb)
        assert rdb.verify(str(path), lambda _: None).checked


def test_the_documented_rights_are_enough_and_each_is_needed(server: RedisServer, other: RedisServer, tmp_path: Path) -> None:
    """Users with exactly the rights of the manual; without any one of them the refusal names the right."""
    with server.client() as client:
        client.set("k", "v")
        client.execute_command("ACL", "SETUSER", "saver", "on", ">p w@:/", "resetkeys", *CAPTURE_RIGHTS)
    saver = target_of(server, "saver", "p w@:/")
    assert ENGINE.probe(saver).version == "unknown"
    assert "+info" in ENGINE.probe(saver).warnings[0]
    backup = captured(server, tmp_path, saver)
    with other.client() as client:
        client.execute_command("ACL", "SETUSER", "restorer", "on", ">secret", "resetkeys", *RESTORE_RIGHTS)
        client.config_set("save", "3600 1")
        restored(other, backup, tmp_path, target_of(other, "restorer", "secret"))
        assert client.get("k") == b"v"
        assert client.lastsave() is not None
        for right in RESTORE_RIGHTS[1:-1]:
            others = [word for word in RESTORE_RIGHTS if word != right]
            client.execute_command("ACL", "SETUSER", "restorer", "reset", "on", ">secret", *others)
            with pytest.raises(EngineDenied) as refused:
                restored(other, backup, tmp_path, target_of(other, "restorer", "secret"))
            assert right.split("|")[0] in str(refused.value)
            assert "secret" not in str(refused.value)
    for right in ("psync", "replconf"):
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "saver", *CAPTURE_RIGHTS, "-" + right)
        with pytest.raises(EngineDenied, match=f"(?i){right}"):
            ENGINE.probe(saver)
        with pytest.raises(EngineDenied, match=f"(?i){right}"):
            captured(server, tmp_path, saver)


def test_passwords_work_and_never_show(tmp_path: Path, binary: str) -> None:
    """The default user's password: right, wrong, missing, unneeded; no error text contains it."""
    with redis_server(tmp_path, password="right-Pa55", binary=binary) as server:
        assert ENGINE.probe(target_of(server)).mode == "Single"
        restored(server, captured(server, tmp_path), tmp_path)
        with pytest.raises(EngineDenied, match="refuses the password") as refused:
            ENGINE.probe(Target(server.address, "wrong-Pa55"))
        assert "Pa55" not in str(refused.value) + repr(refused.value)
        with pytest.raises(EngineDenied, match="wants a password"):
            ENGINE.probe(Target(server.address))
        with pytest.raises(EngineDenied, match="refuses the password of user 'nobody'"):
            captured(server, tmp_path, target_of(server, "nobody", "right-Pa55"))


def test_a_password_where_none_is_set_is_named(server: RedisServer) -> None:
    """The server's own sentence for this case is a riddle."""
    with pytest.raises(EngineDenied, match="no password set"):
        ENGINE.probe(Target(server.address, "needless"))


def test_a_probe_tells_version_and_size_and_changes_nothing(server: RedisServer) -> None:
    """No synchronisation is started, no replica is ever seen."""
    with server.client() as client:
        small = ENGINE.probe(target_of(server))
        client.set("big", bytes(30 << 20))
        probe = ENGINE.probe(target_of(server))
        assert probe.version == ".".join(map(str, server.version))
        assert (probe.mode, probe.records, list(probe.warnings)) == ("Single", True, [])
        assert probe.size - small.size >= 30 << 20
        info = client.info()
        assert (info["sync_full"], info["connected_slaves"], info["rdb_bgsave_in_progress"]) == (0, 0, 0)
        assert info["total_forks"] == 0


def test_a_server_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    """All four methods say so, with the address."""
    nowhere = Target(f"redis://127.0.0.1:{free_port()}")
    backup = MemoryBackup()
    for call in (
        lambda: ENGINE.probe(nowhere),
        lambda: ENGINE.capture(nowhere, backup, Quiet(), scratch_in(tmp_path)),
        lambda: ENGINE.recover(nowhere),
    ):
        with pytest.raises(EngineUnreachable, match=r"cannot connect to 127\.0\.0\.1"):
            call()
    assert backup.opened == []


def test_a_replica_can_be_the_source(server: RedisServer, other: RedisServer, tmp_path: Path) -> None:
    """The same bytes as from its master, with a note that a replica may be behind; without its master it refuses."""
    fill(server)
    with other.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", server.port)
        deadline = time.monotonic() + 20
        while client.info("replication")["master_link_status"] != "up":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert captured(other, tmp_path).rdb == captured(server, tmp_path).rdb
        assert any("replica" in warning for warning in ENGINE.probe(target_of(other)).warnings)
        server.kill()
        while client.info("replication")["master_link_status"] == "up":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with pytest.raises(EngineUnreachable, match="NOMASTERLINK"):
        captured(other, tmp_path)


def test_a_server_in_cluster_mode_that_serves_no_slots_is_refused(tmp_path: Path, binary: str) -> None:
    """It belongs to no cluster yet; what clusters do is in a module of its own."""
    with redis_server(tmp_path, {"cluster-enabled": "yes", "port": str(cluster_port())}, binary=binary) as node:
        for act in (ENGINE.probe, lambda target: captured(node, tmp_path, target)):
            with pytest.raises(EngineUnreachable, match="16384 slots are served by no node"):
                act(target_of(node))


def test_an_address_that_is_none_is_refused_without_its_password() -> None:
    """Forms that would be misunderstood later are named at once."""
    for address in (
        "mongodb://127.0.0.1",
        "redis://",
        "redis://127.0.0.1:none",
        "redis://u:hush@127.0.0.1",
        "redis://127.0.0.1/3",
        "127.0.0.1:6379",
    ):
        with pytest.raises(EngineUnsupported) as refused:
            ENGINE.probe(Target(address))
        assert "hush" not in str(refused.value)
    with pytest.raises(EngineError, match="no password is stored"):
        ENGINE.probe(Target(f"redis://ann@127.0.0.1:{free_port()}"))


def surveyed(server: RedisServer, facts: dict[str, Any]) -> str | None:
    return ENGINE.survey(target_of(server), facts, 0).holds


def test_a_survey_tells_what_a_restore_would_replace(server: RedisServer, other: RedisServer, tmp_path: Path) -> None:
    """Nothing on an empty server; keys by database; from 7.0 function libraries too. It changes nothing."""
    facts = captured(server, tmp_path).kept["rdb"][1]
    assert surveyed(other, facts) is None
    if other.version >= (7,):
        with other.client() as client:
            client.function_load("#!lua name=one\nredis.register_function('one', function() return 1 end)")
        assert surveyed(other, facts) == "1 function libraries"
    with other.client() as client, other.client(db=5) as fifth:
        before = client.config_get("repl-diskless-load")
        client.mset({"a": 1, "b": 2})
        fifth.set("c", 3)
        assert (surveyed(other, facts) or "").startswith("3 keys in 2 databases")
        assert (client.config_get("repl-diskless-load"), client.info("replication")["role"]) == (before, "master")


def test_a_survey_refuses_a_target_that_could_not_take_the_backup(
    server: RedisServer, other: RedisServer, tmp_path: Path
) -> None:
    """No room under maxmemory, no memory for both data sets, an RDB that is too new, a replica, a right that is missing."""
    with server.client() as client:
        client.set("large", random.Random(1).randbytes(8 << 20))
    facts = captured(server, tmp_path).kept["rdb"][1]
    with other.client() as client:
        client.config_set("maxmemory", "4mb")
        with pytest.raises(EngineUnsupported, match=r"maxmemory is 4\.0 MiB"):
            surveyed(other, facts)
        client.config_set("maxmemory", "0")
        assert surveyed(other, facts) is None
        with pytest.raises(EngineUnsupported, match="both must fit"):
            surveyed(other, {**facts, "used_memory": client.info("memory")["total_system_memory"]})
        with pytest.raises(EngineUnsupported, match="RDB version 99"):
            surveyed(other, {**facts, "rdb_version": 99})
        client.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "-@all", "+info", "+config|get")
        with pytest.raises(EngineDenied):
            ENGINE.survey(target_of(other, "reader", "secret"), facts, 0)
        client.execute_command("REPLICAOF", "127.0.0.1", str(server.port))
        with pytest.raises(EngineUnsupported, match="replica of"):
            surveyed(other, facts)
