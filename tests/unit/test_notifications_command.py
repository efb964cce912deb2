"""The operator's command: real programs, good and bad ones."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

import pytest

from strongroom.ambient import Machine
from strongroom.jobs.port import Draining
from strongroom.notifications import command
from strongroom.notifications.posting import NotDelivered

BODY = json.dumps({"event": "test", "words": "x" * 100}).encode()


def run(program: str, *words: str, seconds: float = 20.0, body: bytes = BODY) -> None:
    """Runs a program in Python."""
    command.run([sys.executable, "-c", program, *words], body, Machine(), lambda: None, seconds)


def test_the_event_is_on_standard_input_and_words_are_words(tmp_path: Path) -> None:
    """No shell looks at them."""
    program = "import sys, json; open(sys.argv[1], 'w').write(json.dumps([json.load(sys.stdin), sys.argv[2:]]))"
    run(program, str(tmp_path / "told"), "$HOME; false", "two words")
    event, words = json.loads((tmp_path / "told").read_text())
    assert event == json.loads(BODY)
    assert words == ["$HOME; false", "two words"]


def test_nothing_of_our_environment_is_in_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Least of all the root key."""
    monkeypatch.setenv("STRONGROOM_ROOT_KEY", "ab" * 32)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("LANG", "C.UTF-8")
    run("import os, sys, json; open(sys.argv[1], 'w').write(json.dumps(dict(os.environ)))", str(tmp_path / "environ"))
    found = json.loads((tmp_path / "environ").read_text())
    assert found["PATH"] == os.environ["PATH"]
    assert found["LANG"] == "C.UTF-8"
    assert set(found) <= {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LC_CTYPE", "PWD", "SHLVL", "_"}


def test_what_it_prints_is_in_the_log_and_not_without_end(caplog: pytest.LogCaptureFixture) -> None:
    """Both streams, up to OUTPUT bytes; more is taken from it and thrown away."""
    caplog.set_level(logging.INFO, "strongroom.notifications")
    run("import sys; sys.stderr.write('oh'); sys.stderr.flush(); print('x' * 5_000_000)")
    (record,) = caplog.records
    assert "printed: ohxxx" in record.getMessage()
    assert len(record.getMessage()) < command.OUTPUT + 100


def test_an_input_that_nobody_reads_hinders_nothing() -> None:
    """Though it is larger than a pipe."""
    run("pass", body=b"x" * 1_000_000)


@pytest.mark.parametrize(("program", "words"), [("import sys; sys.exit(3)", "status 3"), ("import os; os.abort()", "status -6")])
def test_any_status_but_0_is_a_failure(program: str, words: str) -> None:
    """With the status."""
    with pytest.raises(NotDelivered, match=words):
        run(program)


def test_a_program_that_is_not_there_is_a_failure() -> None:
    """The reason is the system's, the words are not repeated."""
    with pytest.raises(NotDelivered, match="cannot be run: No such file") as refused:
        command.run(["/nowhere/tell", "--key=abc"], BODY, Machine(), lambda: None)
    assert "abc" not in str(refused.value)


def test_a_program_that_does_not_end_is_killed_with_what_it_has_started(tmp_path: Path) -> None:
    """Its children too."""
    program = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open(sys.argv[1], 'w').write(str(child.pid)); time.sleep(600)"
    )
    with pytest.raises(NotDelivered, match="did not end within 2 s"):
        run(program, str(tmp_path / "pid"), seconds=2.0)
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_child_that_it_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    """Though that holds its output open."""
    program = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open(sys.argv[1], 'w').write(str(child.pid))"
    )
    begun = time.monotonic()
    run(program, str(tmp_path / "pid"))
    assert time.monotonic() - begun < 10
    os.kill(int((tmp_path / "pid").read_text()), 9)


def test_a_process_that_stops_stops_it(tmp_path: Path) -> None:
    """What is raised goes on; it is killed first."""
    program = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"

    def check() -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise Draining

    with pytest.raises(Draining):
        command.run([sys.executable, "-c", program, str(tmp_path / "pid")], BODY, Machine(), check)
    assert gone(int((tmp_path / "pid").read_text()))


def gone(pid: int) -> bool:
    """Whether the process ends, or waits to be buried by who adopted it."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False
