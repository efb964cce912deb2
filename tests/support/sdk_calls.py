"""Every call of the public SDK: its name, method and path as the client's class has them, a request made for it, and what
docs/reference/sdk-calls.md says of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huaweicloudsdkgaussdbfornosql.v3 as sdk

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sdk-calls.md"
_ROW = re.compile(r"^\| `(\w+)` \| `([A-Z]+) (/\S*)` \| (works|partly|refused)(?:: ([^|]+))? \|$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Call:
    """One method of the client."""

    name: str
    method: str
    path: str


@dataclass(frozen=True, slots=True)
class Told:
    """What the page says of a call."""

    method: str
    path: str
    outcome: str  # works, partly, refused
    words: str  # what is missing, or worth knowing; empty for nothing


def calls() -> dict[str, Call]:
    """All of the client's calls by name."""
    found = {}
    for name in dir(sdk.GaussDBforNoSQLClient):
        about = getattr(sdk.GaussDBforNoSQLClient, f"_{name}_http_info", None)
        if about is not None:
            source = inspect.getsource(about)
            method, path = re.search(r'"method": "(\w+)"', source), re.search(r'"resource_path": "([^"]+)"', source)
            assert method is not None, name
            assert path is not None, name
            found[name] = Call(name, method[1], path[1])
    return found


def told() -> dict[str, Told]:
    """The page's rows by name. AssertionError for a call that stands there twice."""
    rows = _ROW.findall(PAGE.read_text("utf-8"))
    found = {name: Told(method, path, outcome, words.strip()) for name, method, path, outcome, words in rows}
    assert len(found) == len(rows), "a call stands there twice"
    return found


def request_of(name: str, values: Mapping[str, Any]) -> Any:
    """A request object of the client's method with these attributes, where the request has them."""
    documented = inspect.getdoc(getattr(sdk.GaussDBforNoSQLClient, name)) or ""
    kind = re.search(r":class:`huaweicloudsdkgaussdbfornosql\.v3\.(\w+Request)`", documented)
    assert kind is not None, name
    request = getattr(sdk, kind[1])()
    for attribute in request.openapi_types:
        if attribute in values:
            setattr(request, attribute, values[attribute])
    return request
