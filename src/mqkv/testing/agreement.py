"""What all processes agree on, whatever one of them does: part of the contract of operations.

Everything is asked of several stores, which on most engines have connections of their own.
"""

from __future__ import annotations

from typing import Any

import pytest

import mqkv
from mqkv.testing.fixtures import Clock, MakeStore, StoreFixtures

#: Bodies that are not what their content type says, and content types that not every engine keeps.
UNREADABLE: list[tuple[Any, Any]] = [
    *((b"\xff", None), (b"\x80abc", "text/plain"), (b"\xe9", "text/plain; charset=latin-1"), (b"{", "application/json")),
    *((b"", "application/json"), (b"NaN", "application/json"), (b"x", ""), (b"x", "x" * 256), (b"x", "ü" * 128), (b"x", "a\nb")),
    *((b"x", "\ud800"), (b"x", 5), (b"x", b"text/plain"), ("text", None), (None, None), (bytearray(b"x"), "x/y")),
]
READABLE = [(b"text", None), (b"", None), (b"\xff", "x/y"), (b"[1]", "application/json"), (b"", "x" * 255), (b"\xff", "ü" * 127)]


class AsGiven:
    """A codec whose values are bodies with their content types."""

    def encode(self, value: Any) -> tuple[bytes, str | None]:
        return value  # type: ignore[no-any-return]

    def decode(self, body: bytes, content_type: str | None) -> object:
        return body, content_type


class AgreementContract(StoreFixtures):
    """Wrong clocks, values that only one could read."""

    # Clocks that are wrong

    @pytest.mark.parametrize("off", [420, -420, 40 * 366 * 86_400, -40 * 366 * 86_400], ids=["7min", "-7min", "40y", "-40y"])
    def test_a_wrong_clock_harms_only_what_it_writes(self, make: MakeStore, other_url: str, clock: Clock, off: float) -> None:
        wrong = Clock(clock.now + off)
        right, other, harmful = make(clock=clock), make(other_url, clock=clock), make(other_url, clock=wrong)
        right.set("before", 1, ttl=300)
        for number in range(10):
            harmful.set(f"harmful-{number % 3}", number, ttl=300)
            assert right.set(f"k{number}", number, ttl=300) >= 0
            assert other.get(f"k{number}", fresh=True) == number
        assert right.add("lock", 1, ttl=300) is True
        assert [store.add("lock", 2, ttl=300) for store in (right, other, right)] == [False] * 3
        assert [store.incr("n", initial=0, ttl=300) for store in (right, other, right)] == [1, 2, 3]
        for store in (right, other):
            assert store.get("before", fresh=True) == 1 and store.exists("k9") and store.touch("lock", 300)
            assert store.get_many([f"k{number}" for number in range(10)]) == {f"k{number}": number for number in range(10)}

    # What one writes, the others can read

    def test_what_others_could_not_read_is_refused(self, make: MakeStore, other_url: str) -> None:
        store, other = make(codec=AsGiven()), make(other_url, codec=AsGiven())
        for body, content_type in UNREADABLE:
            for call in (
                lambda value: store.set("k", value),
                lambda value: store.add("k", value),
                lambda value: store.compare_and_set("k", value, None),
                lambda value: store.set_many({"j": (b"fine", None), "k": value}),
                lambda value: store.get_or_set("k", value),
            ):
                with pytest.raises(mqkv.InvalidValue):
                    call((body, content_type))
                assert store.get("k") is None and other.get("k", fresh=True) is None and not other.exists("j")
        for value in READABLE:
            store.set("k", value)
            store.set_many({"j": value, "l": (b"fine", None)})
            assert store.get("k") == other.get("k", fresh=True) == other.get("j", fresh=True) == value
        many = {f"k{number}": (b"", f"x/{number}") for number in range(257)}
        with pytest.raises(mqkv.InvalidValue, match="split"):
            store.set_many(many)
        assert store.stats()["unreadable"] == other.stats()["unreadable"] == 0

    @pytest.mark.parametrize("now", [-1e9, 0.0, 1e15])
    def test_a_clock_that_tells_what_no_record_can(self, make: MakeStore, other_url: str, now: float) -> None:
        store, other = make(clock=Clock(now)), make(other_url)
        store.set("k", 1)
        store.set_many({"j": 1})
        assert store.incr("k") == 2 and other.get("k", fresh=True) == 2 and other.get("j", fresh=True) == 1
        assert sorted(other.keys()) == ["j", "k"] and other.stats()["unreadable"] == 0
