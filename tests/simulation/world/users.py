"""What people do: each call is drawn from the tape, is the shipped use case, and may be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from strongroom.backups import creation, deletion, errors, holding, pending, quarantining, reconciling, restoration, verification
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
_WAITS = {
    "create": 8, "delete": 11, "batch": 2, "previewed": 2, "restore": 2, "stop": 1, "hold": 2, "release": 2, "expire": 1,
    "verify": 1, "policy": 2, "undelete": 4, "approve": 9, "hours": 3,
}  # fmt: skip
_REFUSALS: dict[type[Exception], str] = {
    errors.BackupHeld: "a hold refuses a delete",
    errors.BackupRestoring: "a restore refuses a delete",
    errors.PreviewMoved: "a preview's version has moved",
    errors.DeletionPending: "a restore of what waits to be deleted is refused",
    errors.SamePerson: "who asked for a deletion may not approve it",
    errors.DeletionDecided: "a call back comes too late",
}
_PEOPLE = (pending.Person("ann", "ann"), pending.Person("ben", "ben"))
_POLICIES = ((1, False), (0, True), (1, True), (0, False))


def one_call(world: World, process: Process) -> None:
    """One user's call through this process."""
    calls = _WAITS if world.waits else _DELETES if world.deletes_much else _CALLS
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


def delete(world: World, process: Process, key: str, *, expiring: bool = False) -> None:
    """A backup's deletion is asked for."""
    before = process.sim.raw.execute("SELECT state FROM deletion WHERE backup = ?", (key,)).fetchone()
    waited = world.truth.states.get(key) == "PENDING"
    thorough = world.tape.draw(4) == 3
    person = _person(world)
    with world.truth.asking(key):
        deletion.delete(process.ctx, world.project, key, lambda conn, b, n: None, by=person, thorough=thorough, expiring=expiring)
    if waited:
        world.meet("a deletion that waits is asked for again")
    if before is not None:
        again = "a backup is deleted twice at once" if before[0] == "RUNNING" else "a deletion that failed is asked for again"
        world.meet(again)


def _person(world: World) -> pending.Person:
    """Who asks; drawn only where it matters."""
    return _PEOPLE[world.tape.draw(2) if world.waits else 0]


def _policy(world: World, process: Process) -> None:
    set_policy(world, process, world.tape.draw(4))


def set_policy(world: World, process: Process, which: int) -> None:
    """What deletions wait for from now on: an hour, a second person, both or nothing."""
    hours, second = _POLICIES[which]
    world.tell(process, f"has deletions wait for {hours} hours and {'another user' if second else 'nobody'}")
    pending.put_policy(process.ctx, world.project, lambda *_: None, undelete_hours=hours, second_person=second)


def _hours(world: World, process: Process) -> None:
    """An hour passes, and sometimes a week."""
    hours = (1.0, 1.0, 1.0, 170.0)[world.tape.draw(4)]
    world.tell(process, f"waits for {hours:.0f} hours")
    world.ambient.passes(hours * 3600.0)


def _of_what_waits(world: World, process: Process, kind: str, key: str) -> None:
    """A deletion is called back or approved."""
    person = _person(world)
    if kind == "undelete":
        with world.truth.calling_back(key):
            pending.undelete(process.ctx, world.project, key, person, lambda conn: None)
    else:
        approved: list[str] = []
        pending.approve(process.ctx, world.project, key, person, lambda conn: approved.append(key))
        if approved:
            world.meet("a deletion is approved")


def _on_a_backup(world: World, process: Process, kind: str) -> None:
    known = [key for key, state in world.truth.states.items() if state != "DELETED"]
    if not known:
        return
    key = _pick(world, known)
    waiting = [one for one in known if world.truth.states[one] == "PENDING"]
    if waiting and kind in ("undelete", "approve", "restore", "hold") and world.tape.draw(4):
        key = waiting[world.tape.draw(len(waiting))]
    ctx, project = process.ctx, world.project
    world.tell(process, f"{kind}: {world.short(key)}")
    if kind == "delete":
        delete(world, process, key)
    elif kind in ("undelete", "approve"):
        _of_what_waits(world, process, kind, key)
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
    decided: list[str] = []
    person = _person(world)
    with world.truth.asking(*keys):
        deletion.delete_batch(process.ctx, world.project, keys, lambda conn, b, n: decided.append(b), by=person)
    if len(decided) > 1:
        world.meet("several are deleted in one transaction")


def _previewed(world: World, process: Process, keys: list[str]) -> None:
    """What was previewed is deleted; at an equal version the promise must be what was shown."""
    seen = deletion.preview(process.ctx, world.project, keys)
    if seen.refusals or len(seen.promises) < len(keys):
        return
    decided: list[str] = []
    with world.truth.asking(*keys):
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
        if row is None or row[0] != seen.version:  # it waits to be decided, or moved
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
        delete(world, process, key, expiring=world.waits)


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
    "expire": _expire, "verify": _verify, "reconcile": _reconcile, "quarantine": _quarantine, "policy": _policy, "hours": _hours,
}  # fmt: skip


def _pick(world: World, known: list[str]) -> str:
    """Newer backups more often: heads and builds are where it hurts."""
    count = len(known)
    at = min(world.tape.draw(count), world.tape.draw(count))
    return known[count - 1 - at]
