"""A bounded mapping that tells which key it lets go of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cachetools import LRUCache

T = TypeVar("T")


class Bounded(LRUCache[str, T]):
    """At most ``maxsize`` keys; past it, ``forget`` is called with the one that was used least recently."""

    def __init__(self, maxsize: float, forget: Callable[[str], None]) -> None:
        super().__init__(maxsize)
        self._forget = forget

    def popitem(self) -> tuple[str, T]:
        key, value = super().popitem()
        self._forget(key)
        return key, value
