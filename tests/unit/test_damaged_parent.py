"""A backup whose predecessor's manifest is damaged."""

from __future__ import annotations

from pathlib import Path

from strongroom.repository import names
from support.vault import Vault, noise


def test_the_next_backup_shares_nothing_with_a_damaged_manifest_and_is_whole(tmp_path: Path) -> None:
    """The root object is flipped in one bit: the next completes with a warning, the one after adopts from it."""
    vault = Vault(tmp_path)
    data = {"a": noise(100_000, 1), "b": noise(40_000, 2)}
    first = vault.backup(data)
    del vault.wanted[first]
    parsed = ((stat.name, names.parse(stat.name)) for stat in vault.store.list(""))
    (name,) = (name for name, said in parsed if said is not None and said.kind == "manifest")
    whole = vault.store.get(name)
    vault.store.delete(name)
    vault.store.put_new(name, whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    second, job = vault.create(data)
    vault.run()
    assert vault.state(second) == "COMPLETED"
    assert "manifest is damaged" in vault.job(job).result["warnings"][0]
    vault.wanted[second] = data
    before = vault.size()
    vault.backup(data)
    assert vault.size() - before < 4_000
    vault.delete(first)
    vault.run()
    vault.check()
