"""What a cache does while its broker is away: one caller at a time finds out whether it is back, the others go on without it.

For adapters whose callers would rather miss than fail. It knows errors, and no store.

Rules:

1. A call that failed through nobody's fault (:func:`is_outage`) begins an outage. The broker is then left alone for as long as
   the failure took to show, within bounds: a page makes many calls, and should wait for one of them.
2. When that time is over, one caller is let through, and the others rest until it knows.
3. Reads may work where writes do not (no permission, an alarm of the broker): they are let through again by themselves, and only
   a write ends what a failed write began.
4. A read may have been answered by memory: it ends nothing while the process is out of touch.
5. What ends otherwise (by its caller's fault, cancelled) tells nothing, and the next caller finds out.
6. An outage is two lines in the log, its beginning and its end, however many calls it costs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from mqkv.errors import ConnectionFailed, Error, KeyNotFound, LockTimeout, NotANumber, UnreadableValue, UpgradeRequired
from mqkv.logfmt import line

#: For how many seconds a broker that failed is left alone, at least and at most.
SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 15.0

#: Errors that only an answer can bring.
_ANSWERS = (KeyNotFound, NotANumber, UnreadableValue)


def is_outage(error: BaseException) -> bool:
    """Whether an error is what the world did, and not the caller (nor another holder of a lock)."""
    return isinstance(error, Error) and isinstance(error, (OSError, UpgradeRequired)) and not isinstance(error, LockTimeout)


class Outage:
    """Whether the broker is away, as the calls of one store have found. Thread-safe, and safe to use after a fork.

    ``in_touch`` says whether the store's memory is as fresh as the broker; ``on_end`` is called when the broker is back. While
    all is well it costs a look at an attribute or two.
    """

    def __init__(
        self,
        in_touch: Callable[[], bool],
        logger: logging.Logger,
        *,
        on_end: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._in_touch = in_touch
        self._logger = logger
        self._on_end = on_end
        self._now = monotonic
        self.on = False  #: whether there is an outage
        self._reads: float | None = None  #: until when reads rest; None while all is well
        self._writes: float | None = None
        self._began: dict[str, float] = {}  #: empty while all is well; a dict, since one thread takes out what one has put in
        self._spared = 0

    def resting(self, *, writing: bool) -> bool:
        """Whether to go on without the broker. Who is told False finds out, and says so by ``worked`` or ``told``."""
        if not self.on:
            return False
        now = self._now()
        reads, writes = self._reads, self._writes if writing else None
        if max(reads or now, writes or now) > now:
            self._spared += 1
            return True
        if reads is not None:
            self._reads = now + LONGEST_PAUSE
        if writes is not None:
            self._writes = now + LONGEST_PAUSE
        return False

    def failed(self, error: Error, begun: float, *, writing: bool) -> None:
        """A call that began at ``begun``, by the monotonic clock, could not be done."""
        now = self._now()
        until = now + min(max(now - begun, SHORTEST_PAUSE), LONGEST_PAUSE)
        self._reads = until
        if writing:
            self._writes = until
        self.on = True
        if not self._began and self._began.setdefault("at", begun) is begun:
            self._logger.warning("%s", line("outage", status="began", error=type(error).__name__, reason=error))

    def told(self, error: BaseException, begun: float, *, writing: bool) -> bool:
        """A call that began at ``begun``, by the monotonic clock, ended by an error. Whether that is an outage."""
        if isinstance(error, Error) and is_outage(error):
            self.failed(error, begun, writing=writing)
            return True
        if isinstance(error, _ANSWERS):
            self.worked(writing=writing)
        elif self.on:
            self._pass_on(writing=writing)
        return False

    def _pass_on(self, *, writing: bool) -> None:
        now = self._now()
        if self._reads is not None:
            self._reads = now
        if writing and self._writes is not None:
            self._writes = now

    def worked(self, *, writing: bool) -> None:
        """A call was done; by memory alone, perhaps."""
        if not self.on:
            return
        seen = self._reads, self._writes
        in_touch = self._in_touch()
        if seen != (self._reads, self._writes):
            return  # another has found out since
        if in_touch:
            self._reads = None
            if writing:
                self._writes = None
            self._end()
        else:
            pause = self._now() + SHORTEST_PAUSE
            if self._reads is not None:
                self._reads = pause
            if writing and self._writes is not None:
                self._writes = pause

    def call(self, dropped: Any, verb: Callable[..., Any], *arguments: Any, writing: bool, **options: Any) -> Any:
        """Call the store; ``dropped`` where the broker is away. Raises what is the caller's fault."""
        away = self._reads is not None or self._writes is not None
        if away and self.resting(writing=writing):
            return dropped
        begun = self._now()
        try:
            result = verb(*arguments, **options)
        except BaseException as error:
            if self.told(error, begun, writing=writing):
                return dropped
            raise
        if away:
            self.worked(writing=writing)
        return result

    def insist(self, verb: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Write what must not be dropped: raises where the broker is away, at once if that is known."""
        if self.resting(writing=True):
            raise ConnectionFailed("the broker was away a moment ago, and was not asked again: nothing was written")
        begun = self._now()
        try:
            result = verb(*arguments, **options)
        except BaseException as error:
            self.told(error, begun, writing=True)
            raise
        self.worked(writing=True)
        return result

    def _end(self) -> None:
        self.on = self._reads is not None or self._writes is not None
        began = None if self.on else self._began.pop("at", None)
        if began is not None:
            self._on_end()
            spared, self._spared = self._spared, 0
            # As loud as the beginning: who was told of the one waits for the other.
            self._logger.warning("%s", line("outage", status="over", seconds=f"{self._now() - began:.1f}", spared=spared))
