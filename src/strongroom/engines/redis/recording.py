"""The log of changes: what a server sends its replicas after a dump, taken over by one that keeps nothing but the bytes.

Positions in the stream are the server's own replication offsets, so a dump's offset says where the log after it begins, and a
recording that was interrupted goes on with the next byte. The server keeps the last of what it sent (its backlog) for that.

It drops a replica that reads too slowly, so a thread of its own does nothing but receive and put on disk. It says every second
that it is alive, but acknowledges nothing: a recording is no replica that WAIT may count or a fail-over may choose. A server that
is shut down waits for its replicas, though (from 7.0 on, 10 s): one that asks for an acknowledgement and then sends nothing is
let go of for a moment.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import closing
from types import TracebackType
from typing import Any

from strongroom.ambient import Ambient
from strongroom.engines.base import Control, EngineUnreachable, EngineUnsupported, Target
from strongroom.engines.log import LogGap, LogSink, Mark
from strongroom.engines.redis.commands import Commands
from strongroom.engines.redis.spool import Received, Spool
from strongroom.engines.redis.topology import in_cluster_mode
from strongroom.engines.redis.wire import ASK, STREAM_SECONDS, Wire, open_wire, place_of

MARK_SECONDS = 1.0
LAST_SECONDS = 30.0  # how long after its end a recording waits for the end of a command
_ALIVE_SECONDS = 1.0
_ASKED_SECONDS = 2.0  # how long an acknowledgement that was asked for may be all that the server waits for
_GONE_SECONDS = 1.0  # it looks ten times a second whether there is still one to wait for
_TURN_SECONDS = 0.5
_PIECE = 1 << 18
_CAUGHT_UP = 1 << 18  # bytes that may be left to the next recording: the server must still have them


def mark_of(facts: Mapping[str, Any]) -> Mark | None:
    """See Recorder.mark_of. A dump shows exactly what the stream up to its offset leads to; its time is when we heard of it:
    nothing in it was written later. Facts without that time or the selected database are of before logs were recorded."""
    if not {"replid", "offset", "stream_db", "at"} <= facts.keys() or "shards" in facts or facts["stream_db"] < 0:
        return None
    return Mark(str(facts["replid"]), int(facts["offset"]), float(facts["at"]))


def record(
    target: Target, since: Mark | None, sink: LogSink, control: Control, until: float, scratch: str, ambient: Ambient
) -> None:
    """See Recorder.record. What was received before the source or its link failed is handed on before the error is raised."""
    with open_wire(target, ambient, control.check) as wire:
        if in_cluster_mode(wire):
            raise EngineUnsupported("a cluster has no log of changes in one order: only single servers are recorded")
        shown = place_of(target).shown
        asked = since
        since = _here(wire, shown, ambient) if asked is None else asked
        stream, reached = _follow(wire, since, shown)
        begin = Mark(stream, since.order, since.at)
        if asked is None:
            sink.mark(begin)
        with closing(Spool(scratch)) as spool, _Receiver(target, wire, begin, reached, spool, ambient):
            _Recording(begin, spool, sink, control, ambient).run(until)


# The way in


def _here(wire: Wire, shown: str, ambient: Ambient) -> Mark:
    """Where the server is now. Raises LogGap where it keeps no backlog yet: it begins to with its first replica, or backup."""
    info = wire.info()
    if info.get("repl_backlog_active") != "1" or not info.get("master_repl_offset", "").isdigit():
        raise LogGap(f"{shown} keeps no backlog yet: it begins to with the first backup")
    return Mark(info["master_replid"], int(info["master_repl_offset"]), ambient.now())


def _follow(wire: Wire, since: Mark, shown: str) -> tuple[str, int]:
    """Has the server send what follows `since`; returns what it calls its history now, and how far it had come before. What it
    had, it sends at once: when it was written is not known. Raises LogGap where it cannot."""
    info = wire.info()
    _require_kept(info, since, shown)  # first, since a server that cannot go on makes a dump for whoever asks it to
    reached = int(info["master_repl_offset"])
    wire.command("REPLCONF", "capa", "psync2")
    wire.send_command("PSYNC", since.stream, str(since.order + 1))
    if wire.peek() == b"\n":  # it has us wait for a dump; what goes on is answered at once
        raise _forgotten(since, shown)
    answer = wire.reply("PSYNC")
    words = answer.decode("ascii", "replace").split() if isinstance(answer, bytes) else []
    if words[:1] == ["CONTINUE"]:
        return (words[1] if len(words) > 1 else since.stream), reached
    if words[:1] == ["FULLRESYNC"] and len(words) == 3 and words[2].isdigit():
        if words[1] == since.stream and int(words[2]) > since.order:
            raise _overrun(shown, int(words[2]) - since.order)
        raise _forgotten(since, shown)
    raise EngineUnsupported(f"{shown} answers PSYNC in an unknown form")


def _require_kept(info: Mapping[str, str], since: Mark, shown: str) -> None:
    """What the server itself will look at: whether it is the same history, and whether its backlog reaches back."""

    def number(name: str) -> int:
        text = info.get(name, "")
        return int(text) if text.lstrip("-").isdigit() else 0

    following = since.order + 1
    was_its = info.get("master_replid2") == since.stream and following <= number("second_repl_offset")
    if info.get("master_replid") != since.stream and not was_its:
        raise _forgotten(since, shown)
    first = number("repl_backlog_first_byte_offset")
    if info.get("repl_backlog_active") != "1" or following > first + number("repl_backlog_histlen"):
        raise _forgotten(since, shown)
    if following < first:
        raise _overrun(shown, number("master_repl_offset") - since.order, number("repl_backlog_size"))


def _overrun(shown: str, missed: int, kept: int | None = None) -> LogGap:
    has = "" if kept is None else f" of {kept / (1 << 20):.1f} MiB"
    return LogGap(
        f"{shown} sent {missed} bytes of changes since the last that were recorded, more than its backlog{has} holds: what it "
        "dropped is lost to the log. Take a backup to begin anew, and set repl-backlog-size to at least "
        f"{-(-2 * missed // (1 << 20))} MiB there"
    )


def _forgotten(since: Mark, shown: str) -> LogGap:
    return LogGap(
        f"{shown} does not know what follows byte {since.order} of the history {since.stream[:12]}…: it was started anew, or"
        " another that lacked its end took its place, its backlog was too small (repl-backlog-size), or dropped as nobody "
        "followed it (repl-backlog-ttl). What was written since is lost to the log: take a backup to begin anew"
    )


# The thread that receives


class _Receiver:
    """Owns the connection while it runs: from the server to the spool, and a sign of life to the server."""

    def __init__(self, target: Target, wire: Wire, since: Mark, reached: int, spool: Spool, ambient: Ambient) -> None:
        self._target = target
        self._reached = reached
        self._wire = wire
        self._since = since
        self._received = 0
        self._spool = spool
        self._ambient = ambient
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="redis-log", daemon=True)

    def __enter__(self) -> _Receiver:
        self._wire.alone()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                with self._wire:
                    self._receive()
                if self._stop.wait(_GONE_SECONDS):
                    return
                self._return()
        except BaseException as error:
            self._spool.end(error)

    def _receive(self) -> None:
        """Until it is told to stop, or the server waits for us."""
        heard = self._ambient.monotonic()
        told = heard - _ALIVE_SECONDS
        tail = b""
        while not self._stop.is_set():
            now = self._ambient.monotonic()
            if now - told >= _ALIVE_SECONDS:
                self._wire.send_command("REPLCONF", "ACK", "0")
                told = now
            piece = self._wire.poll(_PIECE)
            if piece:
                self._received += len(piece)
                missed = self._since.order + self._received < self._reached
                self._spool.put(piece, None if missed else self._ambient.now())
                tail = (tail + piece[-len(ASK) :])[-len(ASK) :]
                heard = self._ambient.monotonic()
            elif tail.upper() == ASK and now - heard > _ASKED_SECONDS:
                return
            elif now - heard > STREAM_SECONDS:
                raise EngineUnreachable(
                    f"the source was silent for {STREAM_SECONDS:.0f} s: see whether it is alive and not blocked"
                )

    def _return(self) -> None:
        """Goes on with the next byte."""
        self._wire = open_wire(self._target, self._ambient, self._look)
        try:
            next_since = Mark(self._since.stream, self._since.order + self._received, self._since.at)
            stream, self._reached = _follow(self._wire, next_since, place_of(self._target).shown)
            if stream != self._since.stream:
                raise EngineUnreachable("the source goes on under another replication id: record again from the last mark")
            self._wire.alone()
        except BaseException:
            self._wire.close()
            raise

    def _look(self) -> None:
        if self._stop.is_set():
            raise EngineUnreachable("the recording has ended")


# The thread that hands on


class _Recording:
    """Cuts what was received at the ends of commands."""

    def __init__(self, since: Mark, spool: Spool, sink: LogSink, control: Control, ambient: Ambient) -> None:
        self._since = since
        self._marked = since
        self._open: Mark | None = None  # everything was handed on up to here, which is where a mark may be
        self._commands = Commands()
        self._spool = spool
        self._sink = sink
        self._control = control
        self._ambient = ambient

    def run(self, until: float) -> None:
        """Until then, and up to the first end of a command after it."""
        while True:
            self._control.check()
            now = self._ambient.now()
            left = until - now
            late = left < -LAST_SECONDS
            if left < -2 * LAST_SECONDS:
                return  # in the middle of a command or a transaction: the next recording begins before it
            received = self._spool.take(_PIECE, min(_TURN_SECONDS, max(left, 0.01)))
            if received is not None:
                if self._hand_on(received, last=left <= 0 and (late or self._spool.waiting <= _CAUGHT_UP)):
                    return
            elif (error := self._spool.error) is not None:
                self._mark_open()
                raise error
            elif self._commands.boundary == self._commands.position and (left <= 0 or self._due(now)):
                self._mark_open()
                if left <= 0:
                    if self._marked is self._since:
                        self._sink.mark(self._since)
                    return

    def _hand_on(self, received: Received, last: bool) -> bool:
        """Passes bytes on; True if they were the last, and what followed the mark was left out."""
        before = self._commands.position
        self._commands.feed(received.data)
        whole = self._commands.boundary - before
        ending = self._spool.error is not None
        self._open = None
        if whole > 0 and received.at is not None:
            mark = Mark(self._since.stream, self._since.order + self._commands.boundary, received.at)
            if last or ending or self._due(received.at):
                self._sink.write(received.data[:whole])
                self._mark(mark)
                if last:
                    return True
                self._sink.write(received.data[whole:])
            else:
                self._sink.write(received.data)
                if whole == len(received.data):
                    self._open = mark
        else:
            self._sink.write(received.data)
        return False

    def _due(self, at: float) -> bool:
        return abs(at - self._marked.at) >= MARK_SECONDS

    def _mark_open(self) -> None:
        if self._open is not None:
            self._mark(self._open)

    def _mark(self, mark: Mark) -> None:
        self._sink.mark(mark)
        self._marked, self._open = mark, None
        self._control.progress("record", self._commands.boundary, None)
