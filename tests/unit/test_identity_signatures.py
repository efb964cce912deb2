"""Signatures: what the public SDK's own signer makes is verified, and whatever is changed afterwards is noticed."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.signer import Signer, SM3Signer
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.identity import accounts
from strongroom.identity import tables as t
from strongroom.identity.accounts import AccessKey
from strongroom.identity.errors import KeyLocked, Unauthenticated
from strongroom.identity.signatures import LOCKED_FOR, SKEW, Received, authenticate, matches, parse
from support.border import NOON, House, build_house

KEY = AccessKey("SRTESTKEY", "a secret of the tests")
PATH = "/v3/054e292c9880d4992f02c0196d3ea468/backups/5b0ae36cb8a746b68685a8fb588d8a15br06"


def date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%dT%H%M%SZ")


def signed(
    key: AccessKey = KEY,
    method: str = "DELETE",
    path: str = PATH,
    query: list[tuple[str, Any]] | None = None,
    body: str = "",
    headers: dict[str, str] | None = None,
    at: float = NOON,
    signer: type[Signer] = Signer,
) -> Received:
    """A request as the SDK signs it and its HTTP client sends it."""
    sent = {"Content-Type": "application/json", "User-Agent": "huaweicloud-usdk-python/3.0", "X-Project-Id": "p"}
    request = SdkRequest(
        method=method, schema="http", host="127.0.0.1:8080", resource_path=path, query_params=query or [],
        header_params={**(headers if headers is not None else sent), "X-Sdk-Date": date(at)}, body=body,
    )  # fmt: skip
    signer(BasicCredentials(key.id, key.secret)).sign(request)
    raw_path, _, raw_query = request.uri.partition("?")
    wire = [(name.lower().encode(), value.encode("latin-1")) for name, value in request.header_params.items()]
    return Received(method, raw_path.encode(), raw_query.encode(), wire, request.body or b"")


def proof(request: Received) -> Any:
    return parse(request.header("authorization") or "")


def holds(request: Received, secret: str = KEY.secret) -> bool:
    return matches(request, proof(request), secret.encode())


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"method": "GET", "path": "/"},
        {"method": "GET", "query": [("limit", 10), ("offset", 0), ("begin_time", "2019-05-27T03:38:51+0000")]},
        {"method": "GET", "query": [("b", "2"), ("a", ["z", "y"]), ("a-b", "ü ~/*"), ("flag", True)]},
        {"method": "POST", "body": '{"name": "Tägliche Sicherung"}\n'},
        {"path": "/v3/p/backups/a%2Fb%20c"},
        {"path": "/v3/p/backups/%E6%97%A5~x."},
        {"headers": {"Content-Type": "application/json", "X-Language": "déjà vu "}},
        {"headers": {"Content-Type": "text/plain"}, "method": "PUT", "body": "x"},
        {"headers": {"Content-Type": "text/plain"}},
        {"headers": {}},
    ],
    ids=str,
)
def test_what_the_sdk_signs_is_verified(case: dict[str, Any]) -> None:
    """Paths, queries, bodies and headers in all shapes the SDK makes."""
    assert holds(signed(**case))
    assert not holds(signed(**case), "another secret")


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    segments=st.lists(TEXT.filter(bool), min_size=1, max_size=4),
    query=st.lists(st.tuples(TEXT.filter(bool), TEXT), max_size=5),
    body=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
def test_any_request_of_the_sdk_is_verified(segments: list[str], query: list[tuple[str, str]], body: str) -> None:
    """Random paths, queries and bodies."""
    path = "/" + "/".join(quote(segment, safe="") for segment in segments)
    assert holds(signed(method="POST", path=path, query=list(query), body=body))


def changed(request: Received, **values: Any) -> Received:
    fields = {name: getattr(request, name) for name in ("method", "raw_path", "raw_query", "headers", "body")}
    return Received(**{**fields, **values})


@pytest.mark.parametrize(
    "change",
    [
        {"method": "GET"},
        {"raw_path": PATH.replace("br06", "br07").encode()},
        {"raw_query": b"force=true"},
        {"body": b"{}"},
    ],
    ids=str,
)
def test_any_change_of_a_signed_request_is_noticed(change: dict[str, Any]) -> None:
    """Method, path, query and body are what was signed."""
    assert not holds(changed(signed(), **change))


@pytest.mark.parametrize("name", [b"content-type", b"host", b"user-agent", b"x-project-id", b"x-sdk-date"])
def test_a_changed_signed_header_is_noticed(name: bytes) -> None:
    """Every header that the signature names."""
    request = signed()
    headers = [(key, value + b"1" if key == name else value) for key, value in request.headers]
    assert not holds(changed(request, headers=headers))


def test_a_header_that_is_not_signed_may_be_added() -> None:
    """Proxies do, and X-Security-Token arrives unsigned."""
    request = signed()
    assert holds(changed(request, headers=[*request.headers, (b"x-forwarded-for", b"192.0.2.1")]))


def test_a_signed_header_that_is_missing_or_doubled_is_refused() -> None:
    """Nobody can say which of two was signed."""
    request = signed()
    without = [pair for pair in request.headers if pair[0] != b"host"]
    for headers in (without, [*request.headers, (b"host", b"elsewhere")]):
        with pytest.raises(Unauthenticated):
            holds(changed(request, headers=headers))


def by_hand(headers: dict[str, str], names: str, query: str = "", payload: str | None = None, body: bytes = b"") -> Received:
    """A request signed over the named headers only, its canonical form written out."""
    values = {name.lower(): value for name, value in headers.items()} | {"x-sdk-date": date(NOON)}
    lines = "".join(f"{name}:{values[name]}\n" for name in names.split(";"))
    hashed = payload or hashlib.sha256(body).hexdigest()
    canonical = f"DELETE\n{PATH}/\n{query}\n{lines}\n{names}\n{hashed}"
    text = f"SDK-HMAC-SHA256\n{values['x-sdk-date']}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    digest = hmac.new(KEY.secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    values["authorization"] = f"SDK-HMAC-SHA256 Access={KEY.id}, SignedHeaders={names}, Signature={digest}"
    wire = [(name.encode(), value.encode()) for name, value in values.items()]
    return Received("DELETE", PATH.encode(), query.encode(), wire, body)


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        ("text/plain", True), ("application/json", False), ("Application/JSON;charset=utf8", False), ("application/bson", False),
        ("application/vnd.api+json", False), ("application/x+JSON ; q=1", False),
    ],
)  # fmt: skip
def test_an_unsigned_payload_is_no_way_around_the_body_of_a_json_request(kind: str, accepted: bool) -> None:
    """The stand-in for the hash counts only for types that the service does not read, whether the type is signed or not."""
    headers = {"content-type": kind, "x-sdk-content-sha256": "UNSIGNED-PAYLOAD"}
    request = by_hand(headers, "x-sdk-date", payload="UNSIGNED-PAYLOAD", body=b"{}")
    assert holds(request) is accepted
    without = [pair for pair in request.headers if pair[0] != b"content-type"]
    assert not holds(changed(request, headers=without))


def test_terraforms_signature_without_host_is_verified() -> None:
    """It signs accept, user-agent and x-sdk-date; the rest of the headers it leaves out."""
    headers = {"Accept": "application/json", "User-Agent": "terraform-provider-iac golangsdk/2.0.0", "Host": "strongroom"}
    assert holds(by_hand(headers, "accept;user-agent;x-sdk-date"))


def test_a_query_counts_by_its_meaning() -> None:
    """A plus is a space, pairs come in any order, and an empty piece is none."""
    request = by_hand({}, "x-sdk-date", query="a=x%20y&b=2")
    assert holds(request)
    assert holds(changed(request, raw_query=b"b=2&&a=x+y"))
    assert not holds(changed(request, raw_query=b"b=2&a=x%2By"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("V11-HMAC-SHA256 Credential=a/b, SignedHeaders=x-sdk-date, Signature=00", "V11-HMAC-SHA256"),
        ("SDK-ECDSA-P256-SHA256 Access=a, SignedHeaders=x-sdk-date, Signature=00", "SDK-ECDSA-P256-SHA256"),
        ("Basic YTpi", "Basic"),
        ("SDK-HMAC-SHA256 Access=a", "malformed"),
        (f"SDK-HMAC-SHA256 Access=a, SignedHeaders=host, Signature={'0' * 64}", "x-sdk-date"),
        ("", "not supported"),
    ],
)
def test_other_algorithms_and_malformed_headers_are_refused_clearly(text: str, reason: str) -> None:
    """The message names what was wrong."""
    with pytest.raises(Unauthenticated, match=reason):
        parse(text)


def test_the_sdks_sm3_signature_is_refused_by_name() -> None:
    """Not understood, not ignored."""
    with pytest.raises(Unauthenticated, match="SDK-HMAC-SM3"):
        proof(signed(signer=SM3Signer))


# --- with the catalog --------------------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> House:
    return build_house(tmp_path)


def ask(house: House, request: Received) -> str:
    return authenticate(house.services.catalog, house.services.sealer, request, house.clock.now()).user


def wrong(house: House) -> Received:
    return signed(AccessKey(house.first.key.id, "guessed"), at=house.clock.now())


def right(house: House) -> Received:
    return signed(house.first.key, at=house.clock.now())


def test_a_signature_tells_whose_key_it_was(house: House) -> None:
    """The key's owner, from the sealed secret."""
    assert ask(house, right(house)) == house.first.founded.user


def test_equal_requests_are_both_accepted(house: House) -> None:
    """Two equal requests within a second have equal bytes; the second is no replay."""
    assert ask(house, right(house)) == ask(house, right(house))


@pytest.mark.parametrize(("off", "accepted"), [(SKEW, True), (-SKEW, True), (SKEW + 1, False), (-SKEW - 1, False)])
def test_a_date_may_differ_by_fifteen_minutes(house: House, off: float, accepted: bool) -> None:
    """On either side."""
    request = signed(house.first.key, at=house.clock.now() + off)
    if accepted:
        assert ask(house, request)
    else:
        with pytest.raises(Unauthenticated, match="15 minutes"):
            ask(house, request)


def test_an_unknown_or_disabled_key_is_refused(house: House) -> None:
    """Without a difference between the two."""
    with pytest.raises(Unauthenticated, match="not known or disabled"):
        ask(house, signed(AccessKey("SRNOBODY", "x"), at=NOON))
    with house.services.catalog.write() as conn:
        accounts.set_access_key_enabled(conn, house.clock, house.first.founded.user, house.first.key.id, False)
    with pytest.raises(Unauthenticated, match="not known or disabled"):
        ask(house, right(house))


def test_a_disabled_users_key_signs_nothing(house: House) -> None:
    """The key itself is still enabled."""
    account = house.first.founded.account
    with house.services.catalog.write() as conn:
        accounts.create_user(conn, house.clock, account, "other", None, administrator=True)
        accounts.set_enabled(conn, house.clock, house.first.founded.user, False)
    with pytest.raises(Unauthenticated):
        ask(house, right(house))


def test_five_wrong_signatures_lock_the_key_for_five_minutes(house: House) -> None:
    """The right one is refused too, and after the pause counting starts anew."""
    for _ in range(5):
        with pytest.raises(Unauthenticated, match="verify aksk"):
            ask(house, wrong(house))
    with pytest.raises(KeyLocked):
        ask(house, right(house))
    house.clock.sleep(LOCKED_FOR - 1)
    with pytest.raises(KeyLocked):
        ask(house, right(house))
    house.clock.sleep(1)
    assert ask(house, right(house))


def test_a_right_signature_in_between_starts_the_count_again(house: House) -> None:
    """Five in a row means in a row."""
    for count in (4, 4):
        for _ in range(count):
            with pytest.raises(Unauthenticated, match="verify aksk"):
                ask(house, wrong(house))
        assert ask(house, right(house))


def test_the_secret_is_not_in_the_catalog(house: House) -> None:
    """Only sealed."""
    with house.services.catalog.read() as conn:
        stored = conn.scalar(sa.select(t.access_key.c.secret))
    assert house.first.key.secret.encode() not in stored
    assert house.first.key.secret not in repr(house.first)
