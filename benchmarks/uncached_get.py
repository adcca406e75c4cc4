"""A get of a key that is not followed: its latency, and whether it is right right after another connection's confirmed write."""

from __future__ import annotations

import contextlib

from common import VALUE, Bench, Raw, alternate, median, ms, store

import mqkv


def run(bench: Bench) -> None:
    if not bench.has("amqp"):
        return
    latency(bench)
    exactness(bench)


def latency(bench: Bench) -> None:
    prefix = bench.prefix()
    keys = [f"k{number}" for number in range(20)]
    turn = iter(range(10**9))
    with (
        store(bench.other, prefix=prefix) as writer,
        mqkv.Store(bench.amqp, prefix=prefix, read_timeout=30) as reader,
        Raw(bench.amqp, f"{prefix}-raw") as raw,
    ):
        for key in keys:
            writer.set(key, VALUE)

        def read() -> None:
            assert reader.get(keys[next(turn) % len(keys)]) == VALUE

        ours, peer = alternate(read, raw.publish, bench.count(100), 20)
    mine, theirs = median(ours), median(peer)
    bench.row(
        "uncached get, per-key",
        ms(mine),
        f"{ms(theirs)} (raw confirmed publish)",
        mine / theirs,
        "< 2 ms, ratio < 6",
        mine < 2e-3 and mine / theirs < 6,
    )


def exactness(bench: Bench) -> None:
    """Nine of ten writes are one publish of a raw connection; the tenth is a burst, whose records share a chunk."""
    prefix, keys, wrong, reads = bench.prefix(), [f"k{number}" for number in range(7)], 0, bench.count(10_000)
    with (
        store(bench.other, prefix=prefix, confirm=False) as writer,
        mqkv.Store(bench.amqp, prefix=prefix, read_timeout=30) as reader,
        contextlib.ExitStack() as stack,
    ):
        for key in keys:
            writer.set(key, "0")
        writer.flush()
        raw = {key: stack.enter_context(Raw(bench.amqp, f"{prefix}.{key}", declare=False)) for key in keys}
        for number in range(1, reads + 1):
            key = keys[number % len(keys)]
            if number % 10:
                raw[key].publish(str(number).encode())
            else:
                for step in range(19):
                    writer.set(key, f"{number}-{step}")
                writer.set(key, str(number))
                writer.flush()
            wrong += reader.get(key) != str(number)
    bench.row(
        f"{reads:,} uncached gets, each right after another connection's confirmed write",
        f"{wrong} wrong",
        "",
        None,
        "0 wrong",
        not wrong,
    )
