"""Times as our own calls tell them, read back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from strongroom.api.times import Moment, iso, iso_not_before

_moment = TypeAdapter(Moment)


@given(st.integers(1_600_000_000_000_000, 4_000_000_000_000_000))
def test_both_ends_of_a_period_lie_in_it_when_they_are_read_back(microseconds: int) -> None:
    """The first moment is told rounded up, the last one cut: whoever asks for what was told is not refused."""
    seconds = microseconds / 1e6
    first, last = _moment.validate_python(iso_not_before(seconds)), _moment.validate_python(iso(seconds))
    assert seconds <= first < seconds + 0.002
    assert seconds - 0.002 < last <= seconds
