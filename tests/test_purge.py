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
