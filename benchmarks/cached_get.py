"""A cached get of a str, beside a method around a dict lookup with an expiry check, for keys without and with a ttl."""

from __future__ import annotations

import time
from time import time as now
from typing import Any

from common import LAYOUTS, VALUE, Bench, median, ns, store

KEYS = [f"user:{number}:name" for number in range(100)]


class Peer:
    def __init__(self, ttl: float | None) -> None:
        expires = None if ttl is None else now() + ttl
        self._cells: dict[str, tuple[object, float | None]] = {key: (f"{VALUE}{key}", expires) for key in KEYS}

    def get(self, key: str, default: Any = None) -> Any:
        cell = self._cells.get(key)
        if cell is not None:
            expires = cell[1]
            if expires is None or now() < expires:
                return cell[0]
        return default


def sweep(place: Any, times: int) -> float:
    """Seconds a get."""
    keys = KEYS * times
    begin = time.perf_counter()
    for key in keys:
        place.get(key)
    return (time.perf_counter() - begin) / len(keys)


# The same once more: the interpreter adapts the bytecode of each to what it has seen there.
def peer_sweep(place: Any, times: int) -> float:
    keys = KEYS * times
    begin = time.perf_counter()
    for key in keys:
        place.get(key)
    return (time.perf_counter() - begin) / len(keys)


def run(bench: Bench) -> None:
    for engine in ("memory", "file", "amqp"):
        if not bench.has(engine):
            continue
        goal = 2.5 if engine == "file" else 2.0
        for layout in LAYOUTS:
            for ttl in (None, 3600):
                with store(bench.url(engine), prefix=bench.prefix(), layout=layout) as ours:
                    for key in KEYS:
                        ours.set(key, f"{VALUE}{key}", ttl=ttl)
                    ours.preload(*KEYS)
                    peer = Peer(ttl)
                    assert all(ours.get(key) == peer.get(key) for key in KEYS)
                    a, b = [], []
                    for _ in range(bench.count(300)):
                        a.append(sweep(ours, 50))
                        b.append(peer_sweep(peer, 50))
                mine, theirs = median(a), median(b)
                ratio = median([one / other for one, other in zip(a, b, strict=True)])  # what disturbs, disturbs both of a round
                bench.row(
                    f"cached get, {engine}, {layout}{'' if ttl is None else ', key with a ttl'}",
                    ns(mine),
                    f"{ns(theirs)} (dict in a method)",
                    ratio,
                    f"ratio < {goal}",
                    ratio < goal,
                )
