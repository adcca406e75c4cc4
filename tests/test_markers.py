"""Fresh reads that are under way at once share a marker; each waits for one that was appended after it was called."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import mqkv
from lock_tools import SOON
from mqkv.streams.memory import Faults, MemoryEngine
from mqkv.testing.tools import run_threads
from places import ON_BROKERS

Place = Callable[..., mqkv.AsyncStore]


class Inexact(MemoryEngine):
    """Has its users wait for their own records, as a broker does."""

    exact = False


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, prefix: str, layout: Any) -> Place:
    monkeypatch.setattr("mqkv.streams.memory.MemoryEngine", Inexact)
    url = f"memory://{uuid.uuid4().hex}"
    return lambda **options: mqkv.AsyncStore(url, prefix=prefix, layout=layout, **{"read_timeout": SOON, **options})


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[tuple[mqkv.AsyncStore, Faults]]:
    async with place() as store:
        await store.set("k", 1)
        engine = store._keyspace.engine
        assert isinstance(engine, MemoryEngine)
        yield store, engine.faults


def markers(faults: Faults) -> int:
    streams = faults._engine._streams.values()
    return sum("__mqkv_sync__" in message.headers for stream in streams for message in stream.messages)


def ask(store: mqkv.AsyncStore, layout: str) -> Awaitable[Any]:
    """What needs a marker in this layout."""
    return asyncio.ensure_future(store.sync() if layout == "per-key" else store.get("k", fresh=True))


async def turn() -> None:
    """Let all that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_many_at_once_share_one(place: Place, layout: str) -> None:
    async def main() -> None:
        async with opened(place) as (store, faults):
            faults.delay()
            first = ask(store, layout)
            await turn()
            others = [ask(store, layout) for _ in range(100)]
            await turn()
            assert markers(faults) == 1, "the second waits until the first is back"
            faults.release()
            await asyncio.wait_for(asyncio.gather(first, *others), SOON)
            assert markers(faults) == 2
            await ask(store, layout)
            assert markers(faults) == 3, "what was appended before the call does not count"

    asyncio.run(main())


def test_the_one_that_was_to_append_it_goes_away(place: Place, layout: str) -> None:
    async def main() -> None:
        async with opened(place) as (store, faults):
            faults.delay()
            tasks = [asyncio.ensure_future(ask(store, layout)) for _ in range(10)]
            await turn()
            for gone in (1, 2, 0):  # two that were to append the second, and the one whose marker is under way
                tasks[gone].cancel()
                await turn()
            faults.release()
            results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON)
            assert [type(each) for each in results[:3]] == [asyncio.CancelledError] * 3
            assert not [each for each in results[3:] if isinstance(each, BaseException)], results
            assert markers(faults) == 2

    asyncio.run(main())


def test_the_one_that_was_to_append_it_has_no_time(place: Place, layout: str) -> None:
    async def main() -> None:
        async with opened(place) as (store, faults), place(read_timeout=0.05, write_timeout=0.05) as hasty:
            assert await hasty.get("k") == 1
            faults.delay()
            first, late = ask(store, layout), ask(hasty, layout)
            await turn()
            others = [ask(store, layout) for _ in range(10)]
            with pytest.raises(mqkv.ReadTimeout):
                await late
            faults.release()
            await asyncio.wait_for(asyncio.gather(first, *others), SOON)
            assert markers(faults) == 2

    asyncio.run(main())


def test_one_refusal_is_an_answer_for_all(place: Place, layout: str) -> None:
    async def main() -> None:
        async with opened(place) as (store, faults):
            faults.delay()
            first = ask(store, layout)
            await turn()
            others = [ask(store, layout) for _ in range(10)]
            await turn()
            faults.refuse()
            faults.release()
            await first
            results = await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), SOON)
            assert [type(each) for each in results] == [mqkv.ConnectionFailed] * 10 and len({id(each) for each in results}) == 10
            await ask(store, layout)

    asyncio.run(main())


@pytest.mark.parametrize("url", ON_BROKERS, indirect=True)
def test_each_sees_what_was_completed_before_it(url: str, prefix: str) -> None:
    """Sixteen threads read what another connection writes; there are fewer markers than reads."""
    with (
        mqkv.Store(url, prefix=prefix, layout="shared", read_timeout=SOON) as store,
        mqkv.Store(f"{url}?heartbeat=31", prefix=prefix, layout="shared") as writer,
    ):
        written, writes, reads = 0, 150, 0
        first = writer.set("k", 0)
        done = threading.Event()

        def write() -> None:
            nonlocal written
            for number in range(writes):
                writer.set("k", number)
                written = number
            done.set()

        def read() -> None:
            nonlocal reads
            while not done.is_set():
                least = written
                seen = store.get("k", fresh=True)
                assert seen >= least
                reads += 1  # some may be lost

        run_threads([write, *[read] * 16])
        in_the_log = writer.set("k", -1) - first - writes - 1
        assert 0 < in_the_log < reads
        store.purge()
