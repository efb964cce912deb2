"""Policies: what they allow, against a plain reading of the rules."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.identity.errors import PolicyInvalid
from strongroom.identity.policies import ACTIONS, BUILT_IN, Level, allowed, parse

DELETE = "gaussdbfornosql:instance:deleteBackup"
LIST = "gaussdbfornosql:backup:list"
NO_MFA = {"g:MFAPresent": False}


def document(*statements: dict[str, Any], version: str = "5.0") -> str:
    return json.dumps({"Version": version, "Statement": list(statements)})


def says(effect: str, *actions: str, **more: Any) -> dict[str, Any]:
    return {"Effect": effect, "Action": list(actions), **more}


def test_what_is_not_allowed_is_denied() -> None:
    """No policy, and a policy about something else, allow nothing."""
    assert not allowed([], DELETE, NO_MFA)
    assert not allowed([parse(document(says("Allow", LIST)))], DELETE, NO_MFA)


@pytest.mark.parametrize("version", ["1.1", "5.0"])
@pytest.mark.parametrize("name", [DELETE, "nosql:backup:delete", "NoSQL:Backup:Delete", "nosql:backup:*", "nosql:*:*", "*"])
def test_both_forms_of_a_name_and_wildcards_mean_the_same_action(version: str, name: str) -> None:
    """The alias table works in either version, and without regard to case."""
    assert allowed([parse(document(says("Allow", name), version=version))], DELETE, NO_MFA)


@pytest.mark.parametrize(
    "name", ["nosql:backup:delet", "nosql:backup:delete2", "nosql:backup", "nosql.backup.delete", "xnosql:*"]
)
def test_a_name_that_is_only_similar_means_nothing(name: str) -> None:
    """Names match whole, and a dot is a dot."""
    assert not allowed([parse(document(says("Allow", name)))], DELETE, NO_MFA)


def test_setting_the_backup_policy_is_not_covered_by_the_list_alias() -> None:
    """A reader by nosql:backup:list reads backup policies and cannot change them."""
    reader = [parse(document(says("Allow", "nosql:backup:list"), version="1.1"))]
    assert allowed(reader, "gaussdbfornosql:instance:getBackupPolicy", NO_MFA)
    assert not allowed(reader, "gaussdbfornosql:instance:setBackupPolicy", NO_MFA)


def test_deny_wins_over_any_allow_in_any_policy() -> None:
    """Whatever the order and wherever it stands."""
    allow, deny = parse(document(says("Allow", "*"))), parse(document(says("Deny", "nosql:backup:delete"), version="1.1"))
    for policies in ([allow, deny], [deny, allow]):
        assert not allowed(policies, DELETE, NO_MFA)
        assert allowed(policies, LIST, NO_MFA)


def test_not_action_means_every_other_action() -> None:
    """An alias in NotAction excludes its action too."""
    policy = [parse(document({"Effect": "Allow", "NotAction": ["nosql:backup:delete"]}))]
    assert not allowed(policy, DELETE, NO_MFA)
    assert allowed(policy, LIST, NO_MFA)


def test_a_statement_for_a_single_resource_says_nothing_of_actions_without_resource_types() -> None:
    """A statement for them must say Resource "*"."""
    assert not allowed([parse(document(says("Allow", "*", Resource=["nosql:*:*:backup:1"])))], DELETE, NO_MFA)
    assert allowed([parse(document(says("Allow", "*", Resource=["nosql:*:*:backup:1", "*"])))], DELETE, NO_MFA)


@pytest.mark.parametrize(
    ("wanted", "present", "expected"), [("true", True, True), ("true", False, False), ("false", False, True)]
)
def test_a_bool_condition_must_hold(wanted: str, present: bool, expected: bool) -> None:
    """And a key that is not known holds for neither value."""
    policy = [parse(document(says("Allow", DELETE, Condition={"Bool": {"g:MFAPresent": [wanted]}})))]
    assert allowed(policy, DELETE, {"g:MFAPresent": present}) is expected
    assert not allowed(policy, DELETE, {})


@pytest.mark.parametrize(
    "broken",
    [
        "no json", "[]", "{}", '{"Version":"5.0","Statement":[]}', '{"Version":"2.0","Statement":[{}]}',
        document({"Effect": "Allow"}),
        document({"Effect": "Allow", "Action": ["*"], "NotAction": ["*"]}),
        document({"Effect": "Allow", "NotAction": ["*"]}, version="1.1"),
        document({"Effect": "allow", "Action": ["*"]}),
        document({"Effect": "Allow", "Action": []}),
        document({"Effect": "Allow", "Action": [1]}),
        document({"Effect": "Allow", "Action": ["*"], "Principal": "x"}),
        document({"Effect": "Deny", "Action": ["*"], "Condition": {"StringResembles": {"g:UserName": ["x"]}}}),
        document({"Effect": "Deny", "Action": ["*"], "Condition": {"StringEquals": {"g:Nickname": ["x"]}}}),
        '{"Version":"5.0","Statement":[{"Effect":"Allow","Action":["*"],"Action":["nosql:backup:list"]}]}',
        document({"Effect": "Deny", "Action": ["*"], "Sid": 7}),
        document({"Effect": "Deny", "Action": ["*"], "Condition": {"Bool": {"g:MFAPresent": ["maybe"]}}}),
        "[" * 5000,
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_refused_and_never_skipped(broken: str) -> None:
    """It could be a Deny."""
    with pytest.raises(PolicyInvalid):
        parse(broken)


def test_the_built_in_policies_keep_what_they_promise() -> None:
    """A reader changes nothing, an operator deletes nothing, an administrator may everything."""
    able = {name: {a for a in ACTIONS if allowed([parse(text)], a, NO_MFA)} for name, text in BUILT_IN.items()}
    assert able["administrator"] == set(ACTIONS)
    assert able["reader"] == {name for name, action in ACTIONS.items() if action.level is not Level.WRITE}
    assert able["reader"] < able["operator"]
    assert not [name for name in able["operator"] if re.search("delete|Policy$", name) and ACTIONS[name].level is Level.WRITE]


# A plain reading of the rules to compare with: names are compared piece by piece, without regular expressions.


def plain_match(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(plain_match(pattern[1:], name[skip:]) for skip in range(len(name) + 1))
    return bool(name) and pattern[0].lower() == name[0].lower() and plain_match(pattern[1:], name[1:])


def plain_allowed(documents: list[str], action: str, context: dict[str, bool]) -> bool:
    verdicts = []
    for statement in (s for text in documents for s in json.loads(text)["Statement"]):
        inverted = "NotAction" in statement
        named = any(plain_match(p, n) for p in statement.get("Action", statement.get("NotAction")) for n in ACTIONS[action].names)
        tests = statement.get("Condition", {}).get("Bool", {})
        if named is inverted or "*" not in statement.get("Resource", ["*"]):
            continue
        if all(str(context.get(key, "absent")).lower() in values for key, values in tests.items()):
            verdicts.append(statement["Effect"])
    return "Allow" in verdicts and "Deny" not in verdicts


NAMES = sorted({name for action in ACTIONS.values() for name in action.names})
PATTERNS = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(NAMES).flatmap(lambda name: st.integers(0, len(name)).map(lambda cut: name[:cut] + "*")),
    st.sampled_from(NAMES).flatmap(lambda name: st.integers(0, len(name)).map(lambda cut: "*" + name[cut:])),
    st.sampled_from(["*", "*:*:*", "nosql:*:list", "*:backup:*", "**"]),
)
STATEMENTS = st.builds(
    lambda effect, key, patterns, resource, condition: {"Effect": effect, key: patterns, **resource, **condition},
    st.sampled_from(["Allow", "Allow", "Deny"]),
    st.sampled_from(["Action", "Action", "NotAction"]),
    st.lists(PATTERNS, min_size=1, max_size=3),
    st.sampled_from([{}, {"Resource": ["*"]}, {"Resource": ["one"]}]),
    st.sampled_from(
        [{}, {"Condition": {"Bool": {"g:MFAPresent": ["true"]}}}, {"Condition": {"Bool": {"g:MFAPresent": ["false"]}}}]
    ),
)
DOCUMENTS = st.lists(st.lists(STATEMENTS, min_size=1, max_size=3).map(lambda all: document(*all)), max_size=3)


@given(DOCUMENTS, st.sampled_from(sorted(ACTIONS)), st.booleans())
def test_every_decision_is_the_one_that_a_plain_reading_gives(documents: list[str], action: str, present: bool) -> None:
    """Random policies, all actions, with and without the condition's key true."""
    context = {"g:MFAPresent": present}
    assert allowed([parse(text) for text in documents], action, context) is plain_allowed(documents, action, context)


@given(DOCUMENTS, st.sampled_from(sorted(ACTIONS)))
def test_adding_a_deny_never_allows_more(documents: list[str], action: str) -> None:
    """Deny is monotone: with a denial of everything nothing is left."""
    denial = parse(document(says("Deny", "*")))
    assert not allowed([*(parse(text) for text in documents), denial], action, NO_MFA)
