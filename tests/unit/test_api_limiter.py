"""Rates: who counts as one, how long to wait, and that memory is bounded."""

from __future__ import annotations

import pytest

from strongroom.api import limiter
from strongroom.api.limiter import Limiter, site_of
from strongroom.api.services import Rate
from support.border import Clock


def test_a_burst_then_the_rate_and_the_wait_is_told_in_whole_seconds() -> None:
    """What was refused took nothing."""
    clock = Clock()
    bucket = Limiter(Rate(0.5, 3), clock)
    assert [bucket.take("ulla") for _ in range(5)] == [0, 0, 0, 2, 2]
    assert bucket.take("otto") == 0
    clock.sleep(2)
    assert [bucket.take("ulla") for _ in range(2)] == [0, 2]


def test_memory_is_bounded_and_the_longest_unused_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks on and on is not forgotten for the sake of strangers who ask once."""
    monkeypatch.setattr(limiter, "_MOST_BUCKETS", 100)
    bucket = Limiter(Rate(0.001, 1), Clock())
    assert bucket.take("ulla") == 0
    for number in range(1000):
        bucket.take(f"stranger {number}")
        assert bucket.take("ulla") > 0
    assert len(bucket._buckets) <= 100


@pytest.mark.parametrize(
    ("address", "site"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_an_ipv6_network_counts_as_one_address(address: str, site: str) -> None:
    """Its owner could else come from 2^64 of them."""
    assert site_of(address) == site
