"""`strongroom backup`: make, see, restore, hold and delete backups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from strongroom.cli.context import client, confirm, console, interactive, say, say_line, shared
from strongroom.cli.deletions import show_deletion
from strongroom.cli.display import facts, moment, size, table, word
from strongroom.cli.instances import resolve

if TYPE_CHECKING:
    from rich.console import Console

    from strongroom.cli.client import Answer, Client

_MOST_AT_ONCE = 10  # that one delete call takes
_KB = 1024  # the unit of a list's `size`


@click.group("backup")
@shared
def backup() -> None:
    """Make, see, restore, hold and delete backups."""


@backup.command("create")
@click.argument("instance", metavar="INSTANCE")
@click.argument("name")
@click.option("--description", help="A text of up to 256 characters.")
@click.option("--table", "tables", multiple=True, metavar="DATABASE[.TABLE]", help="Only these tables (Cassandra); repeat it.")
@click.option("--wait", "wait_", is_flag=True, help="Follow the job to its end.")
@shared
def create(instance: str, name: str, description: str | None, tables: tuple[str, ...], wait_: bool) -> None:
    """Back up INSTANCE (its name or id) as NAME."""
    from strongroom.cli.client import segment, text_of
    from strongroom.cli.waiting import completed

    body: dict[str, Any] = {"name": name} | ({} if description is None else {"description": description})
    if tables:
        chosen = [one.partition(".") for one in tables]
        body["database_tables"] = [
            {"database_name": database} | ({"table_names": [table]} if dot else {}) for database, dot, table in chosen
        ]
    with client() as api:
        answer = api.contract("POST", f"v3/instances/{segment(resolve(api, instance))}/backups", body=body)
        backup_id, job_id = text_of(answer, "backup_id"), text_of(answer, "job_id")
        if not wait_:
            say_line(answer, f"Backup {backup_id} is being built by job {job_id}.")
            return
        job = completed(api, answer, job_id)
        made = api.backup(backup_id)
    say({**answer, "job": job, "backup": made}, lambda console: _show_backup(console, made))


@backup.command("list")
@click.option("--instance", metavar="INSTANCE", help="Only those of this one, by name or id.")
@click.option(
    "--engine", type=click.Choice(["redis", "mongodb", "influxdb", "cassandra"]), help="Only those of this kind of database."
)
@click.option("--type", "type_", type=click.Choice(["Auto", "Manual"]), help="Only automated or only manual ones.")
@click.option("--tables", is_flag=True, help="Those of single tables, not those of whole instances.")
@shared
def list_(instance: str | None, engine: str | None, type_: str | None, tables: bool) -> None:
    """List backups, newest first."""
    with client() as api:
        key = instance and resolve(api, instance)
        scope = "DatabaseTable" if tables else None
        found = api.backups(instance_id=key, datastore_type=engine, backup_type=type_, type=scope)
    rows = [
        (
            word(one.get("id")), word(one.get("name")), word(one.get("instance_name")), _datastore(one), word(one.get("type")),
            word(one.get("status")), size(_bytes(one)), moment(one.get("end_time")),
        )
        for one in found
    ]  # fmt: skip
    columns = ("ID", "NAME", "INSTANCE", "DATABASE", "TYPE", "STATUS", ">SIZE", "ENDED")
    say({"total_count": len(found), "backups": found}, lambda console: table(console, columns, rows, "No backups."))


@backup.command("show")
@click.argument("backup_id", metavar="ID")
@shared
def show(backup_id: str) -> None:
    """Show one backup."""
    with client() as api:
        one = api.backup(backup_id)
    say(one, lambda console: _show_backup(console, one))


@backup.command("preview")
@click.argument("backup_ids", metavar="ID...", nargs=-1, required=True)
@shared
def preview(backup_ids: tuple[str, ...]) -> None:
    """Say what deleting these backups, together, would free. Nothing is decided."""
    with client() as api:
        seen = api.preview(_once(backup_ids))
    say(seen, lambda console: _show_preview(console, seen))


@backup.command("delete")
@click.argument("backup_ids", metavar="ID...", nargs=-1, required=True)
@click.option(
    "--if-match", metavar="VERSION", help="Only if nothing has moved since the preview that gave this version (one backup)."
)
@click.option(
    "--thorough",
    is_flag=True,
    help="Also rewrite all that waits in partly dead objects, at the price that the preview states (one backup).",
)
@click.option("--wait", "wait_", is_flag=True, help="Follow the jobs to their end and show the receipts.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@shared
def delete(backup_ids: tuple[str, ...], if_match: str | None, thorough: bool, wait_: bool, yes: bool) -> None:
    """Delete backups for ever: all of them, or none if one may not go. Where the project has deletions wait, they are hidden and
    can be called back meanwhile.

    On a terminal the preview is shown first, and what is deleted is what was shown.
    """
    ids = _once(backup_ids)
    if len(ids) > _MOST_AT_ONCE:
        raise click.UsageError(
            f"one call deletes {_MOST_AT_ONCE} backups at most, these are {len(ids)}", click.get_current_context()
        )
    if if_match is not None and len(ids) > 1:
        raise click.UsageError("--if-match goes with one backup", click.get_current_context())
    if thorough and len(ids) > 1:
        raise click.UsageError("--thorough goes with one backup", click.get_current_context())
    with client() as api:
        if not yes and interactive():
            seen = api.preview(ids)
            _show_preview(console(err=True), seen)
            if_match = if_match or (str(seen["version"]) if len(ids) == 1 and seen.get("version") else None)
        confirm(f"Delete {'this backup' if len(ids) == 1 else f'these {len(ids)} backups'} for ever?", yes)
        jobs = _delete(api, ids, if_match, thorough)
        if not wait_:
            say(_deleting(jobs), lambda console: _show_jobs(console, api, jobs))
            return
        _await_receipts(api, jobs)


@backup.command("restore")
@click.argument("backup_id", metavar="ID")
@click.option(
    "--into", required=True, metavar="INSTANCE", help="The registered database to fill, by name or id. It must be empty."
)
@click.option("--overwrite", is_flag=True, help="What the database holds may be replaced.")
@click.option("--wait", "wait_", is_flag=True, help="Follow the job to its end.")
@shared
def restore(backup_id: str, into: str, overwrite: bool, wait_: bool) -> None:
    """Make a registered database hold what a backup holds."""
    from strongroom.cli.client import segment
    from strongroom.cli.waiting import tell_or_follow

    with client() as api:
        body = {"backup_id": backup_id, "overwrite": overwrite}
        answer = api.contract("POST", f"v3/instances/{segment(resolve(api, into))}/recovery", body=body)
        tell_or_follow(api, answer, f"restores into {into}", follow=wait_)


@backup.command("import")
@click.argument("bucket", metavar="BUCKET")
@click.argument("files", metavar="FILE…", nargs=-1, required=True)
@click.option("--into", required=True, metavar="INSTANCE", help="The registered Redis to fill, by name or id. It must be empty.")
@click.option("--overwrite", is_flag=True, help="What the database holds may be replaced.")
@click.option("--wait", "wait_", is_flag=True, help="Follow the job to its end.")
@shared
def import_(bucket: str, files: tuple[str, ...], into: str, overwrite: bool, wait_: bool) -> None:
    """Make a registered Redis hold what the RDB FILEs in BUCKET hold together.

    A bucket is a folder that an operator of the server has made: imports/PROJECT/BUCKET in its data folder.
    """
    from strongroom.cli.client import segment
    from strongroom.cli.waiting import tell_or_follow

    with client() as api:
        body = {"recovery_info": {"bucket_name": bucket, "files": list(files)}, "overwrite": overwrite}
        answer = api.contract("POST", f"v3/redis/instances/{segment(resolve(api, into))}/recovery", body=body)
        tell_or_follow(api, answer, f"imports into {into}", follow=wait_)


@backup.command("stop")
@click.argument("backup_id", metavar="ID")
@shared
def stop(backup_id: str) -> None:
    """Stop a backup that is being built."""
    from strongroom.cli.client import segment

    with client() as api:
        answer = api.contract("PUT", f"v3/backups/{segment(backup_id)}", body={"action": "stop"})
    say_line({"id": backup_id, **answer}, f"Backup {backup_id} is being stopped by job {word(answer.get('job_id'))}.")


@backup.command("hold")
@click.argument("backup_id", metavar="ID")
@click.option("--reason", required=True, help="Why it may not be deleted; a refused delete repeats it.")
@click.option("--legal", is_flag=True, help="It is a legal hold: refusals and lists call it that.")
@click.option("--until", metavar="TIME", help="From then on it may go, e.g. 2027-01-31T00:00:00+0000; else once it is released.")
@shared
def hold(backup_id: str, reason: str, legal: bool, until: str | None) -> None:
    """Hold a backup: nobody and no policy deletes it until it is released, or the hold is over."""
    from strongroom.cli.client import segment

    body = {"reason": reason, "kind": "legal" if legal else "pin"} | ({} if until is None else {"until": until})
    with client() as api:
        answer = api.own("PUT", f"backups/{segment(backup_id)}/hold", body=body)
    say_line({"id": backup_id, **answer}, f"Backup {backup_id} is held.")


@backup.command("release")
@click.argument("backup_id", metavar="ID")
@shared
def release(backup_id: str) -> None:
    """Release a held backup."""
    from strongroom.cli.client import segment

    with client() as api:
        answer = api.own("DELETE", f"backups/{segment(backup_id)}/hold")
    say_line({"id": backup_id, **answer}, f"Backup {backup_id} is released.")


@backup.command("undelete")
@click.argument("backup_id", metavar="ID")
@shared
def undelete(backup_id: str) -> None:
    """Call a deletion back that is not decided yet: the backup is what it was."""
    from strongroom.cli.client import segment

    with client() as api:
        answer = api.own("POST", f"backups/{segment(backup_id)}/undelete")
    say_line({"id": backup_id, **answer}, f"Backup {backup_id} is there again.")


@backup.command("approve")
@click.argument("backup_id", metavar="ID")
@shared
def approve(backup_id: str) -> None:
    """Approve a deletion that another user has asked for."""
    from strongroom.cli.client import segment

    with client() as api:
        answer = api.own("POST", f"backups/{segment(backup_id)}/approve")
    words = (answer.get("pending") or {}).get("words")
    say_line({"id": backup_id, **answer}, f"The deletion of backup {backup_id} is approved: {words}.")


def _once(ids: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(ids))


def _delete(api: Client, ids: list[str], if_match: str | None, thorough: bool) -> dict[str, str]:
    """Deletes by one call and returns each backup's job."""
    from strongroom.cli.client import segment, text_of

    if len(ids) == 1:
        headers = None if if_match is None else {"If-Match": f'"{if_match.strip(chr(34))}"'}
        query = {"thorough": "true"} if thorough else None
        answer = api.contract("DELETE", f"v3/backups/{segment(ids[0])}", query=query, headers=headers)
        return {ids[0]: text_of(answer, "job_id")}
    api.contract("DELETE", "v3/instances/backups", body={"backup_ids": ids})
    return {key: text_of(api.deletion(key), "job_id") for key in ids}


def _await_receipts(api: Client, jobs: dict[str, str]) -> None:
    """Waits for each delete, shows all receipts, and fails with the first that failed."""
    from strongroom.cli.waiting import must_have_completed, wait

    ended = {key: wait(api, job_id) for key, job_id in jobs.items()}
    deletions = {key: one for key in ended if (one := _deletion(api, key)) is not None}
    shown = [{**one, "job": ended[key]} for key, one in deletions.items()]

    def people(console: Console) -> None:
        for one in deletions.values():
            show_deletion(console, one)

    say({**_deleting(jobs), "deletions": shown}, people)
    for job in ended.values():
        must_have_completed(job)


def _deletion(api: Client, key: str) -> Answer | None:
    """The deletion of a backup; None if it was called back."""
    from strongroom.cli.errors import Refused

    try:
        return api.deletion(key)
    except Refused as error:
        if error.code != "DBS.201214":
            raise
        return None


def _deleting(jobs: dict[str, str]) -> Answer:
    """The answer for programs: one backup's job at the top too, as the API gives it."""
    listed = [{"backup_id": key, "job_id": job} for key, job in jobs.items()]
    return {"jobs": listed} | ({"job_id": listed[0]["job_id"]} if len(listed) == 1 else {})


def _show_jobs(console: Console, api: Client, jobs: dict[str, str]) -> None:
    for key, job_id in jobs.items():
        words = _waits(api, job_id)
        if words is None:
            console.print(f"Backup {key} is deleted; job {job_id} removes its data.")
        else:
            console.print(f"Backup {key} is hidden, and its deletion (job {job_id}) waits: {words}.")


def _waits(api: Client, job_id: str) -> str | None:
    """What a deletion waits for, for people; None also for a user who may not see jobs."""
    from strongroom.cli.errors import Refused

    try:
        return (api.job(job_id).get("pending") or {}).get("words")
    except Refused:
        return None


def _bytes(one: Answer) -> Any:
    kilobytes = one.get("size")
    return kilobytes * _KB if isinstance(kilobytes, int | float) else None


def _datastore(one: Answer) -> str:
    store = one.get("datastore") or {}
    return " ".join(str(part) for part in (store.get("type"), store.get("version")) if part) or "-"


def _show_backup(console: Console, one: Answer) -> None:
    held = one.get("hold") or {}
    pairs = {
        "id": word(one.get("id")),
        "name": word(one.get("name")),
        "description": word(one.get("description")),
        "instance": f"{word(one.get('instance_name'))} ({word(one.get('instance_id'))})",
        "database": _datastore(one),
        "type": word(one.get("type")),
        "state": word(one.get("state") or one.get("status")),
        "reason": word(one.get("fail_reason")),
        "deletion": word((one.get("pending") or {}).get("words")),
        "held": word(held.get("reason")),
        "held as": word(held.get("kind")),
        "held by": word(held.get("by")),
        "held since": moment(held.get("since")),
        "held until": moment(held.get("until")),
        "begun": moment(one.get("begin_time")),
        "ended": moment(one.get("end_time")),
        "holds": size(one.get("plain_bytes")),
        "entries": word(one.get("entries")),
        "stored by it": size(one.get("stored_bytes")),
        "adopted from before": size(one.get("adopted_bytes")),
        "owned by it alone": size(one.get("owned_bytes")),
    }
    facts(console, pairs)


def _show_preview(console: Console, seen: Answer) -> None:
    amounts = ("owned", "freed", "waiting", "undecided")
    rows = [
        (
            word(one.get("id")), word(one.get("name")), word(one.get("instance_name")),
            *(size(one.get(name)) for name in amounts), word(one.get("objects")),
            word((one.get("refusal") or {}).get("message")),
        )
        for one in seen.get("backups") or []
    ]  # fmt: skip
    columns = ("ID", "NAME", "INSTANCE", ">OWNED", ">FREED", ">WAITING", ">UNDECIDED", ">OBJECTS", "REFUSED")
    total = ("together", "", "", *(size(seen.get(name)) for name in amounts), word(seen.get("objects")), "")
    table(console, columns, rows, "No backups.", total)
    console.print(
        "Freed: objects removed whole. Waiting: dead inside objects that live on. Undecided: a running backup may adopt it."
    )
    price = seen.get("thorough") or {}
    if price.get("objects"):
        console.print(
            f"Afterwards {size(price.get('gives_back'))} wait in {word(price.get('objects'))} partly dead objects: a thorough"
            f" delete gives them back and writes {size(price.get('rewrite'))} for it."
        )
    console.print(f"Version {word(seen.get('version'))}: with it as --if-match these numbers hold, or nothing is deleted.")
