"""Options of an instance: sealed beside its password, opened again for its engine; secrets of before options open as they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strongroom.backups import anew, instances
from strongroom.backups.credentials import packed, unpacked
from strongroom.backups.registered import find_instance
from strongroom.engines.base import EngineUnsupported, Probe, Target
from strongroom.engines.mongodb.connection import connected
from strongroom.engines.redis.wire import place_of
from support.vault import DictEngine, Vault

OPTIONS = {"ca": "-----BEGIN…\n", "jmx_password": "hush"}


class Remembering(DictEngine):
    """Remembers whom it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Target] = []

    def probe(self, target: Target) -> Probe:
        self.asked.append(target)
        return super().probe(target)


@pytest.fixture
def engine() -> Remembering:
    return Remembering()


@pytest.fixture
def vault(tmp_path: Path, engine: Remembering) -> Vault:
    made = Vault(tmp_path, engine=engine)
    engine.databases["plain://new"] = {}
    engine.asked.clear()
    return made


def row_of(vault: Vault, instance: str) -> Any:
    with vault.catalog.read() as conn:
        return find_instance(conn, vault.project, instance)


@pytest.mark.parametrize("password", [None, "", "p w", "\u00ff {"])
@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_what_is_packed_comes_back(password: str | None, options: dict[str, str]) -> None:
    assert unpacked(packed(password, options)) == (password, options)


def test_a_password_alone_is_kept_as_it_was_before_options() -> None:
    assert packed("p\u00e4ss", {}) == "p\u00e4ss".encode()
    assert unpacked("{\u00ff}".encode()) == ("{\u00ff}", {})
    assert packed(None, {}) is None


@pytest.mark.parametrize("password", [None, "pass"])
def test_options_are_probed_with_sealed_and_opened(vault: Vault, engine: Remembering, password: str | None) -> None:
    new = instances.NewInstance("new", "plain", "plain://new", password, options=OPTIONS)
    row = row_of(vault, instances.register(vault.ctx, vault.project, new, lambda conn, key: None))
    wanted = Target("plain://new", password, OPTIONS)
    assert engine.asked == [wanted]
    assert vault.ctx.target(row) == wanted
    assert b"hush" not in row.secret
    for shown in (repr(wanted), repr(new)):
        assert "hush" not in shown


def test_a_new_instance_for_a_restore_has_them_too(vault: Vault, engine: Remembering) -> None:
    backup = vault.backup({"a": b"1"})
    notes = anew.Notes(*[lambda conn, key: None] * 3)
    newcomer = anew.Newcomer("new", "plain://new", "pass", OPTIONS)
    instance, _ = anew.restore_anew(vault.ctx, vault.project, anew.Wanted(backup), newcomer, notes)
    vault.run()
    assert engine.databases["plain://new"] == {"a": b"1"}
    assert vault.ctx.target(row_of(vault, instance)).options == OPTIONS


def test_engines_refuse_options_that_they_do_not_know() -> None:
    with pytest.raises(EngineUnsupported, match="unknown options for a Redis target: cert"):
        place_of(Target("rediss://h", options={"cert": "x"}))
    assert place_of(Target("rediss://h", options={"ca": "x"})).tls
    absent = Target("mongodb://127.0.0.1:1/", options={"tls": "true", "tlsCAFile": "/nowhere/at all"})
    with pytest.raises(EngineUnsupported, match="an option of the target is wrong"), connected(absent):
        pass
