"""What a restore changes on its target beside the data, and how anybody can put it back.

The mark is the target's setting `masteruser`, which a server uses only when it is a replica with `masterauth`: it is set
before anything else is changed and put back after everything else, so a target that carries one has an unfinished restore.
It holds what must be put back. It lives in the server's memory: a restart of the target ends the restore as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from strongroom.ambient import Ambient
from strongroom.engines.base import EngineError, Target
from strongroom.engines.redis.wire import NotNow, Wire, no_look, open_wire

# A target that gives up a load refuses commands for a while; one whose sender is paused answers nothing before its own
# repl-timeout (60 s unless changed) is over.
RELEASE_SECONDS = 90.0
_PREFIX = "strongroom-restore"


@dataclass(frozen=True, slots=True)
class Mark:
    """An unfinished restore: the master that the target was given, and its own settings."""

    host: str
    port: int
    load_mode: str
    master_user: str

    def __str__(self) -> str:
        parts = (self.host, str(self.port), self.load_mode, self.master_user)
        return "/".join([_PREFIX, *(quote(part, safe="", errors="surrogateescape") for part in parts)])


def read_mark(text: str | None) -> Mark | None:
    """The mark in a `masteruser` setting, None if it is not one of ours."""
    parts = (text or "").split("/")
    if len(parts) != 5 or parts[0] != _PREFIX or not parts[2].isdigit():
        return None
    host, port, load_mode, master_user = (unquote(part, errors="surrogateescape") for part in parts[1:])
    return Mark(host, int(port), load_mode, master_user)


def begin(wire: Wire, host: str, port: int) -> None:
    """Marks the target, has it keep its old data until new data is loaded, and makes it a replica of host:port.

    Raises EngineError and changes nothing if the target carries the mark of another restore.
    """
    user = wire.setting("masteruser") or ""
    if read_mark(user) is not None:
        raise EngineError("another restore is at work on the target: wait until it has ended, and try again")
    mark = Mark(host, port, wire.setting("repl-diskless-load") or "disabled", user)
    wire.set("masteruser", str(mark))
    wire.set("repl-diskless-load", "swapdb")
    wire.command("REPLICAOF", host, str(port))


def release(target: Target, ambient: Ambient, beat: Callable[[], None] = no_look, only: tuple[str, int] | None = None) -> None:
    """Ends an unfinished restore on the target, if it carries a mark; idempotent.

    `only` names the one master whose mark counts: a restore that was paused and replaced must not end its successor.
    A target that meanwhile follows another master keeps it. One that is giving up a load is waited for.
    """
    deadline = ambient.monotonic() + RELEASE_SECONDS
    while True:
        try:
            with open_wire(target, ambient, beat, RELEASE_SECONDS) as wire:
                _release(wire, only)
            return
        except NotNow:
            if ambient.monotonic() > deadline:
                raise
        beat()
        ambient.sleep(0.2)


def _release(wire: Wire, only: tuple[str, int] | None) -> None:
    mark = read_mark(wire.setting("masteruser"))
    if mark is None or (only is not None and only != (mark.host, mark.port)):
        return
    info = wire.info()
    if info.get("role") == "slave" and (info.get("master_host"), info.get("master_port")) == (
        mark.host,
        str(mark.port),
    ):
        wire.command("REPLICAOF", "NO", "ONE")
    wire.set("repl-diskless-load", mark.load_mode)
    wire.set("masteruser", mark.master_user)
