"""What the commands of users, groups, keys and policies share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strongroom.cli.context import client, confirm, say_line

if TYPE_CHECKING:
    from strongroom.cli.client import Answer


def drop(kind: str, one: str, question: str, yes: bool) -> None:
    """Removes a user, group, key or policy once the question is answered, and says so."""
    confirm(question, yes)
    with client() as api:
        api.identity("DELETE", kind, one)
    say_line({"removed": one}, f"Removed {one}.")


def give(kind: str, holder: str, policy: str, project: str | None) -> None:
    """Grants a policy to a user or a group and says so."""
    body = {"policy": policy, "project": project}
    with client() as api:
        api.identity("PUT", kind, holder, "grants", body=body)
    say_line({"holder": holder, **body}, f"Granted {policy} to {holder}{_where(project)}.")


def take(kind: str, holder: str, policy: str, project: str | None) -> None:
    """Takes a policy from a user or a group and says so."""
    with client() as api:
        api.identity("DELETE", kind, holder, "grants", query={"policy": policy, "project": project})
    say_line({"holder": holder, "policy": policy, "project": project}, f"Took {policy} from {holder}{_where(project)}.")


def granted(grant: Answer) -> str:
    """A grant for people."""
    return f"{grant.get('policy')}{_where(grant.get('project'))}"


def _where(project: str | None) -> str:
    return f" in {project}" if project else ""
