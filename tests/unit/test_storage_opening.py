"""From URLs to stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from strongroom.storage.base import InvalidStoreUrl, StoreDenied
from strongroom.storage.directory import DirectoryStore
from strongroom.storage.memory import MemoryStore
from strongroom.storage.opening import open_store
from strongroom.storage.s3 import S3Store

KEYS = {"AWS_ACCESS_KEY_ID": "an-access-key", "AWS_SECRET_ACCESS_KEY": "a-secret"}


def test_memory_opens_an_empty_store_each_time() -> None:
    """Two services in one process do not meet."""
    first, second = open_store("memory:"), open_store("memory:")
    assert isinstance(first, MemoryStore)
    first.put_new("a", b"x")
    assert second.stat("a") is None


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
def test_a_path_and_a_file_url_open_the_same_directory(tmp_path: Path, form: str) -> None:
    """Spaces and percent signs included: a URL is decoded, a path is not."""
    folder = tmp_path / "a store"
    path = str(folder) if form == "{}" else str(folder).replace(" ", "%20")
    store = open_store(form.format(path))
    assert isinstance(store, DirectoryStore)
    store.put_new("l/a", b"x")
    assert (folder / "objects/l/a").read_bytes() == b"x"
    store.close()


def test_a_relative_path_is_a_directory_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And stays that directory when the process changes its own."""
    monkeypatch.chdir(tmp_path)
    store = open_store("stores/one")
    monkeypatch.chdir("/")
    store.put_new("l/a", b"x")
    assert (tmp_path / "stores/one/objects/l/a").exists()
    store.close()


def test_an_s3_url_opens_a_bucket_with_prefix_endpoint_and_region() -> None:
    """Without asking the server anything: a service starts while its store is away."""
    store = open_store("s3://bucket/a/prefix?endpoint=http://127.0.0.1:1&region=eu-west-9", KEYS)
    assert isinstance(store, S3Store)
    assert repr(store) == "S3Store('s3://bucket/a/prefix at http://127.0.0.1:1')"


def test_s3_without_an_endpoint_is_amazon_in_the_region_of_the_environment() -> None:
    """AWS_REGION counts where the URL says nothing."""
    assert "https://s3.eu-north-1.amazonaws.com" in repr(open_store("s3://bucket", {**KEYS, "AWS_REGION": "eu-north-1"}))
    assert "https://s3.us-east-1.amazonaws.com" in repr(open_store("s3://bucket/", KEYS))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory:something",
        "ftp://host/path",
        "gs://bucket/prefix",
        "file://host/path",
        "file:relative",
        "file:///path?query=1",
        "s3://",
        "s3://ab",
        "s3://UPPER/prefix",
        "s3://bucket/pre fix",
        "s3://bucket/a/../b",
        "s3://bucket/a//b",
        "s3://bucket?endpoint=127.0.0.1:8333",
        "s3://bucket?endpoint=ftp://host",
        "s3://bucket?endpoint=http://host/path",
        "s3://bucket?endpoint=http://me:pass@host",
        "s3://bucket?endpoint=",
        "s3://bucket?regoin=x",
        "s3://bucket#fragment",
        "s3://key:hunter2@bucket/prefix",
    ],
)
def test_anything_else_is_refused_with_a_sentence(url: str) -> None:
    """Before anything is opened."""
    with pytest.raises(InvalidStoreUrl, match=r"\w+ \w+ \w+"):
        open_store(url, KEYS)


def test_a_secret_in_a_url_is_not_repeated() -> None:
    """Errors end in logs."""
    for url in ("s3://key:hunter2@bucket", "s3://bucket?secret=hunter2", "s3://bucket?endpoint=http://a:hunter2@host"):
        with pytest.raises(InvalidStoreUrl) as caught:
            open_store(url, KEYS)
        assert "hunter2" not in str(caught.value)


def test_s3_without_credentials_is_refused_with_the_names_to_set() -> None:
    """Half of a pair is no pair."""
    for environment in ({}, {"AWS_ACCESS_KEY_ID": "a"}, {"STRONGROOM_S3_SECRET_KEY": "b", "AWS_SECRET_ACCESS_KEY": "c"}):
        with pytest.raises(StoreDenied, match="STRONGROOM_S3_ACCESS_KEY"):
            open_store("s3://bucket", environment)


def test_the_products_own_credentials_go_before_those_of_aws() -> None:
    """And bring their own token only: a token of another pair would be refused by the server."""
    environment = {
        **KEYS,
        "AWS_SESSION_TOKEN": "token",
        "STRONGROOM_S3_ACCESS_KEY": "own",
        "STRONGROOM_S3_SECRET_KEY": "own-secret",
    }
    store = S3Store.from_url("s3://bucket", environment)
    assert store._provide_credentials() == {
        "access_key_id": "own",
        "secret_access_key": "own-secret",
        "token": None,
        "expires_at": None,
    }


def test_no_repr_shows_a_secret() -> None:
    """Neither the store's nor what it holds."""
    store = S3Store.from_url("s3://bucket", {**KEYS, "AWS_SESSION_TOKEN": "a-token"})
    for thing in (store, store._credentials, store._once, store._patient):
        assert "a-secret" not in repr(thing)
        assert "a-token" not in repr(thing)
