"""A pika connection that reads deliveries and confirms where they stand in the buffer, and hands on the rest to pika.

It knows pika's private names for reading, and checks that they are there: without them it is an ordinary pika connection, slower.
It knows nothing of streams beyond consumer tags. Rules:

1. Frames take effect in the order in which they came: a batch of deliveries is handed over before any other frame is processed.
2. A delivery is read quickly only where its frames stand together; else all of its frames go through pika.
3. Nothing that a message holds can break the connection; what breaks the frames themselves does, as in pika.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from struct import Struct
from typing import Any

from pika import SelectConnection
from pika.channel import Channel
from pika.exceptions import InvalidFrameError

from mqkv.streams.amqp.codec import decode_content
from mqkv.streams.base import Delivery

_head = Struct(">BHI").unpack_from
_u64 = Struct(">Q").unpack_from

_DELIVER = b"\x00\x3c\x00\x3c"
_ACK = b"\x00\x3c\x00\x50"

#: Bytes asked of the socket at a time (pika: 4 KiB).
RECEIVE = 262_144

#: Linux has it. It does not stay set: the kernel goes back to waiting as soon as we have sent something.
QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)

#: The transport that may be written to past its buffer while that is empty (TLS has a state of its own).
PLAIN = "_AsyncPlaintextTransport"

PRIVATE = (
    "_adapter_emit_data",
    "_on_data_available",
    "_read_frame",
    "_process_frame",
    "_trim_frame_buffer",
    "_init_connection_state",
)
QUICK = all(hasattr(SelectConnection, name) for name in PRIVATE)

# pika logs errors that we report ourselves, and the beginning of message bodies at its debug level (on the slow way only: on the
# quick one no body passes through pika). Who has set a level for it knows that.
if logging.getLogger("pika").level == logging.NOTSET:
    logging.getLogger("pika").setLevel(logging.CRITICAL)


class Connection(SelectConnection):  # type: ignore[misc]  # pika has no types
    """A ``SelectConnection`` that calls ``on_deliveries(channel, consumer tag, delivery tag of the last, messages)`` and
    ``on_confirm(channel, tag, multiple)``."""

    on_deliveries: Callable[[int, str, int, list[Delivery]], None]
    on_confirm: Callable[[int, int, bool], None]
    quick = QUICK
    _acknowledged: socket.socket | None = None

    def _init_connection_state(self) -> None:
        self._parts: list[bytes] = []
        self._have = self._need = 0
        super()._init_connection_state()

    def widen(self) -> None:
        """Read more at a time from the socket."""
        transport: Any = getattr(self, "_transport", None)
        if hasattr(transport, "_MAX_RECV_BYTES"):
            transport._MAX_RECV_BYTES = RECEIVE

    def acknowledge_at_once(self) -> None:
        """From now on tell the other side at once that its packets have come. Nothing where the system has no such thing."""
        if QUICKACK is not None:
            self._acknowledged = getattr(getattr(self, "_transport", None), "_sock", None)
            self._acknowledge()

    def _acknowledge(self) -> None:
        try:
            self._acknowledged.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)  # type: ignore[union-attr, arg-type]
        except (OSError, AttributeError):  # closed; whoever reads or writes next finds out
            self._acknowledged = None

    def _adapter_emit_data(self, data: bytes) -> None:
        """Send at once what the socket takes. pika would wait for the loop to say that it can be written to: two more rounds of
        epoll for each publish, a tenth of what a confirmed one costs."""
        if self.clear():
            try:
                sent = self._transport._sock.send(data)
            except OSError:  # full, or gone: pika finds out which
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        super()._adapter_emit_data(data)

    def tear(self) -> None:
        """Nothing more goes out. For any thread."""
        sock = getattr(getattr(self, "_transport", None), "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def clear(self) -> bool:
        """Whether the socket may be written to past pika: it is a plain one, and nothing waits for it."""
        transport: Any = getattr(self, "_transport", None)
        return (
            self.quick
            and type(transport).__name__ == PLAIN
            and transport._state == transport._STATE_ACTIVE
            and getattr(transport, "_sock", None) is not None
            and not getattr(transport, "_tx_buffers", True)
        )

    def _on_connection_workflow_done(self, outcome: Any) -> None:
        """pika reports a handshake that was aborted by an error's class, and trips over it itself."""
        super()._on_connection_workflow_done(outcome() if isinstance(outcome, type) else outcome)

    def _on_data_available(self, data: bytes) -> None:
        if self._acknowledged is not None:
            self._acknowledge()
        if not self.quick:
            super()._on_data_available(data)
            return
        self._parts.append(data)
        self._have += len(data)
        self.bytes_received += len(data)
        if self._have < self._need:
            return
        data = b"".join(self._parts) if len(self._parts) > 1 else data
        used, self._need = self._read(data)
        if self._need < 0:  # the connection was closed meanwhile, and its state reset
            self._parts, self._have, self._need = [], 0, 0
            return
        self._parts = [data[used:]] if used < len(data) else []
        self._have = len(data) - used

    def _read(self, data: bytes) -> tuple[int, int]:
        """Read all complete frames; how many bytes that took, and how many must be there for the next (-1: closed)."""
        at, size = 0, len(data)
        batch: list[Delivery] = []
        consumer, channel, tag = b"", 0, 0
        need = 0
        while True:
            if size - at < 8:
                need = 8
                break
            kind, number, length = _head(data, at)
            end = at + length + 8
            if end > size and data[at : at + 4] != b"AMQP":
                need = end - at
                break
            if kind == 1 and data[at + 7 : at + 11] == _DELIVER:
                found = self._delivery(data, at, end, number, size)
                if type(found) is int:
                    need = found
                    break
                if found is not None:
                    at, name, tag_here, offset, message = found
                    if batch and (name != consumer or number != channel):
                        self.on_deliveries(channel, consumer.decode(), tag, batch)
                        batch = []
                    consumer, channel, tag = name, number, tag_here
                    if offset is not None:
                        batch.append((offset, message))
                    continue
            if batch:
                self.on_deliveries(channel, consumer.decode(), tag, batch)
                batch = []
            if kind == 1 and length == 13 and data[at + 7 : at + 11] == _ACK and data[end - 1] == 0xCE:
                self.on_confirm(number, _u64(data, at + 11)[0], bool(data[at + 19] & 1))
                at = end
                continue
            at = self._pass_on(data, at, end)
            if self.is_closed:
                return at, -1
        if batch:
            self.on_deliveries(channel, consumer.decode(), tag, batch)
        if self.is_closed:
            return at, -1
        return at, need

    def _pass_on(self, data: bytes, at: int, end: int) -> int:
        """Let pika process one frame; where the next begins."""
        self._frame_buffer = data[at:] if data[at : at + 4] == b"AMQP" else data[at:end]
        used, frame = self._read_frame()
        self._frame_buffer = b""
        if frame is None:
            raise InvalidFrameError("a frame is broken")
        self._process_frame(frame)
        return at + int(used)

    def _delivery(self, data: bytes, at: int, end: int, number: int, size: int) -> Any:
        """(next, consumer tag, delivery tag, offset, message); or how many bytes it takes; or None: not in one piece."""
        if size - end < 8:
            return end + 8 - at
        kind, here, length = _head(data, end)
        if kind != 2 or here != number:
            return None
        props_end = end + 7 + length
        if props_end >= size:
            return props_end + 1 - at
        left = _u64(data, end + 11)[0]
        if props_end + 1 + left > size:
            return props_end + 1 + left - at
        next_at = props_end + 1
        body = b""
        if left:
            parts = []
            while left > 0:
                if size - next_at < 8:
                    return next_at + 8 - at
                kind, here, length = _head(data, next_at)
                if kind != 3 or here != number:
                    return None
                stop = next_at + 7 + length
                if stop >= size:
                    return stop + 1 + max(left - length, 0) - at
                parts.append(data[next_at + 7 : stop])
                left -= length
                next_at = stop + 1
            body = parts[0] if len(parts) == 1 else b"".join(parts)
        if data[end - 1] != 0xCE or data[props_end] != 0xCE or data[next_at - 1] != 0xCE:
            raise InvalidFrameError("a frame has no end mark")
        tag_at = at + 12 + data[at + 11]
        offset, message = decode_content(data, end + 19, props_end, body)
        return next_at, data[at + 12 : tag_at], _u64(data, tag_at)[0], offset, message


def close_consumer_quietly(channel: Channel, consumer: str) -> None:
    """Cancel without pika's habit of rejecting what still comes (RabbitMQ closes the connection on a reject of a stream)."""
    without_acks = getattr(channel, "_consumers_with_noack", None)
    if without_acks is not None:
        without_acks.add(consumer)
    channel.basic_cancel(consumer, callback=lambda frame: None)
