"""A dogpile.cache backend over a store. It knows the store and nothing below it."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dogpile.cache.api import NO_VALUE, BytesBackend, CantDeserializeException

from mqkv.dogpile import options
from mqkv.dogpile.codec import PLAIN_CODEC, signed_codec
from mqkv.dogpile.mutex import Locks, StreamMutex
from mqkv.errors import InvalidKey
from mqkv.store import Store

#: Keys that begin so are the backend's own; a region's key that does is hashed like one that no stream takes.
HASHED, INVALIDATED = "sha256:", "invalidated:"

#: The longest key, in bytes, that is stored as it is: in the shared layout it is kept by every process, in the per-key layout it
#: is a queue's name, which may take 200 bytes.
LONGEST_SHARED, LONGEST_PER_KEY = 1024, 198

#: Bytes of one record of ``set_multi``; a store takes 16 MiB, and a smaller one does not hold up others for so long.
BATCH = 4 * 2**20


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
    Raises :class:`mqkv.ConnectionFailed`, :class:`mqkv.ReadTimeout`, :class:`mqkv.WriteTimeout`, :class:`mqkv.OutcomeUnknown`.
    """

    serializer = staticmethod(pickle.dumps)
    deserializer = staticmethod(_unpickle)

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        read = options.read(arguments)
        prefix, name = read.store.get("prefix", "mqkv"), read.store["name"]
        codec = PLAIN_CODEC if read.secret is None else signed_codec(read.secret, f"{prefix}.{name}")
        self._store = Store(read.url, codec=codec, _maker="dogpile", **read.store)
        self._options = read
        # Nobody is shown the space, so the URL in it may be the one with the password.
        self._locks = Locks(self._store, read.logger, f"{read.url} {prefix}.{name}", read.lock_ttl, read.lock_wait)
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
        return self._store.get(self._key(key), NO_VALUE)

    def get_serialized_multi(self, keys: Iterable[str]) -> Sequence[Any]:
        stored = [self._key(key) for key in keys]
        found = self._store.get_many(stored)
        return [found.get(key, NO_VALUE) for key in stored]

    def set_serialized(self, key: str, value: bytes) -> None:
        self._store.set(self._key(key), value, ttl=self._options.ttl)

    def set_serialized_multi(self, mapping: Mapping[str, bytes]) -> None:
        for batch in _batches((self._key(key), value) for key, value in mapping.items()):
            self._store.set_many(batch, ttl=self._options.ttl)

    def delete(self, key: str) -> None:
        self._store.delete(self._key(key))

    def delete_multi(self, keys: Iterable[str]) -> None:
        self._store.delete_many([self._key(key) for key in keys])

    def get_mutex(self, key: str) -> StreamMutex | None:
        """The creation lock of a key, in all processes; None without ``distributed_lock``: dogpile then locks within the
        process."""
        if not self._options.distributed_lock:
            return None
        return StreamMutex(self._locks, self._key(self._options.lock_prefix + key))

    def close(self) -> None:
        """Let go of the connection, unless others of this process use it. dogpile never calls it. Idempotent."""
        self._store.close()

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
