"""Load of 100,000 keys of the shared layout, written one by one, in a new process, beside pika reading the stream into a dict."""

from __future__ import annotations

import sys
import time

import pika
from common import FIRST, VALUE, Bench, fresh, median, store

import mqkv

KEYS = 100_000


def ours(url: str, prefix: str, last: str, count: int) -> float:
    """Seconds from nothing to the table."""
    with mqkv.Store(url, prefix=prefix, layout="shared", read_timeout=60) as fresh_store:
        begin = time.perf_counter()
        assert fresh_store.get(last) == VALUE
        taken = time.perf_counter() - begin
        assert len(fresh_store) == count
        return taken


def peer(url: str, prefix: str, last: str, count: int) -> float:
    begin = time.perf_counter()
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1000)
    found: dict[str, bytes] = {}
    for method, properties, body in channel.consume(f"{prefix}.default", arguments=FIRST):
        if method.delivery_tag % 500 == 0:
            channel.basic_ack(method.delivery_tag, multiple=True)
        key = properties.headers.get("__mqkv_key__")
        if key is not None:
            found[key] = body
            if key == last:
                break
    taken = time.perf_counter() - begin
    assert len(found) == count
    channel.connection.close()
    return taken


def run(bench: Bench) -> None:
    if not bench.has("amqp"):
        return
    prefix, count = bench.prefix(), bench.count(KEYS)
    last = f"key{count - 1}"
    with store(bench.other, prefix=prefix, layout="shared", confirm=False, read_timeout=60, write_timeout=60) as writer:
        begin = time.perf_counter()
        for number in range(count):
            writer.set(f"key{number}", VALUE)
        writer.flush(60)
        print(f"load: {count / (time.perf_counter() - begin):,.0f} unconfirmed sets/s while writing the keys", file=sys.stderr)
        taken, raw = [], []
        for _ in range(3):
            taken.append(fresh(ours, bench.amqp, prefix, last, count))
            raw.append(fresh(peer, bench.amqp, prefix, last, count))
    mine, theirs = median(taken), median(raw)
    bench.row(
        f"load of {count:,} keys, shared", f"{mine:.2f} s", f"{theirs:.2f} s (raw reading)", mine / theirs, "< 5 s", mine < 5
    )
