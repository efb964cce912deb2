"""What a statement's Condition asks of a request: operators, keys, and when they hold.

    "Condition": {"Bool": {"g:MFAPresent": ["true"]}, "NotIpAddress": {"g:SourceIp": ["10.0.0.0/8"]}}

All tests of a condition must hold; of a test's values one suffices (none may fit where the operator negates). A key that the
request has not holds for no operator but a negated one, one with the suffix IfExists, and Null, which asks just that.
`ForAnyValue:` and `ForAllValues:` go before an operator on a key of many values, and only there; ForAllValues holds where there
are no values. Operators, keys and values are understood when a policy is stored: what is not understood could be a Deny.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Any

from strongroom.identity.errors import PolicyInvalid

Value = bool | float | str | tuple[str, ...]
Context = Mapping[str, Value]
"""What a request has to say, by the keys' own names. A key that it has nothing for is absent."""


class Kind(Enum):
    """What a key's values are, in words for the refusal."""

    TRUTH = '"true" or "false"'
    NUMBER = "a number"
    TIME = "a time such as 2026-11-24T12:00:00Z, or seconds since the epoch"
    ADDRESS = "an IP address or a network such as 10.0.0.0/8"
    TEXT = "a text"
    TEXTS = "texts"


KEYS: Mapping[str, Kind] = {
    "g:MFAPresent": Kind.TRUTH,  # whether the token or temporary key was made with a second factor
    "g:MFAAge": Kind.NUMBER,  # seconds since then; absent without one
    "g:PrincipalIsRootUser": Kind.TRUTH,  # the account's administrator
    "g:SecureTransport": Kind.TRUTH,  # over TLS
    "g:SourceIp": Kind.ADDRESS,
    "g:CurrentTime": Kind.TIME,
    "g:TokenIssueTime": Kind.TIME,  # absent for a signature by a key
    "g:UserId": Kind.TEXT,
    "g:UserName": Kind.TEXT,
    "g:DomainId": Kind.TEXT,
    "g:DomainName": Kind.TEXT,
    "g:ProjectId": Kind.TEXT,  # absent where a call is about the account
    "g:ProjectName": Kind.TEXT,
    "strongroom:GroupNames": Kind.TEXTS,  # the user's groups; there may be none
}
"""Every key that a condition may name, whatever the case of its letters."""

_NAMES = {name.lower(): name for name in KEYS}
_NULL = "Null"
_IF_EXISTS = "IfExists"


@dataclass(frozen=True, slots=True)
class _Operator:
    kind: Kind
    fits: Callable[[Any, Any], bool]  # (the request's value, one of the condition's)
    negated: bool = False


def _text(pick: Callable[[str], str]) -> Callable[[Any, Any], bool]:
    return lambda actual, wanted: pick(actual) == pick(wanted)


def _like(actual: str, wanted: str) -> bool:
    return _wildcards(wanted).fullmatch(actual) is not None


_OPERATORS: dict[str, _Operator] = {
    "Bool": _Operator(Kind.TRUTH, lambda actual, wanted: actual is wanted),
    "StringEquals": _Operator(Kind.TEXT, _text(str)),
    "StringNotEquals": _Operator(Kind.TEXT, _text(str), negated=True),
    "StringEqualsIgnoreCase": _Operator(Kind.TEXT, _text(str.casefold)),
    "StringNotEqualsIgnoreCase": _Operator(Kind.TEXT, _text(str.casefold), negated=True),
    "StringLike": _Operator(Kind.TEXT, _like),
    "StringNotLike": _Operator(Kind.TEXT, _like, negated=True),
    "StringMatch": _Operator(Kind.TEXT, _like),
    "StringNotMatch": _Operator(Kind.TEXT, _like, negated=True),
    "IpAddress": _Operator(Kind.ADDRESS, lambda actual, wanted: actual in wanted),
    "NotIpAddress": _Operator(Kind.ADDRESS, lambda actual, wanted: actual in wanted, negated=True),
}
for _word, _kind in (("Number", Kind.NUMBER), ("Date", Kind.TIME)):
    _OPERATORS |= {
        f"{_word}Equals": _Operator(_kind, lambda actual, wanted: actual == wanted),
        f"{_word}NotEquals": _Operator(_kind, lambda actual, wanted: actual == wanted, negated=True),
        f"{_word}LessThan": _Operator(_kind, lambda actual, wanted: actual < wanted),
        f"{_word}LessThanEquals": _Operator(_kind, lambda actual, wanted: actual <= wanted),
        f"{_word}GreaterThan": _Operator(_kind, lambda actual, wanted: actual > wanted),
        f"{_word}GreaterThanEquals": _Operator(_kind, lambda actual, wanted: actual >= wanted),
    }


class _Quantifier(Enum):
    ONE = ""
    ANY = "ForAnyValue:"
    ALL = "ForAllValues:"


@dataclass(frozen=True, slots=True)
class Test:
    """One operator on one key, understood."""

    __test__ = False  # pytest collects no class of the product

    key: str
    operator: _Operator | None  # None: Null, which asks whether the key is absent
    quantifier: _Quantifier
    if_exists: bool
    wanted: tuple[Any, ...]

    def holds(self, context: Context) -> bool:
        """Whether the request fits."""
        actual = context.get(self.key)
        if self.operator is None:
            return (actual is None) in self.wanted
        if actual is None:
            return self.if_exists or self.operator.negated
        if isinstance(actual, tuple):
            verdicts = (self._fits(one) for one in actual)
            return any(verdicts) if self.quantifier is _Quantifier.ANY else all(verdicts)
        return self._fits(ipaddress.ip_address(str(actual)) if self.operator.kind is Kind.ADDRESS else actual)

    def _fits(self, actual: Any) -> bool:
        assert self.operator is not None
        return any(self.operator.fits(actual, wanted) for wanted in self.wanted) is not self.operator.negated


def understand(body: Any) -> tuple[Test, ...]:
    """The tests of a statement's Condition. Raises PolicyInvalid, which names what is not understood."""
    if not isinstance(body, dict):
        raise PolicyInvalid("A condition is a JSON object of operators.")
    return tuple(test for operator, tests in body.items() for test in _tests(operator, tests))


def _tests(word: str, body: Any) -> list[Test]:
    operator, quantifier, if_exists = _operator(word)
    if not isinstance(body, dict) or not body:
        raise PolicyInvalid(f"A condition's {word} maps keys to values.")
    found = []
    for key, given in body.items():
        name = _NAMES.get(key.lower())
        if name is None:
            raise PolicyInvalid(f"There is no condition key {key[:80]!a}; there are {', '.join(KEYS)}.")
        values = given if isinstance(given, list) else [given]
        if not values:
            raise PolicyInvalid(f"The condition {word} of {name} has no value.")
        kind = Kind.TRUTH if operator is None else _fitting(word, operator, quantifier, name)
        found.append(Test(name, operator, quantifier, if_exists, tuple(read(kind, value) for value in values)))
    return found


def _operator(word: str) -> tuple[_Operator | None, _Quantifier, bool]:
    quantifier = next((one for one in (_Quantifier.ANY, _Quantifier.ALL) if word.startswith(one.value)), _Quantifier.ONE)
    bare = word.removeprefix(quantifier.value)
    if bare == _NULL and quantifier is _Quantifier.ONE:
        return None, quantifier, False
    name = bare.removesuffix(_IF_EXISTS)
    if name not in _OPERATORS:
        raise PolicyInvalid(f"There is no condition operator {word[:80]!a}; there are {', '.join(_OPERATORS)} and {_NULL}.")
    return _OPERATORS[name], quantifier, bare != name


def _fitting(word: str, operator: _Operator, quantifier: _Quantifier, key: str) -> Kind:
    """The kind of the condition's values, if the operator is one for this key."""
    kind = KEYS[key]
    if (kind is Kind.TEXTS) is (quantifier is _Quantifier.ONE):
        many = "has many values: put ForAnyValue: or ForAllValues: before the operator"
        raise PolicyInvalid(f"The key {key} {many if kind is Kind.TEXTS else 'has one value'} ({word[:80]!a}).")
    if operator.kind is not (Kind.TEXT if kind is Kind.TEXTS else kind):
        raise PolicyInvalid(f"The operator {word} does not fit the key {key}, which is {kind.value}.")
    return operator.kind


def read(kind: Kind, value: Any) -> Any:
    """A condition's value, understood. Raises PolicyInvalid."""
    try:
        return _READERS[kind](value)
    except (ValueError, TypeError, OverflowError):
        raise PolicyInvalid(f"A condition's value {str(value)[:80]!a} is not {kind.value}.") from None


def read_context(key: str, text: str) -> tuple[str, Value]:
    """A key's own name and its value for a request that is only imagined, from text. Raises PolicyInvalid."""
    name = _NAMES.get(key.lower())
    if name is None:
        raise PolicyInvalid(f"There is no condition key {key[:80]!a}; there are {', '.join(KEYS)}.")
    kind = KEYS[name]
    if kind is Kind.TEXTS:
        return name, tuple(word for word in text.split(",") if word)
    if kind is Kind.ADDRESS:
        read(kind, text)
        return name, str(_address(text))
    value: Value = read(kind, text)
    return name, value


def address_or_none(text: str) -> str | None:
    """A caller's address in the form that conditions compare, None if it is none."""
    try:
        return str(_address(text))
    except ValueError:
        return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(text)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = _string(value).lower()
    if word not in ("true", "false"):
        raise ValueError("neither")
    return word == "true"


def _number(value: Any) -> float:
    found = math.nan if isinstance(value, bool) else float(value)
    if not math.isfinite(found):
        raise ValueError("not a number")
    return found


def _time(value: Any) -> float:
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else _string(value)
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]+)?", text):
        return float(text)
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=found.tzinfo or UTC).timestamp()


def _string(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("not a text")
    return value


_READERS: Mapping[Kind, Callable[[Any], Any]] = {
    Kind.TRUTH: _truth,
    Kind.NUMBER: _number,
    Kind.TIME: _time,
    Kind.ADDRESS: lambda value: ipaddress.ip_network(_string(value)),
    Kind.TEXT: _string,
}


@lru_cache(maxsize=4096)
def _wildcards(pattern: str) -> re.Pattern[str]:
    """`*` is any run of characters and `?` any one; runs of stars are one, so that no pattern is slow to match."""
    pieces = re.split(r"([*?])", re.sub(r"\*+", "*", pattern))
    return re.compile("".join({"*": ".*", "?": "."}.get(piece) or re.escape(piece) for piece in pieces), re.DOTALL)
