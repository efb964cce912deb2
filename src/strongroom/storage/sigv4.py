"""AWS Signature Version 4: for the few bucket questions that the object client cannot ask.

The scheme is described in "Authenticating Requests: Using the Authorization Header" of the Amazon S3 API reference.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit


@dataclass(frozen=True, slots=True)
class Credentials:
    """What opens a bucket. The secrets never show in a repr."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


def signed_headers(
    method: str, url: str, query: Mapping[str, str], region: str, credentials: Credentials, now: float, body: bytes = b""
) -> dict[str, str]:
    """The headers that authenticate `method url?query` for some minutes from `now` (seconds since the epoch).

    `url` carries no query of its own, and its path is percent-encoded already.
    """
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    parts = urlsplit(url)
    digest = hashlib.sha256(body).hexdigest()
    headers = {"host": parts.netloc, "x-amz-content-sha256": digest, "x-amz-date": stamp}
    if credentials.session_token:
        headers["x-amz-security-token"] = credentials.session_token
    names = ";".join(sorted(headers))
    lines = [f"{name}:{headers[name]}\n" for name in sorted(headers)]
    request = "\n".join((method, parts.path or "/", query_string(query), "".join(lines), names, digest))
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    to_sign = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    signature = hmac.new(_signing_key(credentials.secret_key, scope), to_sign.encode(), hashlib.sha256).hexdigest()
    credential = f"Credential={credentials.access_key}/{scope}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 {credential},SignedHeaders={names},Signature={signature}"
    return headers


def query_string(query: Mapping[str, str]) -> str:
    """The query in the one form that is signed: sorted, encoded, "=" even behind an empty value."""
    return "&".join(f"{quote(key, safe='-_.~')}={quote(query[key], safe='-_.~')}" for key in sorted(query))


def _signing_key(secret: str, scope: str) -> bytes:
    key = b"AWS4" + secret.encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
