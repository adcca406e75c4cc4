"""Batches: the round trip, and hostile bytes, which are refused or give a well-formed batch."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqkv import UpgradeRequired
from mqkv.batch import Batch, of_deletes, of_sets, pack, unpack
from mqkv.codecs import BYTES, JSON, TEXT, is_well_formed
from mqkv.record import Record, Unreadable, parse
from mqkv.streams.base import Message

KEYS = st.text(min_size=1, max_size=6)
TYPED = st.one_of(
    st.tuples(st.binary(max_size=9), st.sampled_from([BYTES, "x/own", ""])),
    st.tuples(st.text(max_size=9).map(str.encode), st.sampled_from([None, TEXT])),
    st.tuples(st.integers().map(lambda number: b"%d" % number), st.just(JSON)),
)
ITEMS = st.lists(st.tuples(KEYS, TYPED), max_size=6, unique_by=lambda item: item[0]).map(
    lambda items: [(key, *typed) for key, typed in items]
)
#: Anything that MessagePack can hold, in the shape of a batch or not.
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)
SHAPED = st.tuples(
    st.lists(KEYS | st.just(""), max_size=3),
    st.lists(st.binary(max_size=3), max_size=3),
    st.binary(max_size=3) | st.lists(st.integers(0, 3), max_size=3).map(bytes),
    st.lists(st.none() | st.sampled_from([TEXT, JSON, BYTES, "x"]), max_size=3),
)
SAMPLE = pack(of_sets([("a", b"text", TEXT), ("bc", b"[1]", JSON), ("ü", b"\xff", BYTES), ("d", b"gem", None)]))


def check(body: bytes) -> None:
    """Whatever ``body`` is, reading it raises nothing, and what it gives can be folded."""
    for sets in (True, False):
        batch = unpack(body, sets=sets)
        op = "set_many" if sets else "delete_many"
        message = Message(body, {"__mqkv_op__": op})
        if batch is None:
            with pytest.raises(Unreadable):
                parse(message)
            continue
        assert parse(message) == Record(op, "", body, batch=batch)
        assert all(batch.keys) and len(set(batch.keys)) == len(batch.keys)
        if sets:
            items = list(batch.items())
            assert [key for key, _, _ in items] == batch.keys
            assert all(is_well_formed(body, content_type) for _, body, content_type in items)
        else:
            assert not batch.bodies
        assert unpack(pack(batch), sets=sets) == batch


@given(ITEMS)
def test_sets_come_back(items: list[tuple[str, bytes, str | None]]) -> None:
    batch = unpack(pack(of_sets(items)), sets=True)
    assert (batch is None) == (not items), "a batch of nothing is none"
    assert batch is None or list(batch.items()) == items


@given(st.lists(KEYS, unique=True))
def test_deletes_come_back(keys: list[str]) -> None:
    assert unpack(pack(of_deletes(keys)), sets=False) == Batch(keys)


def test_a_batch_cut_at_any_byte_is_refused() -> None:
    for end in range(len(SAMPLE)):
        check(SAMPLE[:end])
        assert unpack(SAMPLE[:end], sets=True) is None
    assert unpack(SAMPLE + b"\x00", sets=True) is None


def test_any_one_bit_may_be_wrong() -> None:
    for place in range(len(SAMPLE) * 8):
        broken = bytearray(SAMPLE)
        broken[place // 8] ^= 1 << place % 8
        check(bytes(broken))


@pytest.mark.parametrize("length", [b"\xdd\xff\xff\xff\xff", b"\xdd\x10\x00\x00\x00", b"\xdc\xff\xff", b"\xdb\xff\xff\xff\xff"])
def test_lengths_that_lie(length: bytes) -> None:
    for head in (b"\x94", b"\x94\x91", b"\x94\x91\xa1a", b"\x94\x91\xa1a\x91", b""):
        check(head + length)
        check(head + length + b"\xa1a" * 4)


def test_nesting_without_end() -> None:
    for head in (b"", b"\x94", b"\x94\x91"):
        check(head + b"\x91" * 100_000)
    check(pack(Batch(["k"], [b"[" * 100_000], types=[JSON])))


@given(st.binary(max_size=40) | NESTED.map(msgspec.msgpack.encode) | SHAPED.map(msgspec.msgpack.encode))
def test_anything_else(body: bytes) -> None:
    check(body)


@given(ITEMS, st.data())
def test_several_bytes_may_be_wrong(items: list[tuple[str, bytes, str | None]], data: st.DataObject) -> None:
    broken = bytearray(pack(of_sets(items)))
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(broken))


@given(
    st.sampled_from(["set_many", "delete_many", "add", "compare_and_set", "incr", "lock", "settings", "clear"]),
    st.dictionaries(
        st.sampled_from(["key", "version", "written_ms", "expires_ms", "expires_at", "op_key", "arg_", "arg_delta", "sync"]),
        st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.none() | st.lists(st.none(), max_size=1),
    ),
    st.binary(max_size=20) | SHAPED.map(msgspec.msgpack.encode),
    st.none() | st.sampled_from([TEXT, JSON, BYTES, ""]),
)
def test_parse_raises_nothing_else(op: str, headers: dict[str, object], body: bytes, content_type: str | None) -> None:
    named = {f"__mqkv_{name}__": value for name, value in headers.items()} | {"__mqkv_op__": op}
    with contextlib.suppress(Unreadable, UpgradeRequired):
        record = parse(Message(body, named, "id", content_type))  # type: ignore[arg-type]
        assert (record.batch is not None) == (op in ("set_many", "delete_many"))
