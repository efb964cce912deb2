"""What a rebuild finds of deletions that are half done."""

from __future__ import annotations

from pathlib import Path

from strongroom.backups import deletion
from strongroom.backups.context import Options
from strongroom.storage.faults import Effect
from support.harsh import HarshVault
from support.vault import generations, noise


def test_all_deleted_parts_are_buried_before_packs_of_any_go(tmp_path: Path) -> None:
    """Two neighbours are deleted in one set: what they shared goes with one of them, and the other's grave is there by then."""
    vault = HarshVault(tmp_path / "vault")
    source = generations(4)
    keys = [vault.backup(next(source)) for _ in range(4)]
    deletion.delete_batch(vault.ctx, vault.project, keys[1:3], lambda conn, b, n: None)
    graves: list[int] = []

    def look(effect: Effect) -> None:
        if effect.phase == "before" and effect.kind == "delete_many" and any("/pack/" in name for name in effect.names):
            graves.append(sum("/grave/" in name for name in vault.inner._objects))  # type: ignore[attr-defined]

    vault.plan = look
    for key in keys[1:3]:
        vault.wanted.pop(key, None)
    vault.run()
    assert graves
    assert set(graves) == {2}
    vault.check()


def test_a_deleted_part_is_buried_before_rewriting_drops_what_it_needed(tmp_path: Path) -> None:
    """It is deleted while another deletion has put its marks and begins to rewrite: what only it needed is left behind there, and
    by then its grave must be there."""
    vault = HarshVault(tmp_path / "vault", Options(chunk_average=1024, pack_target=32768, reclaim_budget=100))
    contents = [{"kept": noise(20_000, 1), "own": noise(6_000, 10 + number)} for number in range(4)]
    first, second, *_ = (vault.backup(data) for data in contents)
    vault.delete(second)
    job = vault.worker.claim()
    assert job is not None
    graves: list[int] = []
    rewriting = False

    def look(effect: Effect) -> None:
        nonlocal rewriting
        if effect.kind != "delete_many":
            return
        if effect.phase == "before" and rewriting:
            graves.append(sum("/grave/" in name for name in vault.inner._objects))  # type: ignore[attr-defined]
        if effect.phase == "after" and any("/pack/2." in name for name in effect.names):
            rewriting = True
            vault.delete(first)

    vault.plan = look
    vault.worker.run_claimed(job)
    assert first not in vault.wanted
    assert graves, "an object of the first backup was rewritten"
    assert set(graves) == {2}
    vault.run()
    vault.check()
