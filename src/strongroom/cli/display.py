"""Values and tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_STATES = {
    "COMPLETED": "green", "Completed": "green", "done": "green", "normal": "green",
    "FAILED": "red", "Failed": "red", "failed": "red", "Cancelled": "yellow",
    "BUILDING": "cyan", "Running": "cyan", "running": "cyan",
}  # fmt: skip
NOTHING = "-"


def size(count: Any) -> str:
    """A number of bytes in binary units: 0 B, 1023 B, 1.0 KiB."""
    if not isinstance(count, int | float):
        return NOTHING
    if abs(count) < 1024:
        return f"{count:.0f} B"
    power = 0
    while abs(count) / 1024 ** (power + 1) >= 1023.95 and power < len(_UNITS) - 1:
        power += 1
    return f"{count / 1024 ** (power + 1):.1f} {_UNITS[power]}"


def moment(text: Any) -> str:
    """A time of the API (always UTC) without what is the same in all of them."""
    return str(text)[:19].replace("T", " ") if text else NOTHING


def word(value: Any) -> str:
    """Any other value; nothing is a dash."""
    return NOTHING if value is None or value == "" else str(value)


def table(
    console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]], nothing: str, total: Sequence[str] = ()
) -> None:
    """Prints a table; a column whose name begins with ">" is set right, a state gets its colour. `nothing` stands for no rows.

    On a narrow terminal the first column, an id that people copy, and numbers stay whole; the others fold.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    listed = list(rows)
    if not listed:
        console.print(nothing)
        return
    drawn = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_footer=bool(total), footer_style="bold")
    feet = total or [""] * len(columns)
    for place, (name, foot) in enumerate(zip(columns, feet, strict=True)):
        right = name.startswith(">")
        whole = right or place == 0
        drawn.add_column(name.lstrip(">"), footer=foot, justify="right" if right else "left", overflow="fold", no_wrap=whole)
    for row in listed:
        drawn.add_row(*(Text(cell, style=_STATES.get(cell, "")) for cell in row))
    console.print(drawn)


def facts(console: Console, pairs: Mapping[str, str]) -> None:
    """Prints names and values below one another; what is nothing is left out."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        if value != NOTHING:
            drawn.add_row(Text(name, style="bold"), Text(value, style=_STATES.get(value, "")))
    console.print(drawn)
