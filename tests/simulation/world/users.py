"""What people do: each call is drawn from the tape, is the shipped use case, and may be refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strongroom.backups import creation, deletion, errors, holding, restoration
from strongroom.backups.staleness import CatalogOutdated

if TYPE_CHECKING:
    from simulation.world.history import World
    from simulation.world.processes import Process

_CALLS = ("create", "delete", "batch", "previewed", "restore", "stop", "hold", "release")
_WEIGHTS = (11, 9, 3, 3, 2, 2, 1, 1)
_DELETES = (6, 14, 1, 6, 1, 1, 0, 2)


def one_call(world: World, process: Process) -> None:
    """One user's call through this process."""
    kind = _CALLS[world.tape.weighted(_DELETES if world.deletes_much else _WEIGHTS)]
    try:
        if kind == "create":
            create(world, process, world.tape.draw(len(world.instances)), world.tape.draw(6))
        else:
            _on_a_backup(world, process, kind)
    except (errors.Refused, CatalogOutdated) as error:
        world.tell(process, f"is refused: {error}")


def create(world: World, process: Process, which: int, kind: int) -> None:
    """The database moves on in this way, and a backup of it is asked for."""
    instance, address = world.instances[which]
    world.engine.content[address] = world.contents.next(world.engine.content[address], kind)
    world.tell(process, f"asks for a backup of {address}")
    creation.create(process.ctx, world.project, instance, creation.Wanted("a-backup"), lambda conn, key: None)


def delete(world: World, process: Process, key: str) -> None:
    """A backup's deletion is asked for."""
    world.truth.asked.add(key)
    thorough = world.tape.draw(4) == 3
    deletion.delete(process.ctx, world.project, key, lambda conn, b, n: None, thorough=thorough)


def _on_a_backup(world: World, process: Process, kind: str) -> None:
    known = [key for key, state in world.truth.states.items() if state != "DELETED"]
    if not known:
        return
    key = _pick(world, known)
    ctx, project = process.ctx, world.project
    world.tell(process, f"{kind}: {world.short(key)}")
    if kind == "delete":
        delete(world, process, key)
    elif kind == "batch":
        keys = list(dict.fromkeys([key, _pick(world, known), _pick(world, known)]))
        world.tell(process, f"batch: {', '.join(map(world.short, keys))}")
        world.truth.asked.update(keys)
        deletion.delete_batch(ctx, project, keys, lambda conn, b, n: None)
    elif kind == "previewed":
        _previewed(world, process, key)
    elif kind == "restore":
        restoration.restore(ctx, project, key, world.target, lambda conn: None)
    elif kind == "stop":
        creation.stop(ctx, project, key, lambda conn: None)
    else:
        holding.hold(ctx, project, key, "evidence" if kind == "hold" else None, lambda conn: None)


def _previewed(world: World, process: Process, key: str) -> None:
    seen = deletion.preview(process.ctx, world.project, [key])
    if key not in seen.promises:
        return
    world.truth.asked.add(key)
    decided: list[str] = []
    deletion.delete(process.ctx, world.project, key, lambda conn, b, n: decided.append(b), seen.version)
    if not decided:  # somebody else was faster: the answer is the job of that delete
        return
    row = world.sim.raw.execute(
        "SELECT owned, promised_freed, promised_waiting, promised_undecided, promised_objects FROM deletion WHERE backup = ?",
        (key,),
    ).fetchone()
    shown = seen.promises[key]
    if row != (shown.owned, shown.freed, shown.waiting, shown.undecided, shown.objects):
        world.broken(f"the preview of {key} said {shown} and the delete at its version promised {row}")


def _pick(world: World, known: list[str]) -> str:
    """Newer backups more often: heads and builds are where it hurts."""
    count = len(known)
    at = min(world.tape.draw(count), world.tape.draw(count))
    return known[count - 1 - at]
