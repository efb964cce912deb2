"""Being the master of a target for the time of one full synchronisation, and of what follows it."""

from __future__ import annotations

import os
import socket

from strongroom.ambient import Ambient
from strongroom.engines.base import Control, EngineError, EngineUnreachable, Target
from strongroom.engines.redis import rdb
from strongroom.engines.redis.marks import begin
from strongroom.engines.redis.pacing import Pace
from strongroom.engines.redis.wire import ASK, REPLY_SECONDS, Wire, open_wire, place_of, scratch_errors

CALL_BACK_SECONDS = 20.0  # a server connects to its new master within about a second
SEND_SECONDS = 60.0  # how long the target may take nothing
LOAD_SECONDS = 600.0  # silence while the target loads: it sends newlines unless it frees or swaps very much at once
_PIECE = 1 << 18
_FIRST_OFFSET = 1


class Door:
    """Where the target reaches us: a listener that lets in the target alone, for one full synchronisation."""

    def __init__(self, target: Target, ambient: Ambient, control: Control) -> None:
        self._target = target
        self._ambient = ambient
        self._control = control
        with open_wire(target, ambient) as wire:
            self._host = wire.local_host
            self._peer = wire.peer_host
            self._listener = socket.create_server((self._host, 0), family=wire.family, backlog=8)
        self._listener.settimeout(0.5)
        self.place = (self._host, int(self._listener.getsockname()[1]))  # as the target's master
        self._strangers: set[str] = set()

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def invite(self) -> None:
        """Marks the target and makes it our replica."""
        with open_wire(self._target, self._ambient, self._control.check) as wire:
            self._control.check()
            begin(wire, *self.place)

    def admit(self) -> Wire:
        """The target's connection, at the point where it waits for the dump. Nobody is let in afterwards."""
        deadline = self._ambient.monotonic() + CALL_BACK_SECONDS
        while self._ambient.monotonic() < deadline:
            self._control.check()
            try:
                sock, address = self._listener.accept()
            except TimeoutError:
                continue
            if address[0] != self._peer:
                self._strangers.add(address[0])
                sock.close()
                continue
            link = Wire(sock, place_of(self._target).shown, self._ambient, self._control.check)
            if self._handshake(link):
                self._listener.close()
                return link
        raise EngineUnreachable(self._nobody_came())

    def _handshake(self, link: Wire) -> bool:
        """Answers as a master does until the target asks for the data; False if it hung up before."""
        try:
            while True:
                words = link.request(REPLY_SECONDS)
                name = words[0].upper() if words else b""
                if name == b"PSYNC":
                    return True
                link.send(b"+PONG\r\n" if name == b"PING" else b"+OK\r\n")
        except EngineError:
            link.close()
            return False
        except BaseException:
            link.close()
            raise

    def _nobody_came(self) -> str:
        text = f"the target did not connect to {self._host} within {CALL_BACK_SECONDS:.0f} s: let its host open connections to us"
        if self._strangers:
            text += f" (connections from {', '.join(sorted(self._strangers))} were turned away, expected {self._peer})"
        return text


def synchronise(link: Wire, path: str, dump: rdb.Dump, replid: str, control: Control) -> int:
    """Sends the dump and waits until the target says that it has loaded it; returns the offset of what comes next."""
    pace = Pace(control, "send", dump.size)
    link.send(b"+FULLRESYNC %s %d\r\n$%d\r\n" % (replid.encode(), _FIRST_OFFSET, dump.size))
    with scratch_errors(os.path.dirname(path)), open(path, "rb") as file:
        while piece := file.read(_PIECE):
            link.send(piece, SEND_SECONDS)
            pace.advance(len(piece))
    pace.finish()
    if pace.done != dump.size:
        raise EngineError(f"the dump became shorter while it was sent: see who else uses {os.path.dirname(path)}")
    link.send(ASK)
    acknowledged(link, _FIRST_OFFSET)
    control.progress("load", dump.size, dump.size)
    return _FIRST_OFFSET + len(ASK)


def acknowledged(link: Wire, offset: int) -> int:
    """Waits until the target says that it has come to this offset; returns the one it tells."""
    while True:
        words = link.request(LOAD_SECONDS)
        if [word.upper() for word in words[:2]] == [b"REPLCONF", b"ACK"] and int(words[2]) >= offset:
            return int(words[2])
