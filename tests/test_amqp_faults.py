"""The AMQP engine under faults: connections cut, the broker killed under load, streams made anew behind its back, a fork."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from mqkv.errors import Closed, ConnectionFailed, Error, OutcomeUnknown
from mqkv.streams.amqp import AmqpEngine
from mqkv.streams.base import RETRY_HEADER, Delivery, Message, Promise, Start, Tail
from mqkv.url import parse


class Sink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.got: list[Delivery] = []
        self.events: list[object] = []

    def deliver(self, batch: Sequence[Delivery]) -> None:
        self.got += batch

    def truncated(self) -> None: ...

    def interrupted(self, since: float | None = None) -> None:
        self.events.append("interrupted")

    def resumed(self) -> None:
        self.events.append("resumed")

    def reset(self) -> None:
        self.events.append("reset")
        self.got = []

    def ended(self, error: Exception) -> None:
        self.events.append(error)

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for _, message in self.got]


def result(promise: Promise[Any], timeout: float = 20) -> Any:
    assert promise.wait(timeout)
    return promise.result()


def message(body: bytes) -> Message:
    return Message(body, {}, uuid.uuid4().hex)


def until(condition: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Cut:
    """Cuts an engine's connection, and keeps it from coming back until told."""

    def __init__(self, engine: AmqpEngine) -> None:
        self.link = engine._link
        self._connect = self.link.connect

    def cut(self) -> None:
        self.link.connect = lambda: None  # type: ignore[method-assign]
        done = threading.Event()

        def drop() -> None:
            self.link._on_lost(self.link._connection, ConnectionResetError("cut"))
            done.set()

        self.link.call(drop)
        assert done.wait(5)

    def heal(self) -> None:
        self.link.connect = self._connect  # type: ignore[method-assign]
        self.link.call(self.link.connect)


@pytest.fixture
def engine(broker: Any) -> Iterator[AmqpEngine]:
    engine = AmqpEngine(parse(broker.url))
    yield engine
    engine.close()


@pytest.fixture
def other(broker: Any) -> Iterator[AmqpEngine]:
    engine = AmqpEngine(parse(broker.url))
    yield engine
    engine.close()


@pytest.fixture
def stream(other: AmqpEngine) -> Iterator[str]:
    name = f"amqp-{uuid.uuid4().hex}"
    other.declare(name, None, 10)
    yield name
    other.delete(name, 10)


def opened(engine: AmqpEngine, stream: str, start: Start | int = Start.FIRST) -> tuple[Tail, Sink]:
    sink = Sink()
    return engine.open(stream, start, sink), sink


@pytest.mark.parametrize("start", [*Start, 0])
@pytest.mark.parametrize("seen", [True, False])
def test_what_was_appended_in_an_outage_is_not_missed(
    engine: AmqpEngine, other: AmqpEngine, stream: str, start: Start | int, seen: bool
) -> None:
    writer, _ = opened(other, stream)
    result(writer.append(message(b"old"), 5))
    tail, sink = opened(engine, stream, start)
    result(tail.ready)
    if seen:
        result(tail.append(message(b"mine"), 5))
    cut = Cut(engine)
    cut.cut()
    assert sink.events == ["interrupted"]
    for number in range(3):
        result(writer.append(message(b"%d" % number), 5))
    cut.heal()
    until(lambda: sink.events == ["interrupted", "resumed"])
    expected = [b"old"] * (start is not Start.NEXT) + [b"mine"] * seen + [b"0", b"1", b"2"]
    assert sink.bodies == expected
    result(writer.append(message(b"after"), 5))
    until(lambda: sink.bodies == [*expected, b"after"])


@pytest.mark.parametrize("start", [*Start, 0])
def test_a_tail_that_began_at_an_empty_stream_misses_nothing(
    engine: AmqpEngine, other: AmqpEngine, stream: str, start: Start | int
) -> None:
    writer, _ = opened(other, stream)
    tail, sink = opened(engine, stream, start)
    result(tail.ready)
    cut = Cut(engine)
    cut.cut()
    for body in (b"x", b"y", b"z"):  # one by one, so that each is in a chunk of its own
        result(writer.append(message(body), 5))
    cut.heal()
    until(lambda: sink.events == ["interrupted", "resumed"])
    assert sink.bodies == [b"x", b"y", b"z"]


@pytest.mark.parametrize("refill", [0, 1, 5, 20])
@pytest.mark.parametrize("start", [Start.FIRST, Start.LAST, Start.NEXT])
def test_a_stream_made_anew_in_an_outage(engine: AmqpEngine, other: AmqpEngine, stream: str, start: Start, refill: int) -> None:
    tail, sink = opened(engine, stream, start)
    result(tail.ready)
    for number in range(5):
        result(tail.append(message(b"%d" % number), 5))
    cut = Cut(engine)
    cut.cut()
    other.delete(stream, 10)
    other.declare(stream, None, 10)
    writer, witness = opened(other, stream)
    for number in range(refill):
        result(writer.append(message(b"new %d" % number), 5))
    cut.heal()
    until(lambda: "resumed" in sink.events)
    assert sink.events == ["interrupted", "reset", "resumed"]
    result(tail.append(message(b"end"), 10))
    until(lambda: witness.bodies[-1:] == [b"end"])  # on a connection of its own
    assert sink.got == witness.got[len(witness.got) - len(sink.got) :]
    if start is not Start.LAST:
        assert sink.got == witness.got


def test_what_the_broker_has_half_written_is_not_taken_for_written(engine: AmqpEngine, other: AmqpEngine, stream: str) -> None:
    """LavinMQ, killed while it writes, takes the half for the whole when it comes back: the id is there, the body is not."""
    writer, _ = opened(other, stream)
    tail, sink = opened(engine, stream)
    result(tail.append(message(b"before"), 5))
    cut = Cut(engine)
    cut.cut()
    whole, other_one = message(b"a value"), message(b"another")
    promises = [tail.append(each, 20) for each in (whole, other_one)]
    result(writer.append(whole._replace(body=b"a va\0\0\0"), 5))
    result(writer.append(other_one, 5))
    cut.heal()
    with pytest.raises(OutcomeUnknown):
        result(promises[0])
    result(promises[1])
    result(tail.append(message(b"after"), 5))
    assert sink.bodies == [b"before", b"a va\0\0\0", b"another", b"after"]


def test_a_stream_deleted_in_an_outage(engine: AmqpEngine, other: AmqpEngine) -> None:
    name = f"amqp-{uuid.uuid4().hex}"
    other.declare(name, None, 10)
    tail, sink = opened(engine, name)
    result(tail.append(message(b"x"), 5))
    cut = Cut(engine)
    cut.cut()
    other.delete(name, 10)
    cut.heal()
    until(lambda: len(sink.events) == 2)
    assert type(sink.events[1]).__name__ == "StreamMissing"
    with pytest.raises(Error):
        result(tail.append(message(b"y"), 5))


def test_calls_in_an_outage_keep_their_deadline(engine: AmqpEngine, stream: str) -> None:
    tail, sink = opened(engine, stream)
    result(tail.append(message(b"x"), 5))
    cut = Cut(engine)
    cut.cut()
    began = time.monotonic()
    with pytest.raises(ConnectionFailed):
        result(tail.append(message(b"never sent"), 0.3))
    with pytest.raises(ConnectionFailed):
        engine.last(stream, 0.3)
    with pytest.raises(ConnectionFailed):
        engine.declare(stream, None, 0.3)
    assert time.monotonic() - began < 2
    waiting = tail.append(message(b"sent later"), 20)
    cut.heal()
    result(waiting)
    assert sink.bodies == [b"x", b"sent later"]
    assert not any(RETRY_HEADER in each.headers for _, each in sink.got)


def test_cuts_under_load(engine: AmqpEngine, other: AmqpEngine, stream: str, seed: int) -> None:
    """Pipelined appends from four threads while the connection is cut again and again: each stands, in its thread's order."""
    _, witness = opened(other, stream)
    tails = [opened(engine, stream, start) for start in (Start.FIRST, Start.LAST, Start.NEXT)]
    for tail, _ in tails:
        result(tail.ready)
    stop = threading.Event()
    sent: list[list[tuple[bytes, Promise[int]]]] = [[], [], [], []]

    def write(thread: int) -> None:
        tail = tails[thread % 3][0]
        while not stop.is_set():
            body = b"%d %d" % (thread, len(sent[thread]))
            sent[thread].append((body, tail.append(message(body), 60)))
            if len(sent[thread]) % 50 == 0:
                time.sleep(0.005)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    cut = Cut(engine)
    for _ in range(5):
        time.sleep(0.3)
        cut.cut()
        cut.heal()
        until(lambda: engine._link.session is not None)
    time.sleep(0.3)
    stop.set()
    for each in threads:
        each.join()
    offsets = {body: result(promise, 60) for own in sent for body, promise in own}
    assert len(offsets) > 1_000
    until(lambda: len(witness.got) >= len(offsets) and witness.got[-1][0] >= max(offsets.values()))
    first: dict[bytes, int] = {}
    marked: dict[bytes, list[bool]] = {}
    for offset, each in witness.got:
        first.setdefault(each.body, offset)
        marked.setdefault(each.body, []).append(RETRY_HEADER in each.headers)
    # The broker may take the first copy last: it was on its way on the old connection.
    assert all(copies.count(False) <= 1 for copies in marked.values())
    assert set(first) == set(offsets)
    for own in sent:
        places = [first[body] for body, _ in own]
        assert places == sorted(places)
    for _, sink in tails:
        until(lambda sink=sink: sink.got[-1:] == witness.got[-1:])  # type: ignore[misc]
        assert sink.got == witness.got
        assert "reset" not in sink.events


def test_a_forked_child_leaves_the_connection_alone(engine: AmqpEngine, stream: str) -> None:
    tail, sink = opened(engine, stream)
    result(tail.append(message(b"before"), 5))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            engine.after_fork()
            try:
                engine.last(stream, 1)
            except Closed:
                code = 0
            fresh = AmqpEngine(engine.url)
            if fresh.last(stream, 5) is None:
                code = 2
            fresh.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    result(tail.append(message(b"after"), 5))
    assert sink.bodies == [b"before", b"after"] and sink.events == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_broker(own_broker: Any) -> None:
    engine, other = AmqpEngine(parse(own_broker.url)), AmqpEngine(parse(own_broker.url))
    try:
        name = f"amqp-{uuid.uuid4().hex}"
        engine.declare(name, None, 10)
        _, witness = opened(other, name)
        tail, sink = opened(engine, name)
        result(tail.append(message(b"first"), 10))
        time.sleep(2)  # see BROKERS.md: a node killed sooner may lose its first stream
        stop, promises = threading.Event(), []

        def write() -> None:
            while not stop.is_set():
                promises.append(tail.append(message(b"%d" % len(promises)), 90))
                time.sleep(0.001)

        thread = threading.Thread(target=write)
        thread.start()
        for _ in range(2):
            time.sleep(1)
            own_broker.kill()
            own_broker.start()
        time.sleep(1)
        stop.set()
        thread.join()
        offsets = [result(promise, 90) for promise in promises]
        assert len(offsets) > 500
        until(lambda: witness.got[-1:] == sink.got[-1:] and sink.got[-1][0] >= max(offsets))
        assert witness.got == sink.got and "reset" not in sink.events
        where = dict(sink.got)
        for number, offset in enumerate(offsets):
            assert where[offset].body == b"%d" % number
    finally:
        engine.close()
        other.close()
