"""What every engine has in common, on real servers of each: what is captured is restored, and what goes wrong harms nothing.

The suite is the same for all (support/engine_harness.py); what only one engine can do or break is in that engine's own modules.
"""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from strongroom.backups import errors
from strongroom.engines.base import (
    CaptureBroken,
    EngineDenied,
    EngineError,
    EngineUnreachable,
    Entry,
    NothingShared,
    Rehearser,
    RestoreBroken,
    Surveyor,
)
from support.engine_harness import HARNESSES, RECORD_BYTES, RECORDS, TINY, EngineHarness
from support.engine_service import EngineService

pytestmark = pytest.mark.skipif(not HARNESSES, reason="no engine's program here")


@pytest.fixture(scope="module", params=HARNESSES)
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHarness]:
    """Two servers of each engine in turn."""
    kind, program = request.param
    with ExitStack() as stack:
        yield kind(stack, tmp_path_factory.mktemp("engine"), program)


@pytest.fixture
def harness(servers: EngineHarness) -> EngineHarness:
    """The same, empty."""
    servers.wipe("source")
    servers.wipe("other")
    return servers


@pytest.fixture
def service(harness: EngineHarness, tmp_path: Path) -> Iterator[EngineService]:
    with EngineService(tmp_path, harness.engine) as opened:
        yield opened


class Job:
    """A control that acts when it is told of something."""

    def __init__(
        self, on_progress: Callable[[str], None] = lambda _phase: None, on_took: Callable[[], None] = lambda: None
    ) -> None:
        self._on_progress, self._on_took = on_progress, on_took

    def check(self) -> None:
        pass

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        assert total is None or done <= total
        self._on_progress(phase)

    def took(self, size: int) -> None:
        self._on_took()


class Memory(NothingShared):
    """A backup in memory, and what is done when the first bytes of it come in."""

    def __init__(self, on_write: Callable[[], None] = lambda: None) -> None:
        self.kept: dict[str, tuple[bytes, Mapping[str, Any]]] = {}
        self._on_write = on_write

    @contextmanager
    def entry(self, name: str) -> Iterator[_Entry]:
        writer = _Entry(self._on_write)
        yield writer
        assert writer.facts is not None, f"{name} was not finished"
        self.kept[name] = (bytes(writer.data), writer.facts)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for name, (data, facts) in self.kept.items():
            if name.startswith(prefix):
                yield Entry(name, len(data), facts)

    def read(self, name: str) -> Iterator[bytes]:
        data = self.kept[name][0]
        return (data[start : start + 100_003] for start in range(0, len(data), 100_003))


class _Entry:
    def __init__(self, on_write: Callable[[], None]) -> None:
        self.data, self.facts = bytearray(), None
        self._on_write = on_write

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += data
        self._on_write()

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        self.facts = dict(facts or {})  # type: ignore[assignment]


def once(action: Callable[[], None]) -> Callable[[], None]:
    """Acts the first time only."""
    left = [action]
    return lambda: left.pop()() if left else None


def captured(harness: EngineHarness, job: Job | None = None, memory: Memory | None = None) -> tuple[Memory, Mapping[str, Any]]:
    """The source, without the service around the engine."""
    kept = memory or Memory()
    with tempfile.TemporaryDirectory() as scratch:
        facts = harness.engine.capture(harness.target("source"), kept, job or Job(), scratch).facts
    return kept, facts


def restored(harness: EngineHarness, kept: Memory, facts: Mapping[str, Any], job: Job | None = None) -> None:
    """Into the other server."""
    with tempfile.TemporaryDirectory() as scratch:
        harness.engine.restore(harness.target("other"), kept, facts, job or Job(), scratch)


def test_two_backups_restore_what_was_there_and_the_second_stores_what_changed(
    harness: EngineHarness, service: EngineService, record_property: Callable[[str, object], None]
) -> None:
    """Through the whole service. One record in a hundred changed: the increment is a fraction of the first backup."""
    source, other = service.register("source", harness.target("source")), service.register("other", harness.target("other"))
    harness.fill("source")
    before = harness.content("source")
    first, told = service.backup(source)
    assert told["plain_bytes"] > RECORDS * RECORD_BYTES
    harness.change("source")
    after = harness.content("source")
    assert after != before
    second, again = service.backup(source)
    changed = RECORDS // 100 * RECORD_BYTES
    record_property("increment", {"changed": changed, "stored": again["stored_bytes"], "first": told["stored_bytes"]})
    print(f"{harness.engine.name}: {changed} bytes changed, {again['stored_bytes']} stored, {told['stored_bytes']} by the first")
    assert again["stored_bytes"] < told["stored_bytes"] / 4
    for backup, content in ((first, before), (second, after)):
        harness.wipe("other")
        job = service.restore(backup, other)
        assert job.state == "DONE", job.error
        assert harness.content("other") == content


def test_a_target_with_data_is_kept_unless_it_may_be_replaced(harness: EngineHarness, service: EngineService) -> None:
    """The survey finds any data; a refusal leaves it untouched, and what may be replaced is replaced."""
    source, other = service.register("source", harness.target("source")), service.register("other", harness.target("other"))
    harness.put("source", "new", b"of the backup")
    backup, _ = service.backup(source)
    harness.put("other", "old", b"precious")
    before = harness.content("other")
    refused = service.restore(backup, other)
    assert refused.state == "FAILED"
    assert "overwrite" in str(refused.error)
    assert refused.result == {"target_state": "as it was: nothing was changed there"}
    assert harness.content("other") == before
    assert service.restore(backup, other, overwrite=True).state == "DONE"
    assert harness.content("other") == harness.content("source")
    assert isinstance(harness.engine, Surveyor)


def test_a_wrong_password_is_denied_and_not_repeated(harness: EngineHarness, service: EngineService) -> None:
    """By the probe, so that nothing is registered, and by a capture; no error in the chain holds the password."""
    wrong = harness.stranger("source", "surely wrong 4711")
    with pytest.raises(errors.InstanceUnusable) as refused:
        service.register("source", wrong)
    with tempfile.TemporaryDirectory() as scratch, pytest.raises(EngineDenied) as denied:
        harness.engine.capture(wrong, Memory(), Job(), scratch)
    for caught in (refused, denied):
        error: BaseException | None = caught.value
        while error is not None:
            assert "surely wrong" not in f"{error!r} {error}"
            error = error.__cause__ or error.__context__


def test_a_server_that_is_killed_while_it_is_captured_leaves_no_backup(harness: EngineHarness) -> None:
    """At the first bytes: an error that may pass, soon; started again it is captured as ever."""
    harness.fill("source")
    harness.put_tiny("source", TINY)
    kill = once(lambda: harness.kill("source"))
    try:
        with pytest.raises((EngineUnreachable, CaptureBroken)) as caught:
            captured(harness, Job(on_took=kill), Memory(kill))
        assert not caught.value.permanent
    finally:
        harness.start("source")
    harness.put("source", "after", b"it came back")
    restored(harness, *captured(harness))
    assert harness.get("other", "after") == b"it came back"


def test_a_server_that_is_killed_while_it_is_restored_is_told_of_and_restored_anew(harness: EngineHarness) -> None:
    """The error says what the target holds, or that it cannot be known; afterwards the same restore succeeds."""
    harness.fill("source")
    kept, facts = captured(harness)
    kill = once(lambda: harness.kill("other"))
    begun = list[str]()

    def on_progress(phase: str) -> None:
        begun.append(phase)
        if phase == harness.filling:
            kill()

    try:
        with pytest.raises(EngineError) as caught:
            restored(harness, kept, facts, Job(on_progress))
        assert isinstance(caught.value, RestoreBroken)
        assert caught.value.target_state
        assert caught.value.target_state in str(caught.value)
    finally:
        harness.start("other")
    harness.engine.recover(harness.target("other"))
    restored(harness, kept, facts)
    assert harness.content("other") == harness.content("source")


def test_an_empty_server_is_captured_and_empties_another(harness: EngineHarness) -> None:
    """No data is data too."""
    harness.put("other", "old", b"data")
    restored(harness, *captured(harness))
    assert harness.content("other") == harness.content("source")


def test_odd_names_go_there_and_back(harness: EngineHarness) -> None:
    """Spaces, dots, quotes, slashes, percent signs, Unicode, and names as long as they may be."""
    for name in harness.odd_names:
        harness.put("source", name, name.encode())
    restored(harness, *captured(harness))
    assert {name: harness.get("other", name) for name in harness.odd_names} == {name: name.encode() for name in harness.odd_names}
    assert harness.content("other") == harness.content("source")


def test_one_huge_value_goes_there_and_back(harness: EngineHarness) -> None:
    """As large as the engine lets one be, or 64 MiB."""
    value = random.Random(7).randbytes(1 << 20) * (harness.huge >> 20)
    value += bytes(harness.huge - len(value))
    harness.put("source", "huge", value)
    restored(harness, *captured(harness))
    assert harness.get("other", "huge") == value


def test_many_tiny_values_go_there_and_back(harness: EngineHarness) -> None:
    """A few bytes each: what costs is their number."""
    harness.put_tiny("source", TINY)
    restored(harness, *captured(harness))
    assert harness.content("other") == harness.content("source")


def test_a_backup_beside_writers_shows_one_moment(harness: EngineHarness) -> None:
    """Transactions go on all the while: in what was captured each is there with all of its writes or with none."""
    harness.fill("source")
    with harness.writing("source"):
        for _ in range(2):
            kept, facts = captured(harness)
            restored(harness, kept, facts)
            harness.require_invariant("other")


@pytest.fixture
def programs(harness: EngineHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test restores find the engine's program; engines without any are passed over."""
    if not isinstance(harness.engine, Rehearser):
        pytest.skip(f"no test restores of {harness.engine.name}")
    for name, program in harness.programs.items():
        monkeypatch.setenv(name, program)


@pytest.mark.usefixtures("programs")
def test_a_restore_is_tried_out_in_a_server_that_is_thrown_away(harness: EngineHarness, service: EngineService) -> None:
    """The newest backup of an instance: all is equal, the source is not touched, and nothing is left."""
    source = service.register("source", harness.target("source"))
    harness.fill("source")
    service.backup(source)
    harness.put("source", "odd name", b"value")
    newest, _ = service.backup(source)
    before = harness.content("source")
    job = service.rehearse(instance=source)
    assert job.state == "DONE", job.error
    assert job.result is not None
    assert (job.result["backup"], job.result["outcome"], job.result["differences"]) == (newest, "sound", [])
    assert job.result["found"] == job.result["expected"]
    assert sum(job.result["expected"].values()) > RECORDS
    assert job.result["digests"] > 0
    assert harness.content("source") == before
    assert list(service.ctx.scratch.iterdir()) == []


@pytest.mark.usefixtures("programs")
def test_what_a_restored_server_holds_otherwise_is_told(harness: EngineHarness, tmp_path: Path) -> None:
    """A server that holds the state before a change, compared with the backup after it: each difference is a sentence."""
    engine = harness.engine
    assert isinstance(engine, Rehearser)
    harness.fill("source")
    old, facts = captured(harness)
    harness.change("source")
    harness.put("source", "one more", b"value")
    new, new_facts = captured(harness)
    for name in ("server", "restore", "same", "other"):
        (tmp_path / name).mkdir()
    with engine.sandbox(tmp_path / "server", Job()) as target:
        harness.engine.restore(target, old, facts, Job(), str(tmp_path / "restore"))
        same = engine.compare(target, old, facts, Job(), str(tmp_path / "same"))
        other = engine.compare(target, new, new_facts, Job(), str(tmp_path / "other"))
    assert list(same.differences) == []
    assert same.found == same.expected
    assert other.differences
    assert other.found != other.expected
    with pytest.raises(EngineError):
        harness.engine.probe(target)


@pytest.mark.usefixtures("programs")
def test_a_missing_program_fails_a_test_restore_with_what_to_do(
    harness: EngineHarness, service: EngineService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the program and the variable that may lead to it."""
    source = service.register("source", harness.target("source"))
    backup, _ = service.backup(source)
    monkeypatch.setenv("PATH", "/nowhere")
    for name in harness.programs:
        monkeypatch.delenv(name)
    job = service.rehearse(backup=backup)
    assert job.state == "FAILED"
    assert all(name in str(job.error) for name in harness.programs)


@pytest.mark.usefixtures("programs")
def test_a_throw_away_server_ends_with_its_worker(harness: EngineHarness, tmp_path: Path) -> None:
    """The process that started it is killed: nobody answers at its address soon after."""
    kind = type(harness.engine)
    code = f"""
import os, signal
from pathlib import Path
from {kind.__module__} import {kind.__name__}
class Control:
    def check(self): pass
with {kind.__name__}().sandbox(Path({str(tmp_path)!r}), Control()) as target:
    print(target.address, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -9, done.stderr
    address = urlsplit(done.stdout.strip())
    assert address.hostname is not None
    assert address.port is not None
    until = time.monotonic() + 15
    while time.monotonic() < until:
        try:
            socket.create_connection((address.hostname, address.port), 1).close()
        except OSError:
            return
        time.sleep(0.1)
    raise AssertionError("it still listens")
