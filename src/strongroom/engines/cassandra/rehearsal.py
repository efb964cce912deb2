"""Trying a restore out: a Cassandra node that is thrown away, and whether it holds what the backup says.

Streaming puts a file whose rows all belong to one node into place as it is, and this node owns everything: so the files of every
table are compared by their digests. For that nothing is compacted in it, views are made when their tables are there, and no table
captures its changes.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blake3 import blake3

from strongroom.ambient import Ambient
from strongroom.engines import sandboxing
from strongroom.engines.base import Comparison, Control, EngineUnsupported, RestoreSource, Target
from strongroom.engines.cassandra.connection import connected, controlled
from strongroom.engines.cassandra.jmx import program
from strongroom.engines.cassandra.options import SANDBOX
from strongroom.engines.cassandra.restore import read_contents
from strongroom.engines.cassandra.roles import read_access, roles_in
from strongroom.engines.cassandra.schema import plain, quoted, read_schema, text_of
from strongroom.engines.exporting import new_folder, write_file

_MOST_DIFFERENCES = 20
_VARIABLE = "STRONGROOM_CASSANDRA"
_PIECE = 1 << 20
_HEAP = "512m"
_JMX_PASSWORDS, _JMX_RIGHTS = "jmx-passwords", "jmx-rights"
_YAML = """\
cluster_name: rehearsal
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
num_tokens: 1
auto_bootstrap: false
auto_snapshot: false
stream_throughput_outbound: 0MiB/s
entire_sstable_stream_throughput_outbound: 0MiB/s
listen_address: 127.0.0.1
rpc_address: 127.0.0.1
storage_port: {storage}
native_transport_port: {cql}
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{{seeds: "127.0.0.1:{storage}"}}]
data_file_directories: [{folder}/data]
commitlog_directory: {folder}/commitlog
saved_caches_directory: {folder}/saved_caches
hints_directory: {folder}/hints
cdc_raw_directory: {folder}/cdc_raw
commitlog_sync: periodic
commitlog_sync_period: 1000ms
commitlog_total_space: 128MiB
memtable_heap_space: 96MiB
memtable_offheap_space: 96MiB
file_cache_size: 32MiB
networking_cache_size: 16MiB
concurrent_compactors: 1
authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
role_manager: CassandraRoleManager
materialized_views_enabled: true
sasi_indexes_enabled: true
user_defined_functions_enabled: true
"""
_LOGBACK = """\
<configuration>
  <appender name="out" class="ch.qos.logback.core.ConsoleAppender"><encoder><pattern>%level %msg%n</pattern></encoder></appender>
  <root level="WARN"><appender-ref ref="out"/></root>
</configuration>
"""
_EXPORTS = """
java.base/jdk.internal.misc java.base/jdk.internal.ref java.base/sun.nio.ch java.base/java.lang.ref
java.management.rmi/com.sun.jmx.remote.internal.rmi java.rmi/sun.rmi.registry java.rmi/sun.rmi.server
java.rmi/sun.rmi.transport.tcp java.sql/java.sql jdk.unsupported/sun.misc jdk.attach/sun.tools.attach
jdk.compiler/com.sun.tools.javac.file java.management/com.sun.jmx.remote.security
"""
_OPENS = """
java.base/java.io java.base/java.lang java.base/java.lang.module java.base/java.lang.reflect
java.base/java.net java.base/java.nio java.base/java.util java.base/java.util.concurrent
java.base/java.util.concurrent.atomic java.base/jdk.internal.loader java.base/jdk.internal.math
java.base/jdk.internal.misc java.base/jdk.internal.module java.base/jdk.internal.ref
java.base/jdk.internal.reflect java.base/jdk.internal.util.jar java.base/sun.nio.ch
jdk.management/com.sun.management.internal jdk.compiler/com.sun.tools.javac
"""


@contextmanager
def sandbox(folder: Path, control: Control, ambient: Ambient) -> Iterator[Target]:
    """See Rehearser. JMX, on the loopback while the node runs, asks for the same user and password, which only we can read."""
    jars = _jars()
    user, password = f"rehearsal_{ambient.hex_id()}", ambient.hex_id()
    folder = folder.resolve()
    for name in ("commitlog", "saved_caches", "hints", "cdc_raw", "tmp"):
        new_folder(folder / name)
    write_file(folder / "logback.xml", [_LOGBACK.encode()])
    write_file(folder / _JMX_PASSWORDS, [f"{user} {password}\n".encode()])
    write_file(folder / _JMX_RIGHTS, [f"{user} readwrite\n".encode()])

    def command(port: int) -> list[str]:
        config = folder / "cassandra.yaml"
        config.unlink(missing_ok=True)
        write_file(config, [_YAML.format(folder=folder, cql=port, storage=sandboxing.free_port()).encode()])
        return _command(jars, folder, sandboxing.free_port())

    def ready(port: int) -> bool:
        """Comes up; the user whom everybody knows makes way for one of ours."""
        with connected(Target(f"cassandra://cassandra@127.0.0.1:{port}", "cassandra")) as session:
            rights = f"SUPERUSER = true AND LOGIN = true AND PASSWORD = {text_of(password)}"
            session.rows(f"CREATE ROLE IF NOT EXISTS {quoted(user)} WITH {rights}")
        with connected(_target(port, user, password)) as session:
            session.rows("DROP ROLE cassandra")
        return True

    with sandboxing.running(command, ready, folder, control, ambient) as port:
        yield _target(port, user, password)


def _target(port: int, user: str, password: str) -> Target:
    return Target(f"cassandra://{user}@127.0.0.1:{port}", password, {SANDBOX: True, "jmx_user": user, "jmx_password": password})


def _jars() -> list[Path]:
    """Folders of jars. Raises EngineUnsupported."""
    found = Path(sandboxing.program("cassandra", _VARIABLE)).resolve()
    homes = [found, found / "lib"] if found.is_dir() else [found.parents[1] / "lib", Path("/usr/share/cassandra/lib")]
    folders = [one for one in {*homes, *(one.parent for one in homes)} if one.is_dir()]
    if any(True for one in folders for _ in one.glob("jamm-*.jar")):
        return sorted(one for one in folders if any(one.glob("*.jar")))
    raise EngineUnsupported(f"there are no jars of Cassandra at {found}: name the folder of an installed one in {_VARIABLE}")


def _command(jars: list[Path], folder: Path, jmx: int) -> list[str]:
    jamm = next(path for one in jars for path in one.glob("jamm-*.jar"))
    told = {
        "java.io.tmpdir": str(folder / "tmp"), "jna.tmpdir": str(folder / "tmp"), "java.net.preferIPv4Stack": "true",
        "jdk.attach.allowAttachSelf": "true", "io.netty.tryReflectionSetAccessible": "true",
        "cassandra.config": f"file://{folder}/cassandra.yaml", "logback.configurationFile": f"file://{folder}/logback.xml",
        "cassandra.storagedir": str(folder), "cassandra.logdir": str(folder), "cassandra-foreground": "yes",
        "cassandra.libjemalloc": "-", "cassandra.ring_delay_ms": "1000", "cassandra.skip_wait_for_gossip_to_settle": "0",
        "cassandra.superuser_setup_delay_ms": "0", "cassandra.jmx.local.port": str(jmx),
        "com.sun.management.jmxremote.authenticate": "true",
        "com.sun.management.jmxremote.password.file": str(folder / _JMX_PASSWORDS),
        "com.sun.management.jmxremote.access.file": str(folder / _JMX_RIGHTS),
        "cassandra.test.flush_local_schema_changes": "false",  # the node's schema need not outlive its process
    }  # fmt: skip
    limited = ["prlimit", "--memlock=65536:65536"] if shutil.which("prlimit") else []  # else the whole heap is made resident
    return [
        *limited, "env", "MALLOC_ARENA_MAX=2", program("java"), "-Xms64m", f"-Xmx{_HEAP}", "-XX:MaxDirectMemorySize=256m",
        "-XX:+UseSerialGC", "-Xss384k", "-XX:+PerfDisableSharedMem", "-XX:+ExitOnOutOfMemoryError",
        *(f"--add-exports={one}=ALL-UNNAMED" for one in _EXPORTS.split()),
        *(f"--add-opens={one}=ALL-UNNAMED" for one in _OPENS.split()),
        f"-javaagent:{jamm}", *(f"-D{name}={value}" for name, value in told.items()),
        "-cp", ":".join(f"{one}/*" for one in jars), "org.apache.cassandra.service.CassandraDaemon",
    ]  # fmt: skip


def compare(target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control) -> Comparison:
    """See Rehearser."""
    contents = read_contents(source, facts)
    wanted = contents.schema.for_one_node()
    report = _Report()
    with connected(target) as session, controlled(session, control.check) as (_, state):
        there = read_schema(session)
        report.elements(plain(wanted), plain(there))
        report.roles(roles_in(contents.roles), roles_in(read_access(session).script()), session.user or "")
        folders = {(one.keyspace, one.name): one.folder for one in there.tables}
        for keyspace, table in sorted((one.keyspace, one.name) for one in wanted.tables):
            files = [
                file for of_node in contents.files.get((keyspace, table), {}).values() for file in of_node
                if file.name.endswith("-Data.db")
            ]  # fmt: skip
            expected = Counter(_digest(source.read(file.entry.name), control) for file in files)
            place = folders.get((keyspace, table), "none")
            paths = [path for data in state.data_folders for path in Path(data, place).glob("*-Data.db")]
            report.files(f"{keyspace}.{table}", expected, Counter(_digest(_pieces(path), control) for path in paths))
    return report.ended()


def _pieces(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _digest(pieces: Iterable[bytes], control: Control) -> tuple[bytes, int]:
    """Of a file, and its bytes."""
    digest, size = blake3(), 0
    for piece in pieces:
        control.check()
        digest.update(piece)
        size += len(piece)
    return digest.digest(), size


class _Report:
    def __init__(self) -> None:
        names = ("schema elements", "roles", "files", "bytes")
        self._expected, self._found = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        self._digests = 0
        self._differences: list[str] = []

    def elements(self, wanted: list[tuple[str, str, str, str]], found: list[tuple[str, str, str, str]]) -> None:
        self._expected["schema elements"], self._found["schema elements"] = len(wanted), len(found)
        for keyspace, kind, name in sorted({one[:3] for one in set(wanted) ^ set(found)}):
            self.differ(f"{kind} {keyspace}.{name} is not what was captured")

    def roles(self, wanted: Mapping[str, str], found: Mapping[str, str], own: str) -> None:
        """Statements by name; `own` is the sandbox's."""
        there = {name: text for name, text in found.items() if name != own or name in wanted}
        self._expected["roles"], self._found["roles"] = len(wanted), len(there)
        for name in sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name)):
            self.differ(f"role {name} is not what was captured")

    def files(self, table: str, wanted: Counter[tuple[bytes, int]], found: Counter[tuple[bytes, int]]) -> None:
        for counts, files in ((self._expected, wanted), (self._found, found)):
            counts["files"] += files.total()
            counts["bytes"] += sum(size * times for (_, size), times in files.items())
        self._digests += wanted.total()
        if wanted != found:
            lacks, new = (wanted - found).total(), (found - wanted).total()
            self.differ(f"{table} lacks {lacks} files of rows that were captured, and holds {new} others")

    def differ(self, sentence: str) -> None:
        if len(self._differences) < _MOST_DIFFERENCES:
            self._differences.append(sentence)

    def ended(self) -> Comparison:
        return Comparison(self._expected, self._found, self._digests, self._differences)
