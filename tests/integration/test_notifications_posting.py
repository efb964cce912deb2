"""One POST to receivers as good and as bad as they come, and who may be posted to at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from strongroom.notifications import posting
from strongroom.notifications.posting import NotDelivered, Place
from support.certificates import self_signed
from support.receiver import Receiver, receiver
from support.redis_server import free_port

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
HEADERS = {"X-Strongroom-Event": "test"}
BODY = b'{"event": "test"}'


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


def post(url: str, networks: tuple[posting.Network, ...] = LOOPBACK, seconds: float = 5.0) -> int:
    return posting.post(posting.parse(url, networks), BODY, HEADERS, networks, seconds)


def test_what_is_posted_arrives_as_it_is(there: Receiver) -> None:
    """Body, headers, path and query."""
    assert post(there.url("/ok?a=b")) == 204
    (told,) = there.told
    assert (told.path, told.content) == ("/ok?a=b", BODY)
    assert told.headers["X-Strongroom-Event"] == "test"
    assert told.headers["Host"] == f"127.0.0.1:{there.port}"
    assert told.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("path", ["/hang", "/drip"])
def test_a_receiver_that_does_not_come_to_an_end_is_left_in_time(there: Receiver, path: str) -> None:
    """Whether it says nothing or a little all the time."""
    begun = time.monotonic()
    with pytest.raises(NotDelivered, match="did not answer within 1 s"):
        post(there.url(path), seconds=1.0)
    assert 0.9 < time.monotonic() - begun < 3.0
    assert not [one.name for one in threading.enumerate() if isinstance(one, threading.Timer) and not one.finished.is_set()]


def test_an_endless_answer_is_not_read(there: Receiver) -> None:
    """Its status is all that counts."""
    begun = time.monotonic()
    assert post(there.url("/large")) == 200
    assert time.monotonic() - begun < 2.0


def test_redirects_are_not_followed(there: Receiver) -> None:
    """Nor is what they name asked for."""
    with pytest.raises(NotDelivered, match="answered 302") as refused:
        post(there.url("/redirect"))
    assert refused.value.status == 302
    assert [one.path for one in there.told] == ["/redirect"]


def test_a_receiver_that_refuses_is_told_apart_from_one_that_is_not_there(there: Receiver) -> None:
    """By its status, or by what the connection says; the URL is in no text."""
    with pytest.raises(NotDelivered, match="it answered 500") as refused:
        post(there.url("/twice"))
    assert refused.value.status == 500
    assert post(there.url("/twice")) == 200
    with pytest.raises(NotDelivered, match="cannot be talked to: Connection refused") as refused:
        post(f"http://127.0.0.1:{free_port()}/path")
    assert refused.value.status is None
    with pytest.raises(NotDelivered, match="does not resolve"):
        post("http://nobody.invalid/path")


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f000001"])
def test_a_name_that_leads_to_this_machine_is_not_followed(there: Receiver, host: str) -> None:
    """Spelled as the system understands it; nobody connects."""
    with pytest.raises(NotDelivered, match="STRONGROOM_NOTIFY_NETWORKS"):
        post(there.url(host=host), networks=())
    assert not there.told


def test_what_is_connected_to_is_what_was_looked_at(there: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere the second time is resolved once."""
    asked: list[str] = []
    resolve = posting.socket.getaddrinfo

    def once(host: str, *rest: object, **more: object) -> object:
        asked.append(host)
        return resolve("127.0.0.1" if len(asked) == 1 else "203.0.113.1", *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(posting.socket, "getaddrinfo", once)
    assert post(f"http://hooks.example:{there.port}/ok") == 204
    assert asked == ["hooks.example"]
    assert there.told[0].headers["Host"] == f"hooks.example:{there.port}"


def test_one_private_address_among_public_ones_is_enough_to_refuse(there: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever would be tried first."""
    resolve = posting.socket.getaddrinfo

    def both(_host: str, *rest: object, **more: object) -> object:
        return [*resolve("8.8.8.8", *rest, **more), *resolve("127.0.0.1", *rest, **more)]  # type: ignore[arg-type]

    monkeypatch.setattr(posting.socket, "getaddrinfo", both)
    with pytest.raises(NotDelivered, match="private network"):
        post(f"http://hooks.example:{there.port}/ok", networks=())
    assert not there.told


def test_a_proxy_of_the_environment_is_not_used(there: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would connect to what was not looked at."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    assert post(there.url()) == 204


def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the authorities that the system trusts, or those of SSL_CERT_FILE; the name counts too."""
    certificate = self_signed(tmp_path)
    with receiver(certificate=certificate) as there:
        with pytest.raises(NotDelivered, match="certificate is not trusted"):
            post(there.url())
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        assert post(there.url()) == 204
        assert post(there.url(host="localhost")) == 204
        other = Place(True, "127.0.0.2", there.port, "/ok")
        with pytest.raises(NotDelivered):
            posting.post(other, BODY, HEADERS, LOOPBACK)
    assert len(there.told) == 2


def test_a_handshake_that_never_comes_is_left_in_time(there: Receiver) -> None:
    """A plain server is spoken to by TLS: it waits for a request that does not end."""
    begun = time.monotonic()
    with pytest.raises(NotDelivered):
        post(there.url().replace("http", "https"), seconds=1.0)
    assert time.monotonic() - begun < 3.0
