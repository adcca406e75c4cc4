"""What the contracts of stores share: the fixtures, and good and bad input."""

from __future__ import annotations

import unicodedata
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

import mqkv

MakeStore = Callable[..., mqkv.Store]

VALUES: list[Any] = [
    *("", "text", "naïve ☃ \U0001f40d", "line\nline", "nul\x00", "1", "null", "x" * 10_000),
    *(b"", b"bytes", b"\xff\xfe\x00", b"1", b"y" * 10_000),
    *(None, True, False, 0, 1, -1, 2**63 - 1, -(2**63), 0.0, -0.0, 1.5, 1e300, -1e-300),
    *([], {}, [1, [2, [3]]], {"a": {"b": [None, True]}}, {"": 0, "ключ": "значение"}),
]

BAD_VALUES: list[Any] = [
    *((1, 2), {1, 2}, {1: "int key"}, float("nan"), float("inf"), 1j, object(), [b"bytes in a list"], [(1,)], "\ud800"),
    *((i for i in range(3)), bytearray(b"x")),
]

KEYS = [
    "k",
    "a.b.c",
    "user:1:name",
    "with space",
    "ünïcode ☃",
    "UPPER",
    "upper",
    "1",
    "0",
    "-",
    "a/b",
    "*",
    "a?b",
    "[x]",
    "#",
    "%2F",
    "'\"",
]
KEYS += [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]

BAD_KEYS: list[Any] = [
    None,
    1,
    b"k",
    ["k"],
    "",
    "a\nb",
    "\r",
    "tab\t",
    "nul\x00",
    "\x7f",
    "\x85",
    "\ud800",
    "x" * 40_000,
    "__mqkv_keys__",
]

BAD_TTLS: list[Any] = [0, -1, -0.5, float("nan"), float("inf"), True, False, "10", b"1", 1e300, [1]]


class Clock:
    """A wall clock that stands still until it is moved."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class StoreFixtures:
    """The fixture ``url`` is yours to give; ``other_url`` too, where a second connection can reach the same place."""

    @pytest.fixture
    def url(self) -> str:
        raise TypeError("a contract of stores needs a fixture 'url'")

    @pytest.fixture
    def other_url(self, url: str) -> str:
        """The same place, through a connection of its own if the engine has such a thing."""
        return url

    @pytest.fixture(params=["per-key", "shared"])
    def layout(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def prefix(self) -> str:
        return f"t-{uuid.uuid4().hex[:12]}"

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def make(self, url: str, prefix: str, layout: Literal["per-key", "shared"]) -> Iterator[MakeStore]:
        """Makes stores of one keyspace, and purges it at the end."""
        stores: list[mqkv.Store] = []

        def make(place: str = url, **options: Any) -> mqkv.Store:
            options = {"prefix": prefix, "layout": layout, "read_timeout": 5.0, **options}
            stores.append(mqkv.Store(place, **options))
            return stores[-1]

        yield make
        mqkv_store = make()
        mqkv_store.purge()
        for store in stores:
            store.close()

    @pytest.fixture
    def store(self, make: MakeStore) -> mqkv.Store:
        return make()

    @pytest.fixture
    def other(self, make: MakeStore, other_url: str) -> mqkv.Store:
        return make(other_url)
