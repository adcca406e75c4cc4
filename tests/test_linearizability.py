"""The checker itself, on histories that are known to be good or bad."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linearizability import KEY_NOT_FOUND, NOT_A_NUMBER, READS, Call, Verdict, apply, check, witness

GOOD, BAD = Verdict.GOOD, Verdict.BAD


def call(operation: str, argument: Any, called: int, returned: int | None, result: Any = None, key: str = "k") -> Call:
    return Call(0, key, operation, argument, called, returned, result)


def put(value: Any, called: int, returned: int | None) -> Call:
    return call("set", value, called, returned)


def get(result: Any, called: int, returned: int | None) -> Call:
    return call("get", None, called, returned, result)


def incr(result: Any, called: int, returned: int | None, delta: int = 1, initial: int | None = 0) -> Call:
    return call("incr", [delta, initial], called, returned, result)


HISTORIES = {
    "empty": (GOOD, []),
    "read of nothing": (GOOD, [get(None, 0, 1)]),
    "read of a write": (GOOD, [put("a", 0, 1), get("a", 2, 3)]),
    "stale read": (BAD, [put("a", 0, 1), put("b", 2, 3), get("a", 4, 5)]),
    "read before the write": (BAD, [get("a", 0, 1), put("a", 2, 3)]),
    "write from nowhere": (BAD, [put("a", 0, 1), get("x", 2, 3)]),
    "lost write": (BAD, [put("a", 0, 1), get(None, 2, 3)]),
    "read during a write: new": (GOOD, [put("a", 0, 9), get("a", 2, 3)]),
    "read during a write: old": (GOOD, [put("a", 0, 9), get(None, 2, 3)]),
    "read going back": (BAD, [put("a", 0, 9), get("a", 1, 2), get(None, 3, 4)]),
    "reads that agree on no order": (
        BAD,
        [put("a", 0, 9), put("b", 0, 9), get("a", 10, 15), get("b", 10, 15)],
    ),
    "reads during two writes, both orders": (
        BAD,
        [put("a", 0, 9), put("b", 0, 9), get("a", 1, 2), get("b", 3, 4), get("a", 5, 6)],
    ),
    "reads during two writes, one order": (
        GOOD,
        [put("a", 0, 9), put("b", 0, 9), get("b", 1, 2), get("a", 3, 4), get("a", 10, 11)],
    ),
    "call and return at one instant overlap": (GOOD, [put("a", 0, 5), get(None, 5, 6)]),
    "the first one tried is the wrong one": (GOOD, [put("a", 0, 9), put("b", 1, 9), put("c", 2, 9), get("a", 10, 11)]),
    "unknown write that happened": (GOOD, [put("a", 0, None), get("a", 1, 2)]),
    "unknown write that did not happen": (GOOD, [put("a", 0, None), get(None, 1, 2)]),
    "unknown write that happened late": (
        GOOD,
        [put("a", 0, None), get(None, 1, 2), put("b", 3, 4), get("b", 5, 6), get("a", 7, 8)],
    ),
    "unknown write before its call": (BAD, [get("a", 0, 1), put("a", 2, None)]),
    "unknown write that happened twice": (
        BAD,
        [put("a", 0, None), get("a", 1, 2), put("b", 3, 4), get("b", 5, 6), get("a", 7, 8)],
    ),
    "unknown write, read and gone": (BAD, [put("a", 0, None), get("a", 1, 2), get(None, 3, 4)]),
    "unknown read says nothing": (GOOD, [put("a", 0, 1), get("x", 2, None)]),
    "unknown delete": (GOOD, [put("a", 0, 1), call("delete", None, 2, None), get("a", 3, 4), get(None, 5, 6)]),
    "unknown increment counts once": (GOOD, [incr(1, 0, 1), incr(None, 2, None), incr(3, 4, 5)]),
    "unknown increment counts twice": (BAD, [incr(1, 0, 1), incr(None, 2, None), incr(4, 4, 5)]),
    "two increments": (GOOD, [incr(2, 0, 9), incr(1, 0, 9)]),
    "lost increment": (BAD, [incr(1, 0, 9), incr(1, 0, 9)]),
    "increment of nothing": (GOOD, [incr(KEY_NOT_FOUND, 0, 1, initial=None)]),
    "increment of a text": (GOOD, [put("a", 0, 1), incr(NOT_A_NUMBER, 2, 3)]),
    "increment of a text that gives a number": (BAD, [put("a", 0, 1), incr(1, 2, 3)]),
    "two adds, one wins": (GOOD, [call("add", "a", 0, 9, True), call("add", "b", 0, 9, False), get("a", 10, 11)]),
    "two adds win": (BAD, [call("add", "a", 0, 9, True), call("add", "b", 0, 9, True)]),
    "add over a value": (BAD, [put("a", 0, 1), call("add", "b", 2, 3, True)]),
    "compare-and-set": (GOOD, [put("a", 0, 1), call("compare_and_set", ["a", "b"], 2, 3, True), get("b", 4, 5)]),
    "two compare-and-sets of one revision": (
        BAD,
        [
            put("a", 0, 1),
            call("compare_and_set", ["a", "b"], 2, 9, True),
            call("compare_and_set", ["a", "c"], 2, 9, True),
        ],
    ),
    "compare-and-set refused for no reason": (BAD, [put("a", 0, 1), call("compare_and_set", ["a", "b"], 2, 3, False)]),
    "compare-and-set of an absent key": (GOOD, [call("compare_and_set", [None, "b"], 2, 3, True), get("b", 4, 5)]),
    "lost update": (BAD, [put("a", 0, 1), call("compare_and_set", ["a", "b"], 2, 3, True), put("c", 4, 5), get("b", 6, 7)]),
    "pop": (GOOD, [put("a", 0, 1), call("pop", None, 2, 9, "a"), call("pop", None, 2, 9)]),
    "two pops of one value": (BAD, [put("a", 0, 1), call("pop", None, 2, 9, "a"), call("pop", None, 2, 9, "a")]),
    "delete of nothing": (BAD, [call("delete", None, 0, 1, True)]),
    "delete": (GOOD, [put("a", 0, 1), call("delete", None, 2, 3, True), call("delete", None, 4, 5, False), get(None, 6, 7)]),
    "keys do not mix": (GOOD, [put("a", 0, 1), call("get", None, 2, 3, None, key="other")]),
    "one bad key of two": (BAD, [put("a", 0, 1), get("a", 2, 3), call("get", None, 2, 3, "a", key="other")]),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_known_histories(name: str) -> None:
    expected, history = HISTORIES[name]
    for order in (history, history[::-1]):
        assert check(order).verdict is expected, str(check(order))


def test_a_bad_history_is_shown_around_where_it_breaks() -> None:
    history = [put(f"v{i}", 2 * i, 2 * i + 1) for i in range(100)]
    history.insert(50, get("v3", 99, 99))
    report = check(history)
    assert report.verdict is BAD and report.key == "k" and history[50] in report.around and len(report.around) < 20
    assert "'v3'" in str(report)


def test_out_of_time_is_a_verdict_of_its_own() -> None:
    """Thirty writes at once and a read of nothing they wrote: 30 * 2**29 ways to be wrong."""
    history = [put(f"v{i}", 0, 10) for i in range(30)] + [get("x", 11, 12)]
    began = time.monotonic()
    assert check(history, seconds=0.2).verdict is Verdict.OUT_OF_TIME
    assert time.monotonic() - began < 2


# Histories of a sequential object, with delays


def history_of(seed: int, *, clients: int, calls: int, keys: int, unknown: float = 0.02) -> list[Call]:
    """What clients would have seen of a sequential object that takes each call at some time between its call and its return."""
    rng = random.Random(seed)
    drafts: list[tuple[float, Call]] = []
    now = [rng.randrange(50) for _ in range(clients)]
    for number in range(calls):
        client = rng.randrange(clients)
        called = now[client]
        returned = now[client] = called + rng.randrange(1, 60)
        now[client] += rng.randrange(30)
        lost = rng.random() < unknown
        at = rng.uniform(called, returned + (10_000 if lost else 0))
        operation = rng.choice(["get", "get", "set", "set", "add", "delete", "pop", "incr", "compare_and_set"])
        value = 1_000 * number if rng.random() < 0.5 else f"v{number}"
        argument: Any = value
        if operation in ("get", "delete", "pop"):
            argument = None
        elif operation == "incr":
            argument = [1, rng.choice([None, 1_000 * number])]
        elif operation == "compare_and_set":
            argument = [None, value]
        if not lost or rng.random() < 0.5:
            key = f"k{rng.randrange(keys)}"
            drafts.append((at, Call(client, key, operation, argument, called, None if lost else returned)))
    states: dict[str, Any] = {}
    past: dict[str, list[Any]] = {}
    history = []
    for offset, (_, draft) in enumerate(sorted(drafts, key=lambda each: each[0])):
        key, operation, argument = draft.key, draft.operation, draft.argument
        if operation == "compare_and_set":
            argument = [states.get(key) if rng.random() < 0.7 else rng.choice(past.get(key, [None])), argument[1]]
        result, after = apply(states.get(key), operation, argument)
        states[key] = after
        past.setdefault(key, []).append(after)
        place = None if operation in READS else offset
        history.append(draft._replace(argument=argument, result=None if draft.returned is None else result, offset=place))
    return history


def from_nowhere(history: Sequence[Call]) -> Iterable[Call]:
    for each in history:
        if each.operation in ("get", "pop") and each.returned is not None:
            yield each._replace(result="from nowhere")


def from_the_future(history: Sequence[Call]) -> Iterable[Call]:
    for each in history:
        later = [other for other in history if other.operation == "set" and other.called > (each.returned or 0)]
        if each.operation in ("get", "pop") and each.returned is not None and later:
            yield each._replace(result=later[0].argument)


def both_won(history: Sequence[Call]) -> Iterable[Call]:
    for each in history:
        if each.operation == "incr" and each.returned is not None and isinstance(each.result, int):
            yield each._replace(result=each.result + 500)


MUTATIONS = [from_nowhere, from_the_future, both_won]


@given(st.integers(0, 2**32))
def test_histories_of_a_sequential_object_are_accepted(seed: int) -> None:
    history = history_of(seed, clients=6, calls=200, keys=3)
    report = check(history)
    assert report.verdict is GOOD, str(report)
    assert witness(history, one_stream=True) == witness(history, one_stream=False) == []


@pytest.mark.parametrize("mutate", MUTATIONS)
@given(seed=st.integers(0, 2**32))
def test_mutated_histories_are_refused(mutate: Callable[[Sequence[Call]], Iterable[Call]], seed: int) -> None:
    history = history_of(seed, clients=3, calls=40, keys=1)
    changed = next(iter(mutate(history)), None)
    if changed is None:
        return
    mutated = [changed if (each.client, each.called) == (changed.client, changed.called) else each for each in history]
    assert check(mutated).verdict is BAD
    assert witness(mutated, one_stream=True)


# Against all orders there are


def all_orders(history: Sequence[Call]) -> bool:
    """The definition, without any cleverness: some order of all definite calls and of some others explains all answers."""
    unknown = [each for each in history if each.returned is None and each.operation not in READS]
    definite = [each for each in history if each.returned is not None]
    for size in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, size):
            if any(explains(order) for order in itertools.permutations([*definite, *some])):
                return True
    return False


def explains(order: Sequence[Call]) -> bool:
    state: Any = None
    latest_call = -1
    for each in order:
        if each.returned is not None and each.returned < latest_call:
            return False
        latest_call = max(latest_call, each.called)
        answer, state = apply(state, each.operation, each.argument)
        if each.returned is not None and answer != each.result:
            return False
    return True


@st.composite
def small_histories(draw: st.DrawFn) -> list[Call]:
    history = []
    for number in range(draw(st.integers(1, 5))):
        operation = draw(st.sampled_from(["get", "set", "delete", "add", "compare_and_set", "incr", "pop"]))
        seen: st.SearchStrategy[int | None] = st.sampled_from([None, 0, 1, 2, 3, 4])
        argument: Any = {"set": number, "add": number, "incr": [1, 0]}.get(operation)
        if operation == "compare_and_set":
            argument = [draw(seen), number]
        results: st.SearchStrategy[int | None] = seen
        if operation not in ("get", "incr", "pop"):
            results = st.none() if operation == "set" else st.booleans()
        called = draw(st.integers(0, 6))
        returned = draw(st.one_of(st.none(), st.integers(called, 8)))
        history.append(call(operation, argument, called, returned, None if returned is None else draw(results)))
    return history


@given(small_histories())
def test_the_search_agrees_with_trying_all_orders(history: list[Call]) -> None:
    assert check(history).verdict is (GOOD if all_orders(history) else BAD)


# The log


def logged(offset: int | None, each: Call) -> Call:
    return each._replace(offset=offset)


LOGS = {
    "in order": (True, [logged(0, put("a", 0, 1)), logged(1, put("b", 2, 3)), get("b", 4, 5)]),
    "later, and before": (False, [logged(1, put("a", 0, 1)), logged(0, put("b", 2, 3))]),
    "at once, either way": (True, [logged(1, put("a", 0, 2)), logged(0, put("b", 1, 3))]),
    "unknown, and in the log late": (True, [logged(3, put("a", 0, None)), logged(1, put("b", 2, 3)), get("b", 4, 5)]),
    "unknown, and in the log before its call": (False, [logged(0, put("a", 2, None)), logged(1, put("b", 0, 1))]),
    "acknowledged, and not in the log": (False, [put("a", 0, 1)]),
    "unknown, and not in the log": (True, [put("a", 0, None), get(None, 1, 2)]),
    "two at one offset": (False, [logged(0, put("a", 0, 1)), logged(0, put("b", 0, 1))]),
    "another answer than the log's": (False, [logged(0, call("add", "a", 0, 1, True)), logged(1, call("add", "b", 0, 1, True))]),
    "refused without a record": (True, [logged(0, put("a", 0, 1)), call("add", "b", 2, 3, False)]),
    "refused without a record or a reason": (False, [call("add", "b", 2, 3, False)]),
    "delete of nothing without a record": (True, [call("delete", None, 2, 3, False)]),
    "stale read": (False, [logged(0, put("a", 0, 1)), logged(1, put("b", 2, 3)), get("a", 4, 5)]),
    "early read": (False, [get("a", 0, 1), logged(0, put("a", 2, 3))]),
    "read at once": (True, [logged(0, put("a", 0, 9)), get("a", 2, 3), get(None, 2, 3)]),
    "read of what a later one that returned had hidden": (
        False,
        [logged(0, put("a", 0, 1)), logged(1, put("b", 0, None)), logged(2, put("c", 2, 3)), get("a", 4, 5)],
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_known_logs(name: str) -> None:
    good, history = LOGS[name]
    for one_stream in (True, False):
        assert (witness(history, one_stream=one_stream) == []) is good, witness(history, one_stream=one_stream)


def test_the_order_of_streams_is_each_its_own() -> None:
    history = [logged(5, put("a", 0, 1)), logged(4, put("b", 2, 3)._replace(key="other"))]
    assert witness(history, one_stream=False) == [] and len(witness(history, one_stream=True)) == 1


# Speed


@pytest.mark.parametrize(("keys", "seconds"), [(10, 1), (1, 5)])
def test_ten_thousand_operations(seed: int, keys: int, seconds: float) -> None:
    history = history_of(seed, clients=8, calls=10_000, keys=keys, unknown=0.0005)
    began = time.process_time()
    report = check(history)
    checked = time.process_time() - began
    assert report.verdict is GOOD and len(history) > 9_900
    assert witness(history, one_stream=True) == []
    print(f"{len(history)} calls on {keys} keys: search {checked:.2f} s, witness {time.process_time() - began - checked:.2f} s")
    assert checked < seconds
