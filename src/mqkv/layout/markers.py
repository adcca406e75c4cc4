"""Markers: who must know all that was written before appends one, and waits until it has come back. Those who ask at once share.

Rule: a marker counts for those only who asked before it was appended. So one is under way at a time, and one waits for that.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

from mqkv.errors import Error
from mqkv.streams.base import Promise
from mqkv.table import Table
from mqkv.waiting import Deadline, Turn, wait


class Markers:
    """The markers of one table's stream. Thread-safe."""

    def __init__(self, table: Table, send: Callable[[Table, Deadline], Awaitable[None]]) -> None:
        self.table = table
        self._send = send  #: appends one, and waits until it has come back
        self._lock = threading.Lock()
        self._under_way = Turn()
        self._next: Promise[bool] | None = None  #: the one that is to be appended: whether it was

    async def passed(self, deadline: Deadline) -> None:
        """Wait for a marker that is appended after this call."""
        while True:
            with self._lock:
                first = self._next is None
                if self._next is None:
                    self._next = Promise()
                marker = self._next
            if first:
                return await self._append(marker, deadline)
            if not await wait(marker, deadline.left):
                raise deadline.late(f"no marker came back from stream {self.table.stream} within {deadline}")
            error = marker.error()
            if isinstance(error, Error):
                raise type(error)(*error.args) from error
            if marker.result():
                return None
            # Who was to append it has gone; there may be time left for us.

    async def _append(self, marker: Promise[bool], deadline: Deadline) -> None:
        try:
            if not await self._under_way.take(deadline.left):
                raise deadline.late(f"no marker came back from stream {self.table.stream} within {deadline}")
            try:
                self._close(marker)
                await self._send(self.table, deadline)
            finally:
                self._under_way.give()
        except BaseException as error:
            self._close(marker)
            if isinstance(error, Error) and deadline.left:
                marker.reject(error)
            marker.resolve(False)
            raise
        marker.resolve(True)

    def _close(self, marker: Promise[bool]) -> None:
        """Who asks from now on waits for another."""
        with self._lock:
            if self._next is marker:
                self._next = None
