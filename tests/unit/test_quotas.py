"""Quotas: what is counted, that the transaction which uses one more is the one that counts; and the limit of tags."""

from __future__ import annotations

from pathlib import Path

import pytest

from strongroom.backups import errors, instances, quotas, tagging
from support.vault import Vault

DATA = {"a": b"a" * 9000}


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)


def allow(vault: Vault, **wanted: int | None) -> None:
    with vault.catalog.write() as conn:
        quotas.put(conn, vault.project, wanted)  # type: ignore[arg-type]


def used(vault: Vault, **narrowed: str) -> dict[str, int]:
    with vault.catalog.read() as conn:
        return {one.kind: one.used for one in quotas.show(conn, vault.project, **narrowed)}


def size(vault: Vault) -> int:
    """Bytes in the store of what belongs to somebody."""
    return sum(stat.size for stat in vault.store.list("") if not stat.name.startswith("owner/"))


def allowed(vault: Vault) -> dict[str, int | None]:
    with vault.catalog.read() as conn:
        return {one.kind: one.allowed for one in quotas.show(conn, vault.project)}


def register(vault: Vault, name: str) -> str:
    vault.engine.databases[f"plain://{name}"] = {}
    return instances.register(
        vault.ctx, vault.project, instances.NewInstance(name, "plain", f"plain://{name}"), lambda c, k: None
    )


def test_what_is_used_is_what_there_is(vault: Vault) -> None:
    """Registered instances, backups that lists show, bytes in the store; narrowed by engine and mode."""
    assert used(vault) == {"instance": 2, "backup": 0, "stored_bytes": 0}
    key = vault.backup(DATA)
    assert used(vault) == {"instance": 2, "backup": 1, "stored_bytes": size(vault)}
    assert used(vault, engine="plain", mode="Single") == used(vault)
    assert set(used(vault, engine="redis").values()) == set(used(vault, mode="Cluster").values()) == {0}
    with vault.catalog.read() as conn:
        assert {one.used for one in quotas.show(conn, "another")} == {0}
    vault.delete(key)
    assert used(vault)["backup"] == 0, "hidden is not used"
    vault.run()


def test_a_quota_is_set_changed_and_taken_away(vault: Vault) -> None:
    """Each kind for itself; none is no limit; another project has its own."""
    assert allowed(vault) == {"instance": None, "backup": None, "stored_bytes": None}
    allow(vault, instance=3, backup=0)
    allow(vault, instance=5)
    assert allowed(vault) == {"instance": 5, "backup": 0, "stored_bytes": None}
    allow(vault, instance=None, backup=None)
    assert set(allowed(vault).values()) == {None}


def test_an_instance_above_the_quota_is_refused(vault: Vault) -> None:
    """One that fits is not; what is there already stays."""
    allow(vault, instance=3)
    register(vault, "third")
    with pytest.raises(errors.QuotaReached, match="instances is reached: 3 of 3"):
        register(vault, "fourth")
    allow(vault, instance=1)
    assert used(vault)["instance"] == 3
    allow(vault, instance=None)
    register(vault, "fourth")


def test_a_backup_above_the_quota_is_refused(vault: Vault) -> None:
    """By number or by bytes; after a deletion there is room again."""
    allow(vault, backup=1)
    key = vault.backup(DATA)
    with pytest.raises(errors.QuotaReached, match="backups is reached"):
        vault.create()
    vault.delete(key)
    vault.run()
    key = vault.backup(DATA)
    allow(vault, backup=None, stored_bytes=size(vault) + 1)
    second = vault.backup({**DATA, "b": b"b" * 9000})
    with pytest.raises(errors.QuotaReached, match="stored bytes is reached"):
        vault.create()
    for one in (key, second):
        vault.delete(one)
    vault.run()
    vault.backup(DATA)


def test_an_instance_has_so_many_tags_and_no_more(vault: Vault) -> None:
    """All of a change, or none; a key that is there takes no more room."""
    told: list[str] = []

    def change(**put: str) -> None:
        tagging.change(vault.ctx, vault.project, vault.source, lambda conn, name: told.append(name), put=put)

    many = {f"k{number}": "" for number in range(tagging.MOST)}
    change(**many)
    change(k0="changed")
    with pytest.raises(errors.TooManyTags):
        change(one="more", k1="changed")
    with vault.catalog.read() as conn:
        assert tagging.tags_of(conn, vault.project, vault.source) == dict(sorted({**many, "k0": "changed"}.items()))
        assert told == ["source", "source"]
        with pytest.raises(errors.NoSuchInstance):
            tagging.tags_of(conn, "another", vault.source)
