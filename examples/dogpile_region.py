"""A dogpile region around a slow function: three processes ask at once, and one of them computes.

python examples/dogpile_region.py      (MQKV_URL=amqp://guest:guest@localhost for a broker; a temporary folder otherwise)

It needs mqkv[dogpile].
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from multiprocessing.synchronize import Barrier

from dogpile.cache import make_region

from mqkv.dogpile import StreamInvalidation

WORKERS = 3

region = make_region("reports")


@region.cache_on_arguments()
def report(month: str) -> str:
    print(f"  process {os.getpid()} computes {month} ...", flush=True)
    time.sleep(1)
    return f"the report of {month}, computed at {time.strftime('%H:%M:%S')}"


def configure(url: str) -> None:
    region.configure(
        "mqkv",
        expiration_time=300,
        arguments={"url": url, "name": "example", "distributed_lock": True, "lock_timeout": 10},
        region_invalidator=StreamInvalidation(region),
    )


def ask() -> None:
    began = time.perf_counter()
    text = report("2026-11")
    print(f"  process {os.getpid()} has {text}, after {time.perf_counter() - began:.3f} s", flush=True)


def work(url: str, first: bool, step: Barrier) -> None:
    configure(url)
    for title in ("all ask at once:", "all ask again:", "one has invalidated the region, and all ask:"):
        if step.wait() == 0:
            print(title, flush=True)
        step.wait()
        ask()
        step.wait()
        if first and title == "all ask again:":
            region.invalidate()
        step.wait()
        region.backend.store.sync()  # the stream tells it in a moment anyway; an example should not depend on moments
    region.backend.close()


def main() -> None:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        url = os.environ.get("MQKV_URL", f"file://{folder}/kv")
        step = context.Barrier(WORKERS, timeout=60)
        workers = [context.Process(target=work, args=(url, number == 0, step)) for number in range(WORKERS)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
        configure(url)
        region.backend.store.purge()
        region.backend.close()
    if any(each.exitcode for each in workers):
        raise SystemExit("a worker failed: see above")


if __name__ == "__main__":
    main()
