"""The log clock: never faster than the clocks of those who tell the truth, whatever one of them tells."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mqkv.clock import ALONE, TICK_MS, LogClock

WILD = st.integers(0, 2**53 - 1) | st.sampled_from([0, 1, 2**53 - 1])


@given(
    st.lists(st.integers(-(10**9), 10**9), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 200_000) | st.just(0), WILD), max_size=90),
)
def test_it_is_never_faster_than_honest_clocks(skews: list[int], records: list[tuple[int, int, int]]) -> None:
    """Writers with clocks that are apart and run alike, and one (number 4) that tells anything at all."""
    clock, now, heard = LogClock(), 10**10, [(0, 10**10)]
    for number, (writer, pause, wild) in enumerate(records):
        now += pause
        honest = writer != 4
        clock.hear(f"{writer:016x}{number:x}", now + skews[writer % len(skews)] if honest else wild)
        for ticks, then in heard:
            assert (clock.ticks - ticks - 1) * TICK_MS <= now - then
        heard.append((clock.ticks, now))


@given(st.lists(WILD, max_size=99))
def test_one_that_races_alone_does_not_move_it(times: list[int]) -> None:
    clock = LogClock()
    for number, time in enumerate(times):
        assert not clock.hear(f"{'f' * 16}{number:x}", time)


def test_two_writers_move_it_at_the_pace_of_their_clocks() -> None:
    clock = LogClock()
    for second in range(0, 3_600, 10):
        for writer, skew in (("a", 10**9), ("b", 0)):
            clock.hear(f"{writer * 16}{second:x}", skew + second * 1_000)
    assert 50 <= clock.ticks <= 60


def test_one_writer_alone_moves_it_by_its_own_clock_and_no_oftener_than_every_hundred_records() -> None:
    busy, idle = LogClock(), LogClock()
    for tenth in range(36_000):
        busy.hear(f"{'a' * 16}{tenth:x}", tenth * 100)
    for minute in range(3 * (ALONE + 2)):
        idle.hear(f"{'a' * 16}{minute:x}", minute * 60_000)
    assert 50 <= busy.ticks <= 60 and idle.ticks == 3


def test_it_does_not_move_in_a_log_of_processes_that_write_once_each_and_stays_small() -> None:
    clock = LogClock()
    for number in range(5_000):
        assert not clock.hear(f"{number:016x}0", number * 600_000)
    assert len(clock._firsts) == 1_024


def test_a_clock_that_was_set_back_counts_again() -> None:
    clock = LogClock()
    for minute in (*range(1_000_000, 1_000_003), *range(10)):
        for writer in ("a", "b"):
            clock.hear(f"{writer * 16}{minute:x}", minute * 60_000)
    assert clock.ticks == 7, "a writer of one record a minute moves it in two minutes of three"


def test_neighbours_that_contradict_each_other_are_told_apart() -> None:
    clock = LogClock()
    clock.hear("a" * 16 + "0", 10**9)
    clock.hear("b" * 16 + "0", 10**9 - 50_000)
    assert not clock.apart
    clock.hear("f" * 16 + "0", 10**9 + 420_000)
    clock.hear("a" * 16 + "1", 10**9 + 1)
    assert clock.apart == {"f" * 16: 419_999, "a" * 16: -419_999}
