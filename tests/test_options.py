"""What a Store refuses when it is built, and the names that it may have."""

from __future__ import annotations

from typing import Any

import pytest

import mqkv

WRONG: list[dict[str, Any]] = [
    *({"layout": "both"}, {"layout": None}),
    *({"read_timeout": value} for value in (0, -1, float("nan"), float("inf"), True, "1", None)),
    *({"write_timeout": value} for value in (0, -1, "1")),
    *({"max_entries": value} for value in (0, -1, 1.5, True, "1")),
    *({"max_staleness": value} for value in (-1, float("nan"), "1")),
]
BAD_NAMES: list[dict[str, Any]] = [
    *({"prefix": value} for value in ("", None, 1, "a\nb", "__mqkv_x", "amq", "mqtt", "x" * 250)),
    *({"layout": "shared", "name": value} for value in ("", None, 1, "a\nb", "__mqkv_keys__", "x" * 250)),
]


@pytest.fixture
def memory(prefix: str) -> str:
    return f"memory://{prefix}"


@pytest.mark.parametrize("options", WRONG, ids=repr)
def test_wrong_options_are_refused_at_once(memory: str, options: dict[str, Any]) -> None:
    with pytest.raises(mqkv.InvalidOption):
        mqkv.Store(memory, **options)


@pytest.mark.parametrize("options", BAD_NAMES, ids=lambda options: repr(options)[:40])
def test_bad_names_are_refused(memory: str, options: dict[str, Any]) -> None:
    with pytest.raises(mqkv.InvalidKey):
        mqkv.Store(memory, **options).set("k", "v")


def test_a_key_must_fit_the_brokers_queue_name(memory: str) -> None:
    with mqkv.Store(memory, prefix="p") as store:
        store.set("k" * 198, "v")
        for key in ("k" * 199, "☃" * 67):
            with pytest.raises(mqkv.InvalidKey, match="200"):
                store.set(key, "v")
    with mqkv.Store(memory, layout="shared") as store:
        store.set("k" * 32_768, "v")
        with pytest.raises(mqkv.InvalidKey):
            store.set("☃" * 20_000, "v")


def test_max_entries_evicts_the_oldest_writes(memory: str) -> None:
    with mqkv.Store(memory, layout="shared", max_entries=3) as store:
        for number in range(5):
            store.set(f"k{number}", number)
        store.get("k2")
        store.set("k5", 5)
        assert store.items() == [("k3", 3), ("k4", 4), ("k5", 5)] and store.get("k2") is None


def test_a_preloaded_key_more_than_max_entries_is_let_go(memory: str) -> None:
    with mqkv.Store(memory, max_entries=2) as store:
        for key in "abc":
            store.set(key, key)
        store.preload("a", "b", "c")
        assert store.peek("a") is None and store.peek("b") == "b" and store.peek("c") == "c"
        assert store.get("a") == "a"


def test_a_codec_can_be_given(memory: str) -> None:
    class Reversed:
        __hash__ = None  # type: ignore[assignment]

        def encode(self, value: object) -> tuple[bytes, str | None]:
            return str(value)[::-1].encode(), "text/reversed"

        def decode(self, body: bytes, content_type: str | None) -> object:
            if content_type != "text/reversed":
                raise mqkv.UnreadableValue("not reversed")
            return body.decode()[::-1]

    for layout in ("per-key", "shared"):
        with mqkv.Store(memory, layout=layout, codec=Reversed()) as store, mqkv.Store(memory, layout=layout) as plain:  # type: ignore[arg-type]
            store.set("k", "abc")
            assert store.get("k") == "abc"
            with pytest.raises(mqkv.UnreadableValue):
                plain.get("k")
            plain.set("k", "text")
            with pytest.raises(mqkv.UnreadableValue):
                store.get("k")
