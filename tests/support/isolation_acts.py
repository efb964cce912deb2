"""The acts that meet in the tests of isolation, and the worlds that they meet in.

A lineage with four backups, of which the first (`old`) is deleted up to its rewriting, which is due:

    quiet       one, two and three are complete
    building    … and a fourth is accepted; who plays its build takes it as far as its scene
    unswept     … and the deletion of `one` is decided, its sweep and everything after it is due
    two         only two and three are left, nothing else is due
    last        … and the deletion of `two` is decided and due: three's would close the lineage
    pending     the quiet one, and a deletion of `three` has waited: its decision is due

Every act goes through the use case's public entry; how far its preamble goes is said by effects on the store.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.backups import creation, deletion, holding, instances, pending, removal, restoration, rewriting
from strongroom.backups.context import Options
from strongroom.backups.deletion import DeleteJob
from strongroom.catalog import sweeping
from strongroom.catalog import tables as t
from strongroom.engines.base import Probe, Target
from strongroom.jobs.port import Cancelled, JobLost, TryAgain
from strongroom.storage.base import StoreUnavailable
from strongroom.storage.faults import Effect
from support.interleaving import NOTHING, Act, Actor, Pair, Stage
from support.postgres import PostgresServer
from support.vault import edited, noise


class House(Stage):
    """A stage with the worlds named above."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder, url, Options(chunk_average=1024, pack_target=4096, reclaim_budget=100))
        kept = noise(9_000, 7)

        def content(number: int) -> dict[str, bytes]:
            return {"edited": edited(noise(9_000, 1), number, 2), "kept": kept, "own": noise(1_500, 100 + number)}

        self.old, self.one, self.two, self.three = (self.backup(content(number)) for number in range(4))
        with self.catalog.read() as conn:
            self.lineage = conn.execute(sa.select(t.lineage.c.id)).scalar_one()
        self.delete(self.old)
        job = self.worker.claim()
        assert job is not None
        assert job.claim.kind == "delete"
        removal.carry_out(self.ctx, job, [self.lineage], removal.of_delete(self.old))
        self.remember("quiet")
        self.four, _ = self.create(content(4))
        self.remember("building")
        with pytest.MonkeyPatch.context() as too_large_for_its_own_transaction:
            too_large_for_its_own_transaction.setattr(sweeping, "step", lambda *_args: None)
            self.delete(self.one)
        self.remember("unswept")
        self.reset("quiet")
        self._wait_for_a_decision()
        self.remember("pending")
        self.reset("quiet")
        self.delete(self.one)
        self.run()
        self.remember("two")
        self.clock.passed = 0.0  # what is submitted now is due by everybody's clock
        self.delete(self.two)
        self.remember("last")

    def _wait_for_a_decision(self) -> None:
        """The policy that had it wait is gone, so that other deletions are decided at once."""
        for hours in (1, 0):
            pending.put_policy(self.ctx, self.project, lambda *_: None, undelete_hours=hours)
            if hours:
                deletion.delete(self.ctx, self.project, self.three, lambda *_: None, by=pending.Person("ann", "ann"))
        with self.catalog.write() as conn:
            conn.execute(sa.update(t.pending_deletion).values(until=0.0))
            conn.execute(sa.update(t.job).where(t.job.c.backup == self.three, t.job.c.kind == "delete").values(run_after=0.0))


class Houses:
    """A house on each kind of database, built when it is first asked for."""

    def __init__(self, folder: Path, url: Callable[[str], str]) -> None:
        self._folder, self._url = folder, url
        self._built: dict[str, House] = {}

    def on(self, kind: str) -> House:
        """The one on `sqlite` or `postgres`."""
        if kind not in self._built:
            folder = self._folder / kind
            folder.mkdir()
            self._built[kind] = House(folder, self._url(kind))
        return self._built[kind]

    def close(self) -> None:
        """Gives every connection back."""
        for built in self._built.values():
            built.close()


@pytest.fixture(scope="module")
def houses(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Houses]:
    """For all tests of a module, in whatever order they come."""
    folder = tmp_path_factory.mktemp("houses")

    def url(kind: str) -> str:
        if kind == "sqlite":
            shutil.copyfile(request.getfixturevalue("sqlite_template"), folder / "catalog.db")
            return f"sqlite:///{folder / 'catalog.db'}"
        server: PostgresServer = request.getfixturevalue("postgres")
        return server.url(server.create_database(request.getfixturevalue("postgres_template")))

    made = Houses(folder, url)
    yield made
    made.close()


def house(actor: Actor) -> House:
    """Where the actor plays."""
    assert isinstance(actor.stage, House)
    return actor.stage


# ---- what people ask for ----------------------------------------------------------------------------------------------------


def _begin(actor: Actor) -> str:
    actor.here()
    here = house(actor)
    creation.create(actor.ctx, here.project, here.source, creation.Wanted("another"), actor.note)
    return "accepted"


def _deleting(*which: str) -> Callable[[Actor], str]:
    def play(actor: Actor) -> str:
        actor.here()
        here = house(actor)
        ids = [getattr(here, name) for name in which]
        if len(ids) > 1:
            deletion.delete_batch(actor.ctx, here.project, ids, actor.note)
        else:
            deletion.delete(actor.ctx, here.project, ids[0], actor.note)
        return "accepted"

    return play


def _stop(actor: Actor) -> str:
    actor.here()
    creation.stop(actor.ctx, house(actor).project, house(actor).four, actor.note)
    return "accepted"


def _hold(actor: Actor) -> str:
    actor.here()
    holding.hold(actor.ctx, house(actor).project, house(actor).three, holding.Hold("evidence"), actor.note)
    return "held"


def _undelete(actor: Actor) -> str:
    actor.here()
    pending.undelete(actor.ctx, house(actor).project, house(actor).three, pending.Person("ben", "ben"), actor.note)
    return "called back"


def _restore(actor: Actor) -> str:
    actor.here()
    here = house(actor)
    restoration.restore(actor.ctx, here.project, here.three, here.target, actor.note, overwrite=True)
    return "accepted"


def _unregister(actor: Actor) -> str:
    actor.here()
    instances.unregister(actor.ctx, house(actor).project, house(actor).source, actor.note)
    return "unregistered"


# ---- the build of the fourth ------------------------------------------------------------------------------------------------


def _put(kind: str) -> Callable[[Effect], bool]:
    return lambda effect: effect.phase == "after" and effect.kind == "put_new" and f"/{kind}/" in effect.names[0]


def _putting_a_manifest(effect: Effect) -> bool:
    return effect.kind == "put_new" and "/manifest/" in effect.names[0]


def _build(actor: Actor) -> str:
    job = actor.claim("backup")
    assert job is not None
    actor.handlers["backup"].run(job)
    return "done"


def _store(actor: Actor) -> str:
    """The manifest is put: it becomes STORED. One transaction."""
    actor.scene(_put("manifest"), length=1)
    return _build(actor)


def _write(actor: Actor) -> str:
    """A pack is put: it becomes STORED; further packs, rows written ahead, the manifest announced, each by itself."""
    actor.scene(_put("pack"), until=_putting_a_manifest)
    return _build(actor)


def _commit(actor: Actor) -> str:
    """The manifest is STORED: the deciding transaction, with the sweeps before it."""
    actor.scene(_put("manifest"), transactions_more=1)
    return _build(actor)


def _fail(actor: Actor) -> str:
    """A worker that finds the build's worker dead gives it up."""
    actor.here()
    job = actor.claim("backup")
    if job is None:
        return NOTHING
    job.begin_giving_up()
    actor.handlers["backup"].give_up(job, "FAILED", "its worker was lost at every attempt")
    return "failed"


def _take_over(actor: Actor) -> str:
    """Another worker begins the build anew, up to its look at the engine."""

    def probe(target: Target) -> Probe:
        raise StoreUnavailable(f"the scene ends before {target.address} is looked at")

    actor.here()
    job = actor.claim("backup")
    if job is None:
        return NOTHING
    actor.engine.probe = probe  # type: ignore[method-assign]
    actor.handlers["backup"].run(job)
    return "done"


# ---- what deletions of before have left to do -------------------------------------------------------------------------------


def _putting(effect: Effect) -> bool:
    return effect.kind == "put_new"


def _removing(effect: Effect) -> bool:
    return effect.kind in ("delete_many", "get")


def _reclaim(actor: Actor, *, at_once: bool) -> str:
    here = house(actor)
    job = actor.claim("delete", here.old)
    assert job is not None
    if at_once:
        actor.here()
    rewriting.reclaim(actor.ctx, job, [here.lineage], here.old)
    return "done"


def _choose(actor: Actor) -> str:
    """The rewriting of the old backup's deletion chooses objects and announces new ones."""
    actor.scene(until=_putting)
    return _reclaim(actor, at_once=True)


def _switch(actor: Actor) -> str:
    """The new object is put: it takes the old one's place, or is given up."""
    actor.scene(_put("rewrite"), until=_removing)
    return _reclaim(actor, at_once=False)


def _abandon(actor: Actor) -> str:
    """A worker that finds the deletion's worker dead gives up what that was rewriting."""
    actor.here()
    here = house(actor)
    job = actor.claim("delete", here.old)
    if job is None:
        return NOTHING
    rewriting.abandon(actor.ctx, job, removal.of_delete(here.old))
    return "done"


def _decide(actor: Actor) -> str:
    """A deletion that has waited is decided, or called off; the store fails before anything is carried out."""
    job = actor.claim("delete", house(actor).three)
    assert job is not None
    actor.scene(until=lambda _effect: True)
    actor.here()
    try:
        DeleteJob(actor.ctx).run(job)
    except TryAgain:
        return "decided"
    except (JobLost, Cancelled):
        return "was called back"
    return "called off"


def _sweep(actor: Actor) -> str:
    actor.here()
    sweeping.finish(actor.catalog, house(actor).lineage)
    return "swept"


def _remove(actor: Actor, which: str) -> str:
    job = actor.claim("delete", getattr(house(actor), which))
    assert job is not None
    DeleteJob(actor.ctx).run(job)
    return "done"


def _burying(which: str) -> Callable[[Actor], str]:
    """The grave of a deleted backup is put: it becomes STORED."""

    def play(actor: Actor) -> str:
        actor.scene(_put("grave"), until=_removing)
        return _remove(actor, which)

    return play


def _forget(actor: Actor) -> str:
    """Objects of `one` are removed: their rows are forgotten, and counted."""
    actor.scene(
        lambda effect: (
            effect.phase == "after" and effect.kind == "delete_many" and any("/pack/" in name for name in effect.names)
        ),
        until=_removing,
    )
    return _remove(actor, "one")


BEGIN = Act("begin", _begin)
DELETE_HEAD = Act("delete-head", _deleting("three"))
DELETE_NEXT = Act("delete-next", _deleting("two"))
DELETE_ALL = Act("delete-all", _deleting("three", "one", "two"))
HOLD = Act("hold", _hold)
RESTORE = Act("restore", _restore)
STORE = Act("store", _store, claims="build", of_build=True)
WRITE = Act("write", _write, claims="build", atomic=False)
COMMIT = Act("commit", _commit, claims="build")
STOP = Act("stop", _stop, of_build=True)
FAIL = Act("fail", _fail, passes=True, of_build=True)
TAKE_OVER = Act("take-over", _take_over, passes=True, of_build=True)
CHOOSE = Act("choose", _choose, claims="old")
SWITCH = Act("switch", _switch, claims="old")
ABANDON = Act("abandon", _abandon, passes=True)
SWEEP = Act("sweep", _sweep)
BURY = Act("bury", _burying("one"), claims="one")
BURY_TWO = Act("bury-two", _burying("two"))
UNREGISTER = Act("unregister", _unregister)
DECIDE = Act("decide", _decide, claims="three")
UNDELETE = Act("undelete", _undelete)
FORGET = Act("forget", _forget, claims="one", atomic=False)

ACTS = (BEGIN, STORE, COMMIT, DELETE_HEAD, DELETE_NEXT, STOP, FAIL, CHOOSE, SWITCH, HOLD, RESTORE)
"""Every one of these meets every other, and itself."""

MORE = {
    WRITE: (DELETE_HEAD, DELETE_NEXT, STOP, FAIL, TAKE_OVER, SWITCH),
    TAKE_OVER: (BEGIN, STORE, COMMIT, DELETE_HEAD, STOP, FAIL, TAKE_OVER, SWITCH),
    ABANDON: (CHOOSE, SWITCH, DELETE_HEAD, DELETE_NEXT, COMMIT, ABANDON),
    DELETE_ALL: (BEGIN, STORE, COMMIT, DELETE_HEAD, STOP, SWITCH, HOLD, RESTORE, SWEEP, BURY, DELETE_ALL),
    SWEEP: (BEGIN, COMMIT, DELETE_HEAD, DELETE_NEXT, STOP, CHOOSE, SWITCH, SWEEP, BURY, FORGET),
    BURY: (COMMIT, DELETE_HEAD, DELETE_NEXT, STOP, SWITCH),
    UNREGISTER: (BEGIN, COMMIT, STOP, FAIL),
    FORGET: (STORE, COMMIT, DELETE_HEAD, DELETE_NEXT, STOP, SWITCH),
}
"""These meet whom they share rows with."""


CLOSING = (
    Pair(DELETE_HEAD, DELETE_NEXT, "two"), Pair(DELETE_HEAD, DELETE_HEAD, "last"), Pair(DELETE_HEAD, BEGIN, "last"),
    Pair(DELETE_HEAD, HOLD, "last"), Pair(DELETE_HEAD, BURY_TWO, "last"),
)  # fmt: skip
"""The delete that empties a chain closes its lineage."""


WAITING = tuple(
    Pair(first, second, "pending")
    for first, others in {
        DECIDE: (UNDELETE, HOLD, RESTORE, BEGIN, DELETE_NEXT), UNDELETE: (DELETE_HEAD, RESTORE),
    }.items()
    for second in others
)  # fmt: skip
"""A deletion that waited is decided, or called back."""


def pairs() -> list[Pair]:
    """Every two acts that can meet, each in the world that has what both need."""
    meetings = list(itertools.combinations_with_replacement(ACTS, 2))
    meetings += [(act, other) for act, others in MORE.items() for other in others]
    anywhere = [
        Pair(first, second, _world_of({first, second}))
        for first, second in meetings
        if first.claims is None or first.claims != second.claims
    ]
    return [*anywhere, *CLOSING, *WAITING]


def _world_of(both: set[Act]) -> str:
    if both & {SWEEP, BURY, FORGET}:
        return "unswept"
    return "building" if both & {STORE, WRITE, COMMIT, STOP, FAIL, TAKE_OVER} else "quiet"
