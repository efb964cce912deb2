"""Requests as the public Terraform provider puts them on the wire: its headers, its signature, its order of queries.

Recorded from the provider against a stand-in: it names itself, asks for gzip, sorts the pairs of a query and percent-encodes
all but A-Za-z0-9-_.~ in them, and signs accept, content-type (where there is one), user-agent and x-sdk-date, but not the host.
A DELETE has a JSON content type and no body.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit

AGENT = "terraform-provider-iac golangsdk/2.0.0"
JSON, JSON_UTF8 = "application/json", "application/json;charset=utf8"
BUSY = {"DBS.200019", "DBS.201015", "DBS.280005"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: Any  # parsed; None where there was none

    @property
    def code(self) -> str:
        """The error's code; empty if it is none."""
        return str(self.body.get("error_code", "")) if isinstance(self.body, dict) else ""


@dataclass(frozen=True, slots=True)
class Provider:
    """One configured provider: with keys, or with a token."""

    endpoint: str
    project: str
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    def send(
        self, method: str, path: str, body: Any = None, *, query: Mapping[str, str] | None = None, kind: str = JSON
    ) -> Answer:
        """One request; `{p}` in the path is the project. The path goes out as it is."""
        path = path.replace("{p}", self.project)
        pairs = "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in sorted((query or {}).items()))
        content = b"" if body is None else json.dumps(body).encode() + b"\n"
        headers = {"Accept": "application/json", "User-Agent": AGENT, "X-Project-Id": self.project, "Content-Type": kind}
        if self.token:
            headers["X-Auth-Token"] = self.token
        if self.access_key:
            headers |= self._signature(method, path, pairs, headers, content)
        where = urlsplit(self.endpoint)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
        try:
            connection.putrequest(method, f"{path}?{pairs}" if pairs else path, skip_accept_encoding=True)
            if content:
                headers["Content-Length"] = str(len(content))
            for name, value in {**headers, "Accept-Encoding": "gzip"}.items():
                connection.putheader(name, value)
            connection.endheaders(content or None)
            came = connection.getresponse()
            raw = came.read()
            told = {name.lower(): value for name, value in came.getheaders()}
            if told.get("content-encoding") == "gzip":
                raw = gzip.decompress(raw)
            return Answer(came.status, told, json.loads(raw) if raw else None)
        finally:
            connection.close()

    def read_on(self, path: str, items: str, *, query: Mapping[str, str] | None = None, kind: str = JSON_UTF8) -> list[Any]:
        """A list as data sources read it: page after page by offset, until one is empty."""
        found: list[Any] = []
        asked = dict(query or {})
        for _page in range(50):
            answer = self.send("GET", path, query=asked, kind=kind)
            assert answer.status == 200, answer
            arrays = [name for name, value in answer.body.items() if isinstance(value, list)]
            assert arrays == [items], "the items are the only array at the top"
            if not answer.body[items]:
                return found
            found += answer.body[items]
            asked["offset"] = str(len(found))
        raise AssertionError(f"{path} has no end")

    def _signature(self, method: str, path: str, pairs: str, headers: Mapping[str, str], content: bytes) -> dict[str, str]:
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        signed = {name.lower(): value for name, value in headers.items() if name in ("Accept", "Content-Type", "User-Agent")}
        signed["x-sdk-date"] = date
        names = sorted(signed)
        parts = "/".join(quote(part, safe="~") for part in unquote(path).split("/"))
        canonical = "\n".join(
            (
                method, parts if parts.endswith("/") else f"{parts}/", pairs,
                "".join(f"{name}:{signed[name]}\n" for name in names), ";".join(names), hashlib.sha256(content).hexdigest(),
            )
        )  # fmt: skip
        to_sign = f"SDK-HMAC-SHA256\n{date}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        proof = hmac.new(self.secret_key.encode(), to_sign.encode(), hashlib.sha256).hexdigest()
        said = f"SDK-HMAC-SHA256 Access={self.access_key}, SignedHeaders={';'.join(names)}, Signature={proof}"
        return {"X-Sdk-Date": date, "Authorization": said}
