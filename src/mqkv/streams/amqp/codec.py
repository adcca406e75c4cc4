"""Messages as AMQP bytes, and back. No I/O, no pika object: bytes in, ``Message`` out.

pika decodes 15,000 messages a second here, one object a frame; this decodes them where they stand in the buffer. Rules:

1. Reading never raises on what another program has written: a header that can't be had as str, int, bool or float is left out.
2. A double stays a ``float`` (pika cuts it to a whole number; the Ruby gem writes its expiry as one).
3. Writing raises ``ValueError`` or ``TypeError`` in the caller's thread, before anything is sent.
"""

from __future__ import annotations

from struct import Struct, error
from struct import pack as _pack

from mqkv.streams.base import HeaderValue, Message

OFFSET = b"\x0fx-stream-offset"

_u16 = Struct(">H").unpack_from
_u32 = Struct(">I").unpack_from
_i32 = Struct(">i").unpack_from
_i64 = Struct(">q").unpack_from
_f64 = Struct(">d").unpack_from

#: Fixed sizes of field types, by their letter. Strings, byte arrays, arrays and tables carry a length of four bytes.
_SIZES = {ord(c): n for c, n in zip("tbBUusIiLlfdDTV", (1, 1, 1, 2, 2, 2, 4, 4, 8, 8, 4, 8, 5, 8, 0), strict=True)}
_NUMBERS = {ord(c): Struct(f">{f}").unpack_from for c, f in zip("bBUusIiLlfd", "bBhHhiIqqfd", strict=True)}

_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS = 1 << 15, 1 << 14, 1 << 13
_DELIVERY_MODE, _PRIORITY, _CORRELATION_ID, _REPLY_TO = 1 << 12, 1 << 11, 1 << 10, 1 << 9
_EXPIRATION, _MESSAGE_ID = 1 << 8, 1 << 7


def decode_table(data: bytes, at: int, end: int) -> tuple[dict[str, HeaderValue], int | None]:
    """The headers between ``at`` and ``end`` that we can read, and the stream offset among them."""
    headers: dict[str, HeaderValue] = {}
    offset: int | None = None
    start = at
    try:
        while at < end:
            name_end = at + 1 + data[at]
            name = data[at + 1 : name_end]
            kind = data[name_end]
            at = name_end + 1
            if kind == 83:  # S
                text_end = at + 4 + _u32(data, at)[0]
                if text_end > end:
                    break
                try:  # noqa: SIM105 -- contextlib.suppress takes half a microsecond
                    headers[name.decode()] = data[at + 4 : text_end].decode()
                except UnicodeDecodeError:
                    pass
                at = text_end
                continue
            if kind == 108 and name == b"x-stream-offset":
                offset = _i64(data, at)[0]
                at += 8
                continue
            size = _SIZES.get(kind)
            if size is None:
                if kind not in b"xAF":
                    break  # unknown: where it ends is unknown too
                at += 4 + _u32(data, at)[0]
                continue
            if at + size > end:
                break
            try:
                if kind == 116:  # t
                    headers[name.decode()] = data[at] != 0
                elif kind in _NUMBERS:
                    headers[name.decode()] = _NUMBERS[kind](data, at)[0]
            except UnicodeDecodeError:
                pass
            at += size
    except (IndexError, error):
        pass
    if offset is None:
        shown = headers.pop("x-stream-offset", None)  # in another number type than RabbitMQ's
        offset = shown if isinstance(shown, int) and shown is not True else _find_offset(data[start:end])
    return headers, offset


def _find_offset(table: bytes) -> int | None:
    """The stream offset behind a header that could not be read. The broker adds it, so it is well formed."""
    at = table.rfind(OFFSET + b"l")
    if at < 0 or at + 25 > len(table):
        return None
    return int(_i64(table, at + 17)[0])


def decode_content(data: bytes, at: int, end: int, body: bytes) -> tuple[int | None, Message]:
    """Offset and message, from the properties of a content header between ``at`` and ``end``."""
    content_type = content_encoding = ident = None
    headers: dict[str, HeaderValue] = {}
    offset: int | None = None
    try:
        flags = _u16(data, at)[0]
        at += 2
        if flags & 1:  # more flag words: nobody uses them
            return _find_offset(data[at:end]), Message(body)
        if flags & _CONTENT_TYPE:
            stop = at + 1 + data[at]
            content_type = _text(data[at + 1 : stop])
            at = stop
        if flags & _CONTENT_ENCODING:
            stop = at + 1 + data[at]
            content_encoding = _text(data[at + 1 : stop])
            at = stop
        if flags & _HEADERS:
            stop = at + 4 + _u32(data, at)[0]
            headers, offset = decode_table(data, at + 4, min(stop, end))
            at = stop
        if flags & 0x1F80:
            if flags & _DELIVERY_MODE:
                at += 1
            if flags & _PRIORITY:
                at += 1
            if flags & (_CORRELATION_ID | _REPLY_TO | _EXPIRATION):
                for flag in (_CORRELATION_ID, _REPLY_TO, _EXPIRATION):
                    if flags & flag:
                        at += 1 + data[at]
            if flags & _MESSAGE_ID:
                stop = at + 1 + data[at]
                ident = _text(data[at + 1 : stop])
    except (IndexError, error):
        pass
    return offset, Message(body, headers, ident, content_type, content_encoding)


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def encode_content(message: Message) -> bytes:
    """The properties of a content header, from the flags on: persistent, with what the message has."""
    flags = _DELIVERY_MODE
    pieces = [b""]
    if message.content_type is not None:
        flags |= _CONTENT_TYPE
        pieces.append(_short(message.content_type))
    if message.content_encoding is not None:
        flags |= _CONTENT_ENCODING
        pieces.append(_short(message.content_encoding))
    if message.headers:
        flags |= _HEADERS
        table = b"".join([_short(name) + _field(value) for name, value in message.headers.items()])
        pieces.append(_pack(">I", len(table)) + table)
    pieces.append(b"\x02")
    if message.id is not None:
        flags |= _MESSAGE_ID
        pieces.append(_short(message.id))
    pieces[0] = _pack(">H", flags)
    return b"".join(pieces)


def _short(text: str) -> bytes:
    data = text.encode()
    if len(data) > 255:
        raise ValueError("a name, id or type in a message is longer than 255 bytes")
    return bytes((len(data),)) + data


def _field(value: HeaderValue) -> bytes:
    if value is True:
        return b"t\x01"
    if value is False:
        return b"t\x00"
    if isinstance(value, str):
        data = value.encode()
        return b"S" + _pack(">I", len(data)) + data
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return _pack(">ci", b"I", value)
        if -(2**63) <= value < 2**63:
            return _pack(">cq", b"l", value)
        raise ValueError("a header holds a number of more than 64 bits")
    raise TypeError(f"a header must hold str, int or bool, not {type(value).__name__}")


def encode_publish(channel: int, stream: str) -> bytes:
    """The method frame of a mandatory Basic.Publish to a queue, through the default exchange."""
    payload = b"\x00\x3c\x00\x28\x00\x00\x00" + _short(stream) + b"\x01"
    return _pack(">BHI", 1, channel, len(payload)) + payload + b"\xce"


def encode_frames(channel: int, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """The content frames that follow a publish."""
    pieces = [_pack(">BHIHHQ", 2, channel, 12 + len(properties), 60, 0, len(body)), properties, b"\xce"]
    room = frame_max - 8
    for start in range(0, len(body), room):
        part = body[start : start + room] if len(body) > room else body
        pieces += (_pack(">BHI", 3, channel, len(part)), part, b"\xce")
    return b"".join(pieces)


def encode_ack(channel: int, tag: int) -> bytes:
    """Basic.Ack of all deliveries up to ``tag``."""
    return _pack(">BHIHHQBB", 1, channel, 13, 60, 80, tag, 1, 0xCE)
