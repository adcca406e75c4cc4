"""A dogpile.cache backend over a store. It knows the store and nothing below it."""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from dogpile.cache.api import NO_VALUE, BytesBackend, CantDeserializeException

from mqkv.dogpile import options
from mqkv.dogpile.codec import PLAIN_CODEC, signed_codec
from mqkv.dogpile.kept import Kept, Value
from mqkv.dogpile.mutex import Locks, StreamMutex
from mqkv.errors import Error, InvalidKey, ValueTooLarge
from mqkv.outage import Outage, is_outage
from mqkv.store import Store

#: Keys that begin so are the backend's own; a region's key that does is hashed like one that no stream takes.
HASHED, INVALIDATED = "sha256:", "invalidated:"

#: The longest key, in bytes, that is stored as it is: in the shared layout it is kept by every process, in the per-key layout it
#: is a queue's name, which may take 200 bytes.
LONGEST_SHARED, LONGEST_PER_KEY = 1024, 198

#: Bytes of one record of ``set_multi``; a store takes 16 MiB, and a smaller one does not hold up others for so long.
BATCH = 4 * 2**20

_DROPPED: Any = object()


def _unpickle(body: bytes) -> Any:
    try:
        return pickle.loads(body)
    except Exception as error:  # whatever a pickle of another version of the application may raise
        raise CantDeserializeException(f"not a pickle that can be read here ({type(error).__name__})") from error


class StreamBackend(BytesBackend):  # type: ignore[misc, unused-ignore]
    """Values of a region in a stream: shared by all processes, and read at the speed of a local dict. Thread-safe, and safe to
    use after a fork.

    ``arguments``: ``url`` and the other options of :class:`mqkv.Store` (``name`` is "dogpile" and ``layout`` "shared" unless told
    otherwise), ``mqkv_expiration_time`` (seconds after which a value is gone), ``secret`` (values are signed), and for the
    creation lock ``distributed_lock``, ``lock_timeout``, ``lock_blocking``, ``lock_blocking_timeout``, ``lock_prefix``. Raises
    :class:`mqkv.InvalidOption`, :class:`mqkv.InvalidURL`, :class:`mqkv.InvalidKey`. The first call connects, not this one.

    The default serializer is ``pickle``: whoever may write to the stream can run code in every process that reads it. Give a
    ``secret``, or the region a ``serializer`` and ``deserializer``, unless all writers are trusted.

    A read costs a dict lookup once the keyspace is loaded, a write about one confirmed publish, whatever the number of keys.

    While the broker is away, memory answers, values that it does not have are created in each process, without a creation lock in
    the stream, and are kept there until the broker is back. One caller at a time waits to find out whether it is. What is to be
    deleted raises: :class:`mqkv.ConnectionFailed`, :class:`mqkv.WriteTimeout`, :class:`mqkv.OutcomeUnknown`. With
    ``ignore_exceptions`` False, all raises, :class:`mqkv.ReadTimeout` too.

    A value that is too large to be stored leaves its key without one; ``get_or_create`` returns it all the same.
    """

    serializer = staticmethod(pickle.dumps)
    deserializer = staticmethod(_unpickle)

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        read = options.read(arguments)
        prefix, name = read.store.get("prefix", "mqkv"), read.store["name"]
        codec = PLAIN_CODEC if read.secret is None else signed_codec(read.secret, f"{prefix}.{name}")
        self._store = Store(read.url, codec=codec, _maker="dogpile", **read.store)
        self._options = read
        self._kept = Kept()
        self._outage = Outage(self._in_touch, read.logger, on_end=self._kept.clear)
        # Nobody is shown the space, so the URL in it may be the one with the password.
        space = f"{read.url} {prefix}.{name}"
        outage = self._outage if read.ignore_exceptions else None
        self._locks = Locks(self._store, read.logger, space, read.lock_ttl, read.lock_wait, read.store["write_timeout"], outage)
        self._longest = LONGEST_SHARED if read.store["layout"] == "shared" else LONGEST_PER_KEY - len(prefix.encode())
        if read.key_mangler is not None:
            self.key_mangler = read.key_mangler

    def __repr__(self) -> str:
        return f"<mqkv.dogpile.StreamBackend on {self._store!r}>"

    @property
    def store(self) -> Store:
        """The store beneath: watches, counters, ``sync``. Its values are the bytes that a region has serialized."""
        return self._store

    def get_serialized(self, key: str) -> Any:
        name = self._key(key)
        if self._outage.on:
            return self._recall(name, self._outage.call(_DROPPED, self._store.get, name, NO_VALUE, writing=False))
        try:
            return self._store.get(name, NO_VALUE)
        except Error as error:
            self._note(error)
            return self._recall(name, _DROPPED)

    def get_serialized_multi(self, keys: Iterable[str]) -> Sequence[Any]:
        names = [self._key(key) for key in keys]
        if not self._options.ignore_exceptions:
            found = self._store.get_many(names)
        else:
            found = self._outage.call(_DROPPED, self._store.get_many, names, writing=False)
            if self._outage.on:
                values = (_DROPPED if found is _DROPPED else found.get(name, NO_VALUE) for name in names)
                return [self._recall(name, value) for name, value in zip(names, values, strict=True)]
        return [found.get(name, NO_VALUE) for name in names]

    def set_serialized(self, key: str, value: bytes) -> None:
        name = self._key(key)
        self._write({name: value}, self._store.set, name, value)

    def set_serialized_multi(self, mapping: Mapping[str, bytes]) -> None:
        for batch in _batches((self._key(key), value) for key, value in mapping.items()):
            self._write(batch, self._store.set_many, batch)

    def delete(self, key: str) -> None:
        name = self._key(key)
        self._kept.drop(name)
        self._insist(self._store.delete, name)

    def delete_multi(self, keys: Iterable[str]) -> None:
        names = [self._key(key) for key in keys]
        for name in names:
            self._kept.drop(name)
        self._insist(self._store.delete_many, names)

    def get_mutex(self, key: str) -> StreamMutex | None:
        """The creation lock of a key, in all processes; None without ``distributed_lock``: dogpile then locks within the
        process."""
        if not self._options.distributed_lock:
            return None
        return StreamMutex(self._locks, self._key(self._options.lock_prefix + key))

    def times(self, name: str, known: object) -> object:
        """What stands under a name of the backend's own; while the broker is away what memory knows of it, however old, or
        ``known``."""
        if not self._outage.on:
            try:
                return self._store.get(name)
            except Error as error:
                self._note(error)
        else:
            found = self._outage.call(_DROPPED, self._store.get, name, writing=False)
            if found is not _DROPPED:
                return found
        return self._store.peek(name, known)

    def close(self) -> None:
        """Let go of the connection, unless others of this process use it. dogpile never calls it. Idempotent."""
        self._store.close()

    # Without the broker, and what it does not take

    def _write(self, values: Mapping[str, bytes], verb: Callable[..., Any], *arguments: Any) -> None:
        """Store values. While the broker is away they are kept here; one that is too large is kept nowhere."""
        ttl, done = self._options.ttl, None
        try:
            if self._options.ignore_exceptions:
                done = self._outage.call(_DROPPED, verb, *arguments, writing=True, ttl=ttl)
            else:
                verb(*arguments, ttl=ttl)
        except ValueTooLarge as error:
            for name, value in values.items():
                if len(values) > 1:
                    self._write({name: value}, self._store.set, name, value)
                else:
                    self._options.logger.warning("at=too-large key=%s reason=%s", json.dumps(name), json.dumps(str(error)))
                    self._kept.drop(name)
                    self._drop(name)
        if done is _DROPPED:
            for name, value in values.items():
                self._kept.put(name, value, ttl, self._store.peek(name, NO_VALUE))

    def _drop(self, name: str) -> None:
        """Delete a value that is not the newest any more, if the broker is there."""
        if self._options.ignore_exceptions:
            self._outage.call(None, self._store.delete, name, writing=True)
        else:
            self._store.delete(name)

    def _insist(self, verb: Callable[..., Any], *arguments: Any) -> None:
        if self._options.ignore_exceptions:
            self._outage.insist(verb, *arguments)
        else:
            verb(*arguments)

    def _note(self, error: Error) -> None:
        if not self._options.ignore_exceptions or not is_outage(error):
            raise error
        # It may have taken all its time; no look at the clock is worth it for a read.
        self._outage.failed(error, time.monotonic() - self._options.store["read_timeout"], writing=False)

    def _recall(self, name: str, found: Any) -> Any:
        """What there is of a key while the broker is away: what was created meanwhile, or what memory knows, unless that is too
        old. Where only writes fail, what another has written since goes before what was created here."""
        stats, limit = self._store.stats(), self._options.max_staleness
        staleness = float(str(stats["staleness"]))
        kept = self._kept.get(name)
        if kept is not None:
            if staleness or (found is _DROPPED and not stats["tables"]):
                return kept.body
            if kept.beside == (self._store.peek(name, NO_VALUE) if found is _DROPPED else found):
                self._outage.call(None, self._put_back, name, kept, writing=True)
                return kept.body
            self._kept.drop(name)
        if found is not _DROPPED:
            return found
        return NO_VALUE if limit is not None and staleness > limit else self._store.peek(name, NO_VALUE)

    def _put_back(self, name: str, kept: Value) -> None:
        """Store what was kept, unless another has written since. It is a write, and so ends the outage if it can be done."""
        entry, ttl = self._store.entry(name), kept.ttl
        if kept.beside == (NO_VALUE if entry is None else entry.value) and (ttl is None or ttl > 0):
            self._store.compare_and_set(name, kept.body, None if entry is None else entry.revision, ttl=ttl)

    def _in_touch(self) -> bool:
        return self._store.stats()["staleness"] == 0

    def _key(self, key: Any) -> str:
        """The key as it is stored: dogpile's key generators make keys of any text, and streams don't take every text."""
        if not isinstance(key, str):
            raise InvalidKey(f"a key must be a str, not {type(key).__name__}: give the region a key_mangler")
        if (
            key
            and key.isprintable()
            and (len(key) * 4 <= self._longest or len(key.encode()) <= self._longest)
            and not key.startswith((HASHED, INVALIDATED, "__mqkv_"))
        ):
            return key
        return HASHED + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _batches(items: Iterable[tuple[str, bytes]]) -> Iterator[dict[str, bytes]]:
    batch: dict[str, bytes] = {}
    size = 0
    for key, value in items:
        if batch and size + len(value) > BATCH:
            yield batch
            batch, size = {}, 0
        batch[key] = value
        size += len(key) + len(value)
    if batch:
        yield batch
