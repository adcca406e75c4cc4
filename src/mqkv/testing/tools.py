"""Helpers for tests of engines: a sink that remembers, and short ways to append, open and run threads. All waits are bounded."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from mqkv.streams.base import Delivery, Engine, Message, Promise, Start, Tail

#: Seconds that anything may take. Nothing waits that long unless something is wrong.
PATIENCE = 15.0


class RecordingSink:
    """A sink that remembers what it was told. Thread-safe.

    ``events`` holds the names of the calls, in order (``deliver`` once for each batch); ``deliveries`` is emptied by ``reset``.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = threading.Lock()
        self.deliveries: list[Delivery] = []
        self.events: list[str] = []
        self.beheaded = False  #: whether it was told that it begins in the middle
        self.error: Exception | None = None
        self.overlapped = False  #: whether two threads have called it at once

    @property
    def messages(self) -> list[Message]:
        return [message for _, message in self.deliveries]

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.messages]

    @property
    def offsets(self) -> list[int]:
        return [offset for offset, _ in self.deliveries]

    def _note(self, event: str, batch: Sequence[Delivery] = (), error: Exception | None = None) -> None:
        alone = self._busy.acquire(blocking=False)
        with self._changed:
            self.overlapped = self.overlapped or not alone
            self.events.append(event)
            if event == "reset":
                self.deliveries = []
            self.deliveries.extend(batch)
            self.error = error or self.error
            self._changed.notify_all()
        if alone:
            self._busy.release()

    def deliver(self, batch: Sequence[Delivery]) -> None:
        self._note("deliver", list(batch))

    def truncated(self) -> None:
        self.beheaded = True

    def interrupted(self, since: float | None = None) -> None:
        self._note("interrupted")

    def resumed(self) -> None:
        self._note("resumed")

    def reset(self) -> None:
        self._note("reset")

    def ended(self, error: Exception) -> None:
        self._note("ended", error=error)

    def wait_until(self, what: Callable[[], bool], timeout: float = PATIENCE) -> bool:
        """Whether it came true within ``timeout`` seconds; looked at after each call of the engine."""
        with self._changed:
            return self._changed.wait_for(what, timeout)

    def wait_for(self, n: int, timeout: float = PATIENCE) -> list[Delivery]:
        """The deliveries, once there are ``n``; fails if they do not come."""
        assert self.wait_until(lambda: len(self.deliveries) >= n, timeout), f"{len(self.deliveries)} of {n} messages came"
        return self.deliveries

    def wait_event(self, event: str, timeout: float = PATIENCE) -> None:
        assert self.wait_until(lambda: event in self.events, timeout), f"no {event}, but {self.events}"


def message(body: bytes | str = b"x", **headers: Any) -> Message:
    """A message with an id of its own."""
    return Message(body.encode() if isinstance(body, str) else body, headers, uuid.uuid4().hex)


def result(promise: Promise[Any]) -> Any:
    assert promise.wait(PATIENCE), "the promise was not settled in time"
    return promise.result()


def put(tail: Tail, body: bytes | str = b"x", **headers: Any) -> int:
    """Append, and wait for the offset."""
    offset = result(tail.append(message(body, **headers), PATIENCE))
    assert isinstance(offset, int)
    return offset


def opened(engine: Engine, stream: str, start: Start | int = Start.FIRST) -> tuple[Tail, RecordingSink]:
    """A tail that is ready, and its sink."""
    sink = RecordingSink()
    tail = engine.open(stream, start, sink)
    result(tail.attached)
    result(tail.ready)
    return tail, sink


def run_threads(jobs: Sequence[Callable[[], object]]) -> None:
    """Run jobs at once, and raise what the first of them raised."""
    errors: list[BaseException] = []
    gate = threading.Barrier(len(jobs))

    def run(job: Callable[[], object]) -> None:
        try:
            gate.wait(PATIENCE)
            job()
        except BaseException as error:  # noqa: BLE001 -- raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE * 4)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread did not end in time"
