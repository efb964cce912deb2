"""Following a job to its end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import click

from strongroom.ambient import Ambient
from strongroom.cli.client import Answer, Client, text_of
from strongroom.cli.context import console, outside, say, say_line, wants_json
from strongroom.cli.errors import JobEnded, Refused, Unreachable

ENDED = ("Completed", "Failed", "Cancelled")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0  # seconds between two looks
_PATIENCE = 60.0  # seconds without a good answer that a wait outlives: a restart of the server ends no wait
_LINE_EVERY = 5.0  # seconds between two plain lines of one phase


class Shown(Protocol):
    """What shows progress."""

    def look(self, phase: str, done: int, total: int | None) -> None:
        """How far the job is."""


def wait(client: Client, job_id: str) -> Answer:
    """Follows the job to its end and returns it, however it ended. The server may be away for a minute meanwhile."""
    ambient = outside().ambient
    try:
        with display(ambient) as shown:
            return _follow(client, job_id, ambient, shown)
    except KeyboardInterrupt:
        click.echo(f"\nThe job goes on without you: `strongroom job watch {job_id}` follows it again.", err=True)
        raise


def completed(client: Client, answer: Answer, job_id: str) -> Answer:
    """Waits for the job that a call answered with. One that did not complete ends the command, in JSON after that answer."""
    job = wait(client, job_id)
    if wants_json() and job.get("status") != "Completed":
        say({**answer, "job": job}, lambda _: None)
    must_have_completed(job)
    return job


def tell_or_follow(client: Client, answer: Answer, does: str, *, follow: bool) -> None:
    """Says which job does it, or with `follow` waits for its end and shows it."""
    from strongroom.cli.jobs import show_job

    job_id = text_of(answer, "job_id")
    if not follow:
        say_line(answer, f"Job {job_id} {does}.")
        return
    job = completed(client, answer, job_id)
    say({**answer, "job": job}, lambda console: show_job(console, job))


def must_have_completed(job: Answer) -> None:
    """Raises JobEnded for a job that failed or was cancelled."""
    if job.get("status") != "Completed":
        why = job.get("fail_reason") or "no reason is given"
        raise JobEnded(f"job {job.get('id')} ({job.get('name')}) {str(job.get('status')).lower()}: {why}")


def _follow(client: Client, job_id: str, ambient: Ambient, shown: Shown) -> Answer:
    pause, answered = _FIRST_PAUSE, ambient.monotonic()
    while True:
        try:
            job = client.job(job_id)
            answered = ambient.monotonic()
            if text_of(job, "status") in ENDED:
                return job
            _show(job, shown)
        except (Refused, Unreachable) as error:
            if error.permanent or ambient.monotonic() - answered > _PATIENCE:
                raise
            pause = max(pause, getattr(error, "retry_after", None) or _LONGEST_PAUSE)
        ambient.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _show(job: Answer, shown: Shown) -> None:
    pending, progress = job.get("pending"), job.get("progress")
    if isinstance(pending, dict):
        shown.look(f"the deletion waits: {pending.get('words')}", 0, None)
    elif isinstance(progress, dict):
        shown.look(str(progress.get("phase") or "working"), int(progress.get("done") or 0), progress.get("total"))


@contextmanager
def display(ambient: Ambient) -> Iterator[Shown]:
    """Progress, on standard error, so that standard output holds the answer alone."""
    if wants_json():
        yield _Silence()
    elif sys.stderr.isatty():
        with _Bar() as bar:
            yield bar
    else:
        yield _Lines(ambient)


class _Silence:
    def look(self, phase: str, done: int, total: int | None) -> None:
        del phase, done, total


class _Lines:
    """Plain lines: one for each phase, and one now and then while it goes on."""

    def __init__(self, ambient: Ambient) -> None:
        self._ambient = ambient
        self._phase, self._at = "", 0.0

    def look(self, phase: str, done: int, total: int | None) -> None:
        now = self._ambient.monotonic()
        if phase == self._phase and now - self._at < _LINE_EVERY:
            return
        self._phase, self._at = phase, now
        click.echo(f"{phase}: {done * 100 // total} %" if total else phase, err=True)


class _Bar:
    """A progress bar that is gone when the job has ended."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console(err=True),
            transient=True,
        )
        self._task = self._progress.add_task("waiting", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def look(self, phase: str, done: int, total: int | None) -> None:
        self._progress.update(self._task, description=phase, completed=done, total=total)
