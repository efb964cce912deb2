"""What people do: each call is drawn from the tape, is the shipped use case, and may be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from strongroom.backups import creation, deletion, errors, holding, quarantining, reconciling, restoration, verification
from strongroom.backups.staleness import CatalogOutdated
from strongroom.storage.base import StoreError

if TYPE_CHECKING:
    from simulation.world.history import World
    from simulation.world.processes import Process

KEPT = 2
"""Backups of an instance that expiry keeps."""

_CALLS = {
    "create": 11, "delete": 9, "batch": 2, "previewed": 3, "previewed set": 1, "restore": 2, "stop": 2, "hold": 1, "release": 1,
    "expire": 2, "verify": 1, "reconcile": 1, "quarantine": 1,
}  # fmt: skip
_DELETES = {"create": 6, "delete": 14, "batch": 1, "previewed": 6, "restore": 1, "stop": 1, "release": 2, "expire": 1}
_REFUSALS: dict[type[Exception], str] = {
    errors.BackupHeld: "a hold refuses a delete",
    errors.BackupRestoring: "a restore refuses a delete",
    errors.PreviewMoved: "a preview's version has moved",
}


def one_call(world: World, process: Process) -> None:
    """One user's call through this process."""
    calls = _DELETES if world.deletes_much else _CALLS
    if world.often:
        calls = {**calls, world.often: sum(calls.values())}
    kind = list(calls)[world.tape.weighted(list(calls.values()))]
    try:
        if kind == "create":
            create(world, process, world.tape.draw(len(world.instances)), world.tape.draw(7))
        elif kind in _OF_THE_STORE:
            world.tell(process, kind)
            _OF_THE_STORE[kind](world, process)
        else:
            _on_a_backup(world, process, kind)
    except (errors.Refused, CatalogOutdated) as error:
        world.tell(process, f"is refused: {error}")
        if type(error) in _REFUSALS:
            world.meet(_REFUSALS[type(error)])
    except StoreError as error:
        world.tell(process, f"gets an error: {error}")


def create(world: World, process: Process, which: int, kind: int) -> None:
    """The database moves on in this way, and a backup of it is asked for."""
    instance, address = world.instances[which]
    world.engine.content[address] = world.contents.next(world.engine.content[address], kind)
    world.tell(process, f"asks for a backup of {address}")
    creation.create(process.ctx, world.project, instance, creation.Wanted("a-backup"), lambda conn, key: None)


def delete(world: World, process: Process, key: str) -> None:
    """A backup's deletion is asked for."""
    world.truth.asked.add(key)
    before = process.sim.raw.execute("SELECT state FROM deletion WHERE backup = ?", (key,)).fetchone()
    thorough = world.tape.draw(4) == 3
    deletion.delete(process.ctx, world.project, key, lambda conn, b, n: None, thorough=thorough)
    if before is not None:
        again = "a backup is deleted twice at once" if before[0] == "RUNNING" else "a deletion that failed is asked for again"
        world.meet(again)


def _on_a_backup(world: World, process: Process, kind: str) -> None:
    known = [key for key, state in world.truth.states.items() if state != "DELETED"]
    if not known:
        return
    key = _pick(world, known)
    ctx, project = process.ctx, world.project
    world.tell(process, f"{kind}: {world.short(key)}")
    if kind == "delete":
        delete(world, process, key)
    elif kind in ("batch", "previewed set"):
        keys = list(dict.fromkeys([key, _pick(world, known), _pick(world, known)]))
        world.tell(process, f"{kind}: {', '.join(map(world.short, keys))}")
        (_batch if kind == "batch" else _previewed)(world, process, keys)
    elif kind == "previewed":
        _previewed(world, process, [key])
    elif kind == "restore":
        restoration.restore(ctx, project, key, world.target, lambda conn: None, overwrite=True)
    elif kind == "stop":
        creation.stop(ctx, project, key, lambda conn: None)
    else:
        _hold(world, process, key) if kind == "hold" else holding.hold(ctx, project, key, None, lambda conn: None)


def _hold(world: World, process: Process, key: str) -> None:
    """For good, or for some seconds by the clock of now."""
    until = world.ambient.now() + 5.0 if int(key[0], 16) % 2 == 0 else None
    holding.hold(process.ctx, world.project, key, holding.Hold("evidence", until=until), lambda conn: None)


def _batch(world: World, process: Process, keys: list[str]) -> None:
    world.truth.asked.update(keys)
    decided: list[str] = []
    deletion.delete_batch(process.ctx, world.project, keys, lambda conn, b, n: decided.append(b))
    if len(decided) > 1:
        world.meet("several are deleted in one transaction")


def _previewed(world: World, process: Process, keys: list[str]) -> None:
    """What was previewed is deleted; at an equal version the promise must be what was shown."""
    seen = deletion.preview(process.ctx, world.project, keys)
    if seen.refusals or len(seen.promises) < len(keys):
        return
    world.truth.asked.update(keys)
    decided: list[str] = []
    if len(keys) == 1:
        deletion.delete(process.ctx, world.project, keys[0], lambda conn, b, n: decided.append(b), seen.version)
    else:
        deletion.delete_batch(process.ctx, world.project, keys, lambda conn, b, n: decided.append(b))
    if decided != keys:  # somebody else was faster: the answer is the job of that delete
        return
    for key in keys:
        row = process.sim.raw.execute(
            "SELECT at_version, owned, promised_freed, promised_waiting, promised_undecided, promised_objects FROM deletion"
            " WHERE backup = ?",
            (key,),
        ).fetchone()
        shown = seen.promises[key]
        if row[0] != seen.version:
            continue
        world.meet("one is deleted at its preview's version" if len(keys) == 1 else "a set is deleted at its preview's version")
        if row[1:] != (shown.owned, shown.freed, shown.waiting, shown.undecided, shown.objects):
            world.broken(f"the preview of {key} said {shown} and the delete at its version promised {row[1:]}")


def _expire(world: World, process: Process) -> None:
    """The oldest completed backups of an instance go, through the same delete as everybody's."""
    instance, address = world.instances[world.tape.draw(len(world.instances))]
    rows = process.sim.raw.execute(
        "SELECT id FROM backup WHERE instance = ? AND state = 'COMPLETED' AND held IS NULL ORDER BY begin_at, id", (instance,)
    ).fetchall()
    for (key,) in rows[:-KEPT][:2]:
        world.tell(process, f"expiry of {address} deletes {world.short(key)}")
        world.meet("expiry deletes the oldest")
        delete(world, process, key)


def _verify(world: World, process: Process) -> None:
    which = world.tape.draw(3)
    known = [key for key, state in world.truth.states.items() if state == "COMPLETED"]
    backup = _pick(world, known) if which == 0 and known else None
    instance = world.instances[0][0] if which == 1 else None
    sample = (None, 50.0)[world.tape.draw(2)]
    verification.verify(process.ctx, world.project, lambda conn: None, backup=backup, instance=instance, sample=sample)


def _reconcile(world: World, process: Process) -> None:
    close = world.tape.draw(3) == 2
    if close:
        rows = process.sim.raw.execute("SELECT name FROM object WHERE late").fetchall()
        world.answered.update(name for (name,) in rows)  # an operator has said that their puts are over
    reconciling.reconcile(process.ctx, world.project, lambda conn: None, outside=world.tape.draw(2) == 1, close_late=close)


def _quarantine(world: World, process: Process) -> None:
    """Mostly of what no row names; now and then of something that is known, which must be refused."""
    rows = {name for (name,) in process.sim.raw.execute("SELECT name FROM object")}
    unknown = [name for name in sorted(world.truth.store.names()) if name not in rows and "quarantine/" not in name]
    known = world.tape.draw(4) == 3
    some = sorted(rows) if known else unknown
    if not some:
        return
    name = some[world.tape.draw(len(some))]
    world.tell(process, f"wants {world.pretty(name)} moved aside")
    world.truth.aside.add(name)
    try:
        quarantining.quarantine(process.ctx, world.project, [name], lambda conn, moved: None, outside=True)
    except quarantining.NotQuarantined:
        if known:
            world.meet("moving a known object aside is refused")
        raise


_OF_THE_STORE: dict[str, Callable[[World, Process], None]] = {
    "expire": _expire, "verify": _verify, "reconcile": _reconcile, "quarantine": _quarantine,
}  # fmt: skip


def _pick(world: World, known: list[str]) -> str:
    """Newer backups more often: heads and builds are where it hurts."""
    count = len(known)
    at = min(world.tape.draw(count), world.tape.draw(count))
    return known[count - 1 - at]
