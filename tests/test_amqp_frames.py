"""The quick reader of deliveries against pika's own, and against bytes that no broker would send."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from mqkv.streams.amqp.codec import decode_content, decode_table, encode_ack, encode_content, encode_frames, encode_publish
from mqkv.streams.amqp.frames import QUICK, Connection
from mqkv.streams.base import Delivery, Message

NAMES = st.text(min_size=1, max_size=20).filter(lambda name: name != "x-stream-offset")
VALUES = st.text(max_size=30) | st.integers(-(2**63), 2**63 - 1) | st.booleans()
MESSAGES = st.builds(
    Message,
    st.binary(max_size=400),
    st.dictionaries(NAMES, VALUES, max_size=5),
    st.none() | st.text(max_size=40),
    st.none() | st.text(max_size=20),
    st.none() | st.text(max_size=20),
)


class Reader(Connection):
    """A connection without a socket: keeps what it reads."""

    def __init__(self, frame_max: int = 131_072) -> None:
        self.seen: list[Any] = []
        self.is_done = False
        self._parts: list[bytes] = []
        self._have = self._need = 0
        self.bytes_received = 0

    is_closed = property(lambda self: self.is_done)  # type: ignore[assignment]

    def on_deliveries(self, channel: int, consumer: str, tag: int, batch: list[Delivery]) -> None:  # type: ignore[override]
        self.seen += [("delivery", channel, consumer, *each) for each in batch]

    def on_confirm(self, channel: int, tag: int, multiple: bool) -> None:  # type: ignore[override]
        self.seen.append(("confirm", channel, tag, multiple))

    def _process_frame(self, value: Any) -> None:
        self.seen.append(type(value).__name__ if not isinstance(value, frame.Method) else value.method.NAME)


def delivery(offset: int, message: Message, *, channel: int = 3, consumer: str = "m1", tag: int = 1, room: int = 100) -> bytes:
    """What a broker sends for a message, in body frames of at most ``room`` bytes, made by pika."""
    method = spec.Basic.Deliver(consumer, tag, False, "", "stream")
    properties = spec.BasicProperties(
        headers={**message.headers, "x-stream-offset": offset},
        message_id=message.id,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        delivery_mode=2,
        priority=0,
        correlation_id="c",
        timestamp=1,
    )
    data = frame.Method(channel, method).marshal() + frame.Header(channel, len(message.body), properties).marshal()
    for start in range(0, len(message.body), room):
        data += frame.Body(channel, message.body[start : start + room]).marshal()
    return bytes(data)


OFFSET = 2**40


def test_the_quick_reader_is_in_use() -> None:
    assert QUICK


@given(st.lists(MESSAGES, min_size=1, max_size=6), st.data())
def test_reads_what_pika_writes_however_it_is_cut(messages: list[Message], data: st.DataObject) -> None:
    stream = b"".join(delivery(OFFSET + number, message) for number, message in enumerate(messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader = Reader()
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if end > start:
            reader._on_data_available(stream[start:end])
    assert reader.seen == [("delivery", 3, "m1", OFFSET + number, message) for number, message in enumerate(messages)]
    assert reader.bytes_received == len(stream)


@given(MESSAGES)
def test_pika_reads_what_we_write(message: Message) -> None:
    stream = encode_publish(7, "a stream") + encode_frames(7, encode_content(message), message.body, 108)
    frames = []
    while stream:
        used, value = frame.decode_frame(stream)
        assert used
        frames.append(value)
        stream = stream[used:]
    method: Any = frames[0]
    header: Any = frames[1]
    assert (method.method.NAME, method.method.routing_key, method.method.mandatory) == ("Basic.Publish", "a stream", True)
    assert (header.properties.headers or {}) == message.headers
    assert header.properties.delivery_mode == 2
    assert header.properties.message_id == message.id
    assert header.properties.content_type == message.content_type
    assert header.properties.content_encoding == message.content_encoding
    assert b"".join(value.fragment for value in frames[2:]) == message.body


def test_our_ack_is_pikas() -> None:
    assert encode_ack(9, 2**33) == frame.Method(9, spec.Basic.Ack(2**33, True)).marshal()


def test_other_frames_keep_their_place() -> None:
    ack = frame.Method(1, spec.Basic.Ack(5, True)).marshal()
    qos = frame.Method(3, spec.Basic.QosOk()).marshal()
    beat = frame.Heartbeat().marshal()
    message = Message(b"x", {}, "id")
    first, second = delivery(OFFSET, message), delivery(OFFSET + 1, message, consumer="m2")
    reader = Reader()
    reader._on_data_available(first + qos + second + ack + beat + first)
    assert [each if isinstance(each, str) else each[:3] for each in reader.seen] == [
        ("delivery", 3, "m1"),
        "Basic.QosOk",
        ("delivery", 3, "m2"),
        ("confirm", 1, 5),
        "Heartbeat",
        ("delivery", 3, "m1"),
    ]


def test_frames_that_do_not_stand_together_go_through_pika() -> None:
    data = delivery(OFFSET, Message(b"x"))
    method_end = 8 + struct.unpack_from(">I", data, 3)[0]
    reader = Reader()
    reader._on_data_available(data[:method_end] + frame.Heartbeat().marshal() + data[method_end:])
    assert reader.seen == ["Basic.Deliver", "Heartbeat", "Header", "Body"]


def test_a_large_body() -> None:
    message = Message(bytes(range(256)) * 20_000, {}, "big")
    data = delivery(OFFSET, message, room=131_064)
    reader = Reader()
    for start in range(0, len(data), 4096):
        reader._on_data_available(data[start : start + 4096])
    assert reader.seen == [("delivery", 3, "m1", OFFSET, message)]


def test_a_double_stays_a_float() -> None:
    table = b"\x12__mqkv_expires_at__"[:19] + b"d" + struct.pack(">d", 1.5)
    assert decode_table(table, 0, len(table))[0] == {"__mqkv_expires_at_": 1.5}


def entry(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + value


OFFSET_ENTRY = entry(b"x-stream-offset", b"l" + struct.pack(">q", 77))


@pytest.mark.parametrize(
    ("bad", "left"),
    [
        (entry(b"n", b"S\x00\x00\x00\x02\xff\xfe"), {}),  # no UTF-8
        (entry(b"\xff", b"t\x01"), {}),
        (entry(b"n", b"V"), {}),
        (entry(b"n", b"x\x00\x00\x00\x01a"), {}),
        (entry(b"n", b"A\x00\x00\x00\x02t\x01"), {}),
        (entry(b"n", b"F\x00\x00\x00\x04\x01at\x01"), {}),
        (entry(b"n", b"T" + bytes(8)), {}),
        (entry(b"n", b"D" + bytes(5)), {}),
        (entry(b"n", b"?who knows"), None),
        (entry(b"n", b"f" + struct.pack(">f", 0.5)), {"n": 0.5}),
        (entry(b"n", b"s" + struct.pack(">h", -2)), {"n": -2}),
        (entry(b"n", b"B\xff"), {"n": 255}),
    ],
)
def test_headers_that_we_do_not_take_are_left_out(bad: bytes, left: dict[str, object] | None) -> None:
    table = entry(b"a", b"t\x01") + bad + entry(b"z", b"I\x00\x00\x00\x05") + OFFSET_ENTRY
    headers, offset = decode_table(table, 0, len(table))
    assert offset == 77
    assert headers == ({"a": True} if left is None else {"a": True, **left, "z": 5})


@given(st.binary(max_size=200))
def test_garbage_breaks_nothing(data: bytes) -> None:
    headers, _ = decode_table(data, 0, len(data))
    assert all(isinstance(name, str) for name in headers)
    _, message = decode_content(data, 0, len(data), b"body")
    assert message.body == b"body"


@given(MESSAGES, st.binary(min_size=1, max_size=30), st.integers(0, 200))
def test_damaged_properties_break_nothing(message: Message, noise: bytes, at: int) -> None:
    properties = encode_content(message)
    damaged = properties[:at] + noise + properties[at + len(noise) :]
    assert decode_content(damaged, 0, len(damaged), b"")[1].body == b""


@pytest.mark.parametrize("value", [1.5, None, b"bytes", math.inf, 2**63, ["list"]])
def test_what_a_header_must_not_hold(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode_content(Message(b"", {"h": value}, "id"))


def test_what_is_too_long() -> None:
    with pytest.raises(ValueError):
        encode_content(Message(b"", {}, "x" * 256))
