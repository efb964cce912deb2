"""One node's JMX, through a small Java helper that stays connected.

What enters JMX goes to the helper by its standard input, as its first line: neither arguments nor environment nor files hold it.
The helper (NodeControl.java) is compiled once a process by the `javac` beside `java` (JAVA_HOME, else PATH), into a folder that
only we can read. It holds no class of Cassandra, and nothing is changed on the node: a node's JMX listens on its own loopback
address, as it is delivered, or on all of its addresses; the worker, which reads files too, runs on the node's host.
"""

from __future__ import annotations

import atexit
import base64
import functools
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from strongroom.engines.base import EngineDenied, EngineError, EngineUnreachable, EngineUnsupported
from strongroom.engines.cassandra.options import JmxEntry, Trust

_SOURCE = Path(__file__).with_name("NodeControl.java")
_POLL = 0.5  # seconds between looks whether the job is to end
_LIGHT = ["-Xmx48m", "-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true"]
_MBEAN = "org.apache.cassandra.db:type=StorageService"
_OPERATIONS = {  # of that MBean, by our words; none: it is an attribute that is read
    "read": "", "snapshot": "takeSnapshot", "tags": "", "clear": "clearSnapshot", "load": "bulkLoad",
    "still": "disableAutoCompaction", "verify": "verify",
}  # fmt: skip
_DENIED, _LOGIN = "java.lang.SecurityException", "javax.security.auth.login.FailedLoginException"
_UNTRUSTED = {"sun.security.provider.certpath.SunCertPathBuilderException", "java.security.cert.CertPathValidatorException"}
_REFUSED = "java.net.ConnectException"
_NOT_JMX = {"java.rmi.ConnectIOException", "java.io.EOFException", "java.net.SocketException"}


class JmxFailed(EngineError):
    """The node carried a request out and failed; `kind` is the class of its error, `kinds` that and those around it."""

    def __init__(self, kind: str, text: str, kinds: str = "") -> None:
        super().__init__(f"Cassandra says: {text} ({kind.rpartition('.')[2]})")
        self.kind, self.kinds = kind, {kind, *kinds.split()}


class Jmx:
    """An open connection. A context manager, for one thread at a time."""

    def __init__(self, host: str, port: int, check: Callable[[], None] = lambda: None, entry: JmxEntry | None = None) -> None:
        self._place, self._check, self._entry = f"{host}:{port}", check, entry or JmxEntry()
        first = _first_line(self._entry)
        self._unread = b""
        command = [program("java"), *_LIGHT, "-cp", _classes(), "NodeControl", host, str(port)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            self._send(first)
            self._answer()
        except JmxFailed as error:
            self.close()
            raise self._not_entered(error) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Jmx:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the helper. What the node is carrying out goes on there."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def read(self, *names: str) -> list[str]:
        """Attributes of the node's storage service; lists come with `|` between their items."""
        return self._ask("read", *names)

    def snapshot(self, tag: str, lifetime: str, names: list[str]) -> None:
        """Flushes and links all files of these keyspaces, or keyspace.tables.

        After `lifetime` ("30d") the node removes the links by itself."""
        self._ask("snapshot", tag, lifetime, *names)

    def tags(self) -> list[str]:
        """Of all snapshots on the node."""
        return [tag for tag in self._ask("tags") if tag]

    def clear(self, tag: str) -> None:
        """Removes a snapshot, of all keyspaces; none of this tag is no error."""
        self._ask("clear", tag)

    def load(self, folder: str) -> None:
        """Streams the SSTables in …/keyspace/table to the nodes that own their rows; returns when all of them have them."""
        self._ask("load", folder)

    def still(self, keyspace: str) -> None:
        """The files of a keyspace's tables stay as they are: nothing is compacted by itself until the node is started again."""
        self._ask("still", keyspace)

    def verify(self, keyspace: str, table: str) -> bool:
        """Reads all rows of all files of a table with their checksums. JmxFailed, or False, where one is damaged."""
        return self._ask("verify", keyspace, table) == ["0"]

    def _ask(self, *fields: str) -> list[str]:
        if any(mark in field for field in fields for mark in "\t\r\n"):
            raise EngineUnsupported("a path or a name holds a tab or a line feed")
        self._send("\t".join(fields))
        try:
            return self._answer()
        except JmxFailed as error:
            if _DENIED in error.kinds:
                raise self._lacking(fields) from error
            raise

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except OSError as error:
            raise EngineUnreachable(f"the connection to JMX at {self._place} was lost") from error

    def _not_entered(self, error: JmxFailed) -> EngineError:
        if _DENIED in error.kinds or _LOGIN in error.kinds:
            if self._entry.user is None:
                return EngineDenied(f'JMX at {self._place} asks for a password: see the options "jmx_user" and "jmx_password"')
            return EngineDenied(f"JMX at {self._place} refuses the user {self._entry.user!r} or the password")
        if error.kinds & _UNTRUSTED:
            return EngineDenied(f'the certificate of JMX at {self._place} is not trusted: {error}; give its CA as option "ca"')
        why = f"JMX of the node does not answer at {self._place}: {error}"
        if self._entry.trust is None and error.kinds & _NOT_JMX:
            why += '. If it speaks TLS set the option "jmx_tls" to "yes"'
        elif self._entry.trust is not None and _REFUSED not in error.kinds:
            why += '. See whether JMX speaks TLS there (option "jmx_tls"), and wants a certificate ("certificate" and "key")'
        return EngineUnreachable(why)

    def _lacking(self, fields: Sequence[str]) -> EngineDenied:
        operation, right = _OPERATIONS[fields[0]], "SELECT"
        if operation:
            right, what = "EXECUTE", f"the operation {operation}"
        else:
            what = f"the attributes {', '.join(fields[1:]) or 'SnapshotDetails'}"
        who = "a stranger" if self._entry.user is None else f"the user {self._entry.user!r}"
        return EngineDenied(
            f"JMX does not let {who} use {what} of {_MBEAN}. Where JMX asks Cassandra's roles: GRANT {right} ON MBEAN '{_MBEAN}' "
            "TO the role; where it has an access file, make the user readwrite there"
        )

    def _answer(self) -> list[str]:
        assert self._process.stdout is not None
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], _POLL)
            self._check()
            if ready:
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise EngineUnreachable(f"the connection to JMX at {self._place} was lost")
                self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        kind, *fields = line.decode("utf-8", "replace").split("\t")
        if kind != "ok":
            raise JmxFailed(*(fields[:3] if len(fields) >= 2 else ("Error", "no reason is given")))
        return fields


def _first_line(entry: JmxEntry) -> str:
    """User, password, "tls" or nothing, authorities and certificate (PEM), key (PKCS #8); in base64 but for the third."""
    trust = entry.trust or Trust()
    texts = [(text or "").encode() for text in (entry.user, entry.password, trust.ca, trust.certificate)]
    user, password, ca, certificate, key = (base64.b64encode(data).decode() for data in (*texts, trust.key_bytes()))
    return "\t".join([user, password, "" if entry.trust is None else "tls", ca, certificate, key])


def program(name: str) -> str:
    home = os.environ.get("JAVA_HOME")
    found = shutil.which(name, path=f"{home}/bin") if home else None
    found = found or shutil.which(name)
    if found is None:
        raise EngineUnsupported(
            f"there is no {name} on this host: install a JDK (17 as Cassandra's own, or later), or set JAVA_HOME"
        )
    return found


@functools.cache
def _classes() -> str:
    """The folder of the compiled helper."""
    folder = tempfile.mkdtemp(prefix="strongroom-jmx-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    done = subprocess.run(
        [program("javac"), "-J-Xmx96m", "-nowarn", "-Xlint:-unchecked", "-d", folder, str(_SOURCE)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise EngineUnsupported(f"javac could not compile the JMX helper: {done.stderr[-300:]}")
    return folder
