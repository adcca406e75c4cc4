"""What tests of locks share: threads that wait, looks at the queue, a holder that falls silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import mqkv
from mqkv.waiting import Deadline, run

T = TypeVar("T")

TTL = 0.6  # the short lease of tests that wait for its end
SOON = 10.0  # seconds that something may take that happens at once on an idle machine


class Waiter(threading.Thread):
    """A thread that acquires a lock and keeps it until ``leave``, and what became of it."""

    def __init__(self, lock: mqkv.Lock, timeout: float | None = SOON) -> None:
        super().__init__(daemon=True)
        self.lock, self._timeout = lock, timeout
        self.had: bool | None = None
        self.token = -1
        self.error: BaseException | None = None
        self.inside = threading.Event()
        self.leave = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            self.had = self.lock.acquire(self._timeout)
            if self.had:
                self.token = self.lock.token
                self.inside.set()
                self.leave.wait(60)
                self.lock.release()
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self.leave.set()
        self.join(SOON)
        assert not self.is_alive()


def apart(call: Callable[..., T], *arguments: Any) -> T:
    """Call in another thread: in one process, a thread that has a lock and asks again is told so."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call, *arguments).result(SOON)


def until(condition: Callable[[], object], what: str, timeout: float = SOON) -> None:
    deadline, tick = time.monotonic() + timeout, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about in {timeout:g} s"
        tick.wait(0.005)


def queue_of(store: mqkv.Store, name: str) -> int:
    """How many wait for a lock."""
    table = run(store._keyspace.lock_table(Deadline(5.0)))
    assert table is not None
    held = table.lock_state(name)
    return 0 if held is None else len(held.queue)


def enter(lock: mqkv.Lock) -> bool:
    with lock:
        return lock.owned()


def fall_silent(store: mqkv.Store, lock: mqkv.Lock) -> None:
    """What a holder looks like that was killed: nobody renews for it."""
    assert lock._lease is not None
    store._keyspace.leases.remove(lock._lease)
