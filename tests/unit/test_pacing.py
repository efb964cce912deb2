"""Kindness: bytes are paid for with time, each once, by the limits of source and worker, also those that are set meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strongroom.backups import errors, instances, pacing
from strongroom.backups.allowance import Allowance
from strongroom.backups.context import Options
from strongroom.backups.pacing import WORKER, Limits, Pacer, claimable, limits_of
from strongroom.jobs.port import Cancelled
from support.harsh import Clock, HarshVault
from support.vault import noise

MIB = 1 << 20


class Job:
    """A running job that is cancelled on command."""

    args: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.checks, self.cancelled = 0, False

    def check(self) -> None:
        self.checks += 1
        if self.cancelled:
            raise Cancelled("enough")

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        self.check()


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HarshVault:
    """Its clock passes by what is slept, to the microsecond."""

    def sleep(self: Clock, seconds: float) -> None:
        self.passed += seconds

    monkeypatch.setattr(Clock, "sleep", sleep)
    return HarshVault(tmp_path, Options(chunk_average=4096, pack_target=32768, source_rate=MIB))


def pacer(vault: HarshVault, job: Job | None = None) -> Pacer:
    return Pacer(vault.ctx, job or Job(), vault.source)  # type: ignore[arg-type]


def seconds(vault: HarshVault, paced: Pacer, size: int, piece: int = 64 * 1024) -> float:
    """What the clock says of taking `size` bytes in pieces."""
    since = vault.clock.monotonic()
    for _ in range(size // piece):
        paced.took(piece)
    return vault.clock.monotonic() - since


def set_rate(vault: HarshVault, rate: int | None, subject: str = "") -> None:
    if subject == WORKER:
        pacing.set_for_workers(vault.ctx, Limits(rate), lambda conn: None)
    else:
        pacing.set_for_instance(vault.ctx, vault.project, subject or vault.source, Limits(rate), lambda conn: None)


def test_an_allowance_is_paid_for_by_time_and_gives_no_credit() -> None:
    """A pause before counts for nothing; what is owed shrinks by the rate that holds now; without one nothing is owed."""
    one = Allowance()
    one.take(1000, 100, now=50.0)
    assert one.wait(100, now=50.0) == 10
    assert one.wait(100, now=54.0) == 6
    assert one.wait(200, now=54.0) == 3
    assert one.wait(None, now=54.0) == 0
    assert one.wait(100, now=54.0) == 0
    one.take(100, 100, now=1000.0)
    assert one.wait(100, now=1000.0) == 1


def test_a_capture_takes_no_more_than_its_instance_s_limit(vault: HarshVault) -> None:
    """The default, a limit of one's own, no limit at all, and the default again."""
    assert seconds(vault, pacer(vault), 4 * MIB) == pytest.approx(4, abs=0.6)
    set_rate(vault, 4 * MIB)
    assert seconds(vault, pacer(vault), 40 * MIB, MIB) == pytest.approx(10, abs=0.6)
    set_rate(vault, None)
    assert seconds(vault, pacer(vault), 40 * MIB, MIB) == 0
    pacing.set_for_instance(vault.ctx, vault.project, vault.source, None, lambda conn: None)
    assert seconds(vault, pacer(vault), 2 * MIB) == pytest.approx(2, abs=0.6)


def test_a_limit_that_is_set_meanwhile_holds_within_two_seconds(vault: HarshVault) -> None:
    """Lowered it slows a capture down; raised it ends even the wait for a large piece."""
    paced = pacer(vault)
    seconds(vault, paced, MIB)
    set_rate(vault, 128 * 1024)
    seconds(vault, paced, 2 * MIB)  # until it is seen
    assert seconds(vault, paced, MIB) == pytest.approx(8, abs=1)

    class Raising(Job):
        def check(self) -> None:
            self.checks += 1
            if self.checks == 4:
                set_rate(vault, None)

    job = Raising()
    paced = pacer(vault, job)
    since = vault.clock.monotonic()
    paced.took(16 * MIB)  # two minutes at this rate
    assert vault.clock.monotonic() - since <= 4


def test_the_captures_of_a_worker_share_its_limit(vault: HarshVault) -> None:
    """Two of them, each with a wide limit of its own, take together what the worker's lets through."""
    set_rate(vault, 64 * MIB)
    set_rate(vault, MIB, WORKER)
    one, two = pacer(vault), pacer(vault)
    since = vault.clock.monotonic()
    for _ in range(32):
        one.took(64 * 1024)
        two.took(64 * 1024)
    assert vault.clock.monotonic() - since == pytest.approx(4, abs=0.6)


def test_bytes_are_paid_for_once_when_they_are_taken_or_at_the_latest_when_they_are_handed_on(vault: HarshVault) -> None:
    """An adapter that spools tells of what it took and hands the same on; another tells nothing; a third hands more on."""
    spooling = pacer(vault)
    assert seconds(vault, spooling, 2 * MIB) == pytest.approx(2, abs=0.6)
    since = vault.clock.monotonic()
    spooling.passed(2 * MIB)
    assert vault.clock.monotonic() == since
    spooling.passed(MIB)
    assert vault.clock.monotonic() - since == pytest.approx(1, abs=0.6)
    silent, since = pacer(vault), vault.clock.monotonic()
    silent.passed(2 * MIB)
    assert vault.clock.monotonic() - since == pytest.approx(2, abs=0.6)


def test_a_capture_that_waits_is_cancelled_at_once(vault: HarshVault) -> None:
    """It asks the job while it waits."""
    job = Job()
    paced = pacer(vault, job)
    paced.progress("read", 0)
    job.cancelled = True
    with pytest.raises(Cancelled):
        paced.took(100 * MIB)
    assert vault.clock.monotonic() < 2


def test_a_backup_of_the_service_is_paced(vault: HarshVault) -> None:
    """Through the real capture: what goes into entries is paid for."""
    set_rate(vault, 64 * 1024)
    since = vault.clock.monotonic()
    vault.backup({"one": noise(640 * 1024, 1)})
    assert vault.clock.monotonic() - since == pytest.approx(10, abs=2)
    vault.check()


def test_limits_of_an_instance_that_is_not_there_are_not_set(vault: HarshVault) -> None:
    """Of another project, or unregistered."""
    with pytest.raises(errors.NoSuchInstance):
        pacing.set_for_instance(vault.ctx, "0" * 32, vault.source, Limits(MIB), lambda conn: None)
    with vault.catalog.read() as conn:
        assert limits_of(vault.ctx, conn, vault.source) == Limits(MIB, default=True)
        assert limits_of(vault.ctx, conn, WORKER) == Limits(None, default=True)


def test_a_worker_begins_no_more_jobs_at_sources_than_its_limit(vault: HarshVault) -> None:
    """Deletions and all else go on beside them."""
    kinds = ["backup", "restore", "delete", "verify"]
    assert claimable(vault.ctx, kinds, ["backup"] * 9) == kinds
    pacing.set_for_workers(vault.ctx, Limits(None, 2), lambda conn: None)
    assert claimable(vault.ctx, kinds, ["backup", "delete", "delete"]) == kinds
    assert claimable(vault.ctx, kinds, ["backup", "restore"]) == ["delete", "verify"]
    pacing.set_for_workers(vault.ctx, Limits(None, 0), lambda conn: None)
    assert claimable(vault.ctx, kinds, []) == ["delete", "verify"]
    pacing.set_for_workers(vault.ctx, None, lambda conn: None)
    assert claimable(vault.ctx, kinds, ["backup"] * 9) == kinds


def test_limits_go_with_their_instance(vault: HarshVault) -> None:
    """Nothing is left of them once it is unregistered."""
    set_rate(vault, 4 * MIB)
    instances.unregister(vault.ctx, vault.project, vault.source, lambda conn: None)
    with vault.catalog.read() as conn:
        assert limits_of(vault.ctx, conn, vault.source).default
