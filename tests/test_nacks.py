"""Messages that the broker answers with a nack: sent again after a pause, never out of their order, and not for ever."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from mqkv.errors import ConnectionFailed, OutcomeUnknown
from mqkv.streams.amqp import AmqpEngine
from mqkv.streams.base import RETRY_HEADER, Start
from mqkv.url import parse
from nacker import NACKED, nacker
from test_amqp_faults import Sink, message, result, until


def refused(broker: Any, refuse: Callable[[int], bool], count: int, timeout: float) -> tuple[list[Any], Sink]:
    """Append so many, all under way at once; how each ended (an offset or an error), and what is in the stream."""
    stream = f"nack-{uuid.uuid4().hex}"
    other = AmqpEngine(parse(broker.url))
    with nacker(broker.port, refuse) as proxy:
        engine = AmqpEngine(parse(broker.url.replace(f":{broker.port}/", f":{proxy.address}/")))
        try:
            other.declare(stream, None, 10)
            sink, witness = Sink(), Sink()
            result(other.open(stream, Start.FIRST, witness).ready)
            tail = engine.open(stream, Start.FIRST, sink)
            result(tail.append(message(b"first"), 10))
            promises = [tail.append(message(b"%d" % number), timeout) for number in range(count)]
            for promise in promises:
                assert promise.wait(timeout + 2)
            until(lambda: witness.got == sink.got)
            assert proxy.refused
        finally:
            engine.close()
            other.delete(stream, 10)
            other.close()
    return [promise.error() or promise.result() for promise in promises], witness


def test_the_last_ones_are_sent_again_in_their_order(broker: Any) -> None:
    """Nothing of the stream was taken behind them, so they are written where they belong."""
    ends, witness = refused(broker, lambda n: 101 < n <= 201, 200, 20)
    assert all(isinstance(each, int) for each in ends) and ends == sorted(ends)
    assert witness.bodies == [b"first"] + [b"%d" % n for n in range(200)]
    assert [RETRY_HEADER in each.headers for _, each in witness.got] == [False] * 101 + [True] * 100


def test_what_could_only_be_written_too_late_is_refused(broker: Any) -> None:
    ends, witness = refused(broker, lambda n: n in (7, 8, 52), 200, 20)
    for number in (5, 6, 50):
        assert isinstance(ends[number], ConnectionFailed) and "nothing was written" in str(ends[number])
    assert witness.bodies == [b"first"] + [b"%d" % n for n in range(200) if n not in (5, 6, 50)]


@pytest.mark.parametrize("timeout", [1.5])
def test_a_broker_that_takes_nothing(broker: Any, timeout: float) -> None:
    asked: list[int] = []

    def refuse(n: int) -> bool:
        asked.append(n)
        return n > 1

    began = time.monotonic()
    ends, witness = refused(broker, refuse, 10, timeout)
    assert time.monotonic() - began < timeout + 3
    assert all(isinstance(each, OutcomeUnknown) for each in ends)
    assert witness.bodies == [b"first"]
    assert len(asked) < 1 + 10 * 8  # the pauses grow


@pytest.mark.parametrize("told", [True, False], ids=["told", "not-told"])
def test_what_was_overtaken_is_not_written_after_a_lost_connection(broker: Any, told: bool) -> None:
    """That the later one was taken is known by its delivery alone, on the next connection; and the nack may be lost, too."""
    stream, refused = f"nack-{uuid.uuid4().hex}", set[int]()
    other = AmqpEngine(parse(broker.url))
    with nacker(broker.port, refused.__contains__) as proxy:
        engine = AmqpEngine(parse(broker.url.replace(f":{broker.port}/", f":{proxy.address}/")))
        try:
            other.declare(stream, None, 10)
            witness = Sink()
            result(other.open(stream, Start.FIRST, witness).ready)
            tail = engine.open(stream, Start.FIRST, Sink())
            result(tail.append(message(b"first"), 10))
            refused.add(proxy.published + 1)
            proxy.passes = lambda frame: told and frame.startswith(NACKED)
            overtaken, later = [tail.append(message(body), 10) for body in (b"overtaken", b"later")]
            until(lambda: witness.bodies == [b"first", b"later"] and proxy.nacks == told)
            refused.clear()
            proxy.passes = lambda frame: True
            proxy.cut()
            assert result(later) == witness.got[1][0]
            assert overtaken.wait(12)
            error = overtaken.error()
            assert isinstance(error, ConnectionFailed if told else OutcomeUnknown), error
            result(tail.append(message(b"last"), 10))
            until(lambda: len(witness.got) >= 3)
            assert witness.bodies == [b"first", b"later", b"last"]
        finally:
            engine.close()
            other.delete(stream, 10)
            other.close()


def test_what_is_confirmed_and_on_its_way_is_not_overtaken(broker: Any) -> None:
    """Another's message breaks the channel; the tail stays as it is, and has not got all yet."""
    names = [f"nack-{uuid.uuid4().hex}" for _ in range(2)]
    other = AmqpEngine(parse(broker.url))
    with nacker(broker.port, lambda n: False) as proxy:
        engine = AmqpEngine(parse(broker.url.replace(f":{broker.port}/", f":{proxy.address}/")))
        try:
            for name in names:
                other.declare(name, None, 10)
            tail, neighbour = [engine.open(name, Start.FIRST, Sink()) for name in names]
            for each in (tail, neighbour):
                result(each.append(message(b"first"), 10))
            held: list[Any] = []
            receive, tail.receive = tail.receive, held.append  # type: ignore[attr-defined]
            began = proxy.published
            promises = [tail.append(message(b"%d" % number), 10) for number in range(4)]
            until(lambda: proxy.published == began + 4 and not engine._publisher._unconfirmed)
            before = proxy.published
            proxy.breaks.add(before + 1)
            refused = neighbour.append(message(b"refused"), 10)
            assert refused.wait(10) and isinstance(refused.error(), ConnectionFailed)
            until(lambda: proxy.published >= before + 1 + len(promises) or promises[0].done())
            tail.receive = receive  # type: ignore[attr-defined]
            engine._link.call(lambda: [receive(batch) for batch in held])
            ends = [result(promise) for promise in promises]
            assert ends == sorted(ends)
        finally:
            engine.close()
            for name in names:
                other.delete(name, 10)
            other.close()
