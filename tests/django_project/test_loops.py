"""Async views under a threaded server: each thread has loops of its own, one after the other."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from django.core.cache import caches


def test_many_loops_at_once(cache: Any) -> None:
    cache.set("n", 0)
    errors: list[BaseException] = []

    async def work() -> None:
        mine = caches["default"]
        await asyncio.gather(*(mine.aincr("n") for _ in range(20)))
        assert await mine.aget("n") >= 20

    def run() -> None:
        try:
            for _ in range(3):
                asyncio.run(work())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and cache.get("n") == 240
