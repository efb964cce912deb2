"""`strongroom quota`: what the project may use at most."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from strongroom.cli.context import client, say, shared
from strongroom.cli.display import size, table, word

if TYPE_CHECKING:
    from strongroom.cli.client import Answer

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NO_LIMIT = "none"
_NAMES = {"instance": "instances", "backup": "backups", "stored_bytes": "stored bytes"}


class Amount(click.ParamType[int | str]):
    """A whole number, with a unit K, M, G or T if it is of bytes; or none for no limit."""

    name = "amount"

    def __init__(self, *, units: bool) -> None:
        self._units = units

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == _NO_LIMIT:
            return value
        found = re.fullmatch(r"([0-9]{1,15})(?:([KMGT])(?:i?B)?)?", value)
        if found is None or (found[2] and not self._units):
            self.fail(f"{value!r} is neither a number{' of bytes such as 50G' if self._units else ''} nor none", param, ctx)
        return int(found[1]) * _UNITS[found[2] or ""]


@click.group("quota")
@shared
def quota() -> None:
    """See and set what the project may use."""


@quota.command("show")
@shared
def show() -> None:
    """Show what the project uses and may use."""
    with client() as api:
        _say(api.own("GET", "quotas"))


@quota.command("set")
@click.option("--instances", "instance", type=Amount(units=False), metavar="N|none", help="Registered instances.")
@click.option("--backups", "backup", type=Amount(units=False), metavar="N|none", help="Backups.")
@click.option("--stored", "stored_bytes", type=Amount(units=True), metavar="SIZE|none", help="Stored bytes: 500G, 2T.")
@shared
def set_(**wanted: int | str | None) -> None:
    """Set what the project may use, as the account's administrator; what is not named stays."""
    body = {kind: None if amount == _NO_LIMIT else amount for kind, amount in wanted.items() if amount is not None}
    if not body:
        raise click.UsageError("say which: --instances, --backups, --stored", click.get_current_context())
    with client() as api:
        _say(api.own("PUT", "quotas", body=body))


def _say(answer: Answer) -> None:
    def shown(one: Answer, field: str) -> str:
        amount = one.get(field)
        if amount is None:
            return "no limit"
        return size(amount) if one.get("type") == "stored_bytes" else word(amount)

    quotas = answer.get("quotas") or []
    rows = [(_NAMES.get(one["type"], word(one["type"])), shown(one, "used"), shown(one, "quota")) for one in quotas]
    say(answer, lambda console: table(console, ("OF", ">USED", ">ALLOWED"), rows, "No quota is known."))
