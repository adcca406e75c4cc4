"""The wire format: golden messages, the round trip, and hostile headers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqkv import UpgradeRequired
from mqkv.anchor import Anchor, anchor, told_by
from mqkv.fold import Cell
from mqkv.record import Record, Unreadable, parse, to_message
from mqkv.streams.base import Message

KEYS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20)
TIMES = st.none() | st.integers(0, 2**52)
NAMES = st.text(st.sampled_from("abcdefghij_"), min_size=1, max_size=8)
PLAIN = st.builds(
    Record,
    op=st.sampled_from(["set", "delete"]),
    key=KEYS,
    body=st.text(st.characters(blacklist_categories=("Cs",))).map(str.encode),
    content_type=st.none() | st.just("text/plain"),
    content_encoding=st.none() | st.just("zstd"),
    expires_ms=TIMES,
    written_ms=TIMES,
    id=st.none() | st.text("0123456789abcdef", min_size=1),
    retry=st.booleans(),
    args=st.just({}),
    batch=st.none(),
)
OPERATIONS = st.builds(
    Record,
    op=NAMES.filter(
        lambda op: op not in ("add", "compare_and_set", "state", "set_many", "delete_many")
    ),  # those look at the body
    key=st.just("") | KEYS,
    body=st.binary(),
    content_type=st.none(),
    content_encoding=st.none(),
    expires_ms=TIMES,
    retry=st.booleans(),
    args=st.dictionaries(NAMES, st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.text(max_size=9)),
    written_ms=TIMES,
    id=st.none() | st.text("0123456789abcdef", min_size=1),
    batch=st.none(),
)
HEADER_NAMES = [
    *("__mqkv_key__", "__mqkv_deleted__", "__mqkv_expires_at__", "__mqkv_expires_ms__", "__mqkv_written_ms__", "__mqkv_sync__"),
    *("__mqkv_op__", "__mqkv_op_key__", "__mqkv_arg_x__", "__mqkv_version__", "__mqkv_retry__", "traceparent"),
]
HOSTILE = st.builds(
    Message,
    st.binary(max_size=30) | st.just(b"[" * 5_000),
    st.dictionaries(
        st.sampled_from(HEADER_NAMES),
        st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.none() | st.lists(st.integers()),  # type: ignore[arg-type]
    ),
    st.none() | st.text(max_size=5),
    st.none() | st.sampled_from(["text/plain", "application/json", "application/octet-stream", "x/y", ""]),
    st.none() | st.sampled_from(["gzip", ""]),
)


def test_a_plain_set_and_delete_are_what_the_gem_writes() -> None:
    record = Record("set", "k", b"v", written_ms=1_800_000_000_123, id="id", expires_ms=1_800_000_060_001)
    assert to_message(record, shared=False) == Message(
        b"v",
        {
            "__mqkv_expires_at__": 1_800_000_061,
            "__mqkv_expires_ms__": 1_800_000_060_001,
            "__mqkv_written_ms__": 1_800_000_000_123,
        },
        "id",
    )
    assert to_message(Record("set", "k", b"v"), shared=True) == Message(b"v", {"__mqkv_key__": "k"})
    assert to_message(Record("delete", "k"), shared=True) == Message(b"", {"__mqkv_key__": "k", "__mqkv_deleted__": True})
    assert to_message(Record("delete", "k"), shared=False) == Message(b"", {"__mqkv_deleted__": True})


def test_what_the_gem_writes_is_read() -> None:
    assert parse(Message(b"v"), "k") == Record("set", "k", b"v")
    assert parse(Message(b"v", {"__mqkv_expires_at__": 1_700_000_000.2501}), "k").expires_ms == 1_700_000_000_251
    assert parse(Message(b"", {"__mqkv_deleted__": True}), "k").op == "delete"
    assert parse(Message(b"v", {"__mqkv_key__": "k"})) == Record("set", "k", b"v")
    assert parse(Message(b"", {"__mqkv_sync__": "5b0c"})).op == "sync"


def test_milliseconds_win_over_seconds() -> None:
    assert parse(Message(b"v", {"__mqkv_expires_at__": 10, "__mqkv_expires_ms__": 9_500}), "k").expires_ms == 9_500


def test_operations_carry_their_key_where_the_gem_does_not_look() -> None:
    message = to_message(Record("incr", "k", args={"delta": 2}), shared=True)
    assert message.headers == {"__mqkv_op__": "incr", "__mqkv_op_key__": "k", "__mqkv_arg_delta__": 2}


def test_an_anchor_tells_a_value_with_its_revision_and_times() -> None:
    cell = Cell(b"5", "application/json", None, 7, 1_800_000_060_001, 1_800_000_000_001)
    record = anchor("k", Anchor(9, cell), 1_800_000_000_123, "id")
    message = to_message(record, shared=False)
    assert message == Message(
        b"5",
        {
            "__mqkv_op__": "state",
            "__mqkv_op_key__": "k",
            "__mqkv_arg_after__": 9,
            "__mqkv_arg_revision__": 7,
            "__mqkv_arg_written_ms__": 1_800_000_000_001,
            "__mqkv_expires_at__": 1_800_000_061,
            "__mqkv_expires_ms__": 1_800_000_060_001,
            "__mqkv_written_ms__": 1_800_000_000_123,
        },
        "id",
        "application/json",
    )
    assert told_by(parse(message, "k")) == Anchor(9, cell)
    nothing = to_message(anchor("k", Anchor(9, None), 5, "id"), shared=False)
    assert told_by(parse(nothing, "k")) == Anchor(9, None) and nothing.body == b""


@given(PLAIN, st.booleans())
def test_plain_records_come_back(record: Record, shared: bool) -> None:
    if record.op == "delete":
        record = record._replace(body=b"")
    assert parse(to_message(record, shared=shared), None if shared else record.key) == record


@given(OPERATIONS)
def test_operations_come_back(record: Record) -> None:
    assert parse(to_message(record, shared=True)) == record


@given(HOSTILE, st.none() | st.just("k"))
def test_hostile_messages_are_a_record_or_unreadable(message: Message, key: str | None) -> None:
    try:
        record = parse(message, key)
    except (Unreadable, UpgradeRequired):
        return
    assert isinstance(record.op, str) and isinstance(record.key, str)
    assert record.expires_ms is None or type(record.expires_ms) is int
    assert record.written_ms is None or type(record.written_ms) is int


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"__mqkv_key__": 1},
        {"__mqkv_key__": ""},
        {"__mqkv_key__": "k", "__mqkv_deleted__": "true"},
        {"__mqkv_key__": "k", "__mqkv_expires_at__": "soon"},
        {"__mqkv_key__": "k", "__mqkv_expires_at__": True},
        {"__mqkv_key__": "k", "__mqkv_expires_at__": math.nan},
        {"__mqkv_key__": "k", "__mqkv_expires_at__": math.inf},
        {"__mqkv_key__": "k", "__mqkv_expires_ms__": 1.5},
        {"__mqkv_key__": "k", "__mqkv_written_ms__": -1},
        {"__mqkv_key__": "k", "__mqkv_version__": "1"},
        {"__mqkv_op__": 1},
    ],
)
def test_wrong_types_are_unreadable(headers: dict[str, object]) -> None:
    with pytest.raises(Unreadable):
        parse(Message(b"v", headers))  # type: ignore[arg-type]


def test_text_that_is_not_utf8_and_json_that_is_not_json_are_unreadable() -> None:
    for message in (Message(b"\xff"), Message(b"{", content_type="application/json")):
        with pytest.raises(Unreadable):
            parse(message, "k")


def test_a_newer_format_says_to_upgrade() -> None:
    with pytest.raises(UpgradeRequired, match="upgrade"):
        parse(Message(b"", {"__mqkv_op__": "set", "__mqkv_version__": 2}))
