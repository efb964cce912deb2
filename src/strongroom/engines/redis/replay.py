"""Bringing a target from what a backup holds to a later moment: it is sent the log as its master would have sent it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from strongroom.ambient import Ambient
from strongroom.engines.base import CaptureBroken, Control, EngineError, EngineUnsupported, RestoreSource, Summary, Target
from strongroom.engines.log import Log
from strongroom.engines.redis.commands import Commands
from strongroom.engines.redis.mastering import LOAD_SECONDS, acknowledged
from strongroom.engines.redis.pacing import Pace
from strongroom.engines.redis.recording import mark_of
from strongroom.engines.redis.restore import restore
from strongroom.engines.redis.topology import is_cluster
from strongroom.engines.redis.wire import ASK, Wire, open_wire, packed, scratch_errors

_PIECE = 1 << 18
_UNTOUCHED = "nothing was sent to the target"


def restore_to(
    target: Target,
    source: RestoreSource,
    facts: Mapping[str, Any],
    log: Log,
    control: Control,
    scratch: str,
    ambient: Ambient,
) -> Summary:
    """See Recorder.restore_to. The log lies in the scratch folder, proved, before the restore of the backup begins."""
    base = mark_of(facts)
    if base is None:
        raise EngineUnsupported(f"this backup does not tell where in the log it stands; {_UNTOUCHED}")
    if is_cluster(target, ambient):
        raise EngineUnsupported(f"a log can only be restored into a single server, and the target is a cluster; {_UNTOUCHED}")
    if not (log.since.order == base.order and log.begin.order <= base.order <= log.until.order):
        raise EngineUnsupported(f"the log does not lead from this backup to the moment asked for; {_UNTOUCHED}")
    path = os.path.join(scratch, "log")
    try:
        databases = _fetch(log, path, control, scratch)
        replay = Replay(path, log.until.order - base.order, int(facts["stream_db"]), databases, ambient)
        summary = restore(target, source, facts, control, scratch, ambient, replay)
        return replace(summary, bytes=summary.bytes + replay.size, facts={**summary.facts, "log_bytes": replay.size})
    finally:
        if os.path.exists(path):
            os.unlink(path)


def _fetch(log: Log, path: str, control: Control, scratch: str) -> int:
    """Brings what follows the backup here, and proves that the log is whole and may be cut at both ends; returns how many
    databases it needs."""
    total, skip = log.until.order - log.begin.order, log.since.order - log.begin.order
    pace = Pace(control, "fetch log", total)
    commands = Commands()
    begun = False
    with scratch_errors(scratch):
        file = open(path, "xb")  # noqa: SIM115 (closed below: only our own writes may be blamed on the folder)
    with file:
        for piece in log.read():
            kept = piece[max(0, skip - commands.position) :]
            try:
                if not begun and commands.position + len(piece) >= skip:
                    head = piece[: skip - commands.position]
                    commands.feed(head)
                    if commands.boundary != skip:
                        raise CaptureBroken("the backup stands in the middle of a command of the log")
                    begun = True
                    commands.feed(kept)
                else:
                    commands.feed(piece)
            except CaptureBroken as error:
                raise CaptureBroken(f"{error}; {_UNTOUCHED}") from error
            with scratch_errors(scratch):
                file.write(kept)
                file.flush()
            pace.advance(len(piece))
    pace.finish()
    if commands.position != total or commands.boundary != total:
        raise CaptureBroken(
            f"the log is not whole: it has {commands.position} bytes instead of {total}, and its last command ends at "
            f"{commands.boundary}; {_UNTOUCHED}"
        )
    return commands.databases


@dataclass(frozen=True, slots=True)
class Replay:
    """A log as the sequel of a dump (restore.Sequel)."""

    path: str
    size: int
    database: int  # that its first commands are meant for: a replica that loaded a sorted dump has 0 selected
    databases: int  # that it uses
    ambient: Ambient

    def check(self, target: Target, control: Control) -> int:
        """Whether the target can take it; returns what `send` needs to know of it. Changes nothing.

        A SELECT that failed would not stop a replica: it would write on where it is.
        """
        with open_wire(target, self.ambient, control.check) as wire:
            has, needs = int(wire.setting("databases") or 0), max(self.databases, self.database + 1)
            if has < needs:
                raise EngineUnsupported(
                    f"the log needs {needs} databases, and the target has {has}: set databases there; {_UNTOUCHED}"
                )
            return _refused(wire)

    def send(self, link: Wire, target: Target, offset: int, refused: int, control: Control) -> None:
        """Sends it all to a target that has acknowledged `offset`, and waits until it has acknowledged all.

        Raises EngineError also if it could not run a command: a replica then goes on and says nothing, but counts.
        """
        pace = Pace(control, "replay", self.size)
        first = packed("SELECT", str(self.database))
        link.send(first, LOAD_SECONDS)
        with scratch_errors(os.path.dirname(self.path)), open(self.path, "rb") as file:
            while piece := file.read(_PIECE):
                link.send(piece, LOAD_SECONDS)
                while link.readable():
                    link.request()
                pace.advance(len(piece))
        if pace.done != self.size:
            raise EngineError(f"the log became shorter while it was sent: see who else uses {os.path.dirname(self.path)}")
        link.send(ASK, LOAD_SECONDS)
        expected = offset + len(first) + self.size
        found = acknowledged(link, expected)
        if found != expected:
            raise EngineError(f"the target acknowledges {found} bytes instead of {expected}")
        pace.finish()
        with open_wire(target, self.ambient, control.check) as wire:
            more = _refused(wire) - refused
        if more > 0:
            raise EngineError(f"the target could not run {more} commands of the log: see its log for what it lacks")


def _refused(wire: Wire) -> int:
    return int(wire.info().get("unexpected_error_replies", "0"))
