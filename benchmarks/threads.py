"""Confirmed sets by 16 threads on one store, beside one thread that publishes with confirms through a BlockingConnection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from common import LAYOUTS, VALUE, Bench, Raw, median, rate, store

import mqkv

THREADS = 16


def run(bench: Bench) -> None:
    if not bench.has("amqp"):
        return
    sets = bench.count(200)
    for layout in LAYOUTS:
        prefix = bench.prefix()
        with store(bench.amqp, prefix=prefix, layout=layout) as ours, Raw(bench.amqp, f"{prefix}-raw") as raw:
            ours_rates, peer_rates = [], []
            call = setter(ours)
            together(call, 5)
            for _ in range(7):
                ours_rates.append(THREADS * sets / together(call, sets))
                begin = time.perf_counter()
                for _ in range(sets):
                    raw.publish()
                peer_rates.append(sets / (time.perf_counter() - begin))
        mine, theirs = median(ours_rates), median(peer_rates)
        bench.row(
            f"confirmed sets by {THREADS} threads, {layout}",
            rate(mine),
            f"{rate(theirs)} (raw, one thread)",
            mine / theirs,
            "> 3,000/s",
            mine > 3000,
        )


def setter(ours: mqkv.Store) -> Callable[[int], object]:
    return lambda number: ours.set(f"key{number}", VALUE)


def together(call: Callable[[int], object], times: int) -> float:
    """Seconds for so many calls of each thread, which are given its number."""
    gate = threading.Barrier(THREADS + 1)
    done: list[int] = []

    def work(number: int) -> None:
        gate.wait()
        for _ in range(times):
            call(number)
        done.append(times)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for worker in workers:
        worker.start()
    gate.wait()
    begin = time.perf_counter()
    for worker in workers:
        worker.join()
    taken = time.perf_counter() - begin
    assert len(done) == THREADS, "a thread has failed"
    return taken
