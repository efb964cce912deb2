"""InfluxQL: names and texts quoted, and continuous queries that follow their database under another name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


def name(text: str) -> str:
    """An identifier in double quotes, whatever characters it has."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def text(value: str) -> str:
    """A string in single quotes."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def unquoted(token: str) -> str:
    """The identifier that a token, quoted or not, stands for."""
    if not token.startswith('"'):
        return token
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], token[1:-1], flags=re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # "name", "string", "regex", "word", "mark"
    text: str
    begin: int
    end: int


_TOKENS = re.compile(
    r"""(?P<name>"(?:\\.|[^"\\])*")
      | (?P<string>'(?:\\.|[^'\\])*')
      | (?P<word>[^\W\d]\w*)
      | (?P<space>\s+)
      | (?P<mark>.)""",
    re.VERBOSE | re.DOTALL,
)
_REGEX = re.compile(r"/(?:\\.|[^/\\\n])+/")


def _tokens(query: str) -> Iterator[_Token]:
    at, before = 0, ""
    while at < len(query):
        regex = _REGEX.match(query, at) if query[at] == "/" and _regex_may_follow(before) else None
        found = regex or _TOKENS.match(query, at)
        assert found is not None  # the last alternative takes any character
        kind = "regex" if regex else str(found.lastgroup)
        if kind != "space":
            before = found[0]
            yield _Token(kind, found[0], at, found.end())
        at = found.end()


def _regex_may_follow(before: str) -> bool:
    """A slash after an operand divides; after these a regular expression begins."""
    return before in ("", ".", ",", "(", "~") or before.upper() in ("FROM", "BY", "SELECT")


def renamed_query(query: str, old: str, new: str) -> str:
    """A CREATE CONTINUOUS QUERY as the server shows it, with database `old` called `new`: after ON, and wherever a measurement
    is named in full (`database.policy.measurement`). Names of other databases stay. Raises ValueError if it is no such text."""
    tokens = list(_tokens(query))
    words = [token.text.upper() for token in tokens]
    if words[:3] != ["CREATE", "CONTINUOUS", "QUERY"] or len(words) < 6 or words[4] != "ON":
        raise ValueError("not a continuous query")
    places = [tokens[5]] if unquoted(tokens[5].text) == old else []
    for at, token in enumerate(tokens[6:], 6):
        if token.kind in ("name", "word") and unquoted(token.text) == old and _is_database(tokens, at):
            places.append(token)
    for token in reversed(places):
        query = query[: token.begin] + name(new) + query[token.end :]
    return query


def _is_database(tokens: list[_Token], at: int) -> bool:
    """First of three names: `a.b.c`, `a..c`, `a.b./x/`, `a.b.:MEASUREMENT`; no dot before it."""
    if tokens[at - 1].text == ".":
        return False
    rest = [token.text for token in tokens[at + 1 : at + 4]]
    return rest[:2] == [".", "."] or (len(rest) == 3 and rest[0] == "." and rest[2] == ".")
