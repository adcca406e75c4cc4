"""What does not come together on LavinMQ: a record that is late is looked for, a tail at rest looks, and what has come back but
is not confirmed is not settled."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from mqkv.errors import OutcomeUnknown
from mqkv.streams.amqp import AmqpEngine
from mqkv.streams.amqp.lookout import LOOKS
from mqkv.streams.base import Start
from mqkv.testing.tools import message, opened, put, result
from mqkv.url import parse
from withholder import Withholder

pytestmark = pytest.mark.lavinmq_only("RabbitMQ's deliveries are not looked after")


@pytest.fixture
def stream() -> str:
    return f"lookout-{uuid.uuid4().hex}"


@pytest.fixture
def proxy(broker: Any) -> Iterator[Withholder]:
    with Withholder(broker.url) as proxy:
        yield proxy


@pytest.fixture
def engine(proxy: Withholder, stream: str) -> Iterator[AmqpEngine]:
    engine = AmqpEngine(parse(proxy.url))
    engine.declare(stream, None, 10)
    yield engine
    engine.delete(stream, 10)
    engine.close()


@pytest.fixture
def other(broker: Any) -> Iterator[AmqpEngine]:
    engine = AmqpEngine(parse(broker.url))
    yield engine
    engine.close()


@pytest.mark.parametrize("start", [Start.FIRST, Start.LAST, Start.NEXT])
def test_an_own_record_comes(engine: AmqpEngine, proxy: Withholder, stream: str, start: Start) -> None:
    put(opened(engine, stream)[0], "before")
    tail, sink = opened(engine, stream, start)
    put(tail, "heard")
    for number in range(3):
        proxy.hold()
        began = time.monotonic()
        put(tail, f"{number}")
        assert time.monotonic() - began < 1
    assert proxy.held
    assert [body for body in sink.bodies if body != b"before"] == [b"heard", b"0", b"1", b"2"]
    assert set(sink.events) == {"deliver"}


def test_the_last_of_many_comes(engine: AmqpEngine, proxy: Withholder, stream: str) -> None:
    """All but the first are held back: the record that the look began with has come."""
    tail, sink = opened(engine, stream)
    put(tail, "heard")
    first = tail.append(message("0"), 10)
    while not first.done():
        pass
    proxy.hold()
    began = time.monotonic()
    for promise in [tail.append(message(f"{number}"), 10) for number in range(1, 300)]:
        result(promise)
    assert time.monotonic() - began < 2
    assert sink.bodies == [b"heard", *(b"%d" % number for number in range(300))]


def test_a_tail_at_rest_notices_what_others_wrote(engine: AmqpEngine, other: AmqpEngine, proxy: Withholder, stream: str) -> None:
    writer, _ = opened(other, stream)
    put(writer, "heard")
    tails = [opened(engine, stream) for _ in range(3)]
    proxy.hold()
    put(writer, "unheard")
    for _, sink in tails:
        sink.wait_for(2, timeout=4)
        assert sink.bodies == [b"heard", b"unheard"]
    proxy.hold()
    put(writer, "again")
    for _, sink in tails:
        sink.wait_for(3, timeout=4)


def test_tails_at_rest_ask_little(engine: AmqpEngine, proxy: Withholder, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mqkv.streams.amqp import lookout

    names = [f"{stream}-{number}" for number in range(3 * LOOKS)]
    asked = []
    probe = lookout.probe
    for name in names:
        engine.declare(name, None, 10)
        opened(engine, name)

    async def counted(session: Any, stream: str) -> int:
        asked.append(time.monotonic())
        return await probe(session, stream)

    monkeypatch.setattr(lookout, "probe", counted)
    began = time.monotonic()
    while time.monotonic() - began < 4:
        time.sleep(0.1)
    assert 0 < len([at for at in asked if at - began > 1]) <= 4 * LOOKS
    for name in names:
        engine.delete(name, 10)


def test_an_append_waits_for_its_confirm(engine: AmqpEngine, proxy: Withholder, stream: str) -> None:
    """LavinMQ delivers a record before it has it on a disk, and before the other nodes of a cluster have it."""
    tail, sink = opened(engine, stream)
    put(tail, "before")
    proxy.hold_confirms()
    with pytest.raises(OutcomeUnknown):
        result(tail.append(message("never"), 0.5))
    later = [tail.append(message(f"{number}"), 10) for number in range(20)]
    sink.wait_for(22)
    assert not any(promise.done() for promise in later)
    proxy.let_confirms_go()
    assert [result(promise) for promise in later] == sink.offsets[2:]


def test_a_confirm_that_was_lost_with_its_connection(engine: AmqpEngine, proxy: Withholder, stream: str) -> None:
    """What is in the log that the next connection reads is there, and is not sent again."""
    tails = [opened(engine, stream) for _ in range(2)]
    put(tails[0][0], "before")
    proxy.hold_confirms()
    promises = [tails[number % 2][0].append(message(f"{number}"), 10) for number in range(20)]
    for _, sink in tails:
        sink.wait_for(21)
    assert not any(promise.done() for promise in promises)
    proxy.cut()
    offsets = [result(promise) for promise in promises]
    for _, sink in tails:
        assert sink.offsets[1:] == offsets
    proxy.let_confirms_go()
    put(tails[0][0], "after")
    assert tails[0][1].bodies == [b"before", *(b"%d" % number for number in range(20)), b"after"]
