"""A server's settings and the values shown to people."""

from __future__ import annotations

import stat
from pathlib import Path

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
    environ = {"STRONGROOM_HOST": "0.0.0.0", "STRONGROOM_PORT": "9000"}  # noqa: S104
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
        ("STRONGROOM_RECLAIM_BUDGET", "nan"),
        ("STRONGROOM_RECLAIM_BUDGET", "inf"),
        ("STRONGROOM_RECLAIM_BUDGET", "-0.1"),
        ("STRONGROOM_VERIFY_AFTER_DELETE", "64M"),
        ("STRONGROOM_RATE_PER_USER", "5"),
        ("STRONGROOM_RATE_PER_ADDRESS", "0/5"),
        ("STRONGROOM_ROOT_KEY", "abc"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name: str, value: str) -> None:
    """The error names the variable."""
    with pytest.raises(SettingsError, match=name):
        Settings.load("/srv/x", {name: value})


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
