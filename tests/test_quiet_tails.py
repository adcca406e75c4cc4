"""Tails on which little comes, and tails whose channel alone is lost: the broker has no reason to close one, and a table that is
attached again at once was never out of touch. And what is settled is not kept."""

from __future__ import annotations

import time
import tracemalloc
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

import mqkv
from broker import Broker, private_broker
from mqkv.streams.amqp import AmqpEngine
from mqkv.streams.base import Start
from mqkv.url import parse
from nacker import nacker
from test_amqp_faults import Sink, message, result, until

TIMEOUT = 3.0  # seconds that this broker waits for an acknowledgement; it looks every half second


@pytest.fixture(scope="module")
def impatient_rabbitmq() -> Iterator[Broker]:
    with private_broker(f"consumer_timeout = {int(TIMEOUT * 1000)}", settle=False) as node:
        node.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 500).")
        yield node


def test_a_quiet_tail_acknowledges_in_time(impatient_rabbitmq: Broker, layout: Any, prefix: str) -> None:
    with (
        mqkv.Store(impatient_rabbitmq.url, prefix=prefix, layout=layout, max_staleness=5, read_timeout=10) as store,
        mqkv.Store(impatient_rabbitmq.url.replace("127.0.0.1", "localhost"), prefix=prefix, layout=layout) as other,
    ):
        other.set("k", 0)
        store.preload("k")
        watch = store.watch("k")
        number, end = 0, time.monotonic() + TIMEOUT + 3
        while time.monotonic() < end:
            assert store.get("k") is not None  # it would raise Stale
            if int(end - time.monotonic()) > number:
                number += 1
                other.set("k", number)
            time.sleep(0.001)
        store.sync()
        changes = []
        while (change := watch.get(0)) is not None:
            changes.append(change)
        assert [each.kind for each in changes] == ["set"] * number
        other.purge()
    assert not any("timed out" in log.read_text() for log in (impatient_rabbitmq.folder / "log").glob("*.log"))


def test_a_channel_that_is_opened_again_at_once(broker: Any) -> None:
    engine, other = AmqpEngine(parse(broker.url)), AmqpEngine(parse(broker.url))
    stream = f"quiet-{uuid.uuid4().hex}"
    try:
        engine.declare(stream, None, 10)
        sink, witness = Sink(), Sink()
        tail: Any = engine.open(stream, Start.FIRST, sink)
        writer = other.open(stream, Start.FIRST, witness)
        result(writer.ready)
        result(tail.append(message(b"mine"), 10))
        for number in range(5):
            before = tail.epoch
            engine._link.call(lambda: tail._channel.raw.close())
            until(lambda before=before: tail.epoch > before)  # type: ignore[misc]
            result(writer.append(message(b"%d" % number), 10))
            result(tail.append(message(b"mine"), 10))
            until(lambda: tail.live)
        until(lambda: sink.bodies == witness.bodies)
        assert len(sink.got) == 11 and sink.events == []
    finally:
        engine.delete(stream, 10)
        engine.close()
        other.close()


def test_what_is_settled_is_not_kept(broker: Any, layout: Any, prefix: str) -> None:
    with mqkv.Store(broker.url, prefix=prefix, layout=layout, write_timeout=60) as store:
        store.set("k", b"first")
        tracemalloc.start()
        try:
            for number in range(40):
                store.set("k", b"%d" % number * 2**19)
            kept = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert kept < 10 * 2**20
        store.purge()


def test_who_asks_for_less_silence_later_is_heard(broker: Any) -> None:
    """The connection is there, and the next look at it was due in a quarter of a minute."""
    stream = f"quiet-{uuid.uuid4().hex}"
    with nacker(broker.port, lambda n: False) as proxy:
        engine = AmqpEngine(parse(broker.url.replace(f":{broker.port}/", f":{proxy.address}/")))
        try:
            engine.keep_in_touch(60)
            engine.declare(stream, None, 10)
            sink = Sink()
            result(engine.open(stream, Start.FIRST, sink).ready)
            engine.keep_in_touch(0.5)
            proxy.passes = lambda frame: False
            until(lambda: sink.events == ["interrupted"], 3)
        finally:
            proxy.passes = lambda frame: True
            proxy.cut()
            engine.delete(stream, 10)
            engine.close()
