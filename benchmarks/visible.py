"""How long a set of one process takes to be seen in another's table: from the call of set until a watch there has the change.

The value is the time of the call; processes of one machine share the monotonic clock of Linux. Beside it: pika publishing in the
one process and consuming in the other. Also told: how long after set has returned it is seen.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import pika
from common import Bench, Raw, acknowledge_at_once, ms, percentile, store

import mqkv

PAUSE = 0.001  # between two sets: each is to be seen alone


def watcher(url: str, prefix: str, layout: str, pipe: Connection) -> None:
    """Sends how long each change took. Ends when told so."""
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=30) as there, there.watch("key") as changes:

        def end() -> None:
            pipe.recv()
            changes.close()

        threading.Thread(target=end, daemon=True).start()
        pipe.send("ready")
        for change in changes:
            pipe.send(time.monotonic() - float(change.value))


def consumer(url: str, stream: str, pipe: Connection) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=100)

    def seen(_channel: object, method: pika.spec.Basic.Deliver, _properties: object, body: bytes) -> None:
        pipe.send(time.monotonic() - float(body))
        channel.basic_ack(method.delivery_tag)
        acknowledge_at_once(connection)

    channel.basic_consume(stream, seen, arguments={"x-stream-offset": "next"})
    pipe.send("ready")
    while not pipe.poll():
        connection.process_data_events(time_limit=0.5)
    connection.close()


class Other:
    """The other process, and what it has seen."""

    def __init__(self, target: Callable[..., None], *arguments: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self._receive()
        self.times: list[float] = []

    def _receive(self) -> object:
        assert self.pipe.poll(30), "the other process has seen nothing for 30 s"
        return self.pipe.recv()

    def see(self) -> None:
        taken = self._receive()
        assert isinstance(taken, float)
        self.times.append(taken)
        time.sleep(PAUSE)

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.send("end")
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


def run(bench: Bench) -> None:
    for engine, layout in (("amqp", "shared"), ("amqp", "per-key"), ("file", "shared")):
        if bench.has(engine) and (engine == "amqp" or bench.broker == "rabbitmq"):
            measure(bench, engine, layout)


def measure(bench: Bench, engine: str, layout: str) -> None:
    prefix, url = bench.prefix(), bench.url(engine)
    rounds, block = bench.count(50), 40
    returned: list[float] = []
    with store(url, prefix=prefix, layout=layout) as here, Raw(bench.amqp, f"{prefix}-raw") as raw:
        here.set("key", "0")
        with Other(watcher, url, prefix, layout) as ours, Other(consumer, bench.amqp, raw.stream) as peer:
            for _ in range(rounds):
                for _ in range(block):
                    called = time.monotonic()
                    here.set("key", repr(called))
                    returned.append(time.monotonic() - called)
                    ours.see()
                for _ in range(block):
                    raw.publish(repr(time.monotonic()).encode())
                    peer.see()
    a, b = ours.times[block:], peer.times[block:]
    later = percentile([seen - back for seen, back in zip(a, returned[block:], strict=True)], 50)
    half, most = percentile(a, 50), percentile(a, 99)
    bench.row(
        f"set in one process seen by a watch in another, {engine}, {layout}",
        f"p50 {ms(half)}, p99 {ms(most)} (after set returned: p50 {ms(later)})",
        f"p50 {ms(percentile(b, 50))}, p99 {ms(percentile(b, 99))} (raw publish and consume)",
        half / percentile(b, 50),
        "p50 < 1 ms, p99 < 5 ms",
        half < 1e-3 and most < 5e-3,
    )
