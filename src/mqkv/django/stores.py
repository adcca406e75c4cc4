"""The stores of this process: one for each configuration, whoever asks, for as long as the process lives.

Django builds a backend object a thread (or a request, in an event loop) and closes each after every request; connection and table
must outlive them. A store knows by itself when the process has forked.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mqkv
from mqkv.django.codec import SignedCodec
from mqkv.django.compressors import COMPRESSORS
from mqkv.django.config import Same, StoreConfig, error_of, import_option
from mqkv.django.errors import InvalidCacheOption, Problems
from mqkv.django.serializers import SERIALIZERS
from mqkv.outage import Outage

logger = logging.getLogger("mqkv.django")

_nowhere = logging.Logger("mqkv.django.unheard", logging.CRITICAL + 1)


class Shared:
    """What the backend objects of one configuration share. Thread-safe."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self.codec = _codec(config)
        self.store: mqkv.Store = _open(mqkv.Store, config, config.url, self.codec)
        self.outage = Outage(self._in_touch, logger if config.logs_outages else _nowhere)
        self._async_store: mqkv.AsyncStore | None = None
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()

    def used_by(self, backend: Any) -> Shared:
        """Have a backend object, which keeps what it found here, let go of it when this is closed."""
        self._users.add(backend)
        return self

    @property
    def async_store(self) -> mqkv.AsyncStore:
        """The same keyspace and table, awaited."""
        if self._async_store is None:
            with _lock:
                if self._async_store is None:
                    self._async_store = _open(mqkv.AsyncStore, self.config, self.config.url, self.codec)
        return self._async_store

    def staleness(self) -> float:
        """For how many seconds memory has been out of touch with the broker."""
        return float(str(self.store.stats().get("staleness", 0.0)))

    def _in_touch(self) -> bool:
        return self.staleness() == 0

    def close(self) -> None:
        for backend in list(self._users):
            backend.let_go()
        self.store.close()
        if self._async_store is not None:
            with ThreadPoolExecutor(1) as pool:  # there may be a loop in this thread
                pool.submit(asyncio.run, self._async_store.close()).result()


_lock = threading.RLock()
_shared: dict[StoreConfig, Shared] = {}


def shared(config: StoreConfig) -> Shared:
    """The store for a configuration, made if need be. Connects to nothing."""
    found = _shared.get(config)
    if found is None:
        with _lock:
            found = _shared.get(config)
            if found is None:
                try:
                    found = _shared[config] = Shared(config)
                except InvalidCacheOption:
                    try_out(config)  # there may be more
                    raise
    return found


def try_out(config: StoreConfig) -> None:
    """Find all that is wrong with a configuration: :class:`InvalidCacheOption` tells it."""
    problems = Problems()
    with problems.gathered():
        _codec(config)
    for url in (config.url, "memory://"):  # what is wrong with the URL hides the rest
        found = len(problems)
        with problems.gathered():
            _open(mqkv.Store, config, url, mqkv.DefaultCodec()).close()
        if len(problems) == found or problems[-1].setting != "LOCATION":
            break
    problems.tell()


def close_stores() -> None:
    """Close all stores of Django's caches in this process: for the end of a program, or of a test. The next use opens anew."""
    with _lock:
        closing = list(_shared.values())
        _shared.clear()
    for each in closing:
        each.close()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _open(kind: Any, config: StoreConfig, url: str, codec: Any) -> Any:
    try:
        return kind(
            url,
            prefix=config.stream_prefix,
            name=config.name,
            layout=config.layout,
            codec=codec,
            logger=logger,
            _maker=config.maker,
            **dict(config.store_options),
        )
    except mqkv.Error as error:
        raise error_of(error) from error


def _codec(config: StoreConfig) -> SignedCodec:
    problems = Problems()
    serializer: Any = None
    label, ours, compressor, compressor_label = "", False, None, ""
    with problems.gathered():
        serializer, label, ours = _made(config.serializer, SERIALIZERS, "OPTIONS['serializer']", ("dumps", "loads"))
    with problems.gathered():
        if config.compressor is not None:
            methods = ("compress", "decompress")
            compressor, compressor_label, _ = _made(config.compressor, COMPRESSORS, "OPTIONS['compressor']", methods)
    problems.tell()
    if compressor is not None and not config.secrets and len(inspect.signature(compressor.decompress).parameters) < 2:
        hint = "Give it a second parameter max_length, or leave values signed."
        raise InvalidCacheOption("OPTIONS['compressor']", "its decompress has no bound, and values are not signed", hint)
    return SignedCodec(
        serializer,
        label,
        plain_text=ours,
        secrets=config.secrets,
        context=f"{config.prefix}.{config.name}",
        compressor=compressor,
        compressor_label=compressor_label,
        compress_over=config.compress_over,
        max_length=config.max_decompressed,
    )


def _made(given: Any, known: dict[str, Any], setting: str, methods: tuple[str, str]) -> tuple[Any, str, bool]:
    """The object that an option means, its label on the wire, and whether it is one of ours."""
    if isinstance(given, str) and given.lower() in known:
        return known[given.lower()](), given.lower(), True
    if isinstance(given, str) and "." not in given:
        raise InvalidCacheOption(
            setting, f"{given!r} is not known", f"Known: {', '.join(known)}; or give a dotted path or an object."
        )
    found = given.value if isinstance(given, Same) else import_option(setting, given)
    if isinstance(found, type):
        try:
            # Those that are written for django-redis are made with its OPTIONS.
            found = found(options={}) if "options" in inspect.signature(found).parameters else found()
        except (TypeError, ValueError) as error:
            raise InvalidCacheOption(setting, f"{found.__name__} can't be made ({error})", "Give an object.") from error
    if not all(callable(getattr(found, method, None)) for method in methods):
        raise InvalidCacheOption(setting, f"it has no {methods[0]} and {methods[1]}", "Give it both methods.")
    label = "".join(c if c.isalnum() or c in "._-" else "-" for c in f"{type(found).__module__}.{type(found).__qualname__}")
    return found, label[-80:], False
