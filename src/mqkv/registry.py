"""Engines and keyspaces that the stores of this process share, counted, whoever closes first.

Rules:

1. Stores with the same URL share one engine (one connection); with the same layout, names and options also the tables.
2. A forked child shares nothing with its parent: it lets go of the parent's engines and starts with an empty registry.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Hashable
from typing import Protocol

from mqkv.check import queue_name
from mqkv.errors import InvalidOption
from mqkv.layout import LOCKS, Keyspace, Options, PerKeyKeyspace, SharedKeyspace, lock_stream
from mqkv.logfmt import Log
from mqkv.streams.base import Engine
from mqkv.url import URL


class Forked(Protocol):
    """Somebody who must know that the process has forked."""

    def after_fork(self) -> None:
        """Called in the child."""


class _Counted:
    """Something shared, and how many hold it."""

    def __init__(self, engine: Engine, keyspace: Keyspace | None = None) -> None:
        self.engine = engine
        self.keyspace = keyspace
        self.holders = 0


_lock = threading.Lock()
_engines: dict[URL, _Counted] = {}
_keyspaces: dict[Hashable, _Counted] = {}
_listeners: weakref.WeakSet[Forked] = weakref.WeakSet()
_inherited: list[_Counted] = []


def _make_engine(url: URL, logger: logging.Logger | None) -> Engine:
    # Imported here: the embedded engines must work where pika is broken, and the other way round.
    if url.scheme == "memory":
        from mqkv.streams.memory import MemoryEngine

        return MemoryEngine(url, logger=logger)
    if url.scheme == "file":
        from mqkv.streams.file import FileEngine

        return FileEngine(url, logger=logger)
    from mqkv.streams.amqp import AmqpEngine

    return AmqpEngine(url, logger=logger)


class Place:
    """Where a store keeps its keys; what it asks the registry for, and gives back."""

    def __init__(self, url: URL, prefix: str, layout: str, name: str, options: Options, logger: logging.Logger | None) -> None:
        self._url, self._prefix, self._name, self._options = url, prefix, name, options
        self._logger = logger
        if layout not in ("per-key", "shared"):
            raise InvalidOption(f"layout is 'per-key' or 'shared', not {layout!r}")
        self._shared = layout == "shared"
        self._stream = queue_name(prefix, name) if self._shared else None
        self._locks = queue_name(prefix, f"{name}{LOCKS}" if self._shared else LOCKS)
        # A codec may be an object without a hash; while the keyspace lives, so does the codec, and with it its id.
        self._key = (url, prefix, layout, self._stream, id(options.codec.codec), *options[1:])

    def acquire(self) -> Keyspace:
        """The shared keyspace, made if need be. Connects to nothing."""
        with _lock:
            counted = _keyspaces.get(self._key)
            if counted is None:
                engine = _engines.get(self._url)
                if engine is None:
                    engine = _engines[self._url] = _Counted(_make_engine(self._url, self._logger))
                engine.holders += 1
                counted = _keyspaces[self._key] = _Counted(engine.engine, self._keyspace(engine.engine))
            counted.holders += 1
            assert counted.keyspace is not None
            counted.keyspace.log.adopt(self._logger)
            return counted.keyspace

    def _keyspace(self, engine: Engine) -> Keyspace:
        log = Log(self._logger)
        locks = lock_stream(engine, self._locks, self._options, log)
        if self._stream is not None:
            return SharedKeyspace(engine, self._stream, self._options, log, locks)
        return PerKeyKeyspace(engine, self._prefix, self._options, log, locks)

    def release(self) -> None:
        """Give back what was acquired; the last holder closes it."""
        closing: list[Keyspace | Engine] = []
        with _lock:
            counted = _keyspaces.get(self._key)
            if counted is None:
                return
            counted.holders -= 1
            if counted.holders == 0:
                del _keyspaces[self._key]
                assert counted.keyspace is not None
                closing.append(counted.keyspace)
                engine = _engines[self._url]
                engine.holders -= 1
                if engine.holders == 0:
                    del _engines[self._url]
                    closing.append(engine.engine)
        for each in closing:
            each.close()


def enlist(listener: Forked) -> None:
    """Have somebody told, in the child, when the process has forked. Kept weakly."""
    _listeners.add(listener)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    for counted in _engines.values():
        counted.engine.after_fork()
    # Kept for ever: finalising them could speak to the broker, or close files, in the parent's name.
    _inherited.extend([*_engines.values(), *_keyspaces.values()])
    _engines.clear()
    _keyspaces.clear()
    for listener in list(_listeners):
        listener.after_fork()


os.register_at_fork(after_in_child=_after_fork)
