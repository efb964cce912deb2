"""The set of changed documents, against a plain dict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strongroom.engines.mongodb import touched
from strongroom.engines.mongodb.touched import TouchedIds

rows = st.tuples(st.sampled_from(["d.a", "d.b", "e.a"]), st.binary(min_size=1, max_size=2), st.integers(0, 50))
steps = st.lists(st.one_of(st.lists(rows, max_size=10), st.sampled_from(["freeze", "thaw"])), max_size=12)


@pytest.fixture
def ids(tmp_path: Path) -> Iterator[TouchedIds]:
    made = TouchedIds(str(tmp_path / "touched"))
    yield made
    made.close()


def everything(ids: TouchedIds, namespace: str, after: int = -1) -> list[bytes]:
    found: list[bytes] = []
    while page := ids.page(namespace, after, found[-1] if found else b""):
        found += [key for key, _ in page]
    return found


@given(steps=steps)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_the_set_is_a_dict_of_last_times_that_stands_still_when_frozen(
    steps: list[object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Adding, freezing and thawing in any order."""
    ids = TouchedIds(str(tmp_path_factory.mktemp("ids") / "touched"))
    visible: dict[tuple[str, bytes], int] = {}
    later: dict[tuple[str, bytes], int] = {}
    frozen = False
    for step in steps:
        if step == "freeze":
            ids.freeze()
            frozen = True
        elif step == "thaw":
            ids.thaw()
            for name, time in later.items():
                visible[name] = max(time, visible.get(name, -1))
            later.clear()
            frozen = False
        else:
            assert isinstance(step, list)
            ids.add((namespace, key, b"v" + key, time) for namespace, key, time in step)
            for namespace, key, time in step:
                kept = later if frozen else visible
                kept[namespace, key] = max(time, kept.get((namespace, key), -1))
    for after in (-1, 10, 49):
        expected = sorted(name for name, time in visible.items() if time > after)
        assert ids.count(after) == len(expected)
        assert ids.namespaces(after) == sorted({namespace for namespace, _ in expected})
        for namespace in ("d.a", "d.b", "e.a"):
            keys = [key for other, key in expected if other == namespace]
            assert everything(ids, namespace, after) == keys
            asked = [bytes([number]) for number in range(256)]
            assert ids.changed_after(namespace, asked, after) == {key for key in keys if len(key) == 1}
    ids.close()


def test_pages_end_at_their_number_and_weight(ids: TouchedIds, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page becomes one command to the server, which has a size limit."""
    monkeypatch.setattr(touched, "PAGE", 3)
    monkeypatch.setattr(touched, "PAGE_BYTES", 100)
    ids.add(("d.a", bytes([number]), b"v", 1) for number in range(1, 8))
    assert [len(ids.page("d.a")), everything(ids, "d.a")] == [3, [bytes([number]) for number in range(1, 8)]]
    ids.add(("d.b", bytes([number]), bytes(90), 1) for number in range(1, 8))
    assert len(ids.page("d.b")) == 2
