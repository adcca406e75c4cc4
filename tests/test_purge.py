"""A purge among writes of other threads: they make the streams anew."""

from __future__ import annotations

import threading
from typing import Any

import mqkv
from lock_tools import until


def test_writers_do_not_notice_a_purge(url: str, prefix: str, layout: Any) -> None:
    done, problems = [0] * 4, []
    stop = threading.Event()

    def write(number: int) -> None:
        while not stop.is_set():
            try:
                store.set("k", number)
                store.delete("k")
                done[number] += 1
            except mqkv.OutcomeUnknown:  # the record went with the stream, before it was known what it had done
                done[number] += 1
            except Exception as error:
                problems.append(repr(error))

    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=10) as store:
        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(12):
            before = sum(done)
            until(lambda before=before: sum(done) > before + 8 or problems, "writes", 30)  # type: ignore[misc]
            store.purge()
        stop.set()
        for thread in threads:
            thread.join()
        store.purge()
    assert not problems, problems[:5]


def test_who_was_held_up_in_a_purge_reads_what_there_is(broker: Any, prefix: str, layout: Any) -> None:
    """No stream is an absent key, also where the word of its end comes as a fresh read has begun."""
    with (
        mqkv.Store(broker.url, prefix=prefix, layout=layout) as store,
        mqkv.Store(f"{broker.url}?connect_timeout=6", prefix=prefix, layout=layout) as other,
    ):
        link = store._open_keyspace().engine._link  # type: ignore[attr-defined]
        for ask in (lambda: store.get("k", fresh=True), store.sync):
            store.set("k", 1)
            purged = threading.Event()
            link.call(lambda purged=purged: purged.wait(10))
            other.purge()
            timer = threading.Timer(0.2, purged.set)
            timer.start()
            assert ask() is None
            timer.join()
        assert store.get("k", fresh=True) is None
        store.purge()
