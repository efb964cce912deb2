"""A server's settings and the values shown to people."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from strongroom.cli import display
from strongroom.settings import RequestRate, Settings, SettingsError

KEY = "ab" * 32


def test_a_data_folder_is_enough() -> None:
    """Everything has a default inside the folder, and listens on this machine alone."""
    settings = Settings.load("/srv/x", {})
    assert settings.catalog_url == "sqlite:////srv/x/catalog.db"
    assert (settings.store_url, settings.root_key_file) == ("/srv/x/store", Path("/srv/x/root.key"))
    assert (settings.host, settings.port, settings.reclaim_budget, settings.workers) == ("127.0.0.1", 8480, 1.0, 4)


def test_options_go_before_the_environment() -> None:
    """Host and port, also port 0."""
    environ = {"STRONGROOM_HOST": "127.0.0.2", "STRONGROOM_PORT": "9000"}
    assert Settings.load("/srv/x", environ).port == 9000
    settings = Settings.load("/srv/x", environ, host="::1", port=0)
    assert (settings.host, settings.port) == ("::1", 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STRONGROOM_PORT", "70000"),
        ("STRONGROOM_PORT", "-1"),
        ("STRONGROOM_PORT", "٣"),
        ("STRONGROOM_WORKERS", "0"),
        ("STRONGROOM_CONNECTIONS", "7"),
        ("STRONGROOM_CONNECTIONS", "off"),
        ("STRONGROOM_RECLAIM_BUDGET", "nan"),
        ("STRONGROOM_RECLAIM_BUDGET", "inf"),
        ("STRONGROOM_RECLAIM_BUDGET", "-0.1"),
        ("STRONGROOM_VERIFY_AFTER_DELETE", "64M"),
        ("STRONGROOM_RATE_PER_USER", "5"),
        ("STRONGROOM_RATE_PER_ADDRESS", "0/5"),
        ("STRONGROOM_ROOT_KEY", "abc"),
        ("STRONGROOM_NOTIFY_COMMAND", "'/usr/bin/tell"),
        ("STRONGROOM_NOTIFY_COMMAND", "tell --all"),
        ("STRONGROOM_NOTIFY_NETWORKS", "10.0.0.1/8"),
        ("STRONGROOM_NOTIFY_NETWORKS", "intranet"),
        ("STRONGROOM_NOTIFY_HOURS", "0"),
        ("STRONGROOM_NOTIFY_HOURS", "nan"),
        ("STRONGROOM_NOTIFY_HOURS", "a day"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name: str, value: str) -> None:
    """The error names the variable."""
    with pytest.raises(SettingsError, match=name):
        Settings.load("/srv/x", {name: value})


def test_who_is_told_is_nobody_unless_the_operator_says_so() -> None:
    """The command is split into words, once and without a shell, and no representation shows it."""
    nobody = Settings.load("/srv/x", {})
    assert (nobody.notify_command, nobody.notify_networks, nobody.notify_hours) == ((), (), None)
    told = {
        "STRONGROOM_NOTIFY_COMMAND": "/bin/tell 'the team' --key=abc", "STRONGROOM_NOTIFY_NETWORKS": "10.0.0.0/8, ::1",
        "STRONGROOM_NOTIFY_HOURS": "26.5",
    }  # fmt: skip
    settings = Settings.load("/srv/x", told)
    assert settings.notify_command == ("/bin/tell", "the team", "--key=abc")
    assert [str(network) for network in settings.notify_networks] == ["10.0.0.0/8", "::1/128"]
    assert settings.notify_hours == 26.5
    assert "--key" not in repr(settings)
    with pytest.raises(SettingsError) as refused:
        Settings.load("/srv/x", {"STRONGROOM_NOTIFY_COMMAND": "tell --key=abc"})
    assert "abc" not in str(refused.value)


def test_rates_are_numbers_or_off() -> None:
    """PER_SECOND/BURST, or none at all."""
    settings = Settings.load("/srv/x", {"STRONGROOM_RATE_PER_USER": "0.5/3", "STRONGROOM_RATE_PER_ADDRESS": "off"})
    assert (settings.rate_per_user, settings.rate_per_address) == (RequestRate(0.5, 3), None)


def test_no_setting_shows_a_secret() -> None:
    """Passwords of URLs and the root key are in no repr, and a wrong root key is not repeated."""
    environ = {
        "STRONGROOM_CATALOG_URL": "postgresql://u:hunter2@db/x?password=hunter2",
        "STRONGROOM_STORE_URL": "s3://b/p?endpoint=http://u:hunter2@s&secret_key=hunter2",
        "STRONGROOM_ROOT_KEY": KEY,
    }
    shown = repr(Settings.load("/srv/x", environ))
    assert "hunter2" not in shown
    assert KEY not in shown
    assert "postgresql://u:…@db/x" in shown
    with pytest.raises(SettingsError) as error:
        Settings.load("/srv/x", {"STRONGROOM_ROOT_KEY": "hunter2"})
    assert "hunter2" not in str(error.value)


def test_a_root_key_is_made_once_and_read_again(tmp_path: Path) -> None:
    """The first key stays, only its owner can read it, and no draft is left."""
    settings = Settings.load(tmp_path / "new", {})
    assert settings.root_key(lambda: b"k" * 32) == b"k" * 32
    assert settings.root_key(lambda: b"x" * 32) == b"k" * 32
    assert stat.S_IMODE(settings.root_key_file.stat().st_mode) == 0o600
    assert [one.name for one in settings.root_key_file.parent.iterdir()] == ["root.key"]


def test_a_missing_root_key_is_never_replaced_unasked(tmp_path: Path) -> None:
    """Without `create` a missing key is an error that names its file."""
    with pytest.raises(SettingsError, match=r"root\.key"):
        Settings.load(tmp_path, {}).root_key()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "ab", "zz" * 32, "é" * 64])
def test_a_damaged_root_key_file_is_an_error_and_stays(tmp_path: Path, content: str) -> None:
    """Even with `create` it is left as it is."""
    (tmp_path / "root.key").write_text(content)
    with pytest.raises(SettingsError, match=r"root\.key"):
        Settings.load(tmp_path, {}).root_key(lambda: b"x" * 32)
    assert (tmp_path / "root.key").read_text() == content


def test_the_environments_root_key_needs_no_file(tmp_path: Path) -> None:
    """And no file is made."""
    assert Settings.load(tmp_path, {"STRONGROOM_ROOT_KEY": KEY}).root_key(lambda: b"x" * 32) == bytes.fromhex(KEY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (-2048, "-2.0 KiB"),
        (1024**6, "1024.0 PiB"),
        (None, "-"),
    ],
)
def test_sizes_are_shown_in_binary_units(count: int | None, text: str) -> None:
    """And never as 1024.0 of a smaller unit."""
    assert display.size(count) == text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "strongroom.example"])  # noqa: S104
def test_other_machines_are_not_answered_in_clear_text_unless_told(host: str, tmp_path: Path) -> None:
    """Neither by option nor by environment; TLS or a word makes it good."""
    for environ in ({}, {"STRONGROOM_CLEAR_TEXT": "no"}):
        with pytest.raises(SettingsError, match="clear text"):
            Settings.load("/srv/x", environ, host=host)
    with pytest.raises(SettingsError, match="yes or no"):
        Settings.load("/srv/x", {"STRONGROOM_CLEAR_TEXT": "1"}, host=host)
    assert Settings.load("/srv/x", {"STRONGROOM_CLEAR_TEXT": "yes"}, host=host).host == host
    assert Settings.load("/srv/x", {}, host=host, clear_text=True).tls_cert is None
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("")
    told = {"STRONGROOM_TLS_CERT": str(tmp_path / "cert.pem"), "STRONGROOM_TLS_KEY": str(tmp_path / "key.pem")}
    assert Settings.load("/srv/x", told, host=host).tls_key == tmp_path / "key.pem"


def test_tls_needs_both_files(tmp_path: Path) -> None:
    """A certificate without its key, or one that is not there, ends the start."""
    (tmp_path / "cert.pem").write_text("")
    for cert, key in (("cert.pem", None), (None, "cert.pem"), ("cert.pem", "key.pem")):
        with pytest.raises(SettingsError, match="TLS"):
            Settings.load(
                "/srv/x", {}, tls_cert=cert and str(tmp_path / cert), tls_key=key and str(tmp_path / key),
            )  # fmt: skip


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.0.1", "::1"])
def test_loopback_needs_no_tls(host: str) -> None:
    """Nobody else hears it."""
    assert Settings.load("/srv/x", {}, host=host).host == host


# --- root keys ---------------------------------------------------------------------------------------------------------


def test_a_command_may_give_the_root_key(tmp_path: Path) -> None:
    """Split into words, without a shell; a file that is there does not count then."""
    key = tmp_path / "a key"
    key.write_text(f"{KEY}\n")
    environ = {"STRONGROOM_ROOT_KEY_COMMAND": f"cat '{key}'"}
    assert Settings.load(tmp_path, environ).root_key(lambda: b"x" * 32) == bytes.fromhex(KEY)
    assert not (tmp_path / "root.key").exists()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("false", "ended with status 1"),
        ("/no/such/program", "cannot be run"),
        ("echo hunter2", "does not hold a root key"),
        ("true", "does not hold a root key"),
        ("'", "cannot be split"),
    ],
)
def test_a_command_that_gives_no_root_key_is_an_error_that_repeats_nothing(tmp_path: Path, command: str, reason: str) -> None:
    """Whatever it printed."""
    with pytest.raises(SettingsError, match=reason) as refused:
        Settings.load(tmp_path, {"STRONGROOM_ROOT_KEY_COMMAND": command}).root_key()
    assert "hunter2" not in str(refused.value)


def test_a_root_key_comes_from_one_place() -> None:
    """The environment and a command at once are a mistake."""
    with pytest.raises(SettingsError, match="give one"):
        Settings.load("/srv/x", {"STRONGROOM_ROOT_KEY": KEY, "STRONGROOM_ROOT_KEY_COMMAND": "true"})


def test_a_rotation_draws_the_next_key_into_a_file_and_ends_by_putting_it_into_place(tmp_path: Path) -> None:
    """Begun again it is the same key; ended again nothing happens; the old key stays beside it."""
    settings = Settings.load(tmp_path, {})
    settings.root_key(lambda: b"o" * 32)
    assert settings.next_root_key() is None
    assert settings.next_root_key(lambda: b"n" * 32) == settings.next_root_key(lambda: b"x" * 32) == b"n" * 32
    assert settings.root_key() == b"o" * 32
    for _ in range(2):
        assert settings.end_rotation() == tmp_path / "root.key.old"
        assert settings.root_key() == b"n" * 32
        assert bytes.fromhex((tmp_path / "root.key.old").read_text()) == b"o" * 32
    assert sorted(one.name for one in tmp_path.iterdir()) == ["root.key", "root.key.old"]
    assert {stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("dies_at", range(6))
def test_a_crash_while_the_next_key_takes_its_place_loses_no_key(
    tmp_path: Path, dies_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each of the calls that change the folder: there is a root key, old or new, and both keys are in files."""
    settings, left = Settings.load(tmp_path, {}), dies_at
    settings.root_key(lambda: b"o" * 32)
    settings.next_root_key(lambda: b"n" * 32)

    def dying(name: str) -> Any:
        real = getattr(os, name)

        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal left
            if left == 0:
                raise SystemExit
            left -= 1
            return real(*arguments, **more)

        return call

    with monkeypatch.context() as patched:
        for name in ("link", "replace", "fsync"):
            patched.setattr(os, name, dying(name))
        with contextlib.suppress(SystemExit):
            settings.end_rotation()
    keys = {bytes.fromhex(one.read_text()) for one in tmp_path.iterdir()}
    assert keys == {b"o" * 32, b"n" * 32}
    assert settings.root_key() in keys
    settings.end_rotation()
    assert settings.root_key() == b"n" * 32


def test_the_next_key_of_a_key_that_is_in_no_file_is_given(tmp_path: Path) -> None:
    """Only the operator can put it into its place."""
    settings = Settings.load(tmp_path, {"STRONGROOM_ROOT_KEY": KEY})
    with pytest.raises(SettingsError, match="STRONGROOM_NEXT_ROOT_KEY"):
        settings.next_root_key(lambda: b"n" * 32)
    told = Settings.load(tmp_path, {"STRONGROOM_ROOT_KEY": KEY, "STRONGROOM_NEXT_ROOT_KEY": "ab" * 32})
    assert told.next_root_key(lambda: b"n" * 32) == b"\xab" * 32
    assert told.end_rotation() is None
