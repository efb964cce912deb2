"""The root command."""

from __future__ import annotations

from typing import NoReturn

import click

from strongroom import __version__
from strongroom.cli.audit import audit
from strongroom.cli.backups import backup
from strongroom.cli.context import Outside, shared
from strongroom.cli.deletions import deletion
from strongroom.cli.exporting import export
from strongroom.cli.groups import group
from strongroom.cli.instances import instance
from strongroom.cli.jobs import job
from strongroom.cli.keys import key
from strongroom.cli.limits import limit, limits
from strongroom.cli.maintenance import quarantine, reconcile, verify
from strongroom.cli.notifications import notify
from strongroom.cli.policies import policy
from strongroom.cli.projects import project
from strongroom.cli.quotas import quota
from strongroom.cli.recordings import recording
from strongroom.cli.schedules import schedule
from strongroom.cli.server import catalog, serve
from strongroom.cli.users import user


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="strongroom")
@shared
def strongroom() -> None:
    """Backups of databases that are deleted exactly.

    The server is found by --data DIR (a server on this machine), or by STRONGROOM_ENDPOINT, STRONGROOM_PROJECT_ID,
    STRONGROOM_ACCESS_KEY and STRONGROOM_SECRET_KEY. These options stand before or after any subcommand.

    Exit status: 0 done; 1 refused, unreachable, or the job waited for failed; 2 wrong use.
    """


COMMANDS = (
    serve, instance, schedule, recording, backup, deletion, job, quota, limits, notify, verify, reconcile, quarantine, user,
    group, key, policy, project, audit, catalog,
)  # fmt: skip
for command in COMMANDS:
    strongroom.add_command(command)
backup.add_command(export)
instance.add_command(limit)


def main() -> NoReturn:
    """Runs the command of this process's arguments."""
    strongroom(obj=Outside(), prog_name="strongroom")
    raise AssertionError("click ends the process")
