"""A TCP proxy that breaks in every way that a network does, in both directions, and as an S3 server's front does."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections import deque
from collections.abc import Iterator

_PIECE = 16384
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


class Path:
    """From a free local port to another one. At rest it passes everything on.

    What a client sent before it died is delivered all the same, also much later: that is how a put lands late.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._changed = threading.Condition()
        self._held = self._away = self._deaf = self._closed = False
        self._status: int | None = None
        self._pause = 0.0
        self._armed = False
        self._cut_up: int | None = None
        self._cut_down: int | None = None
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True, name="path").start()

    # ---- ways to break ----------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Nothing arrives, in either direction, until the path is mended; then all of it does."""
        self._set(held=True)

    def hold_a_put(self, seconds: float) -> bool:
        """Waits for somebody to send much, and holds from then on; False if nobody does."""
        self._set(armed=True)
        with self._changed:
            return self._changed.wait_for(lambda: self._held, seconds)

    def away(self) -> None:
        """Every connection is cut, and nobody gets through."""
        self._set(away=True)
        self.cut()

    def slow(self, pause: float) -> None:
        """Each piece of 16 KiB from the far side takes so many seconds."""
        self._set(pause=pause)

    def cut(self) -> None:
        """Ends every connection, once."""
        with self._changed:
            ending = list(self._sockets)
        for each in ending:
            _end(each)

    def cut_after(self, *, up: int | None = None, down: int | None = None) -> None:
        """Each new connection is cut once it has carried so many bytes up (to the far side) or down."""
        self._set(cut_up=up, cut_down=down)

    def deaf(self) -> None:
        """Everything reaches the far side, and its answers are lost: the connection ends in place of the first."""
        self._set(deaf=True)

    def answer(self, status: int) -> None:
        """Every HTTP request is answered with this status and goes nowhere."""
        self._set(status=status)
        self.cut()

    def mend(self) -> None:
        """As at rest."""
        self._set()

    def close(self) -> None:
        """Ends the proxy and every connection."""
        self._closed = True
        self.mend()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # a close alone would not wake who accepts
        self._listener.close()
        self.cut()

    def _set(
        self, *, held: bool = False, armed: bool = False, away: bool = False, deaf: bool = False, status: int | None = None,
        pause: float = 0.0, cut_up: int | None = None, cut_down: int | None = None,
    ) -> None:  # fmt: skip
        with self._changed:
            self._held, self._armed, self._away, self._deaf = held, armed, away, deaf
            self._status, self._pause = status, pause
            self._cut_up, self._cut_down = cut_up, cut_down
            self._changed.notify_all()

    # ---- passing on -------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            work = self._refuse if self._status is not None and not self._away else self._serve
            threading.Thread(target=work, args=(near,), daemon=True, name="path").start()

    def _serve(self, near: socket.socket) -> None:
        with contextlib.ExitStack() as open_here:
            open_here.callback(near.close)
            if self._away:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._upstream), timeout=10)
            except OSError:
                return
            open_here.callback(far.close)
            far.settimeout(None)
            open_here.enter_context(self._known(near, far))
            _Connection(self, near, far).run()

    @contextlib.contextmanager
    def _known(self, *sockets: socket.socket) -> Iterator[None]:
        with self._changed:
            self._sockets.update(sockets)
        try:
            yield
        finally:
            with self._changed:
                self._sockets.difference_update(sockets)

    def _refuse(self, near: socket.socket) -> None:
        """Reads one request whole, as a server does that wants its answer to be read."""
        status = self._status
        with contextlib.closing(near), self._known(near), contextlib.suppress(OSError):
            near.settimeout(10)
            data = b""
            while b"\r\n\r\n" not in data and (piece := near.recv(_PIECE)):
                data += piece
            head, _, body = data.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            left = int(length[1]) - len(body) if length else 0
            while left > 0 and (piece := near.recv(_PIECE)):
                left -= len(piece)
            near.sendall(f"HTTP/1.1 {status} Trouble\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

    def came(self, size: int) -> None:
        """So many bytes have come from the near side at once."""
        if self._armed and size >= _PIECE:
            with self._changed:
                self._held, self._armed = True, False
                self._changed.notify_all()

    def wait_flowing(self) -> bool:
        """Blocks while the path is held; whether it was."""
        with self._changed:
            held = self._held
            self._changed.wait_for(lambda: not self._held)
            return held

    def pause(self) -> None:
        """Blocks as long as a slow piece takes."""
        with self._changed:
            if self._pause:
                self._changed.wait_for(lambda: not self._pause, self._pause)

    @property
    def limits(self) -> tuple[int | None, int | None]:
        """Bytes after which a connection that begins now is cut: up, down."""
        return self._cut_up, self._cut_down

    @property
    def loses_answers(self) -> bool:
        """Whether answers are lost just now."""
        return self._deaf


class _Connection:
    """One connection's two directions. Up is read ahead of what is passed on, so that it outlives its sender."""

    def __init__(self, path: Path, near: socket.socket, far: socket.socket) -> None:
        self._path, self._near, self._far = path, near, far
        self._most_up, self._most_down = path.limits
        self._ahead: deque[bytes] = deque()
        self._more = threading.Condition()
        self._ended = False

    def run(self) -> None:
        """Until both directions have ended."""
        threads = [threading.Thread(target=work, daemon=True, name="path") for work in (self._read, self._pass_up)]
        for thread in threads:
            thread.start()
        self._pass_down()
        for thread in threads:
            thread.join()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while piece := self._near.recv(_PIECE):
                self._path.came(len(piece))
                with self._more:
                    self._ahead.append(piece)
                    self._more.notify()
        with self._more:
            self._ended = True
            self._more.notify()

    def _pass_up(self) -> None:
        passed, late = 0, False
        with contextlib.suppress(OSError):
            while (piece := self._next()) is not None:
                late = self._path.wait_flowing() and self._ended
                self._far.sendall(piece)
                passed += len(piece)
                if self._most_up is not None and passed >= self._most_up:
                    raise ConnectionAbortedError
            if not late:  # else its sender is gone since: the far side does what it was asked, and answers nobody
                self._far.shutdown(socket.SHUT_WR)
            return
        _end(self._near)
        _end(self._far)

    def _next(self) -> bytes | None:
        with self._more:
            self._more.wait_for(lambda: self._ahead or self._ended)
            return self._ahead.popleft() if self._ahead else None

    def _pass_down(self) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while piece := self._far.recv(_PIECE):
                self._path.wait_flowing()
                self._path.pause()
                if self._path.loses_answers:
                    break
                self._near.sendall(piece)
                passed += len(piece)
                if self._most_down is not None and passed >= self._most_down:
                    break
        _end(self._near)
        _end(self._far)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
