"""What a log line says, and what it belongs to."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest

from strongroom import logs
from strongroom.settings import Settings, SettingsError


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What a logger of our own wrote, in the format of the test's parameter."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines() if request.param == "json" else logs.Lines())
    log = logging.getLogger("strongroom.test_logs")
    log.addHandler(handler)
    yield stream
    log.removeHandler(handler)


LOG = logging.getLogger("strongroom.test_logs")


@pytest.mark.parametrize("told", ["json"], indirect=True)
def test_a_line_of_json_says_what_it_belongs_to(told: io.StringIO) -> None:
    """Time, level, logger, message, and the job inside of a request; nothing of either afterwards; an error's traceback."""
    with logs.about(request="r1"):
        with logs.about(job="j1"):
            LOG.warning("%d things\nof „them“", 3)
        LOG.warning("then")
    try:
        raise KeyError("lost")
    except KeyError:
        LOG.exception("and")
    first, second, third = (json.loads(line) for line in told.getvalue().splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "WARNING", "logger": "strongroom.test_logs", "message": "3 things\nof „them“", "request": "r1", "job": "j1",
    }  # fmt: skip
    assert (second["request"], "job" in second) == ("r1", False)
    assert "request" not in third
    assert "KeyError: 'lost'" in third["error"]


@pytest.mark.parametrize("told", ["text"], indirect=True)
def test_a_line_of_text_says_it_once(told: io.StringIO) -> None:
    """Not where the message says it already."""
    with logs.about(job="j1"):
        LOG.warning("job j1 ended")
        LOG.warning("something else")
    first, second = told.getvalue().splitlines()
    assert first.endswith("WARNING strongroom.test_logs job j1 ended")
    assert second.endswith("WARNING strongroom.test_logs something else job=j1")


@pytest.mark.parametrize("told", ["json"], indirect=True)
def test_threads_do_not_mix_what_they_do(told: io.StringIO) -> None:
    """Each has its own."""
    inside, done = threading.Event(), threading.Event()

    def work() -> None:
        with logs.about(job="theirs"):
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    with logs.about(job="ours"):
        LOG.warning("here")
    done.set()
    thread.join()
    assert json.loads(told.getvalue())["job"] == "ours"


def test_the_format_is_one_of_two() -> None:
    """Another ends the start, with its name."""
    assert Settings.load("/tmp", {}).log_format == "text"
    assert Settings.load("/tmp", {"STRONGROOM_LOG": "json"}).log_format == "json"
    with pytest.raises(SettingsError, match="STRONGROOM_LOG is 'xml'"):
        Settings.load("/tmp", {"STRONGROOM_LOG": "xml"})
