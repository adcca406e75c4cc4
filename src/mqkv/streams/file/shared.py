"""What the processes that use a folder share besides the database: a few words in a mapped file, and the writers' lock.

It knows nothing of databases and streams. Rules:

1. Word 0, the signal, is the offset of the newest committed record, stored after the commit with the writers' lock held. So it
   only rises, each value is stored once, and whoever finds in it what they know already has missed no append that returned.
2. The lock is ``flock``: the kernel lets go of it when its holder is killed. What it protects stands in the database; a writer
   killed between commit and store leaves a signal that is too low by a record that nobody was promised.
3. Words 2 and 3 say until when (monotonic seconds) somebody may be waiting for the signal, or for the lock. While they are past,
   a writer calls no kernel to wake anybody. A killed waiter costs system calls for a minute, nothing else.
4. Who holds files that are no longer the ones of the folder (it was removed, moved, or swept by a cleaner of /tmp) shares nothing
   with those who come later: ``gone`` says so, for the price of one ``stat``.
5. Waiting is a futex on Linux; where threads are greenlets, in a native thread. Elsewhere the words are looked at every 5 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import sys
import time
from collections.abc import MutableSequence
from pathlib import Path
from typing import cast

from mqkv.streams.file.greenlets import without_holding_up

SIGNAL, TURN, LISTENING, CONTENDED = range(4)
SIZE = 64
POLL = 0.005
#: How long a waiter for the lock sleeps at most before it looks again: its holder may have been killed, and wakes nobody.
LOOK_AGAIN = 0.02

_FUTEX_NUMBERS = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}
_FUTEX = _FUTEX_NUMBERS.get(platform.machine(), 0) if sys.platform == "linux" and ctypes.sizeof(ctypes.c_void_p) == 8 else 0
_WAIT, _WAKE = 0, 1
_LOW = 0xFFFFFFFF


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_syscall = ctypes.CDLL(None, use_errno=True).syscall if _FUTEX else None


def _open_private(path: Path) -> int:
    """A descriptor of a file that only its owner may read; made if it is not there."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file has this name; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Shared:
    """The words and the lock of a folder, for one engine. ``acquire`` and ``release`` are for one thread at a time."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._files: dict[str, tuple[int, int]] = {}
        self._seen: tuple[int, int, int] | None = None
        # Two files: a mapping keeps a descriptor of its own, and one that a forked child keeps must not hold the lock.
        descriptor = _open_private(Path(folder) / "mqkv.signal")
        try:
            if os.fstat(descriptor).st_size < SIZE:
                os.ftruncate(descriptor, SIZE)
            self._map = mmap.mmap(descriptor, SIZE)
        finally:
            os.close(descriptor)
        self.words = cast("MutableSequence[int]", memoryview(self._map).cast("Q"))
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) if _syscall else 0
        self._lock = _open_private(Path(folder) / "mqkv.lock")
        self.guard("mqkv.signal")
        self.guard("mqkv.lock")

    def guard(self, name: str) -> None:
        """Have ``gone`` look at the file that has this name now."""
        self._files[name] = _identity(self._folder / name) or (0, 0)

    def gone(self) -> bool:
        """Whether a file of the folder was removed, or replaced, since it was opened."""
        try:
            folder = self._folder.stat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # whoever needs it says what is wrong
        seen = folder.st_dev, folder.st_ino, folder.st_mtime_ns
        if seen != self._seen:
            if any(_identity(self._folder / name) != one for name, one in self._files.items()):
                return True
            self._seen = seen
        return False

    def acquire(self, timeout: float) -> bool:
        """Become the only writer of all processes; False if that took longer than ``timeout``."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._queue(timeout)
        return True

    def _queue(self, timeout: float) -> bool:
        words = self.words
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            # First say that one waits, then try: a holder who lets go after the try finds it said.
            words[CONTENDED] = int(time.monotonic()) + 2
            turn = words[TURN]
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            self.wait(TURN, turn, min(left, LOOK_AGAIN))
        return False

    def release(self) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        words = self.words
        if words[CONTENDED] and words[CONTENDED] > time.monotonic():
            words[TURN] = time.monotonic_ns()
            self.wake(TURN, 1)
        if words[LISTENING] and words[LISTENING] > time.monotonic():
            self.wake(SIGNAL)

    def wait(self, word: int, value: int, timeout: float) -> None:
        """Return when ``word`` is not ``value``, or is woken, or at times for no reason; at the latest after ``timeout``."""
        if _syscall is None:
            deadline = time.monotonic() + timeout
            while self.words[word] == value and time.monotonic() < deadline:
                time.sleep(POLL)
            return
        syscall, address = _syscall, self._address(word)
        limit = _Timespec(int(timeout), int(timeout % 1 * 1e9))
        without_holding_up(
            lambda: syscall(
                ctypes.c_long(_FUTEX),
                ctypes.c_void_p(address),
                _WAIT,
                ctypes.c_uint32(value & _LOW),
                ctypes.byref(limit),
                None,
                0,
            )
        )

    def wake(self, word: int, waiters: int = 0x7FFFFFFF) -> None:
        if _syscall is not None:
            _syscall(ctypes.c_long(_FUTEX), ctypes.c_void_p(self._address(word)), _WAKE, waiters, None, None, 0)

    def _address(self, word: int) -> int:
        """A futex is 32 bits wide: the lower half of a word."""
        return self._base + word * 8 + (4 if sys.byteorder == "big" else 0)

    def close(self) -> None:
        """Let go of the lock's file. The mapping goes when the last holder of ``words`` does."""
        with contextlib.suppress(OSError):
            os.close(self._lock)


def say(error: OSError) -> str:
    """An OSError in a word or two."""
    return errno.errorcode.get(error.errno or 0, "") + " " + (error.strerror or str(error))
