"""What a user writes, which must type-check with ``mypy --strict``. Never run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

import mqkv
from mqkv.testing import EngineContract, StoreContract


def use_a_store() -> None:
    with mqkv.Store("amqp://localhost", prefix="app", layout="shared", name="cache", logger=logging.getLogger("app")) as store:
        revision: int = store.set("user:1:name", "Alice", ttl=3600)
        name: str = store.get("user:1:name", "nobody")
        maybe: str | None = store.get("user:1:name")
        there: bool = store.exists("k") and "k" in store and store.delete("k")
        seconds: float | None = store.ttl("k")
        values: list[Any] = store.history("counter", limit=2)
        entry: mqkv.Entry | None = store.entry("k")
        if entry is not None:
            revision = entry.revision
        keys: list[str] = store.keys("user:*")
        pairs: dict[str, Any] = dict(store.items())
        many: dict[str, Any] = store.get_many(keys)
        with store.watch("events", start="first") as changes:
            for change in changes:
                kind: str = change.kind
                print(kind, change.key, change.revision)
        watch: mqkv.Watch = store.watch("events", print)
        store.unwatch(watch)
        store.preload("user:1", "config:theme", max_messages=1)
        numbers: Mapping[str, object] = store.stats()
        key, value = store.popitem()
        none_left: bool = store.empty()
        store.flush(timeout=1)
        store.clear()
        store.purge()
        print(len(store), key.upper(), value, none_left, revision, name, maybe, there, seconds, values, pairs, many, numbers)


def use_a_dict(mapping: MutableMapping[str, Any]) -> None:
    mapping["k"] = "v"


def use_a_stream_dict() -> None:
    with mqkv.StreamDict("file:///tmp/kv") as d:
        d["k"] = {"any": ["json", 1, None]}
        use_a_dict(d)
        d |= {"a": 1}
        del d["k"]
        revision: int = d.set("k", 1, ttl=60)
        newest_first: list[str] = list(reversed(d))
        key, value = d.popitem()
        print(revision, newest_first, key.upper(), value)
    with mqkv.StreamDict.fromkeys("file:///tmp/kv", ["a", "b"], 0, name="counts") as counts:
        counts["a"] += 1
    try:
        mqkv.Store("memory://").set("", None)
    except (mqkv.InvalidKey, mqkv.ConnectionFailed) as error:
        print(error)


class Text:
    """A codec of one's own."""

    def encode(self, value: object) -> tuple[bytes, str | None]:
        return str(value).encode(), None

    def decode(self, body: bytes, content_type: str | None) -> object:
        return body.decode()


codec: mqkv.Codec = Text()
store = mqkv.Store("memory://", codec=codec)


class TestMine(StoreContract): ...


class TestMyEngine(EngineContract): ...
