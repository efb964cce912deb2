"""Request signatures of the algorithm SDK-HMAC-SHA256, verified over the request exactly as it was received.

    canonical request = METHOD, path, query, headers, names of the signed headers, hash of the body; joined by newlines
    string to sign    = algorithm, X-Sdk-Date, hex(sha256(canonical request))
    signature         = hex(hmac_sha256(secret, string to sign))

Equal requests within one second have equal signatures, so a signature seen before is no replay to be refused: dates have
whole seconds, and clients do send equal requests. A date may differ from ours by 15 minutes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import sqlalchemy as sa
from sqlalchemy import Connection

from strongroom.catalog.database import Catalog
from strongroom.identity import tables as t
from strongroom.identity.errors import KeyLocked, Unauthenticated
from strongroom.identity.secrets import Sealer
from strongroom.identity.tokens import digest

ALGORITHM = "SDK-HMAC-SHA256"
SKEW = 15 * 60.0
"""Seconds that a client's clock may differ from ours."""
WRONG_IN_A_ROW = 5
LOCKED_FOR = 5 * 60.0
"""Seconds that a key rests after WRONG_IN_A_ROW wrong signatures."""

_UNSIGNED = "UNSIGNED-PAYLOAD"
_FORM = re.compile(
    r"SDK-HMAC-SHA256\s+Access=(?P<access>[^,\s]{1,128}),\s*SignedHeaders=(?P<headers>[^,\s]{1,4096}),"
    r"\s*Signature=(?P<signature>[0-9a-fA-F]{64})"
)
_DATE = re.compile(r"[0-9]{8}T[0-9]{6}Z")


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came off the wire. Header names are lower-case."""

    method: str
    raw_path: bytes
    raw_query: bytes
    headers: Sequence[tuple[bytes, bytes]] = field(repr=False)
    body: bytes = field(repr=False)

    def header(self, name: str) -> str | None:
        """The one value of a header as text, None if absent. Unauthenticated if it is there twice."""
        values = [value for key, value in self.headers if key == name.encode("latin-1", "replace")]
        if len(values) > 1:
            raise Unauthenticated(f"the header {name} is there more than once")
        return values[0].decode("latin-1") if values else None


@dataclass(frozen=True, slots=True)
class Signature:
    """What an Authorization header says."""

    access: str
    headers: tuple[str, ...]
    digest: str = field(repr=False)


def parse(authorization: str) -> Signature:
    """Understands an Authorization header; Unauthenticated names an algorithm that is not ours."""
    found = _FORM.fullmatch(authorization.strip())
    if found is None:
        algorithm = authorization.split(" ", 1)[0][:64]
        if algorithm == ALGORITHM:
            raise Unauthenticated("the Authorization header is malformed")
        raise Unauthenticated(f"the algorithm {algorithm!a} is not supported, sign with {ALGORITHM}")
    headers = tuple(found["headers"].lower().split(";"))
    if "x-sdk-date" not in headers:
        raise Unauthenticated("x-sdk-date is not among the signed headers")
    return Signature(found["access"], headers, found["signature"].lower())


def signed_at(request: Received) -> float:
    """X-Sdk-Date in seconds since the epoch."""
    text = request.header("x-sdk-date")
    if text is None or not _DATE.fullmatch(text.strip()):
        raise Unauthenticated("X-Sdk-Date is missing or not of the form YYYYMMDDTHHMMSSZ")
    try:
        return datetime.strptime(text.strip(), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise Unauthenticated("X-Sdk-Date is no date") from None


def matches(request: Received, signature: Signature, secret: bytes) -> bool:
    """Whether the holder of `secret` signed this request. Compares in constant time."""
    date = (request.header("x-sdk-date") or "").strip()
    holds = False
    for payload in _payloads(request):
        canonical = _canonical(request, signature.headers, payload)
        to_sign = f"{ALGORITHM}\n{date}\n{hashlib.sha256(canonical).hexdigest()}"
        expected = hmac.new(secret, to_sign.encode(), hashlib.sha256).hexdigest()
        holds |= hmac.compare_digest(expected, signature.digest)
    return holds


def _payloads(request: Received) -> Iterator[str]:
    """What may stand for the body: its hash, and for types that the service never reads also the word that stands for
    an unsigned body."""
    yield hashlib.sha256(request.body).hexdigest()
    kind = (request.header("content-type") or "").lower().partition(";")[0].strip()
    signed_kind = kind.startswith(("application/json", "application/bson")) or kind.endswith("+json")  # read as JSON too
    if kind and not signed_kind and request.header("x-sdk-content-sha256") == _UNSIGNED:
        yield _UNSIGNED


def _canonical(request: Received, headers: Sequence[str], payload: str) -> bytes:
    lines = []
    for name in headers:
        value = request.header(name)
        if value is None:
            raise Unauthenticated(f"the signed header {name[:64]!a} is missing")
        lines.append(name.encode() + b":" + value.encode("latin-1").strip() + b"\n")
    return b"\n".join(
        (
            request.method.upper().encode(),
            _path(request.raw_path).encode(),
            _query(request.raw_query).encode(),
            b"".join(lines),
            ";".join(headers).encode(),
            payload.encode(),
        )
    )


def _path(raw: bytes) -> str:
    path = "/".join(quote(part, safe="~") for part in unquote_to_bytes(raw).split(b"/"))
    return path if path.endswith("/") else path + "/"


def _query(raw: bytes) -> str:
    """Pairs sorted by what they mean, not by how they are encoded; a plus is a space."""
    pairs = []
    for piece in raw.split(b"&"):
        if piece:
            key, _, value = piece.replace(b"+", b" ").partition(b"=")
            pairs.append((unquote_to_bytes(key), unquote_to_bytes(value)))
    return "&".join(f"{quote(key, safe='~')}={quote(value, safe='~')}" for key, value in sorted(pairs))


@dataclass(frozen=True, slots=True)
class Signer:
    """Whose key signed a request."""

    user: str
    temporary: bool = False
    mfa_at: float | None = None  # when a second factor was shown for a temporary key


def authenticate(catalog: Catalog, sealer: Sealer, request: Received, now: float) -> Signer:
    """Whose key signed the request. Raises Unauthenticated or KeyLocked.

    A wrong signature is counted in a transaction of its own; five in a row lock the key for five minutes, for right ones too.
    A temporary key needs its security token in X-Security-Token beside the signature, which does not cover that header.
    """
    signature = parse(request.header("authorization") or "")
    if abs(signed_at(request) - now) > SKEW:
        raise Unauthenticated("X-Sdk-Date differs from the server's clock by more than 15 minutes")
    with catalog.read() as conn:
        key = conn.execute(
            sa.select(t.access_key, t.user.c.enabled.label("user_enabled"), t.user.c.epoch.label("user_epoch"))
            .join(t.user, t.user.c.id == t.access_key.c.user)
            .where(t.access_key.c.id == signature.access)
        ).one_or_none()
    if key is None or not key.enabled or not key.user_enabled:
        raise Unauthenticated("the access key is not known or disabled")
    if key.locked_until is not None and key.locked_until > now:
        raise KeyLocked("the access key is locked after too many wrong signatures, try again in some minutes")
    right = matches(request, signature, sealer.open(key.secret, "access-key", key.id))
    if not right or key.wrong:
        with catalog.write() as conn:
            _count(conn, key.id, right, now)
    if not right:
        raise Unauthenticated("verify aksk signature fail")
    _check_session(request, key, now)
    return Signer(str(key.user), key.session is not None, key.mfa_at)


def _check_session(request: Received, key: sa.Row[Any], now: float) -> None:
    """A security token goes with the temporary key that it was made for, and with no other."""
    text = request.header("x-security-token")
    if key.session is None:
        if text:
            raise Unauthenticated("X-Security-Token goes with a temporary access key, and this is none")
        return
    if not text or not hmac.compare_digest(digest(text), key.session):
        raise Unauthenticated("X-Security-Token is missing or not this temporary access key's")
    if key.epoch != key.user_epoch:
        raise Unauthenticated("the temporary access key is revoked")
    if key.expires_at <= now:
        raise Unauthenticated("the temporary access key has expired")


def _count(conn: Connection, key: str, right: bool, now: float) -> None:
    c = t.access_key.c
    row = sa.update(t.access_key).where(c.id == key)
    if right:
        conn.execute(row.where(sa.or_(c.locked_until.is_(None), c.locked_until <= now)).values(wrong=0, locked_until=None))
        return
    conn.execute(row.values(wrong=c.wrong + 1))
    conn.execute(row.where(c.wrong >= WRONG_IN_A_ROW).values(wrong=0, locked_until=now + LOCKED_FOR))
