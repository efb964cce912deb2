"""The commands against canned answers: what they ask, what they say, how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from support.cli_server import OWN, PROJECT, FakeServer, refusal

CACHE = {
    "id": "1" * 32 + "in14",
    "name": "cache",
    "engine": "redis",
    "version": "7.0",
    "state": "NORMAL",
    "backups": 0,
    "stored_bytes": 0,
}
OTHER = {**CACHE, "id": "2" * 32 + "in14", "name": "other"}
INSTANCES = {f"GET {OWN}/instances": {"instances": [CACHE, OTHER]}}
BACKUP = "3" * 32 + "br14"
SECOND = "4" * 32 + "br14"
JOB = "11111111-2222-3333-4444-555555555555"
AMOUNTS = {"owned": 5 * 1024 * 1024, "freed": 3 * 1024 * 1024, "waiting": 2 * 1024 * 1024, "undecided": 0, "objects": 4}
PREVIEW = {
    "version": "v9", **AMOUNTS,
    "backups": [{"id": BACKUP, "name": "second", "instance_name": "cache", "refusal": None, **AMOUNTS}],
}  # fmt: skip
DELETION = {
    "backup_id": BACKUP, "backup_name": "second", "instance_name": "cache", "job_id": JOB, "state": "done", "promised": AMOUNTS,
    "receipt": {**AMOUNTS, "removed_objects": 4, "reclaimed": {"read": 0, "written": 0, "dropped": 0, "net": 0}},
}  # fmt: skip
CREATE = f"POST /v3/{PROJECT}/instances/{CACHE['id']}/backups"


def job(status: str, **more: object) -> dict[str, object]:
    return {"id": JOB, "kind": "backup", "name": "BackupInstance", "status": status, "progress": None, "fail_reason": "", **more}


def running(done: int) -> dict[str, object]:
    return job("Running", progress={"phase": "reading", "done": done, "total": 200})


def test_a_new_instance_is_added_with_the_password_of_standard_input() -> None:
    """The password travels from standard input to the body, and the answer has the id."""
    server = FakeServer({f"POST {OWN}/instances": (201, CACHE)})
    address = "redis://app@127.0.0.1:6379"
    arguments = ("instance", "add", "cache", "--engine", "redis", "--address", address, "--password-stdin", "--json")
    result = server.run(*arguments, stdin="pass word \n")
    assert json.loads(result.stdout)["id"] == CACHE["id"]
    assert server.bodies() == [{"name": "cache", "engine": "redis", "address": address, "password": "pass word "}]


def test_a_new_instance_is_added_with_options(tmp_path: Path) -> None:
    """Out of files, of standard input in their order after the password, and of arguments if they are no secrets."""
    server = FakeServer({f"POST {OWN}/instances": (201, CACHE)})
    (tmp_path / "ca").write_text("-----BEGIN\nx\n")
    given = (f"ca=@{tmp_path}/ca", "jmx_password=@-", "jmx_user=a=b")
    added = ("instance", "add", "c", "--engine", "cassandra", "--address", "cassandras://u@h", "--password-stdin")
    more = tuple(word for one in given for word in ("--option", one))
    assert server.run(*added, *more, stdin="first\nsecond\n").exit_code == 0
    options = {"ca": "-----BEGIN\nx", "jmx_password": "second", "jmx_user": "a=b"}
    assert server.bodies() == [
        {"name": "c", "engine": "cassandra", "address": "cassandras://u@h", "password": "first", "options": options}
    ]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("jmx_password=hunter2", "jmx_password=@FILE"),
        ("key=hunter2", "key=@FILE"),
        ("ca", "OPTION=VALUE"),
        ("ca=@/no/file", "cannot"),
    ],
)
def test_options_that_others_could_read_or_nobody_are_refused(option: str, words: str) -> None:
    """They are not repeated."""
    server = FakeServer({})
    result = server.run("instance", "add", "c", "--engine", "cassandra", "--address", "cassandras://h", "--option", option)
    assert (result.exit_code, server.requests) == (2, [])
    assert words in result.stderr
    assert "hunter2" not in result.output


def test_a_password_in_an_address_is_refused_before_anything_is_sent() -> None:
    """Arguments can be read by other users, so a password there is wrong use, and it is not repeated."""
    server = FakeServer({})
    result = server.run("instance", "add", "cache", "--engine", "redis", "--address", "redis://:hunter2@127.0.0.1")
    assert (result.exit_code, server.requests) == (2, [])
    assert "--password-stdin" in result.stderr
    assert "hunter2" not in result.output


@pytest.mark.parametrize("name", ["cache", CACHE["id"]])
def test_an_instance_is_named_by_its_name_or_its_id(name: str) -> None:
    """Both lead to the same backup call."""
    server = FakeServer({**INSTANCES, CREATE: (202, {"job_id": JOB, "backup_id": BACKUP})})
    result = server.run("backup", "create", name, "first", "--description", "d", "--json")
    assert json.loads(result.stdout) == {"job_id": JOB, "backup_id": BACKUP}
    assert server.bodies() == [{"name": "first", "description": "d"}]


def test_an_id_goes_before_a_name_that_looks_the_same() -> None:
    """A name chosen to look like another instance's id never stands in for it."""
    posing = {**OTHER, "name": CACHE["id"]}
    server = FakeServer(
        {f"GET {OWN}/instances": {"instances": [posing, CACHE]}, CREATE: (202, {"job_id": JOB, "backup_id": BACKUP})}
    )
    assert server.run("backup", "create", CACHE["id"], "first").exit_code == 0


def test_an_unknown_instance_is_refused_with_where_to_look() -> None:
    """Exit status 1 and the command that lists them."""
    result = FakeServer(INSTANCES).run("backup", "create", "nobody", "first")
    assert result.exit_code == 1
    assert "instance list" in result.stderr


def test_waiting_follows_the_job_and_shows_progress_in_plain_lines() -> None:
    """Not on a terminal there is one line for a phase; the backup is shown at the end."""
    shown = {"id": BACKUP, "name": "first", "state": "COMPLETED", "owned_bytes": 1536}
    answers = {
        **INSTANCES, CREATE: (202, {"job_id": JOB, "backup_id": BACKUP}),
        f"GET {OWN}/jobs/{JOB}": [running(50), running(51), job("Completed")], f"GET {OWN}/backups/{BACKUP}": shown,
    }  # fmt: skip
    server = FakeServer(answers)
    result = server.run("backup", "create", "cache", "first", "--wait")
    assert (result.exit_code, result.stderr) == (0, "reading: 25 %\n")
    assert "COMPLETED" in result.stdout
    assert "1.5 KiB" in result.stdout


def test_waiting_for_a_job_that_fails_is_status_1_with_its_reason() -> None:
    """In JSON the job is on standard output all the same."""
    answers = {
        **INSTANCES, CREATE: (202, {"job_id": JOB, "backup_id": BACKUP}),
        f"GET {OWN}/jobs/{JOB}": job("Failed", fail_reason="the disk is full"),
    }  # fmt: skip
    result = FakeServer(answers).run("backup", "create", "cache", "first", "--wait", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["job"]["status"] == "Failed"
    assert "the disk is full" in result.stderr


def test_a_wait_outlives_a_restart_of_the_server_and_its_request_limit() -> None:
    """Refused connections, a 500 and a 429 are waited out, the last as long as it says."""
    away = httpx.ConnectError("connection refused")
    limit = httpx.Response(429, json={"error_code": "DBS.280443", "error_msg": "slow"}, headers={"Retry-After": "9"})
    trouble = refusal(500, "DBS.280005", "Server error.")
    server = FakeServer({f"GET {OWN}/jobs/{JOB}": [away, away, limit, trouble, job("Completed")]})
    assert server.run("job", "watch", JOB).exit_code == 0
    assert 9.0 in server.ambient.slept


def test_a_wait_ends_when_the_server_stays_away() -> None:
    """After a minute without an answer the wait gives up with status 1."""
    server = FakeServer({f"GET {OWN}/jobs/{JOB}": [httpx.ConnectError("connection refused")]})
    result = server.run("job", "watch", JOB)
    assert result.exit_code == 1
    assert 60 <= sum(server.ambient.slept) < 70


def test_a_wait_for_an_unknown_job_ends_at_once() -> None:
    """A refusal that does not pass is not waited out."""
    server = FakeServer({f"GET {OWN}/jobs/{JOB}": refusal(404, "DBS.280016", "Resource not found.")})
    assert server.run("job", "watch", JOB).exit_code == 1
    assert server.ambient.slept == []


def test_deleting_without_yes_where_nobody_can_be_asked_deletes_nothing() -> None:
    """Wrong use, before anything is sent."""
    server = FakeServer({})
    result = server.run("backup", "delete", BACKUP)
    assert (result.exit_code, server.requests) == (2, [])
    assert "--yes" in result.stderr


def test_one_delete_with_a_version_sends_if_match_and_shows_the_receipt() -> None:
    """The version goes out quoted, and promise and receipt stand beside one another."""
    delete = f"DELETE /v3/{PROJECT}/backups/{BACKUP}"
    answers = {
        delete: (202, {"job_id": JOB}), f"GET {OWN}/jobs/{JOB}": job("Completed"), f"GET {OWN}/deletions/{BACKUP}": DELETION,
    }  # fmt: skip
    server = FakeServer(answers)
    result = server.run("backup", "delete", BACKUP, "--if-match", "v9", "--yes", "--wait")
    assert result.exit_code == 0
    assert server.requests[0].headers["If-Match"] == '"v9"'
    assert result.stdout.count("3.0 MiB (3,145,728)") == 2


def test_a_receipt_shows_what_was_read_back_and_found_damaged() -> None:
    """How much of how much, why it ended early, each damaged object with the backups that need it; nothing where it is off."""
    damaged = {"name": "a/pack/1.1/b", "what": "chunks", "chunks": 3, "backups": [BACKUP, SECOND]}
    verified = {
        "bytes": 3 << 20, "objects": 7, "of_bytes": 5 << 20, "damaged_objects": 1, "damaged": [damaged],
        "ended_early": "verified 3.0 of 5.0 MiB: away",
    }  # fmt: skip
    sound = {**verified, "of_bytes": None, "damaged_objects": 0, "damaged": []}
    shown = {}
    for name, told in (("all", verified), ("sound", sound), ("off", None)):
        answer = {**DELETION, "receipt": {**AMOUNTS, "removed_objects": 4, "verified": told}}
        shown[name] = FakeServer({f"GET {OWN}/deletions/{BACKUP}": answer}).run("deletion", "show", BACKUP).stdout
    for word in ("(3,145,728) in 7 objects", "(5,242,880)", "verified 3.0 of 5.0 MiB: away", "a/pack/1.1/b", BACKUP, SECOND):
        assert word in shown["all"]
    assert "in 7 objects" in shown["sound"]
    assert "(5,242,880)" not in shown["sound"].split("read back")[1]
    assert "DAMAGED" not in shown["sound"]
    assert "read back" not in shown["off"]


def test_a_moved_preview_is_refused_with_what_to_do() -> None:
    """412 tells to preview again."""
    server = FakeServer({f"DELETE /v3/{PROJECT}/backups/{BACKUP}": refusal(412, "DBS.212003", "the version has moved")})
    result = server.run("backup", "delete", BACKUP, "--if-match", "old", "--yes")
    assert result.exit_code == 1
    assert "preview again" in result.stderr


def test_several_are_deleted_by_one_call() -> None:
    """All or none: one batch call, a repeated id once; the jobs come from the deletions."""
    answers = {
        f"DELETE /v3/{PROJECT}/instances/backups": httpx.Response(200),
        f"GET {OWN}/deletions/{BACKUP}": DELETION, f"GET {OWN}/deletions/{SECOND}": {**DELETION, "backup_id": SECOND},
    }  # fmt: skip
    server = FakeServer(answers)
    result = server.run("backup", "delete", BACKUP, SECOND, BACKUP, "--yes", "--json")
    assert server.bodies() == [{"backup_ids": [BACKUP, SECOND]}]
    assert [one["backup_id"] for one in json.loads(result.stdout)["jobs"]] == [BACKUP, SECOND]


@pytest.mark.parametrize("more", [("--if-match", "v9"), tuple(str(n) for n in range(10))])
def test_what_one_call_cannot_do_is_wrong_use(more: tuple[str, ...]) -> None:
    """A version for several backups, or more than ten of them: nothing is sent."""
    server = FakeServer({})
    assert server.run("backup", "delete", BACKUP, SECOND, *more, "--yes").exit_code == 2
    assert server.requests == []


def test_a_preview_shows_amounts_refusals_and_the_version() -> None:
    """Bytes in binary units, why a backup may not go, and the version for --if-match."""
    refused = {**PREVIEW["backups"][0], "id": SECOND, "refusal": {"code": "DBS.212003", "message": "held: audit"}}
    server = FakeServer({f"POST {OWN}/backups/preview": {**PREVIEW, "backups": [*PREVIEW["backups"], refused]}})
    result = server.run("backup", "preview", BACKUP, SECOND)
    for text in ("5.0 MiB", "held: audit", "v9"):
        assert text in result.stdout


def test_a_restore_goes_into_the_named_instance() -> None:
    """--into is resolved, and the job is followed."""
    server = FakeServer({
        **INSTANCES, f"POST /v3/{PROJECT}/instances/{OTHER['id']}/recovery": (202, {"job_id": JOB}),
        f"GET {OWN}/jobs/{JOB}": job("Completed"),
    })  # fmt: skip
    assert server.run("backup", "restore", BACKUP, "--into", "other", "--wait").exit_code == 0
    assert server.bodies() == [{"backup_id": BACKUP, "overwrite": False}]


def test_lists_show_ids_whole_where_no_terminal_limits_them() -> None:
    """A script may cut the first column."""
    times = {"begin_time": "2026-01-01T00:00:00+0000", "end_time": "2026-01-01T00:00:07+0000"}
    listed = {"id": BACKUP, "name": "first", "datastore": {"type": "redis"}, "status": "COMPLETED", "size": 2048.0, **times}
    result = FakeServer({f"GET /v4/{PROJECT}/backups": {"backups": [listed]}}).run("backup", "list")
    assert f"{BACKUP} " in result.stdout
    assert "2.0 MiB" in result.stdout
    assert "2026-01-01 00:00:07" in result.stdout


def test_text_of_the_server_is_shown_as_it_is() -> None:
    """Markup in a name is text."""
    posing = {**CACHE, "name": "[bold]x[/bold]"}
    assert "[bold]x[/bold]" in FakeServer({f"GET {OWN}/instances": {"instances": [posing]}}).run("instance", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "asked", "body"),
    [
        (("backup", "stop", BACKUP), f"PUT /v3/{PROJECT}/backups/{BACKUP}", {"action": "stop"}),
        (
            ("backup", "hold", BACKUP, "--reason", "audit"),
            f"PUT {OWN}/backups/{BACKUP}/hold",
            {"reason": "audit", "kind": "pin"},
        ),
        (
            ("backup", "hold", BACKUP, "--reason", "court", "--legal", "--until", "2027-01-31T00:00:00+0000"),
            f"PUT {OWN}/backups/{BACKUP}/hold",
            {"reason": "court", "kind": "legal", "until": "2027-01-31T00:00:00+0000"},
        ),
        (("backup", "release", BACKUP), f"DELETE {OWN}/backups/{BACKUP}/hold", None),
        (("backup", "undelete", BACKUP), f"POST {OWN}/backups/{BACKUP}/undelete", None),
        (("backup", "approve", BACKUP), f"POST {OWN}/backups/{BACKUP}/approve", None),
        (("deletion", "policy", "show"), f"GET {OWN}/deletion-policy", None),
        (
            ("deletion", "policy", "set", "--undelete-hours", "0", "--second-person"),
            f"PUT {OWN}/deletion-policy",
            {"undelete_hours": 0, "second_person": True},
        ),
        (("job", "cancel", JOB), f"POST {OWN}/jobs/{JOB}/cancel", {}),
        (("backup", "show", "a/../b"), f"GET {OWN}/backups/a%2F..%2Fb", None),
    ],
)
def test_each_small_command_is_one_call(arguments: tuple[str, ...], asked: str, body: object) -> None:
    """Method, path and body are the API's; a strange id stays one segment of the path."""
    server = FakeServer({asked.replace("%2F", "/"): {}})
    assert server.run(*arguments, "--json").exit_code == 0
    assert (server.asked(), server.bodies()) == ([asked], [] if body is None else [body])


WAITS = {"words": "asked for by ann at 2027-01-31 00:00:00 UTC, another user has to approve it by 2027-02-07 00:00:00 UTC"}
DELETE = {f"DELETE /v3/{PROJECT}/backups/{BACKUP}": (202, {"job_id": JOB})}


def test_a_deletion_that_waits_is_not_called_done() -> None:
    """It is said what it waits for, after the delete, in the backup's, the job's and the deletion's own commands."""
    pending = {**DELETION, "state": "pending", "promised": None, "receipt": None, "pending": WAITS}
    server = FakeServer(
        {
            **DELETE, f"GET {OWN}/jobs/{JOB}": job("Running", pending=WAITS), f"GET {OWN}/deletions/{BACKUP}": pending,
            f"GET {OWN}/backups/{BACKUP}": {"id": BACKUP, "pending": WAITS},
        }
    )  # fmt: skip
    for words in (
        ("backup", "delete", BACKUP, "--yes"), ("job", "show", JOB), ("deletion", "show", BACKUP), ("backup", "show", BACKUP)
    ):  # fmt: skip
        result = server.run(*words)
        assert (result.exit_code, WAITS["words"] in " ".join(result.stdout.split())) == (0, True), result.output
    assert "RECEIPT" not in server.run("deletion", "show", BACKUP).stdout
    nobody = FakeServer({**DELETE, f"GET {OWN}/jobs/{JOB}": refusal(403, "DBS.280032", "no")}).run(
        "backup", "delete", BACKUP, "--yes"
    )
    assert (nobody.exit_code, "removes its data" in " ".join(nobody.stdout.split())) == (0, True)


def test_a_wait_says_what_a_deletion_waits_for_and_how_it_ended() -> None:
    """Called back meanwhile: status 1 with the job's reason, and no receipt is looked for in vain."""
    ended = job("Cancelled", fail_reason="undeleted by ben")
    unknown = refusal(400, "DBS.201214", "no deletion of it is known")
    answers = {
        **DELETE,
        f"GET {OWN}/jobs/{JOB}": [job("Running", pending=WAITS), ended],
        f"GET {OWN}/deletions/{BACKUP}": unknown,
    }
    result = FakeServer(answers).run("backup", "delete", BACKUP, "--yes", "--wait")
    assert result.exit_code == 1
    assert f"the deletion waits: {WAITS['words']}" in result.stderr
    assert "cancelled: undeleted by ben" in result.stderr
    answers |= {f"GET {OWN}/jobs/{JOB}": ended, f"GET {OWN}/deletions/{BACKUP}": refusal(403, "DBS.280032", "no")}
    refused = FakeServer(answers).run("backup", "delete", BACKUP, "--yes", "--wait")
    assert (refused.exit_code, "DBS.280032" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    ("hours", "second", "words"),
    [
        (0, False, "A deletion needs nobody's approval and is decided at once."),
        (24, True, "A deletion needs another user's approval and can be called back for 24 hours."),
    ],
)
def test_a_deletion_policy_is_told_in_words(hours: int, second: bool, words: str) -> None:
    """To set nothing is wrong use."""
    server = FakeServer({f"GET {OWN}/deletion-policy": {"undelete_hours": hours, "second_person": second}})
    assert " ".join(server.run("deletion", "policy", "show").stdout.split()) == words
    assert server.run("deletion", "policy", "set").exit_code == 2


def test_removing_an_instance_needs_a_yes() -> None:
    """Without one nothing is removed; with one its id is in the call."""
    server = FakeServer({**INSTANCES, f"DELETE {OWN}/instances/{CACHE['id']}": {}})
    assert server.run("instance", "remove", "cache").exit_code == 2
    assert server.run("instance", "remove", "cache", "--yes", "--json").exit_code == 0
    assert [one for one in server.asked() if one.startswith("DELETE")] == [f"DELETE {OWN}/instances/{CACHE['id']}"]


@pytest.mark.parametrize("arguments", [("serve",), ("catalog", "rebuild")])
def test_work_on_a_data_folder_needs_its_name(arguments: tuple[str, ...]) -> None:
    """The folder is never guessed."""
    result = FakeServer({}).run(*arguments)
    assert result.exit_code == 2
    assert "--data DIR" in result.stderr


def test_a_bad_setting_is_wrong_use(tmp_path: object) -> None:
    """The setting is named."""
    result = FakeServer({}, environ={"STRONGROOM_RECLAIM_BUDGET": "lots"}).run("serve", "--data", str(tmp_path))
    assert result.exit_code == 2
    assert "STRONGROOM_RECLAIM_BUDGET" in result.stderr


def test_help_imports_nothing_heavy() -> None:
    """What makes a start slow is imported by the commands that need it."""
    heavy = ("httpx", "rich", "sqlalchemy", "fastapi", "pymongo", "cryptography", "asyncio", "numpy")
    code = (
        "import sys; from click.testing import CliRunner; from strongroom.cli.main import strongroom as s;"
        "assert CliRunner().invoke(s, ['backup', 'delete', '--help']).exit_code == 0;"
        f"print(sorted(set({heavy!r}) & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


QUOTAS = {
    "quotas": [
        {"type": "instance", "quota": 5, "used": 2},
        {"type": "backup", "quota": None, "used": 7},
        {"type": "stored_bytes", "quota": 1 << 40, "used": 3 << 20},
    ]
}


def test_a_webhook_is_added_and_its_secret_shown() -> None:
    """All events unless some are named."""
    made = {"id": "1" * 32, "name": "team", "url": "https://hooks.example/", "events": ["backup_failed"], "secret": "a-secret"}
    server = FakeServer({f"POST {OWN}/notifications/webhooks": (201, made)})
    result = server.run("notify", "add", "team", "https://hooks.example/")
    assert "a-secret" in result.stdout
    assert "not shown again" in result.stdout
    server.run("notify", "add", "team", "https://hooks.example/", "--event", "backup_failed", "--event", "damage_found")
    plain = {"name": "team", "url": "https://hooks.example/"}
    assert server.bodies() == [plain, {**plain, "events": ["backup_failed", "damage_found"]}]
    assert server.run("notify", "add", "team", "https://hooks.example/", "--event", "all").exit_code == 2


def test_a_webhook_s_secret_is_replaced() -> None:
    """Drawn and shown once, or given on standard input and not shown; the overlap as said."""
    drawn = {"name": "team", "secret": "a-new-secret", "previous_until": "2026-11-25T12:00:00Z"}
    server = FakeServer({f"POST {OWN}/notifications/webhooks/team/secret": drawn})
    shown = server.run("notify", "rotate", "team").stdout
    assert "a-new-secret" in shown
    assert "2026-11-25 12:00:00" in shown
    assert "not shown again" in shown
    given = FakeServer({f"POST {OWN}/notifications/webhooks/team/secret": {**drawn, "secret": None}})
    result = given.run("notify", "rotate", "team", "--secret-stdin", "--overlap", "0.5", stdin="of-our-own-vault-of-secrets\n")
    assert "vault" not in result.stdout
    assert server.bodies() + given.bodies() == [{}, {"overlap_hours": 0.5, "secret": "of-our-own-vault-of-secrets"}]
    assert server.run("notify", "rotate", "team", "--overlap", "169").exit_code == 2


def test_webhooks_are_listed_with_what_became_of_them() -> None:
    """Given up and dropped are both never told."""
    hook = {
        "name": "team", "url": "https://hooks.example/", "delivered": 7, "failed": 5, "given_up": 2, "dropped": 1,
        "last_error": "it answered 500",
    }  # fmt: skip
    result = FakeServer({f"GET {OWN}/notifications/webhooks": {"webhooks": [hook]}}).run("notify", "list")
    (line,) = (line for line in result.stdout.splitlines() if "team" in line)
    assert line.split() == ["team", "https://hooks.example/", "7", "5", "3", "it", "answered", "500"]
    assert "No webhook" in FakeServer({f"GET {OWN}/notifications/webhooks": {"webhooks": []}}).run("notify", "list").stdout


def test_a_test_of_a_receiver_says_what_came_back() -> None:
    """Or why nothing did, with status 1; one says which receiver."""
    done = job("Completed", kind="notify-test", result={"outcome": "delivered", "status": 204, "seconds": 0.1})
    failed = job("Failed", kind="notify-test", fail_reason="it answered 500")
    answers = {f"POST {OWN}/notifications/test": (202, {"job_id": JOB}), f"GET {OWN}/jobs/{JOB}": done}
    server = FakeServer(answers)
    assert server.run("notify", "test", "team").stdout == "team answered 204 after 0.1 s.\n"
    assert server.run("notify", "test", "--command").stdout == "The command ended with status 0 after 0.1 s.\n"
    assert server.bodies() == [{"webhook": "team"}, {"webhook": None}]
    result = FakeServer({**answers, f"GET {OWN}/jobs/{JOB}": failed}).run("notify", "test", "team")
    assert (result.exit_code, "it answered 500" in result.stderr) == (1, True)
    assert server.run("notify", "test").exit_code == server.run("notify", "test", "team", "--command").exit_code == 2


def test_hours_without_a_good_backup_are_shown_and_set() -> None:
    """Of the project or of an instance; a number, none, or default."""
    project, one = f"{OWN}/notifications/hours", f"{OWN}/instances/{CACHE['id']}/notifications/hours"
    told = {"hours": 26.0, "default": True}
    server = FakeServer({**INSTANCES, f"GET {project}": told, f"PUT {project}": told, f"PUT {one}": told, f"DELETE {one}": told})
    assert server.run("notify", "hours").stdout.split(maxsplit=4)[-1].strip() == "26 hours (default)"
    server.run("notify", "hours", "26.5")
    server.run("notify", "hours", "none", "--instance", "cache")
    server.run("notify", "hours", "default", "--instance", "cache")
    assert server.bodies() == [{"hours": 26.5}, {"hours": None}]
    assert server.asked()[-1] == f"DELETE {one}"
    for slip in ("a-day", "nan", "inf", "1e3", "-5"):
        assert server.run("notify", "hours", slip).exit_code == 2


def test_quotas_are_shown_in_words() -> None:
    """What is used and allowed; bytes in binary units, nothing set is no limit."""
    result = FakeServer({f"GET {OWN}/quotas": QUOTAS}).run("quota", "show")
    said = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert said[2:] == [
        ["instances", "2", "5"], ["backups", "7", "no", "limit"], ["stored", "bytes", "3.0", "MiB", "1.0", "TiB"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (("--instances", "5"), {"instance": 5}),
        (("--backups", "none", "--stored", "2T"), {"backup": None, "stored_bytes": 2 << 40}),
        (("--stored", "500GiB"), {"stored_bytes": 500 << 30}),
        (("--stored", "0"), {"stored_bytes": 0}),
    ],
)
def test_a_quota_is_set_by_a_number_or_a_size(arguments: tuple[str, ...], body: dict[str, object]) -> None:
    """Only what is named is sent; none takes a limit away."""
    server = FakeServer({f"PUT {OWN}/quotas": QUOTAS})
    assert json.loads(server.run("quota", "set", *arguments, "--json").stdout) == QUOTAS
    assert server.bodies() == [body]


@pytest.mark.parametrize("arguments", [(), ("--instances", "5G"), ("--backups", "-1"), ("--stored", "much")])
def test_a_quota_that_is_none_is_wrong_use(arguments: tuple[str, ...]) -> None:
    """And nothing is sent."""
    server = FakeServer({})
    assert (server.run("quota", "set", *arguments).exit_code, server.requests) == (2, [])


def test_tags_are_put_and_taken_off_by_the_instances_name() -> None:
    """What is taken off goes first, so that a tag can be changed to another in one command."""
    tags = f"/v3/{PROJECT}/instances/{CACHE['id']}/tags"
    found = {"tags": [{"key": "stage", "value": "live"}]}
    server = FakeServer({**INSTANCES, f"POST {tags}/action": (202, {}), f"GET {tags}": found})
    result = server.run("instance", "tag", "cache", "stage=live", "owner", "--remove", "team")
    assert "stage=live" in result.stdout
    assert server.bodies() == [
        {"action": "delete", "tags": [{"key": "team"}]},
        {"action": "create", "tags": [{"key": "stage", "value": "live"}, {"key": "owner", "value": ""}]},
    ]
    assert server.run("instance", "tag", "cache").exit_code == 2


def test_instances_are_listed_by_tag() -> None:
    """Each tag is a parameter of its own."""
    server = FakeServer({f"GET {OWN}/instances": {"instances": []}})
    assert "No instance has these tags" in server.run("instance", "list", "--tag", "stage=live", "--tag", "team").stdout
    assert server.requests[0].url.params.get_list("tag") == ["stage=live", "team"]


def test_the_recycle_bin_names_what_is_left() -> None:
    """Until when it is listed, and the newest backup."""
    one = {
        "id": CACHE["id"], "name": "cache", "data_store": {"type": "redis", "version": "7.0"}, "backup_id": BACKUP,
        "deleted_at": "2026-11-27T10:00:00+0000", "retained_until": "2026-12-04T10:00:00+0000",
    }  # fmt: skip
    result = FakeServer({f"GET /v3/{PROJECT}/recycle-instances": {"instances": [one]}}).run("instance", "recycled")
    assert BACKUP in result.stdout
    assert "2026-12-04 10:00:00" in result.stdout
