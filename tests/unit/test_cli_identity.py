"""The commands about users, groups, keys and policies: what they ask for, what people see, and where secrets come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from support.cli_server import FakeServer, refusal

BASE = "/strongroom/v1/identity"
USER: dict[str, Any] = {
    "id": "a" * 32, "name": "ulla", "enabled": True, "administrator": False, "password": True, "second_factor": True,
    "resting_until": "2026-11-24T12:05:00+0000", "created_at": "2026-11-24T12:00:00+0000", "groups": ["ops"],
    "grants": [{"policy": "reader", "project": "default"}, {"policy": "mine", "project": None}],
    "keys": [
        {"access_key": "SR1", "enabled": False, "created_at": "2026-11-24T12:00:00+0000"},
        {"access_key": "SR2", "enabled": True, "created_at": "", "expires_at": "2026-11-24T13:00:00+0000"},
    ],
}  # fmt: skip


def test_a_password_is_read_from_standard_input_and_never_shown() -> None:
    """One line, without its end; an argument cannot hold one."""
    server = FakeServer({f"POST {BASE}/users": (201, USER), f"PUT {BASE}/users/ulla": USER})
    done = server.run("user", "add", "ulla", "--password-stdin", stdin="Correct-horse-7\r\n")
    assert done.exit_code == 0
    assert server.bodies() == [{"name": "ulla", "administrator": False, "password": "Correct-horse-7"}]
    assert "Correct-horse-7" not in done.output
    server.run("user", "password", "ulla", stdin="Another-word-8\n")
    assert server.bodies()[1] == {"password": "Another-word-8"}
    assert server.run("user", "password", "ulla", stdin="").exit_code == 2


def test_a_user_is_shown_to_people() -> None:
    """Everything that decides what they may, and nothing that they prove it by."""
    server = FakeServer({f"GET {BASE}/users/ulla": USER, f"GET {BASE}/users": {"users": [USER]}})
    text = server.run("user", "show", "ulla").output
    for part in (
        "enabled, rests until 2026-11-24 12:05:00", "password and code, keys", "ops", "reader in default, mine",
        "SR1 (disabled), SR2 (temporary, until 2026-11-24 13:00:00)",
    ):  # fmt: skip
        assert part in text
    assert "password and code" in server.run("user", "list").output
    assert "SR2" in server.run("key", "list", "ulla").output


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("user", "grant", "ulla", "reader", "--project", "p"), f"PUT {BASE}/users/ulla/grants"),
        (("user", "revoke", "ulla", "reader"), f"DELETE {BASE}/users/ulla/grants?policy=reader"),
        (("group", "grant", "a b/c", "reader"), f"PUT {BASE}/groups/a%20b%2Fc/grants"),
        (("group", "revoke", "ops", "reader", "--project", "p"), f"DELETE {BASE}/groups/ops/grants?policy=reader&project=p"),
        (("group", "join", "ops", "ulla"), f"PUT {BASE}/groups/ops/members/ulla"),
        (("group", "leave", "ops", "ulla"), f"DELETE {BASE}/groups/ops/members/ulla"),
        (("group", "remove", "ops", "--yes"), f"DELETE {BASE}/groups/ops"),
        (("user", "remove", "ulla", "--yes"), f"DELETE {BASE}/users/ulla"),
        (("user", "totp", "remove", "ulla", "--yes"), f"DELETE {BASE}/users/ulla/totp"),
        (("key", "remove", "SR1", "--yes"), f"DELETE {BASE}/keys/SR1"),
        (("policy", "remove", "mine", "--yes"), f"DELETE {BASE}/policies/mine"),
    ],
)
def test_a_command_asks_for_what_it_says(words: tuple[str, ...], asked: str) -> None:
    """Names are one segment of the path each, whatever is in them."""

    server = FakeServer(
        {asked.partition("?")[0].partition(" ")[0] + " " + unquote(asked.partition("?")[0].partition(" ")[2]): {}}
    )
    done = server.run(*words)
    assert done.exit_code == 0, done.output
    assert server.asked() == [asked]


@pytest.mark.parametrize("words", [("user", "remove", "ulla"), ("key", "remove", "SR1"), ("group", "remove", "ops")])
def test_nothing_is_removed_unasked(words: tuple[str, ...]) -> None:
    """Where nobody can be asked it needs --yes."""
    server = FakeServer({})
    assert server.run(*words).exit_code == 2
    assert server.requests == []


@pytest.mark.parametrize(("allowed", "status"), [(True, 0), (False, 1)])
def test_a_simulation_tells_what_decided_and_its_exit_status_says_whether(allowed: bool, status: int, tmp_path: Path) -> None:
    """With the tried documents and the imagined context."""
    verdict = {
        "allowed": allowed, "action": "gaussdbfornosql:instance:deleteBackup", "reason": "a statement decides", "policy": "mine",
        "statement": 2, "sid": "Mine", "group": "ops",
    }  # fmt: skip
    file = tmp_path / "p.json"
    file.write_text("{}")
    server = FakeServer({f"POST {BASE}/simulations": verdict})
    done = server.run("policy", "simulate", "ulla", "nosql:backup:delete", "--with", str(file), "--context", "g:MFAPresent=true")
    assert done.exit_code == status
    assert "statement 2 (Mine) of the policy mine, of the group ops" in done.output
    assert server.bodies()[0]["context"] == {"g:MFAPresent": "true"}
    assert server.bodies()[0]["documents"] == ["{}"]
    assert server.run("policy", "simulate", "ulla", "x", "--context", "nothing").exit_code == 2


def test_a_refusal_is_told_with_its_reason() -> None:
    """Exit status 1."""
    server = FakeServer({f"PUT {BASE}/users/admin": refusal(403, "DBS.200019", "An account keeps at least one administrator.")})
    done = server.run("user", "disable", "admin")
    assert done.exit_code == 1
    assert "at least one administrator" in done.output


def test_an_enrolment_shows_the_secret_once_and_says_how_to_confirm_it() -> None:
    """The code comes from standard input, never as an argument."""
    made = {"user_id": "a" * 32, "secret": "ABCDEF", "uri": "otpauth://totp/x?secret=ABCDEF"}
    server = FakeServer({f"POST {BASE}/users/ulla/totp": (201, made), f"PUT {BASE}/users/ulla/totp": {}})
    done = server.run("user", "totp", "enrol", "ulla")
    assert "ABCDEF" in done.output
    assert "strongroom user totp confirm ulla" in done.output
    assert server.run("user", "totp", "confirm", "ulla", stdin="123456\n").exit_code == 0
    assert server.bodies() == [{"passcode": "123456"}]
