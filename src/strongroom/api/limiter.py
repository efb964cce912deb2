"""Token buckets, one per user or address: who asks too fast is told when to come back."""

from __future__ import annotations

import ipaddress
import math
import threading
from collections import OrderedDict

from strongroom.ambient import Ambient
from strongroom.api.services import Rate

_MOST_BUCKETS = 20_000  # the longest unused are forgotten first, and a forgotten one is full


_ONE_SITE = 64  # bits of an IPv6 address that one customer of a provider has to themselves, with all that follow


def site_of(address: str) -> str:
    """Who counts as one address: an IPv4 address, or an IPv6 network of 64 bits, whose owner has all its addresses."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found.packed, _ONE_SITE), strict=False))


class Limiter:
    """One rate for many callers. Takes any number of threads."""

    def __init__(self, rate: Rate | None, ambient: Ambient) -> None:
        self._rate = rate
        self._ambient = ambient
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what was left, and when

    def take(self, who: str) -> int:
        """Takes one from who's bucket. 0: go on; else nothing was taken and it is the whole seconds to wait."""
        if self._rate is None:
            return 0
        now = self._ambient.monotonic()
        with self._lock:
            left, at = self._buckets.pop(who, (float(self._rate.burst), now))
            left = min(self._rate.burst, left + (now - at) * self._rate.per_second)
            granted = left >= 1
            self._buckets[who] = (left - 1 if granted else left, now)
            if len(self._buckets) > _MOST_BUCKETS:
                self._buckets.popitem(last=False)
        return 0 if granted else max(1, math.ceil((1 - left) / self._rate.per_second))
