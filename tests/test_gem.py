"""Both ways with the Ruby gem: what it writes is read, what it reads is written. Its wire format is spoken here by plain pika."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pika
import pytest

import mqkv


class Gem:
    """The gem's publishes and reads: ``Store`` (a stream a key) and ``Map`` (a tag a key)."""

    def __init__(self, url: str) -> None:
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()

    def declare(self, queue: str, **arguments: object) -> None:
        self.channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "stream", **arguments})

    def publish(self, queue: str, body: bytes, headers: dict[str, Any] | None = None) -> None:
        self.channel.basic_publish("", queue, body, pika.BasicProperties(headers=headers), mandatory=True)

    def read(self, queue: str, count: int) -> list[tuple[bytes, dict[str, Any]]]:
        channel = self.connection.channel()
        channel.basic_qos(prefetch_count=100)
        messages = []
        for method, properties, body in channel.consume(queue, arguments={"x-stream-offset": "first"}, inactivity_timeout=10):
            assert method is not None, f"only {len(messages)} of {count} messages came"
            headers = dict(properties.headers or {})
            headers.pop("x-stream-offset", None)
            messages.append((body, headers))
            channel.basic_ack(method.delivery_tag)
            if len(messages) == count:
                break
        channel.close()
        return messages


@pytest.fixture
def gem(broker: Any) -> Iterator[Gem]:
    gem = Gem(broker.url)
    yield gem
    gem.connection.close()


def is_tombstone(headers: dict[str, Any]) -> bool:
    return headers.get("__mqkv_deleted__") is True


def test_store_reads_the_gem(gem: Gem, broker: Any, prefix: str) -> None:
    with mqkv.Store(broker.url, prefix=prefix, read_timeout=5) as store:
        queue = f"{prefix}.greeting"
        gem.declare(queue, **{"x-max-age": "60s"})
        gem.publish(queue, "héllo".encode())
        assert store.get("greeting") == "héllo" and store.exists("greeting")
        gem.publish(queue, b"soon gone", {"__mqkv_expires_at__": int(time.time()) + 60})
        assert store.get("greeting") == "soon gone" and 0 < (store.ttl("greeting") or 0) <= 60
        assert store.history("greeting") == ["héllo", "soon gone"]
        gem.publish(queue, b"", {"__mqkv_deleted__": True})
        assert store.get("greeting") is None and store.history("greeting") == []
        with store.watch("greeting") as changes:
            gem.publish(queue, b"watched")
            change = changes.get(10)
        assert change is not None and change.value == "watched" and change.written_at is None
        store.set("greeting", "ours", ttl=5)
        assert store.get("greeting") == "ours" and store.keys() == ["greeting"]
        store.purge()


def test_the_gem_reads_store(gem: Gem, broker: Any, prefix: str) -> None:
    with mqkv.Store(broker.url, prefix=prefix) as store:
        store.set("k", "plain")
        store.set("k", "later", ttl=60.5)
        store.delete("k")
        (plain, one), (later, two), (empty, three) = gem.read(f"{prefix}.k", 3)
        assert (plain, later, empty) == (b"plain", b"later", b"")
        assert not is_tombstone(one) and "__mqkv_expires_at__" not in one
        assert isinstance(two["__mqkv_expires_at__"], int) and 60 <= two["__mqkv_expires_at__"] - time.time() <= 62
        assert is_tombstone(three)
        store.purge()


def test_map_reads_the_gem_and_is_read_by_it(gem: Gem, broker: Any, prefix: str) -> None:
    queue = f"{prefix}.map"
    gem.declare(queue)
    gem.publish(queue, b"", {"__mqkv_sync__": "5b0c"})
    gem.publish(queue, b"1", {"__mqkv_key__": "a"})
    gem.publish(queue, b"2", {"__mqkv_key__": "b"})
    gem.publish(queue, b"", {"__mqkv_key__": "a", "__mqkv_deleted__": True})
    with mqkv.Store(broker.url, prefix=prefix, layout="shared", name="map", read_timeout=5) as store:
        assert store.items() == [("b", "2")] and store.stats()["unreadable"] == 0
        store.set("c", "3")
        store.delete("b")
        (body, headers), (empty, tombstone) = gem.read(queue, 6)[-2:]
        assert body == b"3" and headers["__mqkv_key__"] == "c" and not is_tombstone(headers)
        assert empty == b"" and tombstone["__mqkv_key__"] == "b" and is_tombstone(tombstone)
        seen = threading.Event()
        with store.watch("d", lambda change: seen.set()):
            gem.publish(queue, b"4", {"__mqkv_key__": "d"})
            assert seen.wait(10) and store.get("d") == "4"
        store.purge()


def test_a_double_is_read_to_the_millisecond(gem: Gem, broker: Any, prefix: str) -> None:
    """pika writes no double; the bytes on the wire are made here."""
    from pika import data

    queue, expiry = f"{prefix}.k", int(time.time()) + 100.625
    gem.declare(queue)
    encode = data.encode_value

    def encode_double(pieces: list[bytes], value: object) -> int:
        if not isinstance(value, float):
            return int(encode(pieces, value))
        import struct

        pieces.append(b"d" + struct.pack(">d", value))
        return 9

    data.encode_value = encode_double
    try:
        gem.publish(queue, b"v", {"__mqkv_expires_at__": expiry})
    finally:
        data.encode_value = encode
    with mqkv.Store(broker.url, prefix=prefix, read_timeout=5) as store:
        entry = store.entry("k")
        assert entry is not None and entry.value == "v" and entry.expires_at == expiry
        store.preload("k")
        entry = store.entry("k")
        assert entry is not None and entry.expires_at == expiry
        store.purge()


def exists(gem: Gem, queue: str) -> bool:
    channel = gem.connection.channel()
    try:
        channel.queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    channel.close()
    return True


def test_the_first_ttl_is_the_streams_max_age_in_whole_seconds(gem: Gem, broker: Any, prefix: str) -> None:
    with mqkv.Store(broker.url, prefix=prefix) as store, mqkv.Store(f"{broker.url}?heartbeat=31", prefix=prefix) as other:
        store.set("k", "v", ttl=2.25)
        gem.declare(f"{prefix}.k", **{"x-max-age": "3s"})  # a declare with other arguments would be refused
        store.set("k", "w", ttl=77)
        other.set("k", "x")
        other.set("k", "y", ttl=1.5)
        assert store.get("k") == other.get("k") == "y"
        store.set("plain", "v")
        gem.declare(f"{prefix}.plain")
        store.set("plain", "w", ttl=5)
        assert other.get("plain") == "w"
        store.purge()


def test_a_read_declares_nothing(gem: Gem, broker: Any, prefix: str) -> None:
    for layout in ("per-key", "shared"):
        with mqkv.Store(broker.url, prefix=prefix, layout=layout, read_timeout=5) as store:  # type: ignore[arg-type]
            assert (
                store.get("k") is None
                and store.get("k", fresh=True) is None
                and not store.exists("k")
                and store.history("k") == []
            )
            store.preload("k")
            assert store.keys() == [] and store.delete("k") is False and store.ttl("k") is None
            store.clear()
            for queue in (f"{prefix}.k", f"{prefix}.default", f"{prefix}.__mqkv_keys__"):
                assert not exists(gem, queue), queue


def test_a_thousand_keys_share_threads_and_channels(gem: Gem, broker: Any, prefix: str) -> None:
    with mqkv.Store(broker.url, prefix=prefix, read_timeout=10) as store:
        for number in range(200):
            gem.declare(f"{prefix}.k{number}")
            gem.publish(f"{prefix}.k{number}", str(number).encode())
        before = threading.active_count()
        store.preload(*(f"k{number}" for number in range(200)), *(f"missing{number}" for number in range(50)))
        assert threading.active_count() - before <= 1
        assert [store.peek(f"k{number}") for number in range(200)] == [str(number) for number in range(200)]
        assert store.get("missing0") is None and store.stats()["tables"] == 200
        gem.declare(f"{prefix}.missing0")
        gem.publish(f"{prefix}.missing0", b"here")
        assert store.get("missing0") == "here" == store.peek("missing0"), "a preloaded key is followed once there is a stream"
    for number in range(200):
        gem.channel.queue_delete(f"{prefix}.k{number}")
    gem.channel.queue_delete(f"{prefix}.missing0")


def test_an_uncached_read_is_exact_in_a_chunk_of_many(gem: Gem, broker: Any, prefix: str) -> None:
    """Bursts share a chunk: the newest of them is the answer, right after its confirm, however many there are."""
    queue = f"{prefix}.k"
    gem.declare(queue)
    with mqkv.Store(broker.url, prefix=prefix, read_timeout=10) as store, mqkv.Store(broker.url, prefix=prefix) as writer:
        for burst in (1, 2, 10, 300, 5_000):
            with mqkv.Store(f"{broker.url}?heartbeat=32", prefix=prefix, confirm=False, write_timeout=30) as fast:
                for number in range(burst):
                    fast.set("k", f"{burst}-{number}")
                fast.flush(30)
                assert store.get("k") == f"{burst}-{burst - 1}"
            writer.set("k", "one more")
            assert store.get("k") == "one more"
        for number in range(300):
            gem.publish(queue, str(number).encode())
            assert store.get("k") == str(number)
        store.purge()
    gem.channel.queue_delete(queue)
