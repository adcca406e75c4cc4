"""Records by strangers: skipped, counted, logged once; nothing of them stops a table."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator

import pytest

import mqkv
from mqkv.streams.base import Message

FOREIGN = [
    Message(b"no headers at all"),
    Message(b"\xff\xfe", {"__mqkv_key__": "k"}),
    Message(b"v", {"__mqkv_key__": 1}),
    Message(b"v", {"__mqkv_key__": "k", "__mqkv_expires_at__": "a string kills every consumer of the gem"}),
    Message(b"v", {"__mqkv_key__": "k", "__mqkv_expires_ms__": True}),
    Message(b"v", {"__mqkv_key__": "k", "__mqkv_deleted__": "yes"}),
    Message(b"{", {"__mqkv_key__": "k"}, content_type="application/json"),
    Message(b'"\xff"', {"__mqkv_key__": "k"}, content_type="application/json"),
    Message(b"[" * 501 + b"]" * 501, {"__mqkv_key__": "k"}, content_type="application/json"),
    Message(b"v", {"__mqkv_op__": "unheard-of", "__mqkv_op_key__": "k"}),
    Message(b"v", {"__mqkv_op__": 5}),
]


@pytest.fixture
def store(url: str, prefix: str) -> Iterator[mqkv.Store]:
    with mqkv.Store(url, prefix=prefix, layout="shared", read_timeout=5, logger=logging.getLogger("hostile")) as store:
        yield store
        store.purge()


def inject(store: mqkv.Store, *messages: Message) -> None:
    """Append what no store would write."""
    (table,) = [table for table in store._keyspace.tables() if table.key is None]
    for message in messages:
        promise = table.tail.append(message._replace(id=uuid.uuid4().hex), 10)
        assert promise.wait(11)
        promise.result()


def test_foreign_records_are_skipped_counted_and_logged_once(store: mqkv.Store, caplog: pytest.LogCaptureFixture) -> None:
    store.set("k", "before")
    inject(store, *FOREIGN)
    assert store.get("k") == "before" and store.stats()["unreadable"] == len(FOREIGN)
    store.set("k", "after")
    assert store.get("k", fresh=True) == "after" and store.items() == [("k", "after")]
    assert sum("at=skip" in record.message for record in caplog.records) == 1
    assert not any("kills" in record.message for record in caplog.records)


@pytest.mark.parametrize("body", [b"1e999", b"-1e999", b"9" * 5_000, b"[" * 90 + b"]" * 90, b'"1"', b"1" * 30, b"null"])
def test_what_is_no_number_is_not_counted_and_ends_nothing(store: mqkv.Store, body: bytes) -> None:
    store.set("other", 1)
    inject(store, Message(body, {"__mqkv_key__": "k"}, content_type="application/json"))
    with pytest.raises(mqkv.NotANumber):
        store.incr("k")
    assert store.incr("other") == 2 and store.get("other", fresh=True) == 2
    store.set("k", 5)
    assert store.incr("k") == 6


def test_a_text_that_is_no_utf_8_and_is_counted(store: mqkv.Store) -> None:
    store.set("k", 1)
    inject(store, Message(b'"\xff"', {"__mqkv_key__": "k"}, content_type="application/json"))
    assert store.incr("k") == 2 and store.get("k", fresh=True) == 2 and store.keys() == ["k"]


def test_unknown_headers_are_ignored(store: mqkv.Store) -> None:
    store.set("else", "x")
    inject(store, Message(b"v", {"__mqkv_key__": "k", "traceparent": "00-abc", "x": 5, "__mqkv_new__": "?"}))
    assert store.get("k", fresh=True) == "v" and store.stats()["unreadable"] == 0


def test_an_unknown_content_type_is_an_error_at_the_read_of_that_key(store: mqkv.Store) -> None:
    store.set("k", "v")
    inject(store, Message(b"?", {"__mqkv_key__": "odd"}, content_type="application/x-pickle"))
    inject(store, Message(b"?", {"__mqkv_key__": "packed"}, content_encoding="zstd"))
    assert store.get("k", fresh=True) == "v"
    for key in ("odd", "packed"):
        with pytest.raises(mqkv.UnreadableValue):
            store.get(key)
    store.set("odd", "even")
    assert store.get("odd") == "even"


def test_a_newer_format_stops_the_table_with_an_error(store: mqkv.Store) -> None:
    store.set("k", "v")
    inject(store, Message(b"", {"__mqkv_op__": "set", "__mqkv_op_key__": "k", "__mqkv_version__": 99}))
    for call in (lambda: store.get("k", fresh=True), lambda: store.get("k"), store.keys, lambda: store.set("k", 1)):
        with pytest.raises(mqkv.UpgradeRequired, match="upgrade mqkv"):
            call()


def test_a_repeat_counts_once(store: mqkv.Store) -> None:
    store.set("k", "old")
    (table,) = store._keyspace.tables()
    copy = Message(b"first", {"__mqkv_key__": "k"}, "the-id")
    for message in (
        copy,
        Message(b"second", {"__mqkv_key__": "k"}, "another"),
        copy._replace(headers={**copy.headers, "__mqkv_retry__": True}),
    ):
        promise = table.tail.append(message, 10)
        assert promise.wait(11)
    assert store.get("k", fresh=True) == "second" and store.history("k") == ["old", "first", "second"]


def test_per_key_reads_pass_over_what_is_no_value(url: str, prefix: str) -> None:
    with mqkv.Store(url, prefix=prefix, read_timeout=5) as store:
        store.set("k", "value")
        table = store._keyspace._tables["k"]  # type: ignore[attr-defined]
        hostile = [
            Message(b"\xff", id="a"),
            Message(b"v", {"__mqkv_expires_at__": "soon"}, "b"),
            Message(b"", {"__mqkv_op__": "?"}, "c"),
        ]
        for message in hostile:
            assert table.tail.append(message, 10).wait(11)
            assert store.get("k") == "value"
        retried = Message(b"older", {"__mqkv_retry__": True}, "x")
        for message in (Message(b"older", {}, "x"), Message(b"newest", {}, "y"), retried):
            assert table.tail.append(message, 10).wait(11)
        assert store.get("k") == "newest", "the newest record is a repeat: the one before it counts"
        store.preload("k")
        assert store.get("k") == "newest" and store.keys() == ["k"]
        store.purge()
