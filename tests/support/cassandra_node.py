"""Real Cassandra nodes for tests: one process a node, from the jars of `cassandra-all`.

Nodes listen on loopback addresses (127.0.0.1, 127.0.0.2 …), have their own folder, and are told to be small and to start quickly.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import WhiteListRoundRobinPolicy

from strongroom.engines.cassandra.jmx import Jmx

VERSION = os.environ.get("STRONGROOM_TEST_CASSANDRA", "5.0.6")  # a folder of its jars must be in .cache
LIB = Path(__file__).parents[2] / ".cache" / f"cassandra-{VERSION}" / "lib"

_EXPORTS = """
java.base/jdk.internal.misc java.base/jdk.internal.ref java.base/sun.nio.ch java.base/java.lang.ref
java.management.rmi/com.sun.jmx.remote.internal.rmi java.rmi/sun.rmi.registry java.rmi/sun.rmi.server
java.rmi/sun.rmi.transport.tcp java.sql/java.sql jdk.unsupported/sun.misc jdk.attach/sun.tools.attach
jdk.compiler/com.sun.tools.javac.file java.management/com.sun.jmx.remote.security
"""
_OPENS = """
java.base/java.io java.base/java.lang java.base/java.lang.module java.base/java.lang.reflect java.base/java.net
java.base/java.nio java.base/java.util java.base/java.util.concurrent java.base/java.util.concurrent.atomic
java.base/jdk.internal.loader java.base/jdk.internal.math java.base/jdk.internal.misc java.base/jdk.internal.module
java.base/jdk.internal.ref java.base/jdk.internal.reflect java.base/jdk.internal.util.jar java.base/sun.nio.ch
jdk.management/com.sun.management.internal jdk.compiler/com.sun.tools.javac
"""
MODULES = [
    *(f"--add-exports={one}=ALL-UNNAMED" for one in _EXPORTS.split()),
    *(f"--add-opens={one}=ALL-UNNAMED" for one in _OPENS.split()),
]

_YAML = """\
cluster_name: {cluster}
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
num_tokens: {tokens}
{initial}
listen_address: {address}
rpc_address: {address}
storage_port: {storage_port}
native_transport_port: {cql_port}
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{{seeds: "{seeds}"}}]
data_file_directories: [{folder}/data]
commitlog_directory: {folder}/commitlog
saved_caches_directory: {folder}/saved_caches
hints_directory: {folder}/hints
cdc_raw_directory: {folder}/cdc_raw
commitlog_sync: periodic
commitlog_sync_period: 1000ms
commitlog_segment_size: 8MiB
commitlog_total_space: 64MiB
memtable_heap_space: 64MiB
memtable_offheap_space: 64MiB
file_cache_size: 32MiB
networking_cache_size: 16MiB
key_cache_size: 4MiB
counter_cache_size: 1MiB
concurrent_compactors: 1
auto_snapshot: false
auto_bootstrap: false
authenticator: {authenticator}
authorizer: {authorizer}
role_manager: CassandraRoleManager
roles_validity: 0ms
permissions_validity: 0ms
credentials_validity: 0ms
materialized_views_enabled: true
user_defined_functions_enabled: true
write_request_timeout: 30000ms
counter_write_request_timeout: 30000ms
read_request_timeout: 30000ms
range_request_timeout: 30000ms
truncate_request_timeout: 120000ms
"""

_LOGBACK = """\
<configuration>
  <appender name="F" class="ch.qos.logback.core.FileAppender">
    <file>{folder}/system.log</file>
    <encoder><pattern>%-5level %date{{HH:mm:ss.SSS}} [%thread] %logger{{20}}:%line - %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="F"/></root>
</configuration>
"""


def _lacks() -> list[str]:
    lacks = [] if LIB.is_dir() and any(LIB.glob("cassandra-all-*.jar")) else ["its jars (scripts/test fetches them with mvn)"]
    return lacks + [name for name in ("java", "javac") if shutil.which(name) is None]


def cassandra_is_here() -> bool:
    """Whether nodes can be started. In CI what is missing shows when the first is."""
    return bool(os.environ.get("CI")) or not _lacks()


def require_cassandra() -> None:
    """Skips where the jars or Java are not there; in CI that is a failure."""
    if lacks := _lacks():
        text = f"Cassandra's tests need {', '.join(lacks)}"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


class CassandraNode:
    """One node. `start` waits until it takes CQL. `outlives_kills`: False for one that is never killed and used again, which
    writes its schema to the disk when it is stopped, and not at each change. `yaml`: more of cassandra.yaml; `properties`: more
    of Java's; `tls`: what sessions speak TLS with."""

    def __init__(
        self, folder: Path, *, address: str = "127.0.0.1", seed: CassandraNode | None = None, token: str = "", auth: bool = False,
        tokens: int = 4, outlives_kills: bool = True, yaml: str = "", properties: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.address, self.auth = folder.resolve(), address, auth
        self.storage_port = seed.storage_port if seed else free_port(address)
        self.cql_port, self.jmx_port = free_port(address), free_port()
        self._seeds = f"{(seed or self).address}:{self.storage_port}"
        self._outlives_kills = outlives_kills
        self.yaml, self.properties, self.tls = yaml, properties or {}, tls
        self._tokens, self._initial = (1, f"initial_token: '{token}'") if token else (tokens, "")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        user = "cassandra@" if self.auth else ""
        return f"cassandra{'s' if self.tls else ''}://{user}{self.address}:{self.cql_port}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self, seconds: float = 120) -> CassandraNode:
        for name in ("data", "commitlog", "saved_caches", "hints", "cdc_raw", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        kind = ("PasswordAuthenticator", "CassandraAuthorizer") if self.auth else ("AllowAllAuthenticator", "AllowAllAuthorizer")
        yaml = _YAML.format(
            cluster="tests", tokens=self._tokens, initial=self._initial, address=self.address, storage_port=self.storage_port,
            cql_port=self.cql_port, seeds=self._seeds, folder=self.folder, authenticator=kind[0], authorizer=kind[1],
        )  # fmt: skip
        (self.folder / "cassandra.yaml").write_text(yaml + self.yaml)
        (self.folder / "logback.xml").write_text(_LOGBACK.format(folder=self.folder))
        with open(self.folder / "stdout.log", "ab") as out:
            self.process = subprocess.Popen(
                self._command(), stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=self.folder,
                env={**os.environ, "MALLOC_ARENA_MAX": "2"}, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"the node ended with {self.process.returncode}: {self._tail()}")
            try:
                socket.create_connection((self.address, self.cql_port), 0.5).close()
                if self.auth:  # the first role is made a moment later
                    with self.session():
                        pass
            except (OSError, NoHostAvailable):
                time.sleep(0.1)
            else:
                return self
        self.kill()
        raise AssertionError(f"the node does not listen after {seconds} s: {self._tail()}")

    def _tail(self) -> str:
        log = self.folder / "system.log"
        return (self.folder / "stdout.log").read_text()[-1500:] + (log.read_text()[-2000:] if log.exists() else "")

    def _command(self) -> list[str]:
        jamm = next(LIB.glob("jamm-*.jar"))
        unlocked = ["prlimit", "--memlock=65536:65536"]  # else all of the heap is made resident
        if os.geteuid() == 0:
            unlocked += ["setpriv", "--bounding-set=-ipc_lock"]
        told = {
            "java.io.tmpdir": f"{self.folder}/tmp", "jna.tmpdir": f"{self.folder}/tmp", "java.net.preferIPv4Stack": "true",
            "jdk.attach.allowAttachSelf": "true", "io.netty.tryReflectionSetAccessible": "true",
            "cassandra.config": f"file://{self.folder}/cassandra.yaml",
            "logback.configurationFile": f"file://{self.folder}/logback.xml",
            "cassandra.storagedir": str(self.folder), "cassandra.logdir": str(self.folder), "cassandra-foreground": "yes",
            "cassandra.libjemalloc": "-", "cassandra.ring_delay_ms": "1000", "cassandra.skip_wait_for_gossip_to_settle": "0",
            "cassandra.superuser_setup_delay_ms": "0", "cassandra.memtable_row_overhead_computation_step": "100",
            "cassandra.shutdown_announce_in_ms": "0", "cassandra.jmx.local.port": str(self.jmx_port),
            "cassandra.test.flush_local_schema_changes": str(self._outlives_kills).lower(),
            **self.properties,
        }  # fmt: skip
        return [
            *unlocked, "java", "-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-Xss384k", "-XX:MaxDirectMemorySize=256m",
            "-XX:TieredStopAtLevel=1", "-XX:+PerfDisableSharedMem", "-XX:+ExitOnOutOfMemoryError", *MODULES, f"-javaagent:{jamm}",
            *(f"-D{name}={value}" for name, value in told.items()), "-cp", f"{LIB}/*",
            "org.apache.cassandra.service.CassandraDaemon",
        ]  # fmt: skip

    def stop(self) -> None:
        """Drains: what is in memory is on disk afterwards."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @contextmanager
    def session(self, user: str = "cassandra", password: str = "cassandra") -> Iterator[Any]:
        """The driver's own session with this node alone."""
        profile = ExecutionProfile(WhiteListRoundRobinPolicy([self.address]), request_timeout=60)
        cluster = Cluster(
            [self.address], port=self.cql_port, protocol_version=4, execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            auth_provider=PlainTextAuthProvider(user, password) if self.auth else None, connect_timeout=10,
            ssl_context=self.tls,
        )  # fmt: skip
        try:
            yield cluster.connect()
        finally:
            cluster.shutdown()

    def tool(self, main: str, *words: str) -> subprocess.CompletedProcess[str]:
        """One of Cassandra's own programs."""
        logback = self.folder / "tool-logback.xml"
        logback.write_text("<configuration><root level='OFF'/></configuration>")
        command = [
            "java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *MODULES,
            f"-Dlogback.configurationFile=file://{logback}", f"-Dcassandra.config=file://{self.folder}/cassandra.yaml",
            f"-Dcassandra.storagedir={self.folder}/tmp", "-cp", f"{LIB}/*", main, *words,
        ]  # fmt: skip
        return subprocess.run(
            command, text=True, capture_output=True, timeout=300, check=False, env={**os.environ, "HOME": f"{self.folder}/tmp"}
        )

    def nodetool(self, *words: str) -> str:
        done = self.tool("org.apache.cassandra.tools.NodeTool", "-h", "127.0.0.1", "-p", str(self.jmx_port), *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def snapshots(self) -> set[str]:
        """Tags of the snapshot folders on disk."""
        return {path.name for path in self.data.glob("*/*/snapshots/*")}


def wait_for_ring(nodes: Sequence[CassandraNode], seconds: float = 90) -> None:
    """Until every node says that all of them are up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        seen = []
        for node in nodes:
            with Jmx("127.0.0.1", node.jmx_port) as jmx:
                seen.append(len(jmx.read("LiveNodes")[0].split("|")))
        if seen == [len(nodes)] * len(nodes):
            return
        time.sleep(0.5)
    raise AssertionError(f"the ring is not whole: each sees {seen}")
