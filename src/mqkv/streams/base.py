"""What an engine must do: six methods, about messages and offsets, never about keys.

Rules that every engine keeps (``mqkv.testing.EngineContract`` checks them):

1. A stream is totally ordered. Offsets rise; they may have gaps.
2. A sink gets each message of its stream once, in order, in one thread at a time, from its start on, across lost connections.
3. An append is settled only after this process's sinks on that stream have been given the message.
4. An append that is retried keeps its id; a copy that may be a second one carries ``RETRY_HEADER``.
5. Only errors of ``mqkv.errors`` come out.
6. Nothing waits without a bound.
7. A sink that is to begin at the first message is told if that is not the first that the stream ever had.
"""

from __future__ import annotations

import enum
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from mqkv.errors import Error

HeaderValue = str | int | bool | float

RETRY_HEADER = "__mqkv_retry__"

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class Message(NamedTuple):
    """One message, as it stands in a stream. Engines write headers of ``str``, ``int`` and ``bool``, and read ``float`` too."""

    body: bytes = b""
    headers: Mapping[str, HeaderValue] = {}
    id: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None


Delivery = tuple[int, Message]


class Piece(NamedTuple):
    """A part of a stream."""

    messages: list[Delivery]
    complete: bool  #: whether it reaches the end
    truncated: bool = False  #: of one that was asked for from offset 0 on: whether what stood there first is gone


#: What a message takes in memory besides its body, about.
MESSAGE = 500


class Start(enum.Enum):
    """Where a tail begins, if not at an offset (an ``int``: the first message at or after it)."""

    FIRST = "first"
    LAST = "last"  #: at the newest message, or some messages before it
    NEXT = "next"  #: after all that was appended before the tail was opened


class Sink(Protocol):
    """What a tail feeds. Called by one thread at a time; must be quick and must not call the engine."""

    def deliver(self, batch: Sequence[Delivery]) -> None:
        """Messages of the stream, in order."""

    def truncated(self) -> None:
        """Before the first message of a tail that was opened at ``FIRST``, or begins there again after ``reset``: messages that
        stood before it are gone."""

    def interrupted(self, since: float | None = None) -> None:
        """The connection is gone: what is known may be stale from now on, or ``since`` then (``time.monotonic``). The tail
        resumes by itself."""

    def resumed(self) -> None:
        """All that was appended while the connection was gone has been delivered."""

    def reset(self) -> None:
        """The log is not the one that was read so far (truncated, or made anew): forget it; deliveries start over."""

    def ended(self, error: Exception) -> None:
        """Nothing more will come: the stream was deleted (``StreamMissing``) or can't be read (``StreamDamaged``)."""


class Promise(Generic[T]):
    """A result that another thread will bring. Thread-safe; the first ``resolve`` or ``reject`` counts, later ones do nothing."""

    __slots__ = ("_callbacks", "_done", "_error", "_gate", "_value")
    _mutex = threading.RLock()  # a signal's handler may come in between

    _value: T
    _gate: threading.Lock | None

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()
        self._done = False
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Promise[T]], object]] | None = None

    @classmethod
    def of(cls, value: T) -> Promise[T]:
        """A promise that is kept already."""
        promise: Promise[T] = cls.__new__(cls)
        promise._value = value
        promise._error = None
        promise._done = True
        return promise

    def resolve(self, value: T) -> None:
        self._settle(value, None)

    def reject(self, error: BaseException) -> None:
        self._settle(None, error)  # type: ignore[arg-type]

    def _settle(self, value: T, error: BaseException | None) -> None:
        with Promise._mutex:
            if self._done:
                return
            self._value, self._error = value, error
            self._done = True
            callbacks, self._callbacks = self._callbacks, None
        if self._gate is not None:
            self._gate.release()
        for callback in callbacks or ():
            try:
                callback(self)
            except Exception:
                _logger.exception("a callback of a promise failed")  # its own affair: others wait for this promise too

    def then(self, callback: Callable[[Promise[T]], object]) -> None:
        """Call ``callback(self)`` when settled, in the settling thread; at once if it is settled already."""
        with Promise._mutex:
            if not self._done:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
                return
        callback(self)

    def forget(self, callback: Callable[[Promise[T]], object]) -> None:
        """Don't call ``callback`` any more."""
        with Promise._mutex:
            if self._callbacks is not None and callback in self._callbacks:
                self._callbacks.remove(callback)

    def done(self) -> bool:
        return self._done

    def wait(self, timeout: float) -> bool:
        """Whether it was settled within ``timeout`` seconds."""
        if self._done:
            return True
        assert self._gate is not None
        if not self._gate.acquire(timeout=max(timeout, 0)):
            return self._done
        self._gate.release()
        return True

    def error(self) -> BaseException | None:
        """What it was rejected with. Only for a settled promise."""
        return self._error

    def result(self) -> T:
        """The value, or raise what it was rejected with. Only for a settled promise: ``wait`` first."""
        if self._error is not None:
            raise self._error
        return self._value


class Tail(ABC):
    """A subscription to one stream, and the way to append to it. Thread-safe."""

    #: Settled when every message that was appended and confirmed before ``open`` has been delivered, or with
    #: ``StreamMissing``, ``StreamDamaged``, ``NotAStream`` or ``ConnectionFailed`` (the tail is closed then).
    ready: Promise[None]

    #: Settled when the tail is attached: whatever is appended from then on will be delivered. Not later than ``ready``.
    attached: Promise[None]

    @abstractmethod
    def append(self, message: Message, timeout: float) -> Promise[int]:
        """Append, and learn the offset. Appends of one thread keep their order. The message must have an id.

        The promise is settled within ``timeout`` seconds: with the offset; with ``StreamMissing`` or ``ConnectionFailed``
        (nothing was written) or with ``OutcomeUnknown``. Does not wait for the other side; see ``Engine.room``.
        """

    @abstractmethod
    def close(self) -> None:
        """Deliver nothing more (a delivery under way in another thread may still end). Appends under way are still settled."""


class Engine(ABC):
    """A place that keeps streams. Thread-safe. Connects at its first use."""

    #: ``signal[0]`` changes when another process may have appended. A reader that finds it changed calls ``catch_up``.
    signal: Sequence[int] = (0,)

    #: Whether, after ``catch_up``, tails have been given all that was appended anywhere before: then a barrier costs nothing.
    exact = True

    #: Whether calls may wait in the caller's thread for a lock or a disk.
    blocks = False

    @property
    def lags(self) -> bool:
        """Whether ``last`` may not know all that was confirmed before, as replicas lag. Then only a message that was appended and
        has come back through a tail proves that nothing before it is missing. (What was given out once is never taken back.)"""
        return False

    @abstractmethod
    def declare(self, stream: str, max_age: int | None, timeout: float) -> None:
        """Make the stream if there is none; ``max_age`` in seconds is for a new one. One that exists is left as it is."""

    @abstractmethod
    def open(self, stream: str, start: Start | int, sink: Sink) -> Tail:
        """Begin to feed ``sink``. Returns at once; errors come out of ``Tail.ready``. Never declares the stream."""

    @abstractmethod
    def last(self, stream: str, timeout: float) -> Delivery | None:
        """The newest message that was confirmed before the call; None for an empty stream; ``StreamMissing`` for none."""

    @abstractmethod
    def delete(self, stream: str, timeout: float) -> None:
        """Delete the stream with all its messages. Tails on it end. Deleting what is not there does nothing."""

    def begin_declare(self, stream: str, max_age: int | None, timeout: float) -> Promise[None]:
        """``declare``, without waiting for the broker."""
        return _kept(lambda: self.declare(stream, max_age, timeout))

    def begin_last(self, stream: str, timeout: float) -> Promise[Delivery | None]:
        """``last``, without waiting for the broker."""
        return _kept(lambda: self.last(stream, timeout))

    def begin_delete(self, stream: str, timeout: float) -> Promise[None]:
        """``delete``, without waiting for the broker."""
        return _kept(lambda: self.delete(stream, timeout))

    def begin_read(self, stream: str, start: int, size: int, timeout: float) -> Promise[Piece]:
        """The messages from an offset on, at least two if there are, and no more when they have ``size`` bytes; and whether that
        was all that was appended and confirmed before the call. Whoever wants it no more rejects the promise."""
        reader = _Reader(size)
        tail = self.open(stream, start, reader)
        reader.piece.then(lambda piece: tail.close())
        tail.ready.then(reader.at_end)
        return reader.piece

    def keep_in_touch(self, within: float) -> None:  # noqa: B027 -- for engines that have another side
        """Have sinks ``interrupted`` when nothing was heard of the other side for ``within`` seconds, however little there is to
        say. The least that anybody asked for holds. Connects to nothing."""

    def room(self) -> Promise[None] | None:
        """None, while there is room for one more append; else a promise that is settled when there may be. A bound on memory:
        who appends asks first, and again when it is settled. Quick."""
        return None

    @abstractmethod
    def catch_up(self) -> None:
        """Deliver in this thread what other processes appended before this call. Nothing to do for an engine that pushes."""

    def listen(self) -> None:  # noqa: B027 -- an engine that pushes anyway has nothing to do
        """Deliver without being asked from now on: somebody waits. Idempotent, and quick."""

    @abstractmethod
    def close(self) -> None:
        """End all tails without a word to their sinks, and let go of everything. Idempotent."""

    @abstractmethod
    def after_fork(self) -> None:
        """In a forked child: let go of what is shared with the parent, without a word to the other side. Not usable after."""


def _after_fork() -> None:
    # Another thread of the parent may have held it.
    Promise._mutex = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


class _Reader:
    """A sink that takes so many bytes."""

    def __init__(self, size: int) -> None:
        self.piece: Promise[Piece] = Promise()
        self._batch: list[Delivery] = []
        self._truncated = False
        self._size = self._left = size

    def truncated(self) -> None:
        self._truncated = True

    def deliver(self, batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            if self.piece.done():
                return
            self._batch.append(delivery)
            self._left -= len(delivery[1].body) + MESSAGE
            if self._left <= 0 and len(self._batch) > 1:
                self.piece.resolve(Piece(self._batch, False, self._truncated))

    def interrupted(self, since: float | None = None) -> None:
        """The tail goes on by itself."""

    def resumed(self) -> None:
        """Now ``at_end`` comes, or was there."""

    def reset(self) -> None:
        self._batch, self._left, self._truncated = [], self._size, False

    def ended(self, error: Exception) -> None:
        self.piece.reject(error)

    def at_end(self, ready: Promise[None]) -> None:
        error = ready.error()
        if error is None:
            self.piece.resolve(Piece(self._batch, True, self._truncated))
        else:
            self.piece.reject(error)


def _kept(call: Callable[[], T]) -> Promise[T]:
    """What a call has brought, as a promise that is settled."""
    try:
        return Promise.of(call())
    except Error as error:
        promise: Promise[T] = Promise()
        promise.reject(error)
        return promise
