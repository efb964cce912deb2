"""Conditions of policies: which operators and keys there are, and when each holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.identity.conditions import KEYS, Context, read_context, understand
from strongroom.identity.errors import PolicyInvalid
from strongroom.identity.policies import Decision, allowed, decide, parse
from strongroom.identity.principal import Principal, context_of

NOON = 1_795_521_600.0  # 2026-11-24T12:00:00Z
DELETE = "gaussdbfornosql:instance:deleteBackup"


def holds(operator: str, key: str, values: Any, context: Context) -> bool:
    return all(test.holds(context) for test in understand({operator: {key: values}}))


@pytest.mark.parametrize(
    ("operator", "key", "values", "actual", "expected"),
    [
        ("Bool", "g:MFAPresent", ["true"], True, True),
        ("Bool", "g:MFAPresent", "true", False, False),
        ("Bool", "G:mfapresent", True, True, True),
        ("StringEquals", "g:UserName", ["ulla", "otto"], "otto", True),
        ("StringEquals", "g:UserName", ["ulla"], "Ulla", False),
        ("StringNotEquals", "g:UserName", ["ulla", "otto"], "otto", False),
        ("StringNotEquals", "g:UserName", ["ulla", "otto"], "anna", True),
        ("StringEqualsIgnoreCase", "g:UserName", ["ULLA"], "ulla", True),
        ("StringNotEqualsIgnoreCase", "g:UserName", ["ULLA"], "ulla", False),
        ("StringLike", "g:UserName", ["ops-*"], "ops-ulla", True),
        ("StringLike", "g:UserName", ["ops-?"], "ops-ulla", False),
        ("StringMatch", "g:UserName", ["*.a"], "xya", False),
        ("StringNotLike", "g:UserName", ["ops-*"], "ops-ulla", False),
        ("StringNotMatch", "g:UserName", ["ops-*"], "dev", True),
        ("NumberLessThan", "g:MFAAge", ["3600"], 3599.0, True),
        ("NumberLessThan", "g:MFAAge", [3600], 3600.0, False),
        ("NumberLessThanEquals", "g:MFAAge", [3600], 3600.0, True),
        ("NumberGreaterThan", "g:MFAAge", [10], 11.0, True),
        ("NumberGreaterThanEquals", "g:MFAAge", [10], 9.0, False),
        ("NumberEquals", "g:MFAAge", ["1e1"], 10.0, True),
        ("NumberNotEquals", "g:MFAAge", [10], 10.0, False),
        ("DateLessThan", "g:CurrentTime", ["2026-11-24T12:00:01Z"], NOON, True),
        ("DateLessThan", "g:CurrentTime", ["2026-11-24T13:00:00+01:00"], NOON, False),
        ("DateGreaterThanEquals", "g:CurrentTime", [str(int(NOON))], NOON, True),
        ("DateEquals", "g:CurrentTime", [int(NOON)], NOON, True),
        ("DateNotEquals", "g:CurrentTime", ["2026-11-24"], NOON, True),
        ("IpAddress", "g:SourceIp", ["10.0.0.0/8", "192.0.2.0/24"], "192.0.2.7", True),
        ("IpAddress", "g:SourceIp", ["192.0.2.8"], "192.0.2.7", False),
        ("IpAddress", "g:SourceIp", ["2001:db8::/32"], "2001:db8::1", True),
        ("IpAddress", "g:SourceIp", ["0.0.0.0/0"], "2001:db8::1", False),
        ("NotIpAddress", "g:SourceIp", ["192.0.2.0/24"], "192.0.2.7", False),
        ("ForAnyValue:StringEquals", "strongroom:GroupNames", ["ops", "dev"], ("web", "dev"), True),
        ("ForAnyValue:StringEquals", "strongroom:GroupNames", ["ops"], (), False),
        ("ForAnyValue:StringNotEquals", "strongroom:GroupNames", ["ops"], ("ops", "dev"), True),
        ("ForAllValues:StringEquals", "strongroom:GroupNames", ["ops", "dev"], ("ops", "web"), False),
        ("ForAllValues:StringLike", "strongroom:GroupNames", ["o*"], ("ops", "office"), True),
        ("ForAllValues:StringEquals", "strongroom:GroupNames", ["ops"], (), True),
    ],
)
def test_an_operator_holds_as_its_name_says(operator: str, key: str, values: Any, actual: Any, expected: bool) -> None:
    """One of the values suffices; none may fit where it negates."""
    assert holds(operator, key, values, {next(name for name in KEYS if name.lower() == key.lower()): actual}) is expected


@pytest.mark.parametrize(
    ("operator", "key", "values", "expected"),
    [
        ("NumberLessThan", "g:MFAAge", [9], False),
        ("NumberLessThanIfExists", "g:MFAAge", [9], True),
        ("BoolIfExists", "g:MFAPresent", ["true"], True),
        ("StringNotEquals", "g:ProjectName", ["prod"], True),
        ("NotIpAddress", "g:SourceIp", ["10.0.0.0/8"], True),
        ("Null", "g:MFAAge", ["true"], True),
        ("Null", "g:MFAAge", ["false"], False),
        ("ForAnyValue:StringEqualsIfExists", "strongroom:GroupNames", ["ops"], True),
    ],
)
def test_a_key_that_the_request_has_not(operator: str, key: str, values: list[Any], expected: bool) -> None:
    """Holds for IfExists, for what negates, and for Null."""
    assert holds(operator, key, values, {}) is expected


def test_null_asks_whether_a_key_is_there() -> None:
    """The other way round with the key there."""
    assert holds("Null", "g:MFAAge", ["false"], {"g:MFAAge": 0.0})
    assert not holds("Null", "g:MFAAge", ["true"], {"g:MFAAge": 0.0})


def test_if_exists_asks_a_key_that_is_there_as_usual() -> None:
    """It is no way around the test."""
    assert not holds("NumberLessThanIfExists", "g:MFAAge", [9], {"g:MFAAge": 9.0})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([], "JSON object"),
        ({"StringResembles": {"g:UserName": ["x"]}}, "no condition operator 'StringResembles'"),
        ({"stringequals": {"g:UserName": ["x"]}}, "no condition operator"),
        ({"NullIfExists": {"g:UserName": ["true"]}}, "no condition operator"),
        ({"ForAnyValue:Null": {"strongroom:GroupNames": ["true"]}}, "no condition operator"),
        ({"StringEquals": {"g:Nickname": ["x"]}}, "no condition key 'g:Nickname'"),
        ({"StringEquals": {"g:UserName": []}}, "no value"),
        ({"StringEquals": {}}, "maps keys to values"),
        ({"StringEquals": ["g:UserName"]}, "maps keys to values"),
        ({"StringEquals": {"g:UserName": [7]}}, "is not a text"),
        ({"StringEquals": {"g:UserName": [""]}}, "is not a text"),
        ({"Bool": {"g:MFAPresent": ["maybe"]}}, "is not"),
        ({"Bool": {"g:UserName": ["true"]}}, "does not fit the key g:UserName"),
        ({"StringEquals": {"g:SourceIp": ["10.0.0.1"]}}, "does not fit the key g:SourceIp"),
        ({"NumberLessThan": {"g:MFAAge": ["soon"]}}, "is not a number"),
        ({"NumberLessThan": {"g:MFAAge": ["nan"]}}, "is not a number"),
        ({"NumberLessThan": {"g:MFAAge": [True]}}, "is not a number"),
        ({"DateLessThan": {"g:CurrentTime": ["tomorrow"]}}, "is not a time"),
        ({"IpAddress": {"g:SourceIp": ["10.0.0.1/8"]}}, "is not an IP address"),
        ({"IpAddress": {"g:SourceIp": ["localhost"]}}, "is not an IP address"),
        ({"StringEquals": {"strongroom:GroupNames": ["ops"]}}, "ForAnyValue"),
        ({"ForAnyValue:StringEquals": {"g:UserName": ["ulla"]}}, "has one value"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(body: Any, reason: str) -> None:
    """When it is stored, never when it is asked: it could be a Deny."""
    with pytest.raises(PolicyInvalid, match=reason):
        parse(json.dumps({"Version": "5.0", "Statement": [{"Effect": "Deny", "Action": "*", "Condition": body}]}))


def test_all_tests_of_a_condition_must_hold() -> None:
    """Operators and keys together."""
    condition = {"Bool": {"g:MFAPresent": "true", "g:SecureTransport": "true"}, "IpAddress": {"g:SourceIp": "192.0.2.7"}}
    tests = understand(condition)
    full: dict[str, Any] = {"g:MFAPresent": True, "g:SecureTransport": True, "g:SourceIp": "192.0.2.7"}
    assert all(test.holds(full) for test in tests)
    for key in full:
        assert not all(test.holds(full | {key: "192.0.2.8" if key == "g:SourceIp" else False}) for test in tests)


@given(st.text("*?ab", max_size=12), st.text("ab", max_size=8))
def test_wildcards_match_as_a_plain_reading_does(pattern: str, text: str) -> None:
    """Without regular expressions."""

    def plain(p: str, s: str) -> bool:
        if not p:
            return not s
        if p[0] == "*":
            return any(plain(p[1:], s[skip:]) for skip in range(len(s) + 1))
        return bool(s) and p[0] in ("?", s[0]) and plain(p[1:], s[1:])

    if pattern:
        assert holds("StringLike", "g:UserName", [pattern], {"g:UserName": text}) is plain(pattern, text)


def caller(**more: Any) -> Principal:
    return Principal("a1", "acme", "u1", "ulla", False, "p1", "prod", "token", "r", "::ffff:192.0.2.7", at=NOON, **more)


def test_a_request_tells_conditions_what_it_is() -> None:
    """Every key but those that it has nothing for; an IPv4 address inside an IPv6 one is compared as IPv4."""
    told = context_of(caller(mfa_at=NOON - 60, issued_at=NOON - 30, secure=True, groups=("ops",)))
    assert set(told) == set(KEYS)
    assert told["g:MFAAge"] == 60
    assert told["g:SourceIp"] == "192.0.2.7"
    assert told["strongroom:GroupNames"] == ("ops",)
    assert set(KEYS) - set(context_of(caller())) == {"g:MFAAge", "g:TokenIssueTime"}


def test_deleting_can_be_bound_to_a_fresh_second_factor_and_a_network() -> None:
    """What such policies are for: a Deny that no Allow lifts."""
    deny = {"Effect": "Deny", "Action": "nosql:backup:delete", "Condition": {"BoolIfExists": {"g:MFAPresent": "false"}}}
    fresh = {"Effect": "Allow", "Action": "*", "Condition": {"NumberLessThanIfExists": {"g:MFAAge": "900"}}}
    policies = [parse(json.dumps({"Version": "5.0", "Statement": [deny, fresh]}))]
    assert not allowed(policies, DELETE, context_of(caller()))
    assert allowed(policies, DELETE, context_of(caller(mfa_at=NOON - 899)))
    assert not allowed(policies, DELETE, context_of(caller(mfa_at=NOON - 900)))


def test_a_decision_names_the_statement_that_made_it() -> None:
    """The first Deny that applies, else the first Allow, else none."""
    allow = parse('{"Version":"5.0","Statement":[{"Effect":"Deny","Action":"x:y:z"},{"Effect":"Allow","Action":"*"}]}')
    deny = parse('{"Version":"1.1","Statement":[{"Effect":"Deny","Action":["nosql:backup:delete"]}]}')
    assert decide([allow, allow], DELETE, {}) == Decision(True, 0, 1)
    assert decide([allow, deny], DELETE, {}) == Decision(False, 1, 0)
    assert decide([], DELETE, {}) == Decision(False)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("g:mfapresent", "true", ("g:MFAPresent", True)),
        ("g:SourceIp", "::ffff:10.0.0.1", ("g:SourceIp", "10.0.0.1")),
        ("g:MFAAge", "60", ("g:MFAAge", 60.0)),
        ("strongroom:GroupNames", "ops,dev", ("strongroom:GroupNames", ("ops", "dev"))),
    ],
)
def test_an_imagined_request_is_read_from_text(key: str, text: str, value: Any) -> None:
    """For simulations."""
    assert read_context(key, text) == value


@pytest.mark.parametrize(("key", "text"), [("g:Nickname", "x"), ("g:MFAAge", "old"), ("g:SourceIp", "nowhere")])
def test_an_imagined_request_that_cannot_be_is_refused(key: str, text: str) -> None:
    """Unknown keys and values that do not fit."""
    with pytest.raises(PolicyInvalid):
        read_context(key, text)
