"""A program that uses mqkv under ``monkey.patch_all()``: green.py URL LAYOUT PREFIX. It prints ``done`` and ends by itself."""

from gevent import monkey

monkey.patch_all()

import subprocess
import sys
import time

import gevent

import mqkv

LIMIT = 20


def main(url: str, layout: str, prefix: str) -> None:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            gevent.sleep(0.01)
            ticks += 1

    ticking = gevent.spawn(tick)
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5) as store:  # type: ignore[arg-type]
        store.set("k", 0)
        assert store.get("k") == store.get("k", fresh=True) == 0
        called: list[object] = []
        watch, calling = store.watch("k"), store.watch("k", lambda change: called.append(change.value))
        reader = gevent.spawn(lambda: [next(watch).value for _ in range(3)])
        before, began = ticks, time.monotonic()
        gevent.sleep(0.3)  # both watches wait: everybody else must go on
        assert ticks - before >= 10 and time.monotonic() - began < 3, "a watch held up the other greenlets"
        for value in (1, 2, 3):
            store.set("k", value)
        assert reader.get(timeout=LIMIT) == [1, 2, 3]
        with gevent.Timeout(LIMIT):
            while called != [1, 2, 3]:
                gevent.sleep(0.01)
        calling.close()

        inside, order = [0], []

        def work(name: int) -> None:
            for _ in range(5):
                with store.lock("jobs", ttl=5, timeout=LIMIT):
                    inside[0] += 1
                    assert inside[0] == 1, "two greenlets hold one lock"
                    gevent.sleep(0.005)
                    store.incr("count", initial=0)
                    inside[0] -= 1
                    order.append(name)

        gevent.joinall([gevent.spawn(work, name) for name in (1, 2)], timeout=LIMIT * 2, raise_error=True)
        assert sorted(order) == [1] * 5 + [2] * 5 and store.get("count") == 10, (order, store.get("count"))
        assert watch.get(0.05) is None
        if not url.startswith("memory"):
            far = f"import mqkv; mqkv.Store({url!r}, prefix={prefix!r}, layout={layout!r}).set('k', 'far')"
            reader = gevent.spawn(watch.get, LIMIT)
            subprocess.run([sys.executable, "-c", far], check=True, timeout=LIMIT)
            change = reader.get(timeout=LIMIT)
            assert change is not None and change.value == "far"
        store.purge()
    ticking.kill()
    forgotten = mqkv.Store(url, prefix=prefix, layout=layout)  # type: ignore[arg-type]
    forgotten.watch("k", called.append)  # never closed: it must not hold up the end of the process
    forgotten.purge()
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:4])
