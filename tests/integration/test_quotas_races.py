"""Quotas under many at once, on both databases: the last place is given once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from strongroom.backups import creation, errors, instances, quotas
from strongroom.catalog.database import Catalog
from support.vault import Vault

MANY = 6


@pytest.fixture
def vault(tmp_path: Path, catalog: Catalog) -> Vault:
    return Vault(tmp_path, catalog=catalog)


def register(vault: Vault, name: str) -> str:
    vault.engine.databases[f"plain://{name}"] = {}
    return instances.register(
        vault.ctx, vault.project, instances.NewInstance(name, "plain", f"plain://{name}"), lambda c, k: None
    )


def allow(vault: Vault, **wanted: int) -> None:
    with vault.catalog.write() as conn:
        quotas.put(conn, vault.project, wanted)  # type: ignore[arg-type]


def at_once(calls: list[Callable[[], object]]) -> tuple[int, int]:
    """How many were accepted, and how many refused by a quota; anything else is raised."""
    gate, outcomes = threading.Barrier(len(calls)), list[Exception | None]()

    def run(call: Callable[[], object]) -> None:
        gate.wait(30)
        try:
            call()
            outcomes.append(None)
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    wrong = [error for error in outcomes if error is not None and not isinstance(error, errors.QuotaReached)]
    assert not wrong, wrong
    return outcomes.count(None), len(calls) - outcomes.count(None)


def test_the_last_places_of_backups_are_given_once(vault: Vault) -> None:
    """Backups of several instances begin at once: exactly as many as may. They complete."""
    names = [register(vault, f"at-once-{number}") for number in range(MANY)]
    allow(vault, backup=2)
    wanted = creation.Wanted("at-once")
    calls = [
        lambda key=key: creation.create(vault.ctx, vault.project, key, wanted, lambda conn, backup: None) for key in names
    ]  # fmt: skip
    assert at_once(calls) == (2, MANY - 2)
    vault.run()
    with vault.catalog.read() as conn:
        assert [one.used for one in quotas.show(conn, vault.project) if one.kind == "backup"] == [2]


def test_the_last_places_of_instances_are_given_once(vault: Vault) -> None:
    """Two are registered already; three more fit, while the quota is being set again."""
    allow(vault, instance=5)
    calls: list[Callable[[], object]] = [lambda name=f"many-{number}": register(vault, name) for number in range(MANY)]
    assert at_once([*calls, lambda: allow(vault, instance=5)]) == (4, MANY - 3)
    with vault.catalog.read() as conn:
        assert quotas.show(conn, vault.project)[0].used == 5
