"""The contract's forms: ids, times, windows and spans."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from strongroom.ambient import Machine
from strongroom.api import contract as c
from strongroom.api.errors import ParameterError


def takes(kind: Any, value: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("engine", c.Engine)
def test_new_ids_have_the_contracts_form(engine: c.Engine) -> None:
    """32 hex digits, two letters, two digits."""
    assert takes(c.BackupId, c.new_backup_id(Machine(), engine))
    assert takes(c.InstanceId, c.new_instance_id(Machine(), engine))
    assert takes(c.JobId, Machine().uuid())
    assert takes(c.ProjectId, Machine().hex_id())


@given(st.text(max_size=40) | st.from_regex(r"\A[0-9a-fA-F]{31,33}(br|in|)[0-9]{0,3}[\n/]?\Z"))
def test_an_id_has_exactly_its_form(text: str) -> None:
    """No capital digit, no line's end, no slash."""
    assert takes(c.BackupId, text) is bool(re.fullmatch("[0-9a-f]{32}br[0-9]{2}", text, re.ASCII))


@given(st.integers(0, 4_000_000_000))
def test_a_time_is_read_as_it_was_written(seconds: int) -> None:
    """In both forms; and where a plus came as a space."""
    text = c.time_text(seconds)
    assert c.parse_time(text) == c.parse_time(text.replace("+", " ")) == seconds
    assert c.parse_time(c.older_time_text(seconds)) == seconds


def test_the_contracts_own_example_of_a_time() -> None:
    """To the second, with zones on either side of UTC."""
    assert c.time_text(1558928331) == "2019-05-27T03:38:51+0000"
    assert c.older_time_text(1558928331) == "2019-05-27 03:38:51"
    assert c.parse_time("2019-05-27T05:38:51+02:00") == c.parse_time("2019-05-26T22:38:51-0500") == 1558928331


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2019-05-27",
        "2019-13-27T03:38:51+0000",
        "2019-05-27T03:38:51+9999",
        "1558928331",
        "9999-12-31T23:59:59-2359",
        "0001-01-01T00:00:00+2359",
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    """Raising ValueError, which the border answers with DBS.201215."""
    with pytest.raises(ValueError):  # noqa: PT011  every message is ours or the library's
        c.parse_time(text)


@pytest.mark.parametrize(("text", "fits"), [
    ("03:00-04:00", True), ("23:45-00:45", True), ("00:15-01:15", True), ("03:00-05:00", False), ("03:00-04:15", False),
    ("03:10-04:10", False), ("24:00-01:00", False), ("3:00-4:00", False), ("", False), ("03:00-04:00\n", False),
])  # fmt: skip
def test_a_window_is_one_hour_at_a_quarter(text: str, fits: bool) -> None:
    """Over midnight too."""
    assert takes(c.Window, text) is fits


@pytest.mark.parametrize(("policy", "code"), [
    ({"keep_days": 0}, None), ({"keep_days": 0, "period": "1"}, None),
    ({"keep_days": 0, "start_time": "", "period": ""}, None),
    ({"keep_days": 7, "start_time": "03:00-04:00", "period": "1,3"}, None),
    ({"keep_days": 6, "start_time": "03:00-04:00", "period": "1,3"}, "DBS.280215"),
    ({"keep_days": 6, "start_time": "03:00-04:00", "period": "7,6,5,4,3,2,1"}, None),
    ({"keep_days": 7, "period": "1"}, "DBS.280125"),
])  # fmt: skip
def test_a_backup_policy_is_whole(policy: dict[str, Any], code: str | None) -> None:
    """What comes with off counts for nothing; a short keeping needs every day."""
    made = c.BackupPolicy(**policy)
    if code is None:
        assert made.checked() is made
    else:
        with pytest.raises(ParameterError) as caught:
            made.checked()
        assert caught.value.code == code


@pytest.mark.parametrize("value", [-1, 36, "7", 7.5, None])
def test_keep_days_are_a_whole_number_up_to_35(value: Any) -> None:
    """Not text that looks like one."""
    assert not takes(c.KeepDays, value)


@pytest.mark.parametrize(("begin", "end", "fits"), [
    (None, None, True), (1.0, 2.0, True), (1.0, None, False), (None, 2.0, False), (2.0, 1.0, False),
    (0.0, c.LONGEST_JOB_SPAN, True), (0.0, c.LONGEST_JOB_SPAN + 1, False),
])  # fmt: skip
def test_a_span_has_both_ends_in_order_and_is_not_too_long(begin: float | None, end: float | None, fits: bool) -> None:
    """Both or none."""
    if fits:
        c.check_span(begin, end, c.LONGEST_JOB_SPAN)
    else:
        with pytest.raises(ParameterError):
            c.check_span(begin, end, c.LONGEST_JOB_SPAN)


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (None, None, (None, None)),
        (100.0, None, (100.0, 500.0)),
        (900.0, None, (900.0, 900.0)),
        (None, 3e6, (3e6 - c.LONGEST_JOB_SPAN, 3e6)),
        (100.0, 200.0, (100.0, 200.0)),
    ],
)
def test_a_span_of_jobs_is_filled_in(begin: float | None, end: float | None, expected: tuple[Any, Any]) -> None:
    """A begin alone goes up to now, an end alone begins 30 days before."""
    assert c.filled_span(begin, end, 500.0) == expected


def test_a_span_of_jobs_has_at_most_thirty_days() -> None:
    """However it is given."""
    for begin, end in ((0.0, None), (0.0, c.LONGEST_JOB_SPAN + 1), (2.0, 1.0)):
        with pytest.raises(ParameterError):
            c.filled_span(begin, end, c.LONGEST_JOB_SPAN + 1)


def test_paging_in_a_body_is_a_number_or_its_digits() -> None:
    """As the SDK sends them; nothing else is taken for a number."""
    for value, fits in (
        (7, True),
        ("7", True),
        ("0", True),
        (7.0, False),
        (True, False),
        ("-1", False),
        (" 7", False),
        (None, False),
    ):
        assert takes(c.BodyOffset, value) is fits, value
    assert [takes(c.BodyLimit100, value) for value in (0, 1, 100, 101, "100")] == [False, True, True, False, True]


@pytest.mark.parametrize(
    ("key", "fits"),
    [("team", True), (" team ", True), ("中文-1_a", True), ("a" * 36, True), ("a" * 37, False), ("", False), ("a b", False)],
)
def test_a_tags_key_has_its_form(key: str, fits: bool) -> None:
    """Letters, digits, _ and -; blanks around it are none of it."""
    assert takes(c.TagKey, key) is fits


def test_an_instance_is_filtered_by_its_id_or_a_part_of_it() -> None:
    """A part begins with `*`."""
    for value, fits in (
        ("0" * 32 + "in14", True),
        ("*00", True),
        ("*", True),
        ("00", False),
        ("*\x00", False),
        ("*" + "a" * 300, False),
    ):
        assert takes(c.InstanceIdOrPart, value) is fits
