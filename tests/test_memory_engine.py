"""The faults of the memory engine, on demand: what sinks and writers are told, each time the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mqkv.errors import ConnectionFailed, OutcomeUnknown, StreamMissing
from mqkv.streams.base import RETRY_HEADER, Start, Tail
from mqkv.streams.memory import MemoryEngine
from mqkv.testing.tools import RecordingSink, message, opened, put
from mqkv.url import parse


@pytest.fixture
def engine() -> Iterator[MemoryEngine]:
    engine = MemoryEngine(parse("memory://faults"))
    engine.declare("s", None, 1)
    yield engine
    engine.close()


@pytest.fixture
def ends(engine: MemoryEngine) -> tuple[Tail, RecordingSink]:
    return opened(engine, "s")


Ends = tuple[Tail, RecordingSink]


def test_appends_wait_while_disconnected(engine: MemoryEngine, ends: Ends) -> None:
    tail, sink = ends
    put(tail, "a")
    engine.faults.disconnect()
    engine.faults.disconnect()
    promises = [tail.append(message(body), 1) for body in "bc"]
    assert sink.events == ["deliver", "interrupted"]
    assert not any(promise.done() for promise in promises)
    engine.faults.reconnect()
    engine.faults.reconnect()
    assert sink.bodies == [b"a", b"b", b"c"]
    assert [promise.result() for promise in promises] == sink.offsets[1:]
    assert sink.events[2] == "resumed"


def test_appends_fail_while_disconnected(engine: MemoryEngine, ends: Ends) -> None:
    tail, sink = ends
    engine.faults.disconnect(appends="fail")
    with pytest.raises(ConnectionFailed):
        put(tail, "lost")
    with pytest.raises(ConnectionFailed):
        engine.last("s", 1)
    with pytest.raises(ConnectionFailed):
        engine.declare("t", None, 1)
    engine.faults.reconnect()
    put(tail, "a")
    assert sink.bodies == [b"a"]
    with pytest.raises(ValueError):
        engine.faults.disconnect(appends="perhaps")


def test_a_tail_opened_while_disconnected_is_ready_after_it(engine: MemoryEngine, ends: Ends) -> None:
    put(ends[0], "a")
    engine.faults.disconnect()
    sink = RecordingSink()
    tail = engine.open("s", Start.FIRST, sink)
    assert not tail.attached.done()
    engine.faults.reconnect()
    assert tail.ready.result() is None
    assert (sink.bodies, sink.events) == ([b"a"], ["deliver"])


def test_the_deadline_passes(engine: MemoryEngine, ends: Ends) -> None:
    tail, sink = ends
    engine.faults.delay()
    landed = tail.append(message("landed"), 1)
    engine.faults.disconnect()
    waiting = tail.append(message("never"), 1)
    engine.faults.expire()
    with pytest.raises(OutcomeUnknown):
        landed.result()
    with pytest.raises(ConnectionFailed):
        waiting.result()
    engine.faults.reconnect()
    engine.faults.release()
    assert sink.bodies == [b"landed"]


def test_a_lost_answer(engine: MemoryEngine, ends: Ends) -> None:
    tail, sink = ends
    engine.faults.lose_answer(2)
    for body in "ab":
        with pytest.raises(OutcomeUnknown):
            put(tail, body)
    put(tail, "c")
    assert sink.bodies == [b"a", b"b", b"c"]


def test_a_refused_append(engine: MemoryEngine, ends: Ends) -> None:
    tail, sink = ends
    engine.faults.refuse()
    with pytest.raises(ConnectionFailed):
        put(tail, "a")
    put(tail, "b")
    assert sink.bodies == [b"b"]


def test_a_doubled_append(engine: MemoryEngine, ends: Ends) -> None:
    tail, sink = ends
    engine.faults.double()
    offset = put(tail, "a", h=1)
    first, second = sink.messages
    assert offset == sink.offsets[0]
    assert first.headers == {"h": 1}
    assert second.headers == {"h": 1, RETRY_HEADER: True}
    assert first[2:] == second[2:]
    put(tail, "b")
    assert sink.bodies == [b"a", b"a", b"b"]


def test_delayed_deliveries(engine: MemoryEngine, ends: Ends) -> None:
    tail, sink = ends
    engine.faults.delay()
    promises = [tail.append(message(body), 1) for body in "ab"]
    late = RecordingSink()
    late_tail = engine.open("s", Start.FIRST, late)
    assert sink.events == late.events == []
    assert engine.last("s", 1) is not None  # it stands in the log
    assert not late_tail.ready.done()
    assert not any(promise.done() for promise in promises)
    seen: list[list[bytes]] = []
    promises[1].then(lambda promise: seen.append(list(sink.bodies)))
    engine.faults.release()
    assert seen == [[b"a", b"b"]]
    assert sink.bodies == late.bodies == [b"a", b"b"]
    assert late_tail.ready.done()
    assert [promise.result() for promise in promises] == sink.offsets


def test_a_truncated_head(engine: MemoryEngine, ends: Ends) -> None:
    tail, sink = ends
    offsets = [put(tail, body) for body in "abc"]
    engine.faults.truncate("s", head=2)
    assert sink.beheaded
    assert sink.events[-4:] == ["interrupted", "reset", "deliver", "resumed"]
    assert sink.deliveries == [(offsets[2], sink.messages[0])]
    assert put(tail, "d") > offsets[2]


def test_a_truncated_tail_gives_its_offsets_again(engine: MemoryEngine, ends: Ends) -> None:
    tail, sink = ends
    offsets = [put(tail, body) for body in "abc"]
    engine.faults.truncate("s", tail=2)
    assert sink.bodies == [b"a"]
    assert put(tail, "B") == offsets[1]
    assert sink.bodies == [b"a", b"B"]
    engine.faults.truncate("s", tail=100)
    assert (sink.bodies, engine.last("s", 1)) == ([], None)
    assert put(tail, "A") == offsets[0]


def test_truncated_while_disconnected(engine: MemoryEngine, ends: Ends) -> None:
    tail, sink = ends
    for body in "abc":
        put(tail, body)
    engine.faults.disconnect()
    engine.faults.truncate("s", tail=1)
    assert "reset" not in sink.events
    engine.faults.reconnect()
    assert sink.bodies == [b"a", b"b"]
    assert sink.events[-4:] == ["interrupted", "reset", "deliver", "resumed"]


def test_deleted_under_its_tails(engine: MemoryEngine, ends: Ends) -> None:
    tail, sink = ends
    engine.faults.delay()
    waiting = tail.append(message("a"), 1)
    engine.faults.delete("s")
    assert sink.events == ["ended"]
    assert isinstance(sink.error, StreamMissing)
    with pytest.raises(StreamMissing):
        put(tail, "b")
    engine.faults.release()
    assert waiting.done()


def test_deleted_while_appends_wait(engine: MemoryEngine, ends: Ends) -> None:
    tail, _ = ends
    engine.faults.disconnect()
    waiting = tail.append(message("a"), 1)
    engine._streams["s"].deleted = True  # by somebody else, whom the connection did not keep from it
    engine.faults.reconnect()
    with pytest.raises(StreamMissing):
        waiting.result()


def test_close_settles_what_is_under_way(engine: MemoryEngine, ends: Ends) -> None:
    engine.faults.disconnect()
    promise = ends[0].append(message("a"), 1)
    engine.close()
    with pytest.raises(ConnectionFailed):
        promise.result()
    assert "ended" not in ends[1].events
