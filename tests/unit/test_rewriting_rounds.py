"""Rounds of rewriting: what fits into one, what another took meanwhile, and that removal jobs end as the store lets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from strongroom.backups import removal, rewriting
from strongroom.backups.context import Options
from strongroom.catalog import tables as t
from strongroom.storage.base import StoreDenied, StoreError, StoreUnavailable
from strongroom.storage.faults import Fail
from support.harsh import HarshVault
from support.vault import edited, generations, noise

OPTIONS = Options(chunk_average=4096, pack_target=32768, reclaim_budget=20.0)


@pytest.fixture
def vault(tmp_path: Path) -> HarshVault:
    return HarshVault(tmp_path, OPTIONS)


def scattered(vault: HarshVault, count: int) -> list[str]:
    """Backups that each replace a few chunks all over one entry: deleting one leaves holes in many packs."""
    data, keys = noise(250_000, 3), []
    for number in range(count):
        keys.append(vault.backup({"a": data}))
        data = edited(data, 300 + number, edits=10)
    return keys


def exact(vault: HarshVault, key: str, before: int) -> None:
    receipt = vault.receipt(key)
    assert before - vault.size() == receipt["freed"] + receipt["reclaimed"]["net"] - receipt["put_bytes"]
    assert receipt["waiting"] == receipt["promised"]["waiting"]
    vault.check()


def rounds(patch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The sources of each round, as they will come."""
    seen: list[list[Any]] = []
    choose = rewriting._choose

    def noting(ctx: Any, job: Any, lineage: str, sources: Sequence[Any], *rest: Any) -> Any:
        seen.append(list(sources))
        return choose(ctx, job, lineage, sources, *rest)  # type: ignore[arg-type]

    patch.setattr(rewriting, "_choose", noting)
    return seen


def test_a_round_takes_no_more_than_it_can_fill(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """One new object a round: what lives in the sources of each fits, or it is a single source; all is done in the end."""
    monkeypatch.setattr(rewriting, "_MOST_OBJECTS", 1)
    keys, seen = scattered(vault, 3), rounds(monkeypatch)
    before = vault.size()
    vault.delete(keys[0])
    vault.run()
    assert len(seen) > 2
    for sources in seen:
        living = sum(int(source.sizes_of(*held).sum()) for source in sources for held in source.living.items())
        assert len(sources) == 1 or living <= OPTIONS.pack_target
    exact(vault, keys[0], before)


def test_a_source_that_another_has_taken_is_left_to_it(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading it and choosing it: the round is not made, nothing is planned; the next goes without it."""
    keys = scattered(vault, 3)
    choose, taken = rewriting._choose, list[str]()

    def late(ctx: Any, job: Any, lineage: str, sources: Sequence[Any], *rest: Any) -> Any:
        if not taken:
            taken.append(sources[0].id)
            with vault.catalog.write() as conn:
                conn.execute(sa.update(t.object_).where(t.object_.c.id == taken[0]).values(rewriting="rewrite:another"))
            found = choose(ctx, job, lineage, sources, *rest)  # type: ignore[arg-type]
            assert found is None
            with vault.catalog.read() as conn:
                assert conn.execute(sa.select(t.object_).where(t.object_.c.state == "PLANNED")).all() == []
                mine = conn.execute(sa.select(t.object_.c.id).where(t.object_.c.rewriting.is_not(None))).scalars().all()
            assert list(mine) == taken
            return found
        assert taken[0] not in {source.id for source in sources}
        return choose(ctx, job, lineage, sources, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(rewriting, "_choose", late)
    before = vault.size()
    vault.delete(keys[0])
    vault.run()
    with vault.catalog.write() as conn:
        row = conn.execute(sa.select(t.object_).where(t.object_.c.id == taken[0])).one()
        assert (row.state, row.rewriting) == ("STORED", "rewrite:another")
        conn.execute(sa.update(t.object_).where(t.object_.c.id == taken[0]).values(rewriting=None))
    assert vault.receipt(keys[0])["reclaimed"]["written"] > 0
    exact(vault, keys[0], before)


def test_sources_whose_chunks_end_apart_are_grouped_by_their_ends(vault: HarshVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each living chunk is in one class, by pack and end; what the head needs has none."""
    keys, seen = scattered(vault, 5), list[Any]()
    classes = rewriting._classes

    def noting(ctx: Any, lineage: str, sources: Sequence[Any]) -> Any:
        found = classes(ctx, lineage, sources)
        seen.append((list(sources), found))
        return found

    monkeypatch.setattr(rewriting, "_classes", noting)
    before = vault.size()
    vault.delete(keys[0])
    vault.run()
    assert seen
    for sources, found in seen:
        living = {(pack, n) for source in sources for pack, numbers in source.living.items() for n in numbers}
        named = [(one.pack, n) for one in found for n in one.numbers]
        assert len(named) == len(set(named))
        assert set(named) == living
        assert all(one.numbers for one in found)
        assert len({one.last for one in found if one.last is not None}) > 1
    exact(vault, keys[0], before)


def test_a_round_that_would_write_more_than_is_left_goes_without_its_last_source(vault: HarshVault) -> None:
    """What lives in the sources fits into what is left to the byte, what the new objects take beside it does not."""
    options = vault.options
    keys = scattered(vault, 5)
    vault.options = replace(options, reclaim_budget=0.0)
    vault.restart()
    vault.delete(keys[0])
    vault.run()
    with vault.catalog.read() as conn:
        (lineage,) = conn.execute(sa.select(t.lineage.c.id)).scalars()
        rows = rewriting._candidates(conn, lineage, None, options.reclaim_floor, set())
    cost = sum(row.bytes - row.dead_bytes for row in rows)
    whole, groups = rewriting._next_round(vault.ctx, lineage, None, set())
    most = sum(one.most_bytes for one in groups)
    assert len(whole) == len(rows) > 2
    assert cost < most - 1, "it is the new objects' size that decides"
    for left in (most, most - 1, cost):
        sources, groups = rewriting._next_round(vault.ctx, lineage, left, set())
        assert 0 < len(sources) <= len(whole)
        assert (len(sources) == len(whole)) == (left >= most)
        assert [one.id for one in sources] == [one.id for one in whole[: len(sources)]]
        assert sum(one.most_bytes for one in groups) <= left


@pytest.mark.parametrize(
    ("error", "state"),
    [(StoreUnavailable("the store is away"), "QUEUED"), (StoreDenied("the store refuses: check its rights"), "FAILED")],
)
def test_what_builds_left_is_removed_as_the_store_lets_it(vault: HarshVault, error: StoreError, state: str) -> None:
    """An error that passes is tried again, one that does not ends the job with its reason; what is condemned stays so, and the
    next removal of the lineage takes it."""
    vault.backup(next(generations(1)))
    with vault.catalog.write() as conn:
        (lineage,) = conn.execute(sa.select(t.lineage.c.id)).scalars()
        name = f"{lineage}/pack/1.0/{'c' * 32}"
        conn.execute(
            t.object_.insert().values(
                id="c" * 32, lineage=lineage, kind="pack", name=name, state="CONDEMNED", bytes=5, live=0, dead_bytes=0, seq=1,
                attempt=0, late=False, removal=removal.of_lineage(lineage),
            )
        )  # fmt: skip
        job = removal.submit(vault.ctx, conn, lineage)
    vault.inner.put_new(name, b"chunk")
    vault.plan = lambda effect: Fail(error) if effect.kind == "delete_many" and effect.phase == "before" else None
    assert vault.worker.step() == job
    assert (vault.job(job).state, vault.job(job).error) == (state, str(error))
    assert vault.inner.stat(name) is not None
    vault.plan = lambda _effect: None
    if state == "FAILED":
        with vault.catalog.write() as conn:
            removal.submit(vault.ctx, conn, lineage)
    vault.run()
    assert vault.inner.stat(name) is None
    vault.check()
