"""Is a history of concurrent calls one that a single, sequential store could have given? Two checks; both must pass.

:func:`check`    the black box: sees times and answers only, never an offset (Wing and Gong 1993, with Lowe's memo of 2017)
:func:`witness`  the log: its order is replayed through the model; each answer, and the order of calls in time, must agree with it

Rules:

1. Times are of one monotonic clock, taken outside the call. Calls and returns at the same instant overlap.
2. A call whose outcome is unknown returns at infinity, with any result: it may take effect at any time after its call, or never.
   A read whose outcome is unknown says nothing and is dropped.
3. A call that was refused for certain did nothing: it must not be in the history at all.
4. Running out of time is a verdict of its own, and not a good one.
5. Written values are unique: then a value stands for its revision, and a compare-and-set carries the value that was seen.
"""

from __future__ import annotations

import enum
import math
import time
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

READS = {"get"}
KEY_NOT_FOUND, NOT_A_NUMBER = "KeyNotFound", "NotANumber"  # the answers of an increment that can't be done


class Call(NamedTuple):
    """What one client asked for, and what it was told."""

    client: int
    key: str
    operation: str
    argument: Any
    called: int
    returned: int | None  #: None: the outcome is unknown
    result: Any = None
    offset: int | None = None  #: where its record stands in the log, if it has one; the black box does not look at it


class Verdict(enum.Enum):
    GOOD = "linearizable"
    BAD = "not linearizable"
    OUT_OF_TIME = "not decided in time"


class Report(NamedTuple):
    verdict: Verdict
    key: str | None = None
    around: Sequence[Call] = ()  #: the calls around the one that no order could explain

    def __str__(self) -> str:
        calls = "".join(f"\n    {call}" for call in self.around)
        return f"{self.verdict.value}{'' if self.key is None else f', key {self.key!r}'}{calls}"


def apply(state: Any, operation: str, argument: Any) -> tuple[Any, Any]:
    """The sequential model of one key: what an operation answers, and the state after it (the value; None: absent)."""
    if operation == "get":
        return state, state
    if operation == "set":
        return None, argument
    if operation == "delete":
        return state is not None, None
    if operation == "pop":
        return state, None
    if operation == "add":
        return (False, state) if state is not None else (True, argument)
    if operation == "compare_and_set":
        seen, value = argument
        return (True, value) if state == seen else (False, state)
    if operation == "incr":
        delta, initial = argument
        base = initial if state is None else state
        if base is None:
            return KEY_NOT_FOUND, state
        if not isinstance(base, int):
            return NOT_A_NUMBER, state
        return base + delta, base + delta
    raise ValueError(f"the model knows no operation {operation!r}")


# The black box


def check(calls: Iterable[Call], seconds: float = 60) -> Report:
    """Whether a history is linearizable, key by key (which is as good as as a whole: linearizability is local)."""
    deadline = time.monotonic() + seconds
    by_key: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.returned is not None or call.operation not in READS:
            by_key[call.key].append(call)
    for key, of_key in by_key.items():
        verdict, stuck = _search(of_key, deadline)
        if verdict is not Verdict.GOOD:
            of_key.sort(key=lambda call: call.called)
            at = 0 if stuck is None else of_key.index(stuck)
            return Report(verdict, key, of_key[max(at - 8, 0) : at + 8])
    return Report(Verdict.GOOD)


class _Node:
    """A call, or a return, in a doubly linked list in the order of time."""

    __slots__ = ("back", "bit", "call", "next", "previous")
    next: _Node
    previous: _Node

    def __init__(self, call: Call | None, bit: int = 0, back: _Node | None = None) -> None:
        self.call = call
        self.bit = bit  #: 0 for a return
        self.back = back  #: of a call: its return, if it has one

    def unlink(self) -> None:
        self.previous.next = self.next
        self.next.previous = self.previous

    def relink(self) -> None:
        self.previous.next = self.next.previous = self


def _linked(calls: Sequence[Call]) -> _Node:
    events: list[tuple[int, bool, int, _Node]] = []
    for number, call in enumerate(calls):
        back = None if call.returned is None else _Node(call)
        events.append((call.called, False, number, _Node(call, 1 << number, back)))
        if back is not None:
            assert call.returned is not None and call.called <= call.returned, call
            events.append((call.returned, True, number, back))
    head = last = _Node(None)
    for *_, node in sorted(events, key=lambda event: event[:3]):
        last.next, node.previous = node, last
        last = node
    last.next, head.previous = head, last
    return head


def _search(calls: Sequence[Call], deadline: float) -> tuple[Verdict, Call | None]:
    """Place calls one after another; at the return of one that is not placed, take back the last one and try the next."""
    head = _linked(calls)
    left = fewest = sum(call.returned is not None for call in calls)
    state: Any = None
    placed = steps = 0
    stuck: Call | None = None
    undo: list[tuple[_Node, Any]] = []
    seen: set[tuple[int, Any]] = set()
    node = head.next
    while left:
        steps += 1
        if steps % 256 == 0 and time.monotonic() > deadline:
            return Verdict.OUT_OF_TIME, stuck
        call = node.call
        assert call is not None
        if not node.bit:
            if left <= fewest:
                fewest, stuck = left, call
            if not undo:
                return Verdict.BAD, stuck
            node, state = undo.pop()
            placed ^= node.bit
            if node.back is not None:
                left += 1
                node.back.relink()
            node.relink()
            node = node.next
            continue
        answer, after = apply(state, call.operation, call.argument)
        # A call of unknown outcome that would change nothing here need not be placed here: it may as well never happen.
        if answer == call.result if node.back is not None else after != state:
            configuration = placed | node.bit, after
            if configuration not in seen:
                seen.add(configuration)
                undo.append((node, state))
                placed, state = configuration
                node.unlink()
                if node.back is not None:
                    left -= 1
                    node.back.unlink()
                node = head.next
                continue
        node = node.next
    return Verdict.GOOD, None


# The log


def witness(calls: Iterable[Call], *, one_stream: bool) -> list[str]:
    """What is wrong with a history in the light of the log's order. ``one_stream``: all keys share a stream.

    A call without an offset that was acknowledged must have changed nothing, and its answer must be that of a moment of the log
    between its call and its return.
    """
    problems: list[str] = []
    streams: dict[str, list[Call]] = defaultdict(list)
    versions: dict[str, list[tuple[Any, Call | None]]] = defaultdict(lambda: [(None, None)])
    unplaced: list[Call] = []
    for call in calls:
        if call.offset is not None:
            streams["" if one_stream else call.key].append(call)
        elif call.returned is not None:
            unplaced.append(call)
    for stream in streams.values():
        stream.sort(key=lambda call: call.offset or 0)
        for before, call in zip([None, *stream], stream, strict=False):
            if before is not None and before.offset == call.offset:
                problems.append(f"two calls at one offset: {before} {call}")
            answer, after = apply(versions[call.key][-1][0], call.operation, call.argument)
            versions[call.key].append((after, call))
            if call.returned is not None and answer != call.result:
                problems.append(f"the log answers {answer!r}: {call}")
        problems += _out_of_order(stream)
    for key in {call.key for call in unplaced}:
        problems += _impossible([call for call in unplaced if call.key == key], versions[key])
    return problems


def _out_of_order(stream: Sequence[Call]) -> list[str]:
    """Calls that began after another had returned, and yet stand before it in the log (``stream`` is in the log's order)."""
    earliest_return, problems = math.inf, []
    for call in reversed(stream):
        if call.called > earliest_return:
            problems.append(f"began after a call had returned that stands behind it in the log: {call}")
        if call.returned is not None:
            earliest_return = min(earliest_return, call.returned)
    return problems


def _impossible(unplaced: Sequence[Call], versions: Sequence[tuple[Any, Call | None]]) -> list[str]:
    """Calls without a record whose answer no version gives that was there between their call and their return."""
    called = [-math.inf if by is None else by.called for _, by in versions]
    returned = [math.inf if by is None or by.returned is None else by.returned for _, by in versions[1:]] + [math.inf]
    begun = list(accumulate(called, max))  # version i was not there before begun[i] ...
    over = list(accumulate(reversed(returned), min))[::-1]  # ... nor after over[i]
    problems = []
    for call in unplaced:
        assert call.returned is not None
        possible = versions[bisect_left(over, call.called) : bisect_right(begun, call.returned)]
        if not any(apply(state, call.operation, call.argument) == (call.result, state) for state, _ in possible):
            problems.append(f"no moment of the log between call and return answers so: {call}")
    return problems
