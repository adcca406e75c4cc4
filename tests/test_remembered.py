"""Remembered ids: both kinds remember the same, and what they cost."""

from __future__ import annotations

import gc
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from mqkv.fold import State, fold
from mqkv.record import Record
from mqkv.remembered import FastIds, SmallIds

IDS = st.none() | st.integers(0, 40).map(lambda n: f"{n:x}") | st.text(max_size=2)


@given(st.lists(IDS, max_size=200), st.integers(1, 30), st.integers(1, 30))
def test_both_kinds_remember_the_same(ids: list[str | None], window: int, later: int) -> None:
    fast, small = FastIds(window), SmallIds(window)
    for number, id in enumerate(ids):
        assert (id in fast) == (id in small)
        assert fast.is_repeat(id) == small.is_repeat(id)
        if number == 100:
            fast.resize(later)
            small.resize(later)


def test_ten_thousand_are_remembered_and_not_one_more() -> None:
    small = SmallIds(10_000)
    ids = [f"0123456789abcdef{n:x}" for n in range(20_001)]
    assert not any(small.is_repeat(id) for id in ids)
    assert ids[10_000] not in small and all(id in small for id in ids[10_001:])


def test_the_fold_of_one_key_is_small_however_many_records_it_has_folded() -> None:
    gc.collect()
    tracemalloc.start()
    try:
        state, before = State(single=True), tracemalloc.get_traced_memory()[0]
        for offset in range(20_000):
            fold(state, offset, Record("set", "k", b"v", written_ms=offset, id=f"0123456789abcdef{offset:x}"))
        took = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert took < 200_000, f"{took} bytes: 4,096 of these are kept"
    assert fold(state, 20_000, Record("set", "k", b"again", id=f"0123456789abcdef{10_000:x}")) is None
