"""`strongroom job`: what the server is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from strongroom.cli.context import client, say, say_line, shared
from strongroom.cli.display import NOTHING, facts, moment, size, table, word

if TYPE_CHECKING:
    from rich.console import Console

    from strongroom.cli.client import Answer


@click.group("job")
@shared
def job() -> None:
    """Follow and end jobs."""


@job.command("list")
@click.option("--status", type=click.Choice(["Running", "Completed", "Failed"]), help="Only these.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="So many, the newest.")
@shared
def list_(status: str | None, limit: int) -> None:
    """List jobs, newest first."""
    with client() as api:
        found = api.jobs(status, limit)
    rows = [
        (
            word(one.get("id")), word(one.get("name")), word((one.get("instance") or {}).get("name")), word(one.get("status")),
            word(one.get("progress")), moment(one.get("start_time")), moment(one.get("end_time")), word(one.get("fail_reason")),
        )
        for one in found
    ]  # fmt: skip
    columns = ("ID", "JOB", "INSTANCE", "STATUS", ">DONE", "BEGUN", "ENDED", "REASON")
    say({"jobs": found}, lambda console: table(console, columns, rows, "No jobs."))


@job.command("show")
@click.argument("job_id", metavar="ID")
@shared
def show(job_id: str) -> None:
    """Show one job."""
    with client() as api:
        one = api.job(job_id)
    say(one, lambda console: show_job(console, one))


@job.command("watch")
@click.argument("job_id", metavar="ID")
@shared
def watch(job_id: str) -> None:
    """Follow a job to its end. The exit status is 1 if it did not complete."""
    from strongroom.cli.waiting import must_have_completed, wait

    with client() as api:
        one = wait(api, job_id)
    say(one, lambda console: show_job(console, one))
    must_have_completed(one)


@job.command("cancel")
@click.argument("job_id", metavar="ID")
@shared
def cancel(job_id: str) -> None:
    """Ask a job to end; a running one does at its next safe point."""
    from strongroom.cli.client import segment

    with client() as api:
        answer = api.own("POST", f"jobs/{segment(job_id)}/cancel", body={})
    say_line({"id": job_id, **answer}, f"Job {job_id} is asked to end.")


def show_job(console: Console, one: Answer) -> None:
    """Prints one job."""
    pairs = {
        "id": word(one.get("id")),
        "job": word(one.get("name") or one.get("kind")),
        "status": word(one.get("status")),
        "progress": _progress(one),
        "waits": word((one.get("pending") or {}).get("words")),
        "reason": word(one.get("fail_reason")),
        "instance": word(one.get("instance_id")),
        "backup": word(one.get("backup_id")),
        "submitted": moment(one.get("created_at")),
        "begun": moment(one.get("started_at")),
        "ended": moment(one.get("finished_at")),
        **_result(one.get("result")),
    }
    facts(console, pairs)


def _result(result: Any) -> dict[str, str]:
    """What the result of a backup or restore tells people; those of other jobs have commands of their own."""
    if not isinstance(result, dict):
        return {}
    done, took = result.get("bytes", result.get("plain_bytes")), result.get("seconds")
    told = {"target": word(result.get("target_state")), "warnings": word("; ".join(result.get("warnings") or []) or None)}
    if isinstance(took, int | float) and isinstance(done, int):
        entries = word(result.get("entries"))
        told["done"] = f"{entries} entries, {size(done)} in {took:.1f} s ({size(int(done / max(took, 0.001)))}/s)"
    return {name: text for name, text in told.items() if text != NOTHING}


def _progress(one: Answer) -> str:
    progress = one.get("progress")
    if not isinstance(progress, dict):
        return word(progress)
    total = progress.get("total")
    return f"{progress.get('phase')}: {progress.get('done')}" + (f" of {total}" if total else "")
