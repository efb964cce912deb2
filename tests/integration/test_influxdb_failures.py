"""What goes wrong with an InfluxDB: who may not enter, servers and services that die half-way, backups that are damaged."""

from __future__ import annotations

import http.server
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from strongroom.engines.base import (
    CaptureBroken,
    EngineDenied,
    EngineError,
    EngineUnreachable,
    EngineUnsupported,
    RestoreBroken,
    Target,
)
from strongroom.engines.influxdb import loading, witness
from strongroom.engines.influxdb.catalog import CATALOG
from strongroom.engines.influxdb.http import Http
from strongroom.engines.influxdb.marks import Mark
from strongroom.engines.influxdb.place import RESERVED, parse_target
from support.certificates import certificate
from support.influxdb_server import (
    ADMIN,
    ADMIN_PASSWORD,
    ENGINE,
    At,
    InfluxBackup,
    InfluxServer,
    captured,
    influx_server,
    needs_influxd,
    restored,
    rows,
)
from support.redis_dumps import Quiet
from support.redis_server import free_port

pytestmark = needs_influxd

BEGIN = 1_700_000_000_000_000_000
DAY = 86_400_000_000_000


class Cancelled(Exception):
    """The job was cancelled."""


def cancel() -> None:
    raise Cancelled


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfluxServer]:
    """A server with users, for tests that leave it running."""
    with influx_server(tmp_path_factory.mktemp("influxdb"), auth=True) as server:
        yield server


@pytest.fixture
def server(shared: InfluxServer) -> InfluxServer:
    """It, with the data of `fill` and no other user."""
    for name in shared.databases():
        shared.query(f'DROP DATABASE "{name}"')
    for name, _ in rows(shared.query("SHOW USERS")):
        if name != ADMIN:
            shared.query(f'DROP USER "{name}"')
    fill(shared)
    return shared


def fill(server: InfluxServer) -> None:
    """Two databases of some shards."""
    for name in ("one", "two"):
        server.query(f"CREATE DATABASE {name}")
        server.write(
            name, [f'm,host=h{at % 9} v={at},text="{"x" * 200}{at * 7919}" {BEGIN + at * DAY // 4}' for at in range(200)]
        )


def leftovers(server: InfluxServer) -> list[str]:
    return [name for name in server.databases() if name.startswith(RESERVED)]


# Who may enter


def test_a_wrong_password_is_refused_everywhere(server: InfluxServer) -> None:
    """Whatever is asked; no password is in the text."""
    backup = captured(server.target())
    before = server.description()
    for target in (
        Target(server.address, "wrong pass word"),
        Target(server.at(user="nobody"), ADMIN_PASSWORD),
        Target(server.at(user="").replace("//@", "//"), None),
    ):
        for act in (
            lambda t: ENGINE.probe(t),
            lambda t: captured(t),
            lambda t: restored(t, backup),
            lambda t: ENGINE.recover(t),
        ):
            with pytest.raises(EngineDenied) as denied:
                act(target)
            assert "wrong pass word" not in str(denied.value)
            assert ADMIN_PASSWORD not in str(denied.value)
    assert server.description() == before


def test_a_user_who_is_no_administrator_takes_backups_and_restores_none(server: InfluxServer) -> None:
    """And is told so when the instance is registered."""
    server.query("CREATE USER reader WITH PASSWORD 'reads'; GRANT READ ON one TO reader")
    target = Target(server.at(user="reader"), "reads")
    assert any("no administrator" in warning for warning in ENGINE.probe(target).warnings)
    backup = captured(target)
    with pytest.raises(EngineDenied, match="requires admin"):
        restored(target, backup)
    assert leftovers(server) == []
    assert list(ENGINE.probe(server.target()).warnings) == []


def test_users_and_grants_come_back_as_far_as_the_engine_lets_them(server: InfluxServer, tmp_path: Path) -> None:
    """Missing users are made with a password that nobody knows; administrators are not made; present passwords stay."""
    server.query("CREATE USER ann WITH PASSWORD 'a'; CREATE USER \"b ob\" WITH PASSWORD 'b'")
    server.query("CREATE USER chief WITH PASSWORD 'c' WITH ALL PRIVILEGES")
    server.query('GRANT READ ON one TO ann; GRANT ALL ON two TO ann; GRANT WRITE ON two TO "b ob"')
    backup = captured(server.target())
    with influx_server(tmp_path, auth=True) as other:
        other.query("CREATE USER ann WITH PASSWORD 'her own'; CREATE USER later WITH PASSWORD 'l'; CREATE DATABASE one")
        other.query("GRANT WRITE ON one TO ann; GRANT READ ON one TO later")
        warnings = restored(other.target(), backup).warnings
        assert sorted(rows(other.query("SHOW GRANTS FOR ann"))) == [["one", "READ"], ["two", "ALL PRIVILEGES"]]
        assert rows(other.query('SHOW GRANTS FOR "b ob"')) == [["two", "WRITE"]]
        assert rows(other.query("SHOW GRANTS FOR later")) == [["one", "READ"]]
        assert {row[0] for row in rows(other.query("SHOW USERS"))} == {ADMIN, "ann", "b ob", "later"}
        assert len(warnings) == 2
        assert "nobody knows" in warnings[0]
        assert "b ob" in warnings[0]
        assert "not made ones: chief" in warnings[1]
        ENGINE.probe(Target(other.at(user="ann"), "her own"))
        with pytest.raises(EngineDenied):
            ENGINE.probe(Target(other.at(user="b%20ob"), "b"))


# Wrong addresses


def test_ports_that_do_not_answer_are_named(server: InfluxServer) -> None:
    """The HTTP port or the backup port."""
    nobody = free_port()
    with pytest.raises(EngineUnreachable, match="HTTP port does not answer"):
        ENGINE.probe(Target(f"influxdb://127.0.0.1:{nobody}/"))
    with pytest.raises(EngineUnreachable, match=f"backup port 127.0.0.1:{nobody} does not answer"):
        ENGINE.probe(Target(f"influxdb://{ADMIN}@127.0.0.1:{server.port}/?backup=:{nobody}", ADMIN_PASSWORD))
    with pytest.raises(EngineError, match="no InfluxDB"):
        ENGINE.probe(Target(f"influxdb://{ADMIN}@127.0.0.1:{server.port}/?backup=:{server.port}", ADMIN_PASSWORD))


def test_ports_of_two_servers_are_refused(server: InfluxServer, tmp_path: Path) -> None:
    """At a look, and before a restore changes anything."""
    backup = captured(server.target())
    with influx_server(tmp_path) as other:
        mixed = Target(f"influxdb://{ADMIN}@127.0.0.1:{server.port}/?backup=127.0.0.1:{other.backup_port}", ADMIN_PASSWORD)
        for act in (lambda: ENGINE.probe(mixed), lambda: restored(mixed, backup)):
            with pytest.raises(EngineUnsupported, match="different servers"):
                act()
        assert other.databases() == []
        for one in ("one", "two"):  # of the same names, as where one server is there to try things out
            other.query(f"CREATE DATABASE {one}")
        for statements in (["CREATE DATABASE three"], ["DROP DATABASE three", f"CREATE USER {ADMIN} WITH PASSWORD 'x'"]):
            for statement in statements:
                other.query(statement)
            with pytest.raises(EngineUnsupported, match="different servers"):
                ENGINE.probe(mixed)
    assert server.databases() == ["one", "two"]


def test_a_database_that_is_not_there_is_named(server: InfluxServer) -> None:
    """At a look and at a capture."""
    for act in (ENGINE.probe, captured):
        with pytest.raises(EngineUnsupported, match="no database 'nothing'"):
            act(server.target("nothing"))


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "no InfluxDB"),
        ({"X-Influxdb-Version": "v2.7.1"}, r"InfluxDB 2\.7\.1 is not supported"),
        ({"X-Influxdb-Version": "1.4.3"}, r"InfluxDB 1\.4\.3 is not supported"),
        ({"X-Influxdb-Version": "relax"}, "InfluxDB relax is not supported"),
        ({"X-Influxdb-Version": "1.8.10-c1.8.10", "X-Influxdb-Build": "ENT"}, "Enterprise"),
        ({"X-Influxdb-Version": "1.8.10"}, "status 204 and no result"),
    ],
)
def test_what_is_no_influxdb_1_is_refused(headers: dict[str, str], said: str) -> None:
    """By what it says of itself."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(204)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            with pytest.raises(EngineError, match=said):
                ENGINE.probe(Target(f"influxdb://127.0.0.1:{other.server_port}"))
        finally:
            other.shutdown()
            thread.join()


def test_tls_is_spoken_and_certificates_are_checked(tmp_path: Path) -> None:
    """On the HTTP port; the backup port has none."""
    cert, key = certificate(tmp_path)
    with influx_server(tmp_path, auth=True, certificate=(cert, key)) as server:
        fill(server)
        before = server.description()
        trusted = replace(server.target(), options={"ca": Path(cert).read_text()})
        backup = captured(trusted)
        server.query("DROP DATABASE two")
        restored(trusted, backup)
        assert server.description() == before
        with pytest.raises(EngineUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
            ENGINE.probe(server.target())
        with pytest.raises(EngineError):
            ENGINE.probe(Target(server.address.replace("influxdbs:", "influxdb:"), ADMIN_PASSWORD))


# Captures that break


@pytest.mark.parametrize("at", [1, 5_000])
def test_a_server_that_dies_in_mid_capture_is_an_error(tmp_path: Path, at: int) -> None:
    """SIGKILL when the first byte, or a later one, has been read. What follows is never taken for a whole backup."""
    with influx_server(tmp_path) as server:
        fill(server)
        backup = InfluxBackup()
        with pytest.raises((EngineUnreachable, CaptureBroken)):
            ENGINE.capture(server.target(), backup, At("data", at, server.kill), "")
        assert CATALOG not in backup.kept
        server.start()
        assert captured(server.target()).summary.facts["shards"] > 0


# Restores that break


def test_a_damaged_file_leaves_the_target_as_it_was(server: InfluxServer) -> None:
    """One that the server does not take is found when the backup is tried, and one that has another length before."""
    server.query("CREATE DATABASE three")
    before = server.description()
    backup = captured(server.target())
    server.query("DROP DATABASE two")
    server.query("DROP SERIES FROM m WHERE host = 'h1'", "one")
    changed = server.description()
    file = sorted(name for name in backup.kept if name.startswith("shard/"))[3]
    whole = backup.kept[file][0]
    backup.kept[file] = (bytes(len(whole)), {})
    with pytest.raises(EngineError, match=r"did not take the file|does not give"):
        restored(server.target(), backup)
    assert server.description() == changed
    backup.kept[file] = (whole[:-1], {})
    with pytest.raises(EngineUnsupported, match="another size"):
        restored(server.target(), backup)
    backup.kept[file] = (whole, {})
    restored(server.target(), backup)
    assert server.description() == before


def test_another_engines_backup_is_refused(server: InfluxServer) -> None:
    """Nothing of ours in it."""
    with pytest.raises(EngineUnsupported, match="holds no InfluxDB"):
        restored(server.target(), InfluxBackup({"rdb": b"x"}))


def test_an_older_target_is_refused(server: InfluxServer) -> None:
    """Its files may be of a kind that it cannot read."""
    backup = captured(server.target())
    backup.summary = replace(backup.summary, facts={**backup.summary.facts, "version": "1.8.10"})
    with pytest.raises(EngineUnsupported, match=r"1\.8\.10.*older 1\.6\.7"):
        restored(server.target(), backup)


@pytest.mark.parametrize("phase", ["try", "data"])
def test_a_cancelled_restore_says_what_the_target_holds(server: InfluxServer, phase: str) -> None:
    """Before the point of no return all is as it was; after it the error's note says which database is which."""
    backup = captured(server.target())
    before = server.description()
    with pytest.raises(Cancelled) as cancelled:
        restored(server.target(), backup, At(phase, 1, cancel))
    notes = getattr(cancelled.value, "__notes__", [])
    if phase == "try":
        assert (notes, leftovers(server), server.description()) == ([], [], before)
        return
    (note,) = notes
    assert note == (
        "The target: the old 'one' is dropped and the backup's is not, or not wholly, in its place; "
        "still with its old data: 'two'"
    )
    ENGINE.recover(server.target())
    assert leftovers(server) == []
    assert server.describe("two") == before["two"]
    restored(server.target(), backup)
    assert server.description() == before


@pytest.mark.parametrize("phase", ["try", "data"])
def test_a_server_that_dies_in_mid_restore(tmp_path: Path, phase: str) -> None:
    """Started again, its leftovers are ended by recover, and the same restore works."""
    with influx_server(tmp_path) as server:
        fill(server)
        backup = captured(server.target())
        before = server.description()
        with pytest.raises(RestoreBroken) as broken:
            restored(server.target(), backup, At(phase, 1, server.kill))
        said = "nothing that it held is changed" if phase == "try" else "still with its old data: 'two'"
        assert said in broken.value.target_state
        server.start()
        assert leftovers(server) != []
        for _ in range(2):
            ENGINE.recover(server.target())
            assert leftovers(server) == []
        assert server.describe("two") == before["two"]
        restored(server.target(), backup)
        assert server.description() == before


def test_a_server_that_dies_while_databases_are_added_is_told_of(tmp_path: Path) -> None:
    """What is added and not whole is named; recover drops it."""
    with influx_server(tmp_path) as server:
        fill(server)
        backup = captured(server.target())
        server.query("DROP DATABASE one; DROP DATABASE two; CREATE DATABASE own")
        with pytest.raises(RestoreBroken, match=r"nothing that it held is changed.*'one', 'two', which it did not have"):
            restored(server.target(), backup, At("data", 1, server.kill))
        server.start()
        ENGINE.recover(server.target())
        assert server.databases() == ["own"]


def test_a_survey_tells_what_would_be_replaced_and_changes_nothing(server: InfluxServer) -> None:
    """Shards and queries are data, in the databases that the restore is about; an empty database is none."""
    server.query("CREATE DATABASE empty; CREATE DATABASE three")
    server.query("CREATE CONTINUOUS QUERY q ON three BEGIN SELECT mean(v) INTO x FROM m GROUP BY time(1h) END")
    before = server.description()
    shards = len(list(server.folder.glob("data/one/autogen/*")))
    for database, scope, holds in (
        ("", "", f"{2 * shards} shards of data in 3 databases"),
        ("", "one", f"{shards} shards of data in 1 databases"),
        ("one", "", f"{shards} shards of data in 1 databases"),
        ("three", "one", "0 shards of data in 1 databases"),
        ("empty", "one", None),
        ("not there", "one", None),
    ):
        ground = ENGINE.survey(server.target(database), {"version": "1.6.7", "database": scope}, 1234)
        assert ground.holds == holds
        assert bool(ground.warnings) == bool(holds)
    assert server.description() == before
    with pytest.raises(EngineUnsupported, match="older"):
        ENGINE.survey(server.target(), {"version": "1.8.0"}, 1)
    server.query("CREATE USER reader WITH PASSWORD 'reads'")
    with pytest.raises(EngineDenied):
        ENGINE.survey(Target(server.at(user="reader"), "reads"), {"version": "1.6.7"}, 1)


CRASH = """
import os, pickle, signal, sys
sys.path[:0] = [{tests!r}]
from support.influxdb_server import At, ENGINE
from strongroom.engines.base import Target

with open({file!r}, "rb") as file:
    backup = pickle.load(file)
control = At({phase!r}, {at}, lambda: os.kill(os.getpid(), signal.SIGKILL))
ENGINE.restore(Target({address!r}, {password!r}), backup, {facts!r}, control, "")
"""


def test_a_service_that_dies_while_it_adds_databases_leaves_none(server: InfluxServer, tmp_path: Path) -> None:
    """What it had begun is dropped by recover, or by the next restore alone."""
    backup = captured(server.target())
    expected = server.description()
    server.query("DROP DATABASE one; DROP DATABASE two; CREATE DATABASE own")
    for recover in (True, False):
        crash_in(server, backup, tmp_path, "data", 1)
        assert "one" in server.databases()
        assert leftovers(server) != []
        if recover:
            ENGINE.recover(server.target())
            assert server.databases() == ["own"]
    restored(server.target(), backup)
    assert server.description() == expected


def crash_in(server: InfluxServer, backup: InfluxBackup, folder: Path, phase: str, at: int) -> None:
    """A restore whose process is killed at this point."""
    file = folder / "backup"
    file.write_bytes(pickle.dumps(backup))
    names = {"tests": str(Path(__file__).parents[1]), "file": str(file), "phase": phase, "at": at}
    target = server.target()
    script = textwrap.dedent(CRASH).format(
        **names, address=target.address, password=target.password, facts=dict(backup.summary.facts)
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_databases_that_were_added_whole_stay_when_a_later_step_breaks(server: InfluxServer) -> None:
    """`one` is there and is replaced, `two` was missing: when replacing breaks, recover leaves `two` alone, as was told."""
    backup = captured(server.target())
    two = server.describe("two")
    server.query("DROP DATABASE two")
    size = sum(one.size for one in backup.entries() if one.name.startswith("shard/"))
    with pytest.raises(Cancelled) as cancelled:
        restored(server.target(), backup, At("data", size + 1, cancel))
    assert "with the backup's data: 'two'; the old 'one' is dropped" in cancelled.value.__notes__[0]
    ENGINE.recover(server.target())
    assert server.describe("two") == two


def test_a_restore_that_was_replaced_stops_before_it_drops_anything(server: InfluxServer) -> None:
    """Its mark is gone: somebody has ended it."""
    backup = captured(server.target())
    before = server.description()
    with pytest.raises(EngineError) as ended:
        restored(server.target(), backup, Between(lambda: ENGINE.recover(server.target())))
    assert not isinstance(ended.value, RestoreBroken)
    assert server.description() == before


class Between(Quiet):
    """A job in which something happens once, when a shard has been sent and is not read back yet."""

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__()
        self._action: Callable[[], object] | None = action

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        if self._action is not None and self.told and self.told[-1][:2] == (phase, done):
            action, self._action = self._action, None
            action()
        super().progress(phase, done, total)


def test_a_restore_that_was_replaced_before_its_first_drop_drops_nothing(server: InfluxServer) -> None:
    """Its backup was tried, and then its mark went."""
    backup = captured(server.target())
    before = server.description()
    control = Quiet()
    settle = Mark.settle

    def settled(self: Mark) -> None:
        settle(self)
        ENGINE.recover(server.target())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mark, "settle", settled)
        with pytest.raises(RestoreBroken, match="another restore") as broken:
            restored(server.target(), backup, control)
    assert broken.value.target_state == "still with its old data: 'one', 'two'"
    assert server.description() == before


def test_a_mark_names_only_what_it_has_added(server: InfluxServer) -> None:
    """Other databases are never dropped, whatever they are called."""
    with Http(parse_target(server.target())) as http:
        server.query(f"CREATE DATABASE {RESERVED}x")
        Mark(http, "x").note_new("one")
        ENGINE.recover(server.target())
    assert server.databases() == ["two"]


def test_files_that_the_server_compacts_before_they_are_read_back_are_sent_again(
    server: InfluxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small files of one shard, and a look at them that comes late: every one is proven, and the points are the same."""
    server.query("CREATE DATABASE busy")
    backups = []
    for at in range(12):
        server.write("busy", [f"m v={at} {BEGIN}", f"m v={at} {BEGIN + at + 1}"])
        backups.append(captured(server.target("busy")))
    backup = max(backups, key=lambda one: len(one.kept))
    assert len(backup.kept) > 5
    last = backups.index(backup)
    uploads = []
    upload, read_back = loading.BackupPort.upload, witness.Witness._read_back

    def counted(self, shard, pieces):  # type: ignore[no-untyped-def]
        uploads.append(shard)
        upload(self, shard, pieces)

    def late(self, shard, sent, folder):  # type: ignore[no-untyped-def]
        if len(uploads) == 1:
            names = set(sent)
            end = time.monotonic() + 30
            while names <= set(witness.files_of(self._port, shard, folder, self._ambient)) and time.monotonic() < end:
                time.sleep(0.1)
        return read_back(self, shard, sent, folder)

    monkeypatch.setattr(loading.BackupPort, "upload", counted)
    monkeypatch.setattr(witness.Witness, "_read_back", late)
    restored(server.target("copy"), backup)
    assert len(uploads) > 1
    assert rows(server.query("SELECT v FROM m", "copy")) == [[BEGIN, last]] + [[BEGIN + at + 1, at] for at in range(last + 1)]


def test_progress_reaches_its_total(server: InfluxServer) -> None:
    """Phases of a restore into databases that are there."""
    backup = captured(server.target())
    control = Quiet()
    restored(server.target(), backup, control)
    assert {phase for phase, _, _ in control.told} == {"try", "data"}
    assert control.told[-1][1] == control.told[-1][2]


def test_a_statement_that_takes_long_can_be_cancelled() -> None:
    """A port that takes connections and never answers: the job is looked at while it is waited for."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = parse_target(Target(f"influxdb://127.0.0.1:{silent.getsockname()[1]}"))
        looks = []

        def look() -> None:
            looks.append(1)
            if len(looks) == 3:
                cancel()

        with Http(place, 300, look) as http, pytest.raises(Cancelled):
            http.databases()
        with Http(place, 0.2, looks.clear) as http, pytest.raises(EngineUnreachable, match="in time"):
            http.databases()
