"""The S3 store against a real SeaweedFS, and against a server that answers as badly as servers do."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from strongroom.storage.base import (
    ObjectExists,
    ObjectMissing,
    Store,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from strongroom.storage.opening import open_store
from strongroom.storage.s3 import S3Store
from strongroom.storage.sigv4 import Credentials
from support.seaweed import Seaweed, free_ports, seaweed
from support.stores import StoreBehaviour, names

_numbers = itertools.count()
KEYS = Credentials("an-access-key", "a-very-secret-key", "a-very-secret-token")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


class TestS3Store(StoreBehaviour):
    """It behaves as every store does, on a real server."""

    @pytest.fixture
    def store(self, server: Seaweed) -> Store:
        return open_store(server.url(f"test/{next(_numbers)}"), server.environment)


def test_a_prefix_keeps_stores_in_one_bucket_apart(server: Seaweed) -> None:
    """Neither sees the other's objects, and the whole bucket sees both under their prefixes."""
    one, two = (open_store(server.url(prefix), server.environment) for prefix in ("apart/one", "apart/two"))
    one.put_new("l/a", b"1")
    two.put_new("l/a", b"2")
    assert (one.get("l/a"), two.get("l/a")) == (b"1", b"2")
    assert names(one) == {"l/a"}
    assert {"apart/one/l/a", "apart/two/l/a"} <= names(open_store(server.url(), server.environment))


def test_a_large_put_is_one_put(server: Seaweed) -> None:
    """No multipart upload, whose remains would be invisible and billed: its ETag is that of a single put."""
    store = open_store(server.url("single"), server.environment)
    store.put_new("l/pack", [b"x" * (6 << 20)] * 3)
    assert "-" not in server.ask("HEAD", f"/{server.bucket}/single/l/pack").headers["etag"]


@pytest.mark.parametrize("wrong", ["STRONGROOM_S3_ACCESS_KEY", "STRONGROOM_S3_SECRET_KEY"])
def test_wrong_credentials_are_denied_by_every_method(server: Seaweed, wrong: str) -> None:
    """Permanently, with advice and without the secret; and no denied stat passes for an absent object."""
    store = open_store(server.url("denied"), {**server.environment, wrong: "not-the-right-one"})
    for call in _every_method(store):
        with pytest.raises(StoreDenied, match="check credentials") as caught:
            call()
        assert caught.value.permanent
        assert "not-the-right-one" not in str(caught.value)
    assert "does not say whether it is versioned: HTTP 403" in (store.keeps_deleted_bytes() or "")


def test_a_missing_bucket_is_denied_by_every_method(server: Seaweed) -> None:
    """It never passes for a bucket from which everything is gone."""
    store = open_store(server.url("prefix", bucket="no-such-bucket"), server.environment)
    for call in (*_every_method(store), store.keeps_deleted_bytes):
        with pytest.raises(StoreDenied, match="no such bucket"):
            call()


def test_a_versioned_bucket_is_said_to_keep_deleted_bytes(server: Seaweed) -> None:
    """So that a receipt says hidden, not freed; also when versioning is only suspended."""
    assert server.ask("PUT", "/versioned-bucket").status_code == 200
    store = open_store(server.url(bucket="versioned-bucket"), server.environment)
    assert store.keeps_deleted_bytes() is None
    _set_versioning(server, "versioned-bucket", "Enabled")
    assert "versioned (Enabled)" in (store.keeps_deleted_bytes() or "")
    _set_versioning(server, "versioned-bucket", "Suspended")
    assert "versioned (Suspended)" in (store.keeps_deleted_bytes() or "")


def _set_versioning(server: Seaweed, bucket: str, status: str) -> None:
    body = f"<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>".encode()
    assert server.ask("PUT", f"/{bucket}", {"versioning": ""}, body).status_code == 200


def test_an_unreachable_server_is_unavailable(server: Seaweed) -> None:
    """To every method, and not for ever: the same store works once the server is there."""
    store = S3Store("bucket", credentials=KEYS, endpoint=f"http://127.0.0.1:{free_ports(1)[0]}", timeout=5)
    for call in (*_every_method(store), store.keeps_deleted_bytes):
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert not caught.value.permanent
        assert "secret" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up_after_the_time_out() -> None:
    """A put that hangs ends as unavailable: its object may or may not exist."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}"
        store = S3Store("bucket", credentials=KEYS, endpoint=endpoint, timeout=0.5)
        with pytest.raises(StoreUnavailable):
            store.put_new("l/a", b"x")
        with pytest.raises(StoreUnavailable):
            store.keeps_deleted_bytes()


def _every_method(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.put_new("l/a", b"x"),
        lambda: store.get("l/a"),
        lambda: store.get("l/a", -3),
        lambda: store.get("l/a", 0, 0),
        lambda: store.delete("l/a"),
        lambda: store.delete_many(["l/a", "l/b"]),
        lambda: store.stat("l/a"),
        lambda: list(store.list("l/")),
    ]


@dataclass
class Scripted:
    """An S3 server that answers as told: by method (and "BULK", "LIST", "ASK"), with a status and an error code or a body."""

    answers: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    endpoint: str = ""

    def store(self) -> S3Store:
        return S3Store("bucket", credentials=KEYS, endpoint=self.endpoint, timeout=10)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    script = Scripted()

    class Handler(BaseHTTPRequestHandler):
        timeout = 0.5  # seconds: a connection that the client opened ahead does not hold up the end of a test

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            path, _, query = self.path.partition("?")
            kind = "BULK" if query == "delete" else "LIST" if "list-type" in query else "ASK" if query else self.command
            script.asked.append(f"{kind} {path}")
            script.headers.append({key.lower(): value for key, value in self.headers.items()})
            told = script.answers.get(kind, [(500, "InternalError")])
            status, code = told.pop(0) if len(told) > 1 else told[0]
            text = code if code.startswith("<") else f"<Error><Code>{code}</Code></Error>" if code else ""
            body = b"" if self.command == "HEAD" else text.encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        script.endpoint = f"http://127.0.0.1:{http.server_address[1]}"
        serving = threading.Thread(target=http.serve_forever, args=(0.01,))
        serving.start()
        yield script
        http.shutdown()
        serving.join()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (500, "InternalError", StoreUnavailable),
        (503, "SlowDown", StoreUnavailable),
        (429, "TooManyRequests", StoreUnavailable),
        (408, "RequestTimeout", StoreUnavailable),
        (409, "ConditionalRequestConflict", StoreUnavailable),
        (507, "InsufficientStorage", StoreFull),
        (507, "XMinioStorageFull", StoreFull),
        (403, "QuotaExceeded", StoreFull),
        (401, "Unauthorized", StoreDenied),
        (403, "AccessDenied", StoreDenied),
        (403, "RequestTimeTooSkewed", StoreDenied),
        (404, "NoSuchBucket", StoreDenied),
        (400, "AuthorizationHeaderMalformed", StoreDenied),
        (501, "NotImplemented", StoreDenied),
        (412, "PreconditionFailed", ObjectExists),
        (304, "", ObjectExists),
    ],
)
def test_what_a_server_answers_to_a_put_becomes_one_of_our_errors(
    scripted: Scripted, status: int, code: str, expected: type[StoreError]
) -> None:
    """After one request and no more: a put is never retried inside. No secret is in the text."""
    scripted.answers["PUT"] = [(status, code)]
    with pytest.raises(expected) as caught:
        scripted.store().put_new("l/a", b"x")
    assert scripted.asked == ["PUT /bucket/l/a"]
    assert scripted.headers[0]["if-none-match"] == "*"
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_get_is_tried_again(scripted: Scripted) -> None:
    """It changes nothing, and most errors of a server pass."""
    scripted.answers["GET"] = [(503, "SlowDown"), (200, "")]
    assert scripted.store().get("l/a") == b""
    assert scripted.asked == ["GET /bucket/l/a"] * 2


def test_absence_is_said_only_where_the_server_says_it_of_the_object(scripted: Scripted) -> None:
    """A HEAD's 404 alone could be the bucket's."""
    scripted.answers = {"HEAD": [(404, "")], "GET": [(404, "NoSuchKey")]}
    assert scripted.store().stat("l/a") is None
    scripted.answers = {"HEAD": [(404, "")], "GET": [(404, "NoSuchBucket")]}
    with pytest.raises(StoreDenied, match="no such bucket"):
        scripted.store().stat("l/a")
    scripted.answers = {"HEAD": [(404, "")], "GET": [(403, "AccessDenied")]}
    with pytest.raises(StoreDenied):
        scripted.store().stat("l/a")
    scripted.answers = {"GET": [(404, "NoSuchKey")]}
    with pytest.raises(ObjectMissing):
        scripted.store().get("l/a")


def test_a_bulk_delete_that_fails_is_done_one_by_one(scripted: Scripted) -> None:
    """Its failure tells nothing about what went; a missing object counts as removed."""
    scripted.answers = {"BULK": [(405, "MethodNotAllowed")], "DELETE": [(204, ""), (404, "NoSuchKey"), (204, "")]}
    scripted.store().delete_many(["l/a", "l/b", "l/c"])
    assert scripted.asked == ["BULK /bucket", "DELETE /bucket/l/a", "DELETE /bucket/l/b", "DELETE /bucket/l/c"]


@pytest.mark.parametrize(
    "body",
    [
        "<DeleteResult><Deleted><Key>l/a</Key></Deleted><Error><Key>l/b</Key><Code>AccessDenied</Code></Error></DeleteResult>",
        "<Error><Code>InternalError</Code></Error>",
        "<html>a proxy's page</html>",
        "<",
    ],
    ids=["an error for one", "an error for all", "another page", "a broken answer"],
)
def test_a_bulk_delete_that_says_200_but_reports_errors_has_failed(scripted: Scripted, body: str) -> None:
    """A server without the right to delete may answer so; each object is then asked for by itself."""
    scripted.answers = {"BULK": [(200, body)], "DELETE": [(403, "AccessDenied")]}
    with pytest.raises(StoreDenied):
        scripted.store().delete_many(["l/a", "l/b"])
    assert [asked for asked in scripted.asked if asked != "BULK /bucket"] == ["DELETE /bucket/l/a", "DELETE /bucket/l/b"]


def test_one_object_that_may_not_go_does_not_keep_the_others(scripted: Scripted) -> None:
    """All that may go goes, then the refusal is said."""
    scripted.answers = {"BULK": [(400, "Nope")], "DELETE": [(403, "AccessDenied"), (204, ""), (204, "")]}
    with pytest.raises(StoreDenied, match="l/a"):
        scripted.store().delete_many(["l/a", "l/b", "l/c"])
    assert scripted.asked[1:] == ["DELETE /bucket/l/a", "DELETE /bucket/l/b", "DELETE /bucket/l/c"]


def test_a_server_in_trouble_is_not_asked_for_every_name(scripted: Scripted) -> None:
    """The first that it does not answer ends the bulk delete; it will be tried again as a whole."""
    scripted.answers = {"BULK": [(400, "Nope")], "DELETE": [(503, "SlowDown")]}
    with pytest.raises(StoreUnavailable):
        scripted.store().delete_many(["l/a", "l/b", "l/c"])
    assert scripted.asked[1:] == ["DELETE /bucket/l/a"]


def test_a_server_that_knows_no_versioning_keeps_no_versions(scripted: Scripted) -> None:
    """501 is an answer; a failure is none, and what stays unknown is not called freed."""
    scripted.answers["ASK"] = [(501, "NotImplemented")]
    assert scripted.store().keeps_deleted_bytes() is None
    scripted.answers["ASK"] = [(503, "SlowDown")]
    with pytest.raises(StoreUnavailable):
        scripted.store().keeps_deleted_bytes()
    scripted.answers["ASK"] = [(400, "Strange")]
    assert "HTTP 400 Strange" in (scripted.store().keeps_deleted_bytes() or "")


def test_temporary_credentials_are_sent_with_their_token(scripted: Scripted) -> None:
    """With requests of the client library and with our own."""
    scripted.answers = {"DELETE": [(204, "")], "ASK": [(501, "")]}
    scripted.store().delete("l/a")
    scripted.store().keeps_deleted_bytes()
    assert [headers["x-amz-security-token"] for headers in scripted.headers] == ["a-very-secret-token"] * 2


def test_listing_errors_are_ours_too(scripted: Scripted) -> None:
    """They come at the first step through the listing."""
    scripted.answers["LIST"] = [(403, "AccessDenied")]
    with pytest.raises(StoreDenied):
        next(scripted.store().list("l/"))
