"""Coroutines on the I/O thread: sequences of requests and answers, written one under the other.

Nothing but this: no clock, no thread, no I/O. Everything here is for the I/O thread alone. Rules:

1. A coroutine awaits ``Future``s only. It runs on in the call that settles the future.
2. Nobody cancels a coroutine: what it awaits is rejected, and it unwinds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class Future(Generic[T]):
    """A result that an answer of the broker will bring. The first ``resolve`` or ``reject`` counts."""

    __slots__ = ("_callbacks", "_error", "_value", "done")

    _value: T

    def __init__(self) -> None:
        self.done = False
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], None]] = []

    def resolve(self, value: T) -> None:
        if not self.done:
            self._value = value
            self._settle()

    def reject(self, error: BaseException) -> None:
        if not self.done:
            self._error = error
            self._settle()

    def _settle(self) -> None:
        self.done = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def then(self, callback: Callable[[], None]) -> None:
        if self.done:
            callback()
        else:
            self._callbacks.append(callback)

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value

    def __await__(self) -> Generator[Future[Any], None, T]:
        if not self.done:
            yield self
        return self.result()


class Task(Future[T]):
    """A running coroutine, and its result."""

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Future[Any], None, T]) -> None:
        super().__init__()
        self._coroutine = coroutine
        self._step()

    def _step(self) -> None:
        try:
            awaited = self._coroutine.send(None)
        except StopIteration as stop:
            self.resolve(stop.value)
        except Exception as error:  # noqa: BLE001 -- it is the task's result
            self.reject(error)
        else:
            awaited.then(self._step)


def spawn(coroutine: Coroutine[Future[Any], None, None]) -> None:
    """Run a coroutine whose result nobody awaits. It deals with its own errors: what escapes it is a bug, and is logged."""
    task = Task(coroutine)

    def done() -> None:
        try:
            task.result()
        except Exception:
            _logger.exception("a task of the AMQP engine failed")

    task.then(done)
