"""What ends a command, its text on standard error and its exit status.

    CommandError            the text says what to do
    ├── Refused             the API answered with an error (1)
    ├── Unreachable         no answer (1)
    ├── JobEnded            the job that was waited for did not complete (1)
    ├── OutOfStep           the server answers in a form that this client does not know (1)
    └── NotConnected        it is not said where the server is or how to enter it (2)

Click's own usage errors have the status 2.
"""

from __future__ import annotations

import click


class CommandError(click.ClickException):
    """The command did not do what was asked."""

    exit_code = 1
    permanent = True

    def show(self, file: object = None) -> None:
        del file
        click.echo(f"strongroom: {self.format_message()}", err=True)


class Refused(CommandError):
    """The API refused; `status`, `code` and `reason` are its own."""

    def __init__(self, status: int, code: str, reason: str, retry_after: float | None = None) -> None:
        super().__init__(f"refused ({status} {code}): {reason}{_advice(status, code)}")
        self.status, self.code, self.reason, self.retry_after = status, code, reason, retry_after
        self.permanent = status < 500 and status != 429


class Unreachable(CommandError):
    """The server did not answer."""

    permanent = False


class JobEnded(CommandError):
    """The job that was waited for failed or was cancelled."""


class OutOfStep(CommandError):
    """The answer is none of this API's."""


class NotConnected(CommandError):
    """The server's place or the way in is missing."""

    exit_code = 2


def _advice(status: int, code: str) -> str:
    """What to do next, where the server's sentence cannot know it."""
    if status == 401:
        return (
            "\nCheck the keys in credentials.json or STRONGROOM_ACCESS_KEY and STRONGROOM_SECRET_KEY, and this machine's clock."
        )
    if status == 412:
        return "\nWhat would be freed has changed since the preview: preview again and give its new version."
    if code == "DBS.201214":
        return "\n`strongroom backup list` shows the backups that there are."
    if code == "DBS.200010":
        return "\nThe keys belong to another project: check --project-id or STRONGROOM_PROJECT_ID."
    return ""
