"""A ``MutableMapping`` over a store: ``d["k"] = v``. It knows the store and nothing below it."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from types import TracebackType
from typing import Any, TypeVar

from mqkv.errors import InvalidKey, KeyNotFound
from mqkv.store import Store

_ABSENT: Any = object()

#: How often a value may come and go between a look and a step, before there must be another reason.
_TRIES = 10

D = TypeVar("D", bound="StreamDict")


class StreamDict(MutableMapping[str, Any]):
    """A dict whose keys live in a keyspace: shared between processes, and still there tomorrow. Thread-safe.

    Made from a URL (the shared layout and the name "dict", unless told otherwise; options are those of :class:`mqkv.Store`), or
    from a store, which stays open when the dict is closed. Each iteration, of the dict or of a view, and ``==`` work on the keys
    of one moment, in the order in which they were first written (in a keyspace with ``max_entries``: last written); so does
    ``copy()``, where ``dict(d)`` asks for each key by itself. A value that was changed in place must be set again. ``pop``,
    ``popitem`` and ``setdefault`` are one step each, whoever else writes; so is ``update`` in the shared layout.

    What was made from a URL can be pickled, to be opened in another process: the pickle holds the URL, with its password.
    """

    def __init__(self, place: str | Store, **options: Any) -> None:
        if isinstance(place, Store):
            if options:
                raise TypeError("options go to the store that is passed, not to the StreamDict around it")
            self._store, self._own = place, False
        else:
            self._store = Store(place, _maker="dict", **{"layout": "shared", "name": "dict", **options})
            self._own = True
        self._place, self._options = place, options

    @classmethod
    def fromkeys(cls: type[D], place: str | Store, keys: Iterable[str], value: Any = None, **options: Any) -> D:
        """A dict at ``place`` in which all ``keys`` have ``value``, set as one batch in the shared layout. Other keys that are
        there stay."""
        made = cls(place, **options)
        try:
            made.update(dict.fromkeys(keys, value))
        except BaseException:
            made.close()
            raise
        return made

    @property
    def store(self) -> Store:
        """The store beneath: watches, history, locks."""
        return self._store

    def __repr__(self) -> str:
        return f"<mqkv.StreamDict on {self._store!r}>"

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        if not self._own:
            raise TypeError("a StreamDict around a store can't be pickled: make it from a URL")
        return _opened, (type(self), self._place, self._options)

    def __getitem__(self, key: str) -> Any:
        value = self._store.get(key, _ABSENT)
        if value is _ABSENT:
            raise KeyNotFound(key)
        return value

    def __setitem__(self, key: str, value: object) -> None:
        self._store.set(key, value)

    def __delitem__(self, key: str) -> None:
        if not self._store.delete(key):
            raise KeyNotFound(key)

    def __contains__(self, key: object) -> bool:
        return key in self._store

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.keys())

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._store.keys())

    def __len__(self) -> int:
        return len(self._store)

    def __bool__(self) -> bool:
        return not self._store.empty()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return dict(self._store.items()) == dict(other.items())

    __hash__ = None  # type: ignore[assignment]

    def __ior__(self, other: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> StreamDict:  # type: ignore[misc]
        self.update(other)
        return self

    def __or__(self, other: object) -> dict[str, Any]:
        return {**self.copy(), **other} if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: object) -> dict[str, Any]:
        return {**other, **self.copy()} if isinstance(other, Mapping) else NotImplemented

    def get(self, key: str, default: Any = None) -> Any:
        return self._store.get(key, default)

    def set(self, key: str, value: object, *, ttl: float | None = None) -> int:
        """Give a key a value, for ``ttl`` seconds or for good. Returns the revision; see :meth:`mqkv.Store.set`."""
        return self._store.set(key, value, ttl=ttl)

    def pop(self, key: str, default: Any = _ABSENT) -> Any:
        """Take a value away: of all who try at once, one gets it."""
        return self._store.pop(key) if default is _ABSENT else self._store.pop(key, default)

    def popitem(self) -> tuple[str, Any]:
        """Take the last key away with its value: of all who try at once, each gets another."""
        return self._store.popitem()

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The value; where there is none, ``default``, unless another was quicker. What comes back is not what is stored: if you
        change it, set it again."""
        for _ in range(_TRIES):
            value = self._store.get(key, _ABSENT)
            if value is not _ABSENT:
                return value
            if self._store.add(key, default):
                return default
        self._store.set(key, default)  # what is there can't be read, and counts as absent
        return default

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Set many keys, as one batch in the shared layout."""
        self._store.set_many(dict(other.copy() if isinstance(other, StreamDict) else other, **more))

    def discard(self, key: str) -> None:
        """Delete a key that may be there or not, without asking."""
        self._store.delete(key)

    def clear(self) -> None:
        """Remove all keys, by one record in the shared layout."""
        self._store.clear()

    def copy(self) -> dict[str, Any]:
        """All keys and values at one moment, in an ordinary dict."""
        return dict(self._store.items())

    def keys(self) -> KeysView[str]:
        return _Keys(self)

    def items(self) -> ItemsView[str, Any]:
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        return _Values(self)

    def close(self) -> None:
        """Close the store, if it was opened here. Idempotent."""
        if self._own:
            self._store.close()

    def __enter__(self: D) -> D:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _opened(kind: type[D], place: str, options: dict[str, Any]) -> D:
    return kind(place, **options)


class _Keys(KeysView[str]):
    def __reversed__(self) -> Iterator[str]:
        return reversed(list(self))


class _Items(ItemsView[str, Any]):
    """Each iteration takes the keys and values of one moment; what is asked for by itself is looked up when it is."""

    def __init__(self, mapping: StreamDict) -> None:
        super().__init__(mapping)
        self._all = mapping

    def __contains__(self, item: Any) -> bool:
        key, value = item
        try:
            known = self._all[key]
        except (KeyError, InvalidKey):
            return False
        return known is value or bool(known == value)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._all.copy().items())

    def __reversed__(self) -> Iterator[tuple[str, Any]]:
        return reversed(self._all.copy().items())


class _Values(ValuesView[Any]):
    """The same."""

    def __init__(self, mapping: StreamDict) -> None:
        super().__init__(mapping)
        self._all = mapping

    def __contains__(self, value: object) -> bool:
        return any(known is value or known == value for known in self)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all.copy().values())

    def __reversed__(self) -> Iterator[Any]:
        return reversed(self._all.copy().values())
