"""What policies allow: documents of version 1.1 (role/policy) and 5.0 (identity policy), and the table of actions.

An action has one identity name and may have aliases of the role/policy form; a statement that names any of them means the
action, in either version. Names compare without case and `*` stands for any run of characters. Deny wins; what is not
allowed is denied. None of the actions has a resource type, so a statement applies only with Resource "*" (or none).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from strongroom.identity import conditions
from strongroom.identity.conditions import Context
from strongroom.identity.errors import PolicyInvalid

_LARGEST = 64 * 1024  # characters of a document
_VERSIONS = ("1.1", "5.0")


class Level(Enum):
    """What an action does to the service."""

    LIST = "List"
    READ = "Read"
    WRITE = "Write"


@dataclass(frozen=True, slots=True)
class Action:
    """One permission: its identity name, its level and its names in the role/policy form."""

    name: str
    level: Level
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)


_TABLE = (
    # The contract's.
    Action("gaussdbfornosql:instance:deleteBackup", Level.WRITE, ("nosql:backup:delete",)),
    Action("gaussdbfornosql:instance:createBackup", Level.WRITE, ("nosql:backup:create",)),
    Action("gaussdbfornosql:instance:stopBackup", Level.WRITE, ("nosql:backup:stop",)),
    Action("gaussdbfornosql:backup:list", Level.LIST, ("nosql:backup:list",)),
    Action("gaussdbfornosql:instance:listRestorableInstances", Level.LIST, ("nosql:instance:list",)),
    Action("gaussdbfornosql:instance:getBackupPolicy", Level.READ, ("nosql:backup:list",)),
    Action("gaussdbfornosql:instance:setBackupPolicy", Level.WRITE, ("nosql:backup:setPolicy",)),
    Action("gaussdbfornosql:instance:restore", Level.WRITE, ("nosql:backup:refreshInstanceFromBackup",)),
    Action("gaussdbfornosql:task:list", Level.LIST, ("nosql:task:list",)),
    Action("gaussdbfornosql:instance:listDatabase", Level.LIST, ("nosql:database:list", "nosql:backup:list")),
    # The contract's calls about instances.
    Action("gaussdbfornosql:instance:list", Level.LIST, ("nosql:instance:list",)),
    Action("gaussdbfornosql:instance:create", Level.WRITE, ("nosql:instance:create",)),
    Action("gaussdbfornosql:instance:delete", Level.WRITE, ("nosql:instance:delete",)),
    Action("gaussdbfornosql:instance:listRecycled", Level.LIST, ("nosql:instance:list",)),
    Action("gaussdbfornosql:instance:getRecyclePolicy", Level.READ, ("nosql:instance:list",)),
    Action("gaussdbfornosql:instance:setRecyclePolicy", Level.WRITE, ("nosql:instance:setRecyclePolicy",)),
    Action("gaussdbfornosql:task:cancel", Level.WRITE, ("nosql:task:cancel",)),
    Action("gaussdbfornosql:quota:list", Level.LIST, ("nosql:quota:list",)),
    Action("gaussdbfornosql:tag:list", Level.LIST, ("nosql:tag:list",)),
    Action("gaussdbfornosql:tag:set", Level.WRITE, ("nosql:tag:set",)),
    # Our own calls.
    Action("strongroom:instance:create", Level.WRITE),
    Action("strongroom:instance:get", Level.READ),
    Action("strongroom:instance:list", Level.LIST),
    Action("strongroom:instance:setAccess", Level.WRITE),
    Action("strongroom:instance:delete", Level.WRITE),
    Action("strongroom:instance:limit", Level.WRITE),
    Action("strongroom:instance:dropLog", Level.WRITE),
    Action("strongroom:worker:limit", Level.WRITE),  # and the first account's administrator alone
    Action("strongroom:deletion:get", Level.READ),
    Action("strongroom:deletion:list", Level.LIST),
    Action("strongroom:deletion:getPolicy", Level.READ),
    Action("strongroom:deletion:setPolicy", Level.WRITE),
    Action("strongroom:deletion:approve", Level.WRITE),  # and not by who asked for it
    Action("strongroom:backup:undelete", Level.WRITE),
    Action("strongroom:backup:preview", Level.READ),
    Action("strongroom:backup:hold", Level.WRITE),  # and release
    Action("strongroom:quota:set", Level.WRITE),  # and the account's administrator alone
    Action("strongroom:notification:get", Level.READ),  # and the account's administrator alone, but for hours
    Action("strongroom:notification:set", Level.WRITE),  # and the account's administrator alone
    Action("strongroom:audit:list", Level.LIST),
    Action("strongroom:identity:list", Level.LIST),  # and the account's administrator alone, as all of identity's
    Action("strongroom:identity:manage", Level.WRITE),
    Action("strongroom:audit:export", Level.READ),  # and the account's administrator alone
    Action("strongroom:audit:verify", Level.READ),  # and the account's administrator alone
    Action("strongroom:store:verify", Level.WRITE),
    Action("strongroom:store:reconcile", Level.WRITE),  # and the account's administrator alone
    Action("strongroom:store:quarantine", Level.WRITE),  # the same
)
ACTIONS: Mapping[str, Action] = {action.name: action for action in _TABLE}
"""Every action by its identity name: the one table through which both forms of names are understood."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One rule of a policy, understood."""

    allow: bool
    patterns: tuple[str, ...]
    inverted: bool  # NotAction: means every action that no pattern names
    everywhere: bool  # Resource is "*" or absent
    conditions: tuple[conditions.Test, ...]
    sid: str = ""  # its name in the document, for people

    def applies(self, action: Action, context: Context) -> bool:
        """Whether this statement says anything about the action in this request."""
        named = any(_pattern(pattern).fullmatch(name) for pattern in self.patterns for name in action.names)
        return self.everywhere and named is not self.inverted and all(test.holds(context) for test in self.conditions)


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy document, understood."""

    version: str
    statements: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an action is allowed, and by which statement: places in what was asked, from 0. None: no statement says
    anything, which denies."""

    allowed: bool
    policy: int | None = None
    statement: int | None = None


def decide(policies: Sequence[Policy], action: str, context: Context) -> Decision:
    """What the policies together say of the action (by its identity name): the first Deny that applies, else the first Allow.

    Raises KeyError for an action not in ACTIONS.
    """
    meant, found = ACTIONS[action], Decision(False)
    for place, policy in enumerate(policies):
        for number, statement in enumerate(policy.statements):
            if not statement.applies(meant, context):
                continue
            if not statement.allow:
                return Decision(False, place, number)
            if not found.allowed:
                found = Decision(True, place, number)
    return found


def allowed(policies: Iterable[Policy], action: str, context: Context) -> bool:
    """Whether the policies together allow the action (by its identity name). Raises KeyError for an action not in ACTIONS."""
    return decide(tuple(policies), action, context).allowed


@lru_cache(maxsize=1024)
def parse(document: str) -> Policy:
    """Understands a policy document or raises PolicyInvalid. Nothing in it is skipped: what cannot be understood could be
    a Deny."""
    if len(document) > _LARGEST:
        raise PolicyInvalid(f"A policy has at most {_LARGEST} characters.")
    try:
        body = json.loads(document, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise PolicyInvalid("A policy is a JSON object, each of whose names stands there once.") from None
    fields = _only(body, "policy", {"Version", "Statement"})
    version = fields.get("Version")
    if version not in _VERSIONS:
        raise PolicyInvalid('A policy has Version "1.1" or "5.0".')
    statements = fields.get("Statement")
    if not isinstance(statements, list) or not statements:
        raise PolicyInvalid("A policy has a list of at least one Statement.")
    return Policy(version, tuple(_statement(version, statement) for statement in statements))


def _statement(version: str, body: Any) -> Statement:
    fields = _only(body, "statement", {"Sid", "Effect", "Action", "NotAction", "Resource", "Condition"})
    if fields.get("Effect") not in ("Allow", "Deny"):
        raise PolicyInvalid("A statement's Effect is Allow or Deny.")
    if ("Action" in fields) is ("NotAction" in fields):
        raise PolicyInvalid("A statement has either Action or NotAction.")
    if version == "1.1" and "NotAction" in fields:
        raise PolicyInvalid("NotAction needs a policy of Version 5.0.")
    inverted = "NotAction" in fields
    resources = _words(fields["Resource"], "Resource") if "Resource" in fields else ("*",)
    return Statement(
        allow=fields["Effect"] == "Allow",
        patterns=_words(fields["NotAction" if inverted else "Action"], "Action"),
        inverted=inverted,
        everywhere="*" in resources,
        conditions=conditions.understand(fields.get("Condition", {})),
        sid=_sid(fields.get("Sid", "")),
    )


def _sid(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 128:
        raise PolicyInvalid("A statement's Sid is a text of at most 128 characters.")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a name that is there twice one would be skipped."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _only(body: Any, what: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise PolicyInvalid(f"A {what} is a JSON object.")
    if unknown := sorted(set(body) - known):
        raise PolicyInvalid(f"A {what} has no {unknown[0]!a}; it may have {', '.join(sorted(known))}.")
    return body


def _words(value: Any, what: str) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise PolicyInvalid(f"{what} is a name or a list of names.")
    return tuple(words)


@lru_cache(maxsize=4096)
def _pattern(pattern: str) -> re.Pattern[str]:
    collapsed = re.sub(r"\*+", "*", pattern)
    return re.compile(".*".join(re.escape(piece) for piece in collapsed.split("*")), re.IGNORECASE | re.DOTALL)


def _document(*actions: str) -> str:
    statement = {"Effect": "Allow", "Action": sorted(actions), "Resource": ["*"]}
    return json.dumps({"Version": "5.0", "Statement": [statement]})


_LOOKING = tuple(action.name for action in _TABLE if action.level is not Level.WRITE)
_OPERATING = (
    "gaussdbfornosql:instance:createBackup",
    "gaussdbfornosql:instance:stopBackup",
    "gaussdbfornosql:instance:restore",
    "strongroom:instance:create",
    "strongroom:instance:limit",
    "strongroom:store:verify",
)
BUILT_IN: Mapping[str, str] = {
    "administrator": _document("*"),
    "operator": _document(*_LOOKING, *_OPERATING),
    "reader": _document(*_LOOKING),
}
"""Documents that every account has: everything; daily work without any delete or change of policy; looking only."""
