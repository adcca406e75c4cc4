"""The embedded file engine beside diskcache, both as they come, in folders of one file system."""

from __future__ import annotations

import time
from collections.abc import Callable

import diskcache
from common import LAYOUTS, VALUE, Bench, median, ns, store

KEYS = [f"user:{number}:name" for number in range(100)]


def sweep(call: Callable[[str], object], keys: list[str]) -> float:
    """Seconds a call."""
    begin = time.perf_counter()
    for key in keys:
        call(key)
    return (time.perf_counter() - begin) / len(keys)


def run(bench: Bench) -> None:
    if not bench.has("file"):
        return
    for layout in LAYOUTS:
        with (
            store(bench.url("file"), prefix=bench.prefix(), layout=layout) as ours,
            diskcache.Cache(str(bench.folder / f"diskcache-{layout}")) as peer,
        ):
            measure(bench, layout, "set", 3, lambda key: ours.set(key, VALUE), lambda key: peer.set(key, VALUE))
            ours.preload(*KEYS)
            assert all(ours.get(key) == peer.get(key) == VALUE for key in KEYS)
            measure(bench, layout, "cached get", 5, ours.get, peer.get)


def measure(
    bench: Bench, layout: str, what: str, goal: int, ours: Callable[[str], object], peer: Callable[[str], object]
) -> None:
    sweep(ours, KEYS), sweep(peer, KEYS)
    a, b = [], []
    for _ in range(bench.count(30)):  # of 1,000 calls, so that the checkpoints of either's database fall into most rounds
        a.append(sweep(ours, KEYS * 10))
        b.append(sweep(peer, KEYS * 10))
    mine, theirs = median(a), median(b)
    ratio = median([other / one for one, other in zip(a, b, strict=True)])  # what disturbs, disturbs both of a round
    bench.row(
        f"file, {layout}: {what}",
        ns(mine) if mine < 1e-5 else f"{mine * 1e6:.0f} µs",
        f"{theirs * 1e6:.1f} µs (diskcache)",
        ratio,
        f"{goal} times as fast",
        ratio > goal,
    )
