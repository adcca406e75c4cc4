"""Records and their messages: the wire format, and nothing else. Pure: no I/O, no clock, no thread.

Rules:

1. ``parse(to_message(record)) == record``, and a message that is not ours, or damaged, raises :class:`Unreadable`, nothing else.
2. Plain sets and deletes are what the Ruby gem ``mqkv`` reads and writes; every other operation carries its key in a header of
   its own, so that the gem skips it in a shared stream.
3. Headers hold ``str``, ``int`` and ``bool``. Unknown headers are ignored.

::

    property message_id        the operation's id: a second record with it is a repeat
    property content_type      how the body is encoded; none: text
    __mqkv_key__          str  the key of a plain set or delete, in a shared stream
    __mqkv_deleted__      true a tombstone
    __mqkv_expires_at__   int  the expiry in seconds, rounded up (the gem writes a double)
    __mqkv_expires_ms__   int  the same instant in milliseconds; it wins
    __mqkv_written_ms__   int  when the writer wrote it, by the writer's clock
    __mqkv_retry__        true perhaps a second copy: the connection broke after the first was sent
    __mqkv_sync__         str  a marker that changes nothing
    __mqkv_op__           str  any other operation, with
    __mqkv_op_key__       str  its key (none: it is about the whole keyspace) and
    __mqkv_arg_NAME__          its arguments
    __mqkv_version__      int  the format version; absent: 1
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from mqkv.batch import Batch, unpack
from mqkv.codecs import is_well_formed
from mqkv.errors import UpgradeRequired
from mqkv.streams.base import RETRY_HEADER, HeaderValue, Message

FORMAT_VERSION = 1

KEY = "__mqkv_key__"
DELETED = "__mqkv_deleted__"
EXPIRES_AT = "__mqkv_expires_at__"
EXPIRES_MS = "__mqkv_expires_ms__"
WRITTEN_MS = "__mqkv_written_ms__"
SYNC = "__mqkv_sync__"
OP = "__mqkv_op__"
OP_KEY = "__mqkv_op_key__"
ARG = "__mqkv_arg_"
VERSION = "__mqkv_version__"

_LATEST_MS = 2**53
_VALUED = ("add", "compare_and_set", "state")
_BATCHES = ("set_many", "delete_many", "renew")
_NOT_ITS_TYPE = "the body is not what its content type says"
_NO_ARGS: Mapping[str, HeaderValue] = {}


class Unreadable(Exception):
    """This message is no record of ours. Its text says why, and holds nothing of the message."""


class Record(NamedTuple):
    """One change, as it stands in a stream."""

    op: str  #: ``set``, ``delete``, ``sync``, or an operation of ``fold.OPERATIONS``
    key: str  #: empty where the operation is about the whole keyspace
    body: bytes = b""
    content_type: str | None = None
    content_encoding: str | None = None
    expires_ms: int | None = None
    written_ms: int | None = None
    id: str | None = None
    retry: bool = False
    args: Mapping[str, HeaderValue] = _NO_ARGS
    batch: Batch | None = None  #: what the body of a ``set_many``, ``delete_many`` or ``renew`` holds


def time_ms(seconds: float) -> int:
    """A wall clock's time as a record tells it; one that no record may have becomes the nearest that it may."""
    return min(max(int(seconds * 1000), 0), _LATEST_MS // 2)


def to_message(record: Record, *, shared: bool) -> Message:
    """The message of a record, for a shared stream or for the stream of the record's own key."""
    headers: dict[str, HeaderValue] = {}
    if record.op in ("set", "delete"):
        if shared:
            headers[KEY] = record.key
        if record.op == "delete":
            headers[DELETED] = True
    elif record.op == "sync":
        headers[SYNC] = record.id or ""
    else:
        headers[OP] = record.op
        if record.key:
            headers[OP_KEY] = record.key
        for name, value in record.args.items():
            headers[f"{ARG}{name}__"] = value
    if record.expires_ms is not None:
        headers[EXPIRES_AT] = -(-record.expires_ms // 1000)
        headers[EXPIRES_MS] = record.expires_ms
    if record.written_ms is not None:
        headers[WRITTEN_MS] = record.written_ms
    if record.retry:
        headers[RETRY_HEADER] = True
    return Message(record.body, headers, record.id, record.content_type, record.content_encoding)


def parse(message: Message, key: str | None = None) -> Record:
    """Read a message of a shared stream, or of the stream of ``key``.

    Raises :class:`Unreadable` for what is no record, and :class:`mqkv.UpgradeRequired` for a record of a newer format.
    """
    body, headers, id, content_type, content_encoding = message
    get = headers.get
    version = get(VERSION)
    if version is not None:
        _check_version(version)
    op, batch = get(OP), None
    if op is None and SYNC in headers:
        return Record("sync", "", id=id)
    if op is not None:
        op, key, args = _operation(op, headers)
        if op in _BATCHES:
            batch = unpack(body, sets=op != "delete_many")
            if batch is None:
                raise Unreadable("the batch is damaged")
        elif op in _VALUED and content_encoding is None and not is_well_formed(body, content_type):
            raise Unreadable(_NOT_ITS_TYPE)
    else:
        op, args = "set", _NO_ARGS
        deleted = get(DELETED)
        if deleted is not None and deleted is not False:
            if deleted is not True:
                raise Unreadable(f"{DELETED} is not a bool")
            op = "delete"
        if key is None:
            tag = get(KEY)
            if not isinstance(tag, str) or not tag:
                raise Unreadable(f"no {KEY}" if tag is None else f"{KEY} is not a str")
            key = tag
        if op == "set" and content_encoding is None and not is_well_formed(body, content_type):
            raise Unreadable(_NOT_ITS_TYPE)
    retry = get(RETRY_HEADER) is True
    expires = _expiry(headers)
    written = get(WRITTEN_MS)
    if written is not None and (type(written) is not int or not 0 <= written < _LATEST_MS):
        raise Unreadable(f"{WRITTEN_MS} is not a time")
    return Record(op, key, body, content_type, content_encoding, expires, written, id, retry, args, batch)


def _check_version(version: HeaderValue) -> None:
    if type(version) is not int:
        raise Unreadable(f"{VERSION} is not an int")
    if version > FORMAT_VERSION:
        raise UpgradeRequired(
            f"a record of format {version} stands in the stream, and this mqkv reads {FORMAT_VERSION}: upgrade mqkv"
        )


def _operation(op: HeaderValue, headers: Mapping[str, HeaderValue]) -> tuple[str, str, Mapping[str, HeaderValue]]:
    key = headers.get(OP_KEY, "")
    if type(op) is not str or type(key) is not str:
        raise Unreadable(f"{OP} or {OP_KEY} is not a str")
    args = {name[len(ARG) : -2]: value for name, value in headers.items() if name.startswith(ARG)}
    return op, key, args


def _expiry(headers: Mapping[str, HeaderValue]) -> int | None:
    exact = headers.get(EXPIRES_MS)
    if exact is not None:
        if type(exact) is not int or not 0 <= exact < _LATEST_MS:
            raise Unreadable(f"{EXPIRES_MS} is not a time")
        return exact
    seconds = headers.get(EXPIRES_AT)
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < _LATEST_MS / 1000:
        raise Unreadable(f"{EXPIRES_AT} is not a time")
    return math.ceil(seconds * 1000)
