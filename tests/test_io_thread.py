"""No error ends the thread that serves a connection, wherever it comes from; and who waits is not left waiting."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

import mqkv
from mqkv.streams.amqp import AmqpEngine
from mqkv.streams.base import Promise, Start
from mqkv.url import parse
from test_amqp_faults import Cut, Sink, message, result, until


@pytest.fixture
def engine(broker: Any) -> Iterator[AmqpEngine]:
    engine = AmqpEngine(parse(broker.url))
    yield engine
    engine.close()


@pytest.fixture
def stream(engine: AmqpEngine) -> Iterator[str]:
    name = f"io-{uuid.uuid4().hex}"
    engine.declare(name, None, 10)
    yield name
    engine.delete(name, 10)


class Failing(logging.Filter):
    """A filter of the user's own that fails."""

    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("the user's filter failed")


def test_a_logger_that_fails_in_an_outage(broker: Any, layout: Any, prefix: str) -> None:
    logger = logging.Logger(f"mqkv.test.{uuid.uuid4().hex}")
    with mqkv.Store(broker.url, prefix=prefix, layout=layout, logger=logger) as store:
        store.set("k", 1)
        logger.addFilter(Failing())
        engine: Any = store._keyspace.engine
        for number in range(3):
            cut = Cut(engine)
            cut.cut()
            cut.heal()
            store.set("k", number)
            assert store.get("k", fresh=True) == number
        logger.filters.clear()
        store.purge()


def test_a_callback_that_fails(engine: AmqpEngine, stream: str) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("the callback failed")

    sink, other = Sink(), Sink()
    tail = engine.open(stream, Start.FIRST, sink)
    result(engine.open(stream, Start.FIRST, other).ready)
    for number in range(5):
        promise = tail.append(message(b"%d" % number), 10)
        promise.then(fail) if not promise.done() else None
        late: list[object] = []
        promise.then(late.append)
        result(promise)
        until(lambda late=late: len(late) == 1)  # type: ignore[misc]
    assert sink.bodies == other.bodies == [b"%d" % number for number in range(5)]
    assert sink.events == other.events == []


def test_what_interrupts_a_thread_in_its_place(broker: Any, prefix: str, layout: Any) -> None:
    """As a signal's handler does, or a finaliser, that uses the store right where its thread sends."""
    with mqkv.Store(broker.url, prefix=prefix, layout=layout, confirm=False) as store:
        store.set("bye", 0)
        store.flush()
        link = store._keyspace.engine._link  # type: ignore[attr-defined]
        came: list[int] = []

        def interrupted(number: int) -> bool:
            store.set("bye", number)
            came.append(number)
            return True

        def act() -> None:
            while not came:
                link.here(interrupted, 1)

        actor = threading.Thread(target=act, daemon=True)
        actor.start()
        actor.join(10)
        assert not actor.is_alive() and came == [1]
        store.flush()
        assert store.get("bye", fresh=True) == 1
        store.purge()


def test_what_interrupts_a_thread_that_settles_a_promise() -> None:
    kept: Promise[int] = Promise()

    def interrupted() -> None:
        with Promise._mutex:
            kept.resolve(1)

    actor = threading.Thread(target=interrupted, daemon=True)
    actor.start()
    actor.join(10)
    assert kept.done()


def test_what_is_begun_as_the_engine_is_closed(engine: AmqpEngine, broker: Any) -> None:
    """By a thread that had looked whether it was closed, and was then held up."""
    late = AmqpEngine(parse(broker.url))
    stream = f"io-{uuid.uuid4().hex}"
    late.declare(stream, None, 10)
    tail = late.open(stream, Start.FIRST, Sink())
    result(tail.append(message(b"0"), 10))
    late.close()
    late._link.check = lambda: None  # type: ignore[method-assign]
    promises: list[Promise[Any]] = [
        tail.append(message(b"1"), 10),
        late.begin_last(stream, 10),
        late.begin_declare(stream, None, 10),
        late.begin_delete(stream, 10),
        late.open(stream, Start.FIRST, Sink()).attached,
        late.open(stream, Start.FIRST, Sink()).ready,
    ]
    assert [type(promise.error()) if promise.wait(1) else None for promise in promises] == [mqkv.Closed] * 6
    assert late._publisher._under_way._count == 0
    engine.delete(stream, 10)


def test_what_fails_on_the_thread_itself(engine: AmqpEngine, stream: str, caplog: pytest.LogCaptureFixture) -> None:
    """As a bug of ours would: in a call, a timer, and in the handling of a lost connection itself."""

    def fail() -> None:
        raise RuntimeError("a bug")

    sink = Sink()
    tail = engine.open(stream, Start.FIRST, sink)
    result(tail.append(message(b"0"), 10))
    link = engine._link
    link.call(fail)
    link.call(lambda: link._loop.call_later(0, fail) and None)  # type: ignore[union-attr]
    link.call(lambda: link.later(0, fail) and None)
    result(tail.append(message(b"1"), 10))
    down, engine.down = engine.down, fail  # type: ignore[method-assign]
    cut = Cut(engine)
    cut.cut()
    engine.down = down  # type: ignore[method-assign]
    cut.heal()
    result(tail.append(message(b"2"), 10))
    assert sink.bodies == [b"0", b"1", b"2"]
    assert "a bug" in caplog.text
