"""How an instance is entered can be changed: it is entered so first, all else stays, and no stored secret goes elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import errors, instances
from strongroom.backups.instances import Access
from strongroom.catalog import tables as t
from strongroom.engines.base import EngineDenied, Probe, Target
from support.logged import LoggedVault, nothing
from support.vault import DictEngine, Vault

OPTIONS = {"ca": "a certificate"}


class Guarded(DictEngine):
    """Lets in whoever has the password; remembers who asked."""

    def __init__(self) -> None:
        super().__init__()
        self.password: str | None = None
        self.mode = "Single"
        self.asked: list[Target] = []

    def probe(self, target: Target) -> Probe:
        self.asked.append(target)
        if target.password != self.password:
            raise EngineDenied("the password is refused")
        found = super().probe(target)
        return Probe(found.version, self.mode, found.size, found.warnings, found.records)


@pytest.fixture
def engine() -> Guarded:
    return Guarded()


@pytest.fixture
def vault(tmp_path: Path, engine: Guarded) -> Vault:
    made = Vault(tmp_path, engine=engine)
    engine.databases["plain://moved"] = engine.databases["plain://source"]
    engine.asked.clear()
    return made


def change(vault: Vault, **access: Any) -> None:
    instances.change(vault.ctx, vault.project, vault.source, Access(**access), nothing)


def kept(vault: Vault) -> Target:
    with vault.catalog.read() as conn:
        return vault.ctx.target(conn.execute(sa.select(t.instance).where(t.instance.c.id == vault.source)).one())


def test_backups_go_on_in_their_history_with_a_new_password(vault: Vault, engine: Guarded) -> None:
    """What was not named stays; the next backup adopts from the one before."""
    first = vault.backup({"a": b"x" * 50_000})
    engine.password = "new"
    change(vault, password="new")
    assert kept(vault) == Target("plain://source", "new")
    change(vault, options=OPTIONS)
    assert kept(vault) == Target("plain://source", "new", OPTIONS)
    engine.password = "newer"
    change(vault, password="newer")
    assert kept(vault) == Target("plain://source", "newer", OPTIONS)
    second = vault.backup({"a": b"x" * 50_000})
    with vault.catalog.read() as conn:
        parts = conn.execute(sa.select(t.part).where(t.part.c.backup.in_((first, second))).order_by(t.part.c.seq)).all()
    assert len({part.lineage for part in parts}) == 1
    assert (parts[1].stored_bytes, parts[1].adopted_bytes > 0) == (0, True)


def test_nothing_that_was_kept_goes_to_an_address_that_is_given(vault: Vault, engine: Guarded) -> None:
    """Also not to the one that it has: who may change the address could point it to a server of theirs, and read the password."""
    engine.password = "secret"
    change(vault, password="secret", options=OPTIONS)
    for address in ("plain://moved", "plain://source"):
        engine.asked.clear()
        with pytest.raises(errors.InstanceUnusable, match="the password is refused"):
            change(vault, address=address)
        assert engine.asked == [Target(address)]
    assert kept(vault) == Target("plain://source", "secret", OPTIONS)
    change(vault, address="plain://moved", password="secret")
    assert kept(vault) == Target("plain://moved", "secret")


def test_what_cannot_be_entered_or_is_of_another_kind_changes_nothing(vault: Vault, engine: Guarded) -> None:
    """Nor does a change in a project that the instance is not of."""
    before = kept(vault)
    with pytest.raises(errors.InstanceUnusable, match="the password is refused"):
        change(vault, password="wrong")
    engine.mode = "Cluster"
    with pytest.raises(errors.InstanceUnusable, match="is registered as Single, and what answers is Cluster"):
        change(vault, address="plain://moved")
    with pytest.raises(errors.NoSuchInstance):
        instances.change(vault.ctx, "another project", vault.source, Access("plain://moved"), nothing)
    assert kept(vault) == before


def test_an_instance_that_a_rebuild_brought_back_gets_its_password_again(vault: Vault, engine: Guarded) -> None:
    """Of which neither the password nor, for backups of long ago, the mode is known; one of an engine that is not is refused."""
    engine.password = "new"
    with vault.catalog.write() as conn:
        conn.execute(sa.update(t.instance).where(t.instance.c.id == vault.source).values(secret=None, mode=""))
    change(vault, password="new")
    assert kept(vault) == Target("plain://source", "new")
    with vault.catalog.write() as conn:
        here = t.instance.c.id == vault.source
        assert conn.execute(sa.select(t.instance.c.mode).where(here)).scalar() == "Single"
        conn.execute(sa.update(t.instance).where(here).values(engine="unknown"))
    with pytest.raises(errors.InstanceUnusable, match="no engine 'unknown'"):
        change(vault, password="newer")


def test_an_instance_that_goes_meanwhile_stays_gone(vault: Vault, engine: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is unregistered while it is being entered; its secret does not come back."""
    probe = engine.probe

    def slowly(target: Target) -> Probe:
        instances.unregister(vault.ctx, vault.project, vault.source, nothing)
        return probe(target)

    monkeypatch.setattr(engine, "probe", slowly)
    with pytest.raises(errors.NoSuchInstance):
        change(vault, options=OPTIONS)
    with vault.catalog.read() as conn:
        assert conn.execute(sa.select(t.instance.c.secret).where(t.instance.c.id == vault.source)).scalar() is None


def test_a_recording_goes_on_without_a_hole(tmp_path: Path) -> None:
    """It connects anew where it was; what kept it from going on is over."""
    vault = LoggedVault(tmp_path)
    vault.turn_on()
    vault.take()
    vault.writes(3)
    vault.follow()
    begin = vault.periods()[0][0]
    with vault.catalog.write() as conn:
        conn.execute(sa.update(t.recording).values(trouble="the password is refused"))
    instances.change(vault.ctx, vault.project, vault.source, Access("plain://source", "new"), nothing)
    with vault.catalog.read() as conn:
        assert conn.execute(sa.select(t.recording.c.trouble)).scalar() is None
    vault.writes(3)
    vault.follow()
    assert vault.periods() == [(begin, vault.engine.clock)]
    vault.check_moments()
