"""Rotating the root key: everything is sealed anew, no pack is touched, and a crash between any two effects loses nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from strongroom.backups import rekeying, snapshots
from strongroom.backups.context import Context
from strongroom.backups.creation import BackupJob
from strongroom.backups.credentials import packed
from strongroom.backups.deletion import DeleteJob
from strongroom.backups.incarnation import take_possession
from strongroom.backups.rebuilding import Rebuilt, rebuild
from strongroom.backups.rekeying import RotationRefused, prove, rotate
from strongroom.backups.removal import RemoveJob
from strongroom.catalog import tables as t
from strongroom.identity import accounts, totp
from strongroom.identity import tables as identity
from strongroom.identity.secrets import Sealer
from strongroom.jobs.stepwise import StepwiseWorker
from strongroom.notifications import webhooks
from strongroom.repository import names
from strongroom.repository.errors import WrongKey
from strongroom.repository.keys import RootKey, open_closed, open_owner, root_of_catalog, root_of_keys
from support.harsh import TTL, HarshVault, Saved, fast_catalog
from support.vault import ROOT, noise

OLD, NEW = RootKey(ROOT), RootKey(bytes(range(1, 33)))
BOTH_OLD_FIRST, BOTH_NEW_FIRST = RootKey(ROOT, (NEW,)), RootKey(NEW.secret, (OLD,))


def with_root(vault: HarshVault, root: RootKey) -> HarshVault:
    """From here on the vault's process has this root key."""
    sealer = Sealer(root.secret, accepted=[one.secret for one in root.accepted])
    vault.ctx = ctx = replace(vault.ctx, root_key=root, sealer=sealer, checked={})
    handlers = {
        "backup": BackupJob(ctx), "delete": DeleteJob(ctx), "remove": RemoveJob(ctx), snapshots.KIND: snapshots.SnapshotJob(ctx),
    }  # fmt: skip
    vault.worker = StepwiseWorker(ctx.jobs, handlers, ["default"], owner="stepwise", ttl=TTL)
    return vault


def world(folder: Path) -> HarshVault:
    """Two backups; a lineage that has closed; secrets of an instance, an access key, a second factor and a webhook."""
    vault = HarshVault(folder)
    gone = vault.backup({"a": noise(30_000, 1)})
    vault.delete(gone)
    vault.run()
    first = {"a": noise(60_000, 2), "b": noise(20_000, 3)}
    vault.backup(first)
    vault.backup(first | {"a": noise(60_000, 4)})
    with vault.catalog.write() as conn:
        user = conn.scalar(sa.select(identity.user.c.id))
        accounts.create_access_key(conn, vault.clock, vault.ctx.sealer, str(user))
        totp.enrol(conn, vault.clock, vault.ctx.sealer, str(user))
        sealed = vault.ctx.sealer.seal(packed("secret-word", {"ca": "a"}) or b"", "instance", vault.source)
        conn.execute(sa.update(t.instance).where(t.instance.c.id == vault.source).values(secret=sealed))
    webhooks.add(vault.ctx, vault.project, webhooks.NewWebhook("hook", "https://hooks.example/"), lambda conn, key: None)
    return vault


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return world(tmp_path_factory.mktemp("rekeying") / "vault").save()


def roots(vault: HarshVault) -> set[str]:
    """Ids of the root keys that sealed the key objects in the store."""
    return {root_of_keys(vault.inner.get(stat.name)) for stat in vault.inner.list("") if "/key/" in stat.name}


def closed_lineages(vault: HarshVault) -> list[str]:
    return [stat.name.split("/")[0] for stat in vault.inner.list("") if stat.name.endswith("/closed")]


def found_if_none(ctx: Context) -> None:
    accounts.first_start(ctx.catalog, ctx.ambient, ctx.sealer, password_hash=None)


def rebuilt(vault: HarshVault, file: Path) -> Rebuilt:
    """What a rebuild into an empty catalog finds with the vault's keys."""
    empty = fast_catalog(file)
    ctx = replace(vault.ctx, catalog=empty, checked={})
    try:
        return rebuild(ctx, lambda _: None, lambda: found_if_none(ctx))
    finally:
        empty.close()


def expect_rotated(vault: HarshVault) -> None:
    """With the new key alone a server starts, has every backup and every secret, and the old key's copies go."""
    take_possession(with_root(vault, NEW).ctx)
    vault.snapshot()
    assert roots(vault) == {NEW.id}
    (snapshot,) = [stat.name for stat in vault.inner.list("catalog/")]
    assert root_of_catalog(vault.inner.get(snapshot)) == NEW.id
    vault.check()
    prove(vault.ctx)
    with vault.catalog.read() as conn:
        row = conn.execute(sa.select(t.instance).where(t.instance.c.id == vault.source)).one()
    target = vault.ctx.target(row)
    assert (target.password, target.options) == ("secret-word", {"ca": "a"})


def expect_rebuildable(vault: HarshVault, folder: Path) -> None:
    """With the new key alone a backup is taken and one deleted, and the store alone makes a catalog."""
    vault.delete(vault.backup({"a": noise(60_000, 9)}))
    vault.run()
    vault.check()
    (folder / "rebuilt.db").unlink(missing_ok=True)
    found = rebuilt(vault, folder / "rebuilt.db")
    assert (found.backups, found.damaged, found.unknown) == (len(vault.wanted), 0, [])
    assert found.closed == len(closed_lineages(vault)) > 0


def test_a_rotation_seals_everything_anew_and_touches_no_pack(saved: Saved, tmp_path: Path) -> None:
    """Packs, manifests, graves and closing marks stay byte for byte; the old key opens neither catalog nor store any more."""
    vault = with_root(HarshVault.revive(tmp_path / "vault", saved), BOTH_NEW_FIRST)
    before = {stat.name: vault.inner.get(stat.name) for stat in vault.inner.list("")}
    done = rotate(vault.ctx)
    assert (done.lineages, done.secrets) == (1, 4)
    after = {stat.name: vault.inner.get(stat.name) for stat in vault.inner.list("")}
    assert before.items() <= after.items()
    assert {name.split("/")[-2] for name in after.keys() - before.keys()} == {"key", "owner", "catalog"}
    with pytest.raises(WrongKey):
        take_possession(with_root(vault, OLD).ctx)
    expect_rotated(vault)
    expect_rebuildable(vault, tmp_path)


def test_a_rotation_that_has_ended_has_nothing_left_to_do(saved: Saved, tmp_path: Path) -> None:
    """Called again with the same keys it changes nothing."""
    vault = with_root(HarshVault.revive(tmp_path / "vault", saved), BOTH_NEW_FIRST)
    rotate(vault.ctx)
    vault.run()
    before = {stat.name for stat in vault.inner.list("")}
    done = rotate(vault.ctx)
    assert (done.lineages, done.secrets) == (0, 0)
    assert {stat.name for stat in vault.inner.list("")} == before


def effects(saved: Saved, folder: Path) -> int:
    vault = with_root(HarshVault.revive(folder, saved), BOTH_NEW_FIRST)
    with vault.dying(None) as fate:
        rotate(vault.ctx)
    return fate.count


def test_a_crash_between_any_two_effects_loses_nothing(saved: Saved, tmp_path: Path) -> None:
    """Wherever it dies: a server that has both keys reads every backup and takes one; then the rotation goes on and ends."""
    count = effects(saved, tmp_path / "vault")
    assert count > 30
    for at in range(1, count + 1):
        vault = HarshVault.revive(tmp_path / "vault", saved)
        with_root(vault, BOTH_NEW_FIRST)
        with vault.dying(at) as fate:
            rotate(vault.ctx)
        assert not fate.alive
        if at % 2:  # a server runs in between
            vault.restart()
            take_possession(with_root(vault, BOTH_OLD_FIRST).ctx)
            vault.snapshot()
            vault.backup({"a": noise(60_000, 5)})
            vault.check()
        vault.restart()
        rotate(with_root(vault, BOTH_NEW_FIRST).ctx)
        expect_rotated(vault)
        if at % 6 == 0:
            expect_rebuildable(vault, tmp_path)


def test_a_rebuild_in_the_middle_finds_everything_with_both_keys(saved: Saved, tmp_path: Path) -> None:
    """The catalog is lost half-way: after the keys of a lineage were taken over and their copies of before removed."""
    count = effects(saved, tmp_path / "vault")
    for at in range(1, count + 1, 5):
        vault = HarshVault.revive(tmp_path / "vault", saved)
        with_root(vault, BOTH_NEW_FIRST)
        with vault.dying(at):
            rotate(vault.ctx)
        vault.restart()
        for root in (BOTH_OLD_FIRST, BOTH_NEW_FIRST):
            found = rebuilt(with_root(vault, root), tmp_path / f"{at}-{root.id}.db")
            assert (found.backups, found.damaged, found.closed) == (2, 0, 1)


def test_once_a_rotation_has_begun_neither_key_alone_begins(saved: Saved, tmp_path: Path) -> None:
    """The owner's mark goes first, and tells it before anything is freed or built."""
    vault = with_root(HarshVault.revive(tmp_path / "vault", saved), BOTH_NEW_FIRST)
    rekeying._take_mark(vault.ctx)
    for root in (OLD, NEW):
        with pytest.raises(WrongKey):
            take_possession(with_root(vault, root).ctx)
    take_possession(with_root(vault, BOTH_OLD_FIRST).ctx)


def test_closing_marks_are_understood_after_two_rotations(saved: Saved, tmp_path: Path) -> None:
    """They stay as they were put; the owner's mark carries what opens them, from key to key."""
    vault = with_root(HarshVault.revive(tmp_path / "vault", saved), BOTH_NEW_FIRST)
    rotate(vault.ctx)
    third = RootKey(bytes(32))
    rotate(with_root(vault, RootKey(third.secret, (NEW,))).ctx)
    (lineage,) = closed_lineages(vault)
    mark, data = vault.inner.get(names.closed(lineage)), vault.inner.get(names.owner(3))
    former = open_owner(third, 3, data)
    assert set(former) == {OLD.id, NEW.id}
    open_closed(third, lineage, mark, former)
    with pytest.raises(WrongKey):
        open_closed(third, lineage, mark)


def test_what_does_not_open_stops_the_rotation(saved: Saved, tmp_path: Path) -> None:
    """A secret under a third key, or a copy of a lineage's keys that holds others, is told and nothing is given up."""
    vault = with_root(HarshVault.revive(tmp_path / "vault", saved), BOTH_NEW_FIRST)
    rotate(vault.ctx)
    with vault.catalog.write() as conn:
        sealed = Sealer(bytes(32)).seal(b"x", "instance", vault.source)
        conn.execute(sa.update(t.instance).where(t.instance.c.id == vault.source).values(secret=sealed))
    with pytest.raises(RotationRefused, match="instance"):
        prove(vault.ctx)
