"""A TCP proxy before a database or a store: it can hold back what comes from there, cut, and be away."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

_PIECE = 16384


class SlowPath:
    """Passes everything on until told otherwise. `stall_at`: bytes that one connection may deliver before it waits."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._changed = threading.Condition()
        self._stall_at: int | None = None
        self._away = False
        self._waiting = 0
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """For an instance of Redis."""
        return f"redis://127.0.0.1:{self.port}"

    def stall(self, at: int = 65536) -> None:
        """From now on each connection delivers `at` bytes in all and then waits."""
        with self._changed:
            self._stall_at = at

    def go(self) -> None:
        """Everything flows again."""
        with self._changed:
            self._stall_at = None
            self._changed.notify_all()

    def wait_stalled(self, seconds: float = 30) -> None:
        """Waits until a connection is being held back."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._waiting > 0, seconds), "nothing came so far"

    def away(self, yes: bool = True) -> None:
        """From now on nobody gets through, until `away(False)`."""
        self._away = yes
        if yes:
            self.cut()

    def cut(self) -> None:
        """Ends every connection, as a network does that breaks."""
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the proxy."""
        with self._changed:
            self._stall_at = None
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # a close alone would not wake who accepts
        self._listener.close()
        self.cut()
        end = time.monotonic() + 5
        while self._sockets and time.monotonic() < end:
            time.sleep(0.01)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._away:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._upstream))
            except OSError:
                near.close()
                continue
            self._sockets |= {near, far}
            threading.Thread(target=self._serve, args=(near, far), daemon=True).start()

    def _serve(self, near: socket.socket, far: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(far, near, True), daemon=True)
        back.start()
        self._pump(near, far, False)
        back.join()
        for each in (near, far):
            self._sockets.discard(each)
            each.close()

    def _pump(self, source: socket.socket, sink: socket.socket, held: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                passed += len(piece)
                if held:
                    self._hold(passed)
                sink.sendall(piece)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _hold(self, passed: int) -> None:
        with self._changed:
            if self._stall_at is None or passed <= self._stall_at:
                return
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stall_at is None or passed <= self._stall_at)
            self._waiting -= 1


@contextlib.contextmanager
def slow_path(port: int) -> Iterator[SlowPath]:
    """A proxy to a local port, ended at the end."""
    path = SlowPath(port)
    try:
        yield path
    finally:
        path.close()
