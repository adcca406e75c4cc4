"""Where too much is under way, who writes waits for room, in its own time, and nobody else is held up."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import mqkv
from mqkv.streams.memory import MemoryEngine


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}"


@asynccontextmanager
async def longest_pause() -> AsyncIterator[list[float]]:
    """Measures for how long the loop was held up at most, while it is entered."""
    worst = [0.0]

    async def tick() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            worst[0] = max(worst[0], time.monotonic() - before - 0.01)

    ticking = asyncio.create_task(tick())
    try:
        yield worst
    finally:
        ticking.cancel()


def engine_of(store: Any) -> MemoryEngine:
    engine: MemoryEngine = store._keyspace.engine
    return engine


@pytest.mark.parametrize("confirm", [True, False])
def test_a_write_waits_for_room_in_its_own_time(url: str, layout: str, confirm: bool) -> None:
    with mqkv.Store(url, layout=layout, write_timeout=0.2, confirm=confirm) as store:  # type: ignore[arg-type]
        store.set("k", 0)
        faults = engine_of(store).faults
        faults.fill()
        began = time.monotonic()
        with pytest.raises(mqkv.WriteTimeout):
            store.set("k", 1)
        assert time.monotonic() - began < 1
        assert store.get("k") == 0
        with pytest.raises(mqkv.WriteTimeout):
            store.set_many({"k": 1, "l": 1})
        drain = threading.Timer(0.05, faults.drain)
        drain.start()
        store.set("k", 2)
        drain.join()
        assert store.get("k") == 2


@pytest.mark.parametrize("confirm", [True, False])
def test_a_loop_goes_on_while_there_is_no_room(url: str, layout: str, confirm: bool) -> None:
    async def main() -> None:
        async with mqkv.AsyncStore(url, layout=layout, write_timeout=5, confirm=confirm) as store:  # type: ignore[arg-type]
            await store.set("k", 0)
            faults = engine_of(store).faults
            faults.fill()
            async with longest_pause() as worst:
                writes = [asyncio.create_task(store.set(f"k{number}", number)) for number in range(10)]
                await asyncio.sleep(0.1)
                assert not any(write.done() for write in writes)
                faults.drain()
                await asyncio.gather(*writes)
            assert worst[0] < 0.1
            assert await store.get("k9") == 9

    asyncio.run(main())


@pytest.mark.slow
def test_a_loop_goes_on_while_the_broker_is_silent(own_broker: Any, prefix: str) -> None:
    """More than 64 MiB under way."""
    value = b"x" * 2**20

    async def main() -> None:
        async with mqkv.AsyncStore(own_broker.url, prefix=prefix, layout="shared", read_timeout=5, write_timeout=2) as store:
            await store.set("k", 0)
            own_broker.stop()
            try:
                async with longest_pause() as worst:
                    writes = [store.set(f"k{number}", value) for number in range(80)]
                    results = await asyncio.gather(*writes, return_exceptions=True)
            finally:
                own_broker.cont()
            assert worst[0] < 0.5
            assert {type(each) for each in results} <= {mqkv.OutcomeUnknown, mqkv.WriteTimeout}

    asyncio.run(main())
