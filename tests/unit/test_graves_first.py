"""What a rebuild finds of deletions that are half done."""

from __future__ import annotations

from pathlib import Path

from strongroom.backups import deletion
from strongroom.storage.faults import Effect
from support.harsh import HarshVault
from support.vault import generations


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
