"""The faulty store: each fault does what it says, nothing else, and the same each time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from strongroom.storage.base import InvalidName, ObjectExists, StoreDenied, StoreFull, StoreUnavailable
from strongroom.storage.faults import Delay, Effect, Empty, Fail, Fault, FaultyStore, Partly, Stale
from strongroom.storage.memory import MemoryStore
from support.stores import StoreBehaviour, names


class TestFaultyStoreWithoutFaults(StoreBehaviour):
    """With a plan that does nothing it is a store like any other."""

    @pytest.fixture
    def store(self) -> FaultyStore:
        return FaultyStore(MemoryStore(), lambda effect: None)


class Once:
    """A plan: this fault at the first call of this kind and phase, and a record of all effects."""

    def __init__(self, kind: str, fault: Fault | None, phase: str = "before") -> None:
        self.kind, self.fault, self.phase = kind, fault, phase
        self.seen: list[Effect] = []

    def __call__(self, effect: Effect) -> Fault | None:
        self.seen.append(effect)
        if (effect.kind, effect.phase) != (self.kind, self.phase):
            return None
        fault, self.fault = self.fault, None
        return fault


def test_the_plan_sees_every_effect_before_and_after() -> None:
    """With its kind, its names and the number of the call."""
    plan = Once("none", None)
    store = FaultyStore(MemoryStore(), plan)
    store.put_new("l/a", b"x")
    store.delete_many(["l/a", "l/b"])
    list(store.list("l/"))
    assert plan.seen == [
        Effect("before", "put_new", ("l/a",), 0),
        Effect("after", "put_new", ("l/a",), 0),
        Effect("before", "delete_many", ("l/a", "l/b"), 1),
        Effect("after", "delete_many", ("l/a", "l/b"), 1),
        Effect("before", "list", ("l/",), 2),
        Effect("after", "list", ("l/",), 2),
    ]


CALLS: dict[str, Callable[[FaultyStore], object]] = {
    "put_new": lambda store: store.put_new("l/new", b"x"),
    "get": lambda store: store.get("l/old"),
    "delete": lambda store: store.delete("l/old"),
    "delete_many": lambda store: store.delete_many(["l/old"]),
    "stat": lambda store: store.stat("l/old"),
    "list": lambda store: store.list("l/"),
}


@pytest.mark.parametrize("error", [StoreUnavailable("cut"), StoreFull("full"), StoreDenied("no")], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("kind", CALLS)
def test_a_failure_before_an_effect_keeps_it_from_happening(kind: str, error: Exception) -> None:
    """Whatever the call; and it can never land late."""
    inner = MemoryStore()
    inner.put_new("l/old", b"x")
    store = FaultyStore(inner, Once(kind, Fail(error)))
    with pytest.raises(type(error), match=str(error)):
        CALLS[kind](store)
    assert names(inner) == {"l/old"}
    assert store.sent == []


@pytest.mark.parametrize(("kind", "left"), [("put_new", {"l/old", "l/new"}), ("delete", set()), ("delete_many", set())])
def test_a_failure_after_an_effect_loses_the_reply_only(kind: str, left: set[str]) -> None:
    """The effect happened."""
    inner = MemoryStore()
    inner.put_new("l/old", b"x")
    with pytest.raises(StoreUnavailable):
        CALLS[kind](FaultyStore(inner, Once(kind, Fail(), "after")))
    assert names(inner) == left


def test_a_lost_reply_hides_that_the_name_was_taken() -> None:
    """The caller of a put that failed knows nothing of it, not even this."""
    inner = MemoryStore()
    inner.put_new("l/new", b"old")
    with pytest.raises(StoreUnavailable):
        CALLS["put_new"](FaultyStore(inner, Once("put_new", Fail(), "after")))


def test_a_delayed_put_lands_when_it_is_delivered() -> None:
    """Not before, and with the bytes it was given then, though the caller's buffer has changed."""
    inner, buffer = MemoryStore(), bytearray(b"abc")
    store = FaultyStore(inner, Once("put_new", Delay()))
    with pytest.raises(StoreUnavailable):
        store.put_new("l/a", memoryview(buffer))
    buffer[:] = b"xyz"
    assert inner.stat("l/a") is None
    assert store.deliver_late()
    assert inner.get("l/a") == b"abc"


def test_any_earlier_put_can_be_delivered_again() -> None:
    """One that landed and was removed comes back; onto a taken name it changes nothing."""
    inner = MemoryStore()
    store = FaultyStore(inner, lambda effect: None)
    store.put_new("l/a", b"one")
    store.put_new("l/b", b"two")
    store.delete("l/a")
    assert store.sent == ["l/a", "l/b"]
    assert store.deliver_late(0)
    assert not store.deliver_late(0)
    assert inner.get("l/a") == b"one"


def test_a_put_that_was_refused_because_its_name_was_taken_can_land_late_too() -> None:
    """It was on the network like any other: once the name is free, it makes an object."""
    inner = MemoryStore()
    store = FaultyStore(inner, lambda effect: None)
    store.put_new("l/a", b"one")
    with pytest.raises(ObjectExists):
        store.put_new("l/a", b"two")
    store.delete("l/a")
    assert store.deliver_late(1)
    assert inner.get("l/a") == b"two"


def test_a_put_under_a_name_that_is_none_is_never_sent() -> None:
    """It was refused before it reached the network."""
    store = FaultyStore(MemoryStore(), lambda effect: None)
    with pytest.raises(InvalidName):
        store.put_new("../a", b"x")
    assert store.sent == []


def test_a_bulk_delete_can_end_in_the_middle() -> None:
    """The first names went, the rest did not."""
    inner = MemoryStore()
    for name in ("a", "b", "c"):
        inner.put_new(name, b"x")
    with pytest.raises(StoreUnavailable):
        FaultyStore(inner, Once("delete_many", Partly(2))).delete_many(["c", "a", "b"])
    assert names(inner) == {"b"}


def test_a_listing_can_be_empty() -> None:
    """Once; the next one is true."""
    inner = MemoryStore()
    inner.put_new("l/a", b"x")
    store = FaultyStore(inner, Once("list", Empty()))
    assert names(store) == set()
    assert names(store) == {"l/a"}


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        (0, {"l/b": 2}),
        (1, {"l/a": 1, "l/b": 2}),
        (2, {"l/a": 1}),
        (3, {"l/a": 1}),
        (4, {}),
        (99, {}),
    ],
)
def test_a_stale_listing_is_one_of_the_past(changes: int, seen: dict[str, int]) -> None:
    """It lacks what was put since and holds what was removed since, below its prefix only."""
    store = FaultyStore(MemoryStore(), Once("list", Stale(changes)))
    store.put_new("l/a", b"x")
    store.put_new("other/c", b"x")
    store.put_new("l/b", b"xx")
    store.delete_many(["l/a", "l/missing"])
    assert {stat.name: stat.size for stat in store.list("l/")} == seen
    assert store.stat("l/b") is not None  # what is there is never answered from a listing


def test_what_the_plan_raises_passes_untouched() -> None:
    """So a simulation ends a process between two effects: before, the put did not happen; after, it did."""

    class Died(BaseException):
        pass

    for phase, there in (("before", False), ("after", True)):
        inner = MemoryStore()

        def plan(effect: Effect, phase: str = phase) -> None:
            if effect.phase == phase:
                raise Died

        with pytest.raises(Died):
            FaultyStore(inner, plan).put_new("a", b"x")
        assert (inner.stat("a") is not None) is there


def test_a_process_can_die_with_its_put_under_way() -> None:
    """The put lands later, when nobody waits for it."""

    class Died(BaseException):
        pass

    inner = MemoryStore()
    store = FaultyStore(inner, Once("put_new", Delay(Died())))
    with pytest.raises(Died):
        store.put_new("a", b"x")
    assert inner.stat("a") is None
    assert store.deliver_late()


@pytest.mark.parametrize(("kind", "fault"), [("get", Delay()), ("put_new", Empty()), ("stat", Stale(1)), ("list", Partly(1))])
def test_a_fault_that_does_not_fit_is_a_defect_of_the_plan(kind: str, fault: Fault) -> None:
    """A simulation that believes it injected something must not pass in silence."""
    with pytest.raises(TypeError):
        CALLS[kind](FaultyStore(MemoryStore(), Once(kind, fault)))
    with pytest.raises(TypeError):
        CALLS["put_new"](FaultyStore(MemoryStore(), Once("put_new", Delay(), "after")))
