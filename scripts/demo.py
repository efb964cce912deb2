"""The demo: backs up a real Redis and a real MongoDB three times, deletes the middle backup, and proves what is claimed.

Started by scripts/demo. Everything lives in a temporary folder and ends with it. Exit status: 0 if every proof held.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from rich import box
from rich.console import Console
from rich.table import Table

import demo_engines
from demo_engines import DemoDatabase, stored
from strongroom.cli.client import Client
from strongroom.cli.connection import find
from strongroom.cli.display import size
from strongroom.cli.errors import CommandError

NAMES = ("first", "second", "third")
AMOUNTS = ("owned", "freed", "waiting", "undecided")
_JOB_SECONDS = 120.0
FAILURES = (CommandError, RuntimeError, subprocess.CalledProcessError)
"""What may go wrong on the way, as opposed to a proof that does not hold."""


@dataclass
class Proofs:
    """What was proved, and whether all of it held."""

    lines: list[tuple[bool, str]] = field(default_factory=list)

    def add(self, held: bool, claim: str) -> None:
        self.lines.append((held, claim))

    @property
    def held(self) -> bool:
        return bool(self.lines) and all(held for held, _ in self.lines)


class Demo:
    """One run: the server's folder, a client of its API, the databases, and what has been proved."""

    def __init__(self, console: Console, data: Path, databases: Sequence[DemoDatabase], client: Client) -> None:
        self.console, self.data, self.databases, self.client = console, data, databases, client
        self.proofs = Proofs()
        self.backups: dict[tuple[str, str], str] = {}  # (database, name) → id
        self.digests: dict[tuple[str, str], str] = {}

    def run(self) -> None:
        """The whole story, in order."""
        self.register()
        for name in NAMES:
            self.back_up(name)
        self.title("The backups")
        self.show("backup", "list")
        self.title("What would deleting the second ones free?")
        self.show("backup", "preview", *(self.backups[database.name, "second"] for database in self.databases))
        for database in self.databases:
            self.delete(database)
        self.title("What is left")
        self.show("backup", "list")
        self.restore_all()

    def title(self, text: str) -> None:
        self.console.print()
        self.console.print(f"[bold]── {text} ──[/]")

    def command(self, *arguments: str, stdin: str | None = None, shown: bool = False) -> Any:
        """Runs `strongroom` with these arguments; its answer, or None where it speaks to the reader itself."""
        words = [sys.executable, "-m", "strongroom", *arguments, "--data", str(self.data)]
        if shown:
            self.console.print(f"[dim]$[/] [bold cyan]strongroom {' '.join(arguments)}[/]")
            sys.stdout.flush()
            subprocess.run(words, check=True, env=plain_environment())
            return None
        ran = subprocess.run(
            [*words, "--json"], input=stdin, stdout=subprocess.PIPE, text=True, check=True, env=plain_environment()
        )
        return json.loads(ran.stdout)

    def show(self, *arguments: str) -> None:
        self.command(*arguments, shown=True)

    def register(self) -> None:
        """Registers the databases by the command line, the passwords by standard input."""
        for one in self.databases:
            arguments = ("instance", "add", one.name, "--engine", one.engine, "--address", one.address, "--password-stdin")
            self.command(*arguments, stdin=f"{one.password}\n")
        self.title("Two databases are registered")
        self.show("instance", "list")

    def back_up(self, name: str) -> None:
        """Lets time pass in each database, then backs each up and notes what it held."""
        self.title(f"The {name} backup of each")
        for one in self.databases:
            story = {"first": one.fill, "second": one.change, "third": one.end_sessions}[name]()
            began = time.monotonic()
            answer = self.command("backup", "create", one.name, name, "--wait")
            self.backups[one.name, name] = answer["backup_id"]
            self.digests[one.name, name] = one.digest()
            backup = answer["backup"]
            self.console.print(
                f"{one.name}: {story}; backup of {size(backup['plain_bytes'])} took {time.monotonic() - began:.1f} s "
                f"and stored {size(backup['stored_bytes'])}, the store has {size(self.measured())}"
            )

    def measured(self) -> int:
        """The bytes of all files in the store's folder, but for those in which the service keeps what it knows of itself."""
        objects = self.data / "store" / "objects"
        return stored(self.data / "store") - sum(stored(objects / own) for own in ("catalog", "trail"))

    def delete(self, database: DemoDatabase) -> None:
        """Deletes the second backup through the API, and compares preview, promise, receipt and the disk."""
        backup = self.backups[database.name, "second"]
        self.title(f"Deleting {database.name}'s second backup")
        preview = self.client.preview([backup])
        before = self.measured()
        accepted = self.client.contract("DELETE", f"v3/backups/{backup}", headers={"If-Match": f'"{preview["version"]}"'})
        hidden = all(one["id"] != backup for one in self.client.backups())
        self.console.print(f"DELETE /v3/…/backups/{backup} → 202, job {accepted['job_id']}")
        job = self.follow(accepted["job_id"])
        change = self.measured() - before
        deletion = self.client.deletion(backup)
        promised, receipt = deletion["promised"], deletion["receipt"]
        expected = receipt["put_bytes"] - receipt["freed"] - receipt["reclaimed"]["net"]
        self.compare(preview, promised, receipt, expected, change)
        proofs, whose = self.proofs, f"{database.name}:"
        proofs.add(job["status"] == "Completed" and deletion["state"] == "done", f"{whose} the delete job completed")
        proofs.add(hidden, f"{whose} the backup was hidden from the list from the answer on")
        same = all(preview[name] == promised[name] for name in AMOUNTS)
        proofs.add(same, f"{whose} the promise is what the preview said")
        kept = all(receipt[name] == promised[name] for name in ("freed", "waiting", "undecided"))
        proofs.add(kept, f"{whose} the receipt is what was promised, to the byte")
        proofs.add(receipt["freed"] > 0, f"{whose} the delete freed something")
        proofs.add(change == expected, f"{whose} the store on disk changed by what the receipt says, to the byte")

    def follow(self, job_id: str) -> Any:
        """Waits for a job, telling each new phase."""
        end, told = time.monotonic() + _JOB_SECONDS, ""
        while True:
            job = self.client.job(job_id)
            phase = (job["progress"] or {}).get("phase") or job["status"]
            if phase != told:
                self.console.print(f"  job: {phase}")
                told = phase
            if job["status"] != "Running" or time.monotonic() > end:
                return job
            time.sleep(0.05)

    def compare(self, preview: Any, promised: Any, receipt: Any, expected: int, change: int) -> None:
        """Prints the three accounts of one delete beside one another, and the disk below them."""
        table = Table("", "preview", "promise", "receipt", box=box.SIMPLE_HEAD)
        for column in table.columns[1:]:
            column.justify = "right"
        for name in AMOUNTS:
            given = f"{receipt[name]:,}" if name in receipt else ""
            table.add_row(f"{name} (bytes)", f"{preview[name]:,}", f"{promised[name]:,}", given)
        self.console.print(table)
        again = receipt["reclaimed"]
        self.console.print(
            f"The receipt: freed {receipt['freed']:,}, rewriting gave back {again['net']:,} (wrote {again['written']:,}), "
            f"put for the delete {receipt['put_bytes']:,}: so the store changes by {expected:,} bytes."
        )
        self.console.print(f"Measured on disk: [bold]{change:,}[/] bytes.")

    def restore_all(self) -> None:
        """Spoils each database, restores the first and the last backup, and compares digests."""
        self.title("Restoring the first and the last backup")
        for one in self.databases:
            one.spoil()
            for name in ("first", "third"):
                began = time.monotonic()
                self.command("backup", "restore", self.backups[one.name, name], "--into", one.name, "--overwrite", "--wait")
                digest, wanted = one.digest(), self.digests[one.name, name]
                self.console.print(
                    f"{one.name}, {name} backup, in {time.monotonic() - began:.1f} s: digest {digest}, was {wanted}"
                )
                self.proofs.add(
                    digest == wanted, f"{one.name}: the {name} backup restored is what was backed up, by content digest"
                )
            gone = self.backups[one.name, "second"]
            self.proofs.add(self.refused(gone, one), f"{one.name}: the deleted backup can be restored no more")

    def refused(self, backup: str, database: DemoDatabase) -> bool:
        """Whether the API refuses to restore it."""
        instances = {one["name"]: one["id"] for one in self.client.instances()}
        try:
            self.client.contract("POST", f"v3/instances/{instances[database.name]}/recovery", body={"backup_id": backup})
        except CommandError as error:
            self.console.print(f"restoring the deleted one is {error.message.splitlines()[0]}")
            return True
        return False

    def conclude(self) -> bool:
        """Prints every proof and whether all held."""
        self.title("What was proved")
        for held, claim in self.proofs.lines:
            self.console.print(f"{'[green]✓[/]' if held else '[bold red]✗ DOES NOT HOLD:[/]'} {claim}")
        return self.proofs.held


def plain_environment() -> dict[str, str]:
    """The environment without settings of a Strongroom that the reader may run."""
    return {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Path]:
    """A running Strongroom with SQLite and a directory; gives its data folder."""
    home, data = folder / "server", folder / "data"
    home.mkdir()
    command = [sys.executable, "-m", "strongroom", "serve", "--data", str(data), "--port", "0"]
    environment = plain_environment()
    with demo_engines.running(command, home, environment) as (process, log):
        demo_engines.until(lambda: answers(data), process, "the server", log)
        try:
            yield data
        except FAILURES:
            sys.stderr.write(f"The end of the server's log:\n{log.read_text(errors='replace')[-3000:]}\n")
            raise


def answers(data: Path) -> bool:
    """Whether the server of this folder serves."""
    try:
        endpoint = find(str(data), None, None, {}).endpoint
        return httpx.get(f"{endpoint}/readyz", timeout=2, trust_env=False).is_success
    except (CommandError, httpx.HTTPError):
        return False


def end(_signal: int, _frame: FrameType | None) -> None:
    """Ends the demo in order: its servers are stopped and its folder removed."""
    sys.exit(1)


def main() -> int:
    """Runs the demo."""
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="strongroom-demo-", ignore_cleanup_errors=True)))
        console.print("Starting a Redis, a MongoDB and a Strongroom …")
        redis = stack.enter_context(demo_engines.redis(folder / "redis"))
        mongo = stack.enter_context(demo_engines.mongo(folder / "mongodb"))
        data = stack.enter_context(server(folder))
        client = stack.enter_context(contextlib.closing(Client(find(str(data), None, None, {}))))
        console.print(f"Redis {redis.version}, MongoDB {mongo.version}, Strongroom in {data}")
        demo = Demo(console, data, (redis, mongo), client)
        demo.run()
        held = demo.conclude()
    took = f"{time.monotonic() - began:.0f} s"
    console.print(f"\n[bold green]Every proof held[/] ({took})." if held else f"\n[bold red]Not every proof held[/] ({took}).")
    return 0 if held else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FAILURES as error:
        sys.exit(f"The demo failed: {getattr(error, 'message', None) or error}")
    except KeyboardInterrupt:
        sys.exit("The demo was stopped.")
