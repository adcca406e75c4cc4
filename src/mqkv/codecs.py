"""Values <-> bodies: what goes in comes out. Pure.

A subclass of ``str`` or ``bytes`` comes out as the plain type, and so do members of enums and dicts of other classes within a
list or dict: equal to what went in, and no more than that.

The default codec takes ``str``, ``bytes`` and what JSON has, and tells them apart by the content type. A codec of your own takes
more; it is handed to ``Store(codec=...)``, and every process that reads the keyspace must have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol, cast

import msgspec

from mqkv.errors import InvalidValue, UnreadableValue

TEXT = "text/plain"
BYTES = "application/octet-stream"
JSON = "application/json"

#: How deep lists and objects may stand in one another: what more there may be depends on a process's Python and on its stack.
DEEPEST = 500

#: Values of these types can be handed out again and again: nobody can change them.
IMMUTABLE = frozenset({str, bytes, int, float, bool, type(None)})


class Codec(Protocol):
    """How values become bodies. Must be thread-safe; ``decode`` must give a fresh object where the value is mutable."""

    def encode(self, value: object) -> tuple[bytes, str | None]:
        """The body and its content type: one of your own, or None for UTF-8 text. Raise :class:`mqkv.InvalidValue` for what you
        can't take. A body that is not what its content type says is refused, since other processes could not read it."""

    def decode(self, body: bytes, content_type: str | None) -> object:
        """The value. Raise :class:`mqkv.UnreadableValue` for a body that you did not write."""


class DefaultCodec:
    """``str``, ``bytes``, and what JSON has: None, bool, int (64 bits), float, list, dict with str keys."""

    def encode(self, value: object) -> tuple[bytes, str | None]:
        if isinstance(value, str):
            try:
                return value.encode(), TEXT
            except UnicodeEncodeError:
                raise InvalidValue("the str holds lone surrogates, which UTF-8 has no bytes for") from None
        if isinstance(value, bytes):
            return value, BYTES
        try:
            body = msgspec.json.encode(value)
            back = msgspec.json.decode(body)
            same = type(back) is type(value) and back == value
        except Exception as error:  # noqa: BLE001 -- whatever an object's own methods raise
            raise InvalidValue(
                f"a value of type {type(value).__name__} is not JSON ({type(error).__name__}): pass a codec"
            ) from None
        if not same:
            # Tuples, sets, dates, dicts with int keys, NaN: JSON would give back something else.
            raise InvalidValue(f"a value of type {type(value).__name__} would not come back from JSON as it is: pass a codec")
        if _is_deep(body):
            raise InvalidValue(f"lists and dicts may stand in one another {DEEPEST} deep: pass a codec")
        return body, JSON

    def may_share(self, body: bytes, content_type: str | None) -> bool:
        return content_type != JSON or body[:1] not in (b"{", b"[")

    def decode(self, body: bytes, content_type: str | None) -> object:
        try:
            if content_type is None or content_type.startswith(TEXT):
                return body.decode()
            if content_type == JSON:
                return msgspec.json.decode(body)
        except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
            raise UnreadableValue(f"the body is not {content_type or 'text'}") from None
        if content_type == BYTES:
            return body
        raise UnreadableValue("the value was written by another codec: open the store with it")


DEFAULT = DefaultCodec()


class KeyedCodec(Protocol):
    """A codec that is told the key as well: to bind a signature to it, say. Used instead of ``encode`` and ``decode``."""

    def encode_for(self, key: str, value: object) -> tuple[bytes, str | None]:
        """The body and its content type, as ``Codec.encode`` gives them."""

    def decode_for(self, key: str, body: bytes, content_type: str | None) -> object:
        """The value, as ``Codec.decode`` gives it."""


class BoundCodec:
    """A codec of either kind, asked for one key's value.

    ``lenient``: what it can't read counts as absent (the codec says so by an attribute ``unreadable_is_absent``). ``may_share``:
    whether a body's value may be one that nobody can change, so that it is worth decoding ahead of any read (the codec may know
    better: ``may_share(body, content_type)``).
    """

    __slots__ = ("codec", "decode", "encode", "lenient", "may_share", "ours")

    def __init__(self, codec: Codec | KeyedCodec) -> None:
        self.codec = codec
        self.ours = codec is DEFAULT  #: what it encodes is what it says
        self.lenient = bool(getattr(codec, "unreadable_is_absent", False))
        self.may_share: Callable[[bytes, str | None], bool] = getattr(codec, "may_share", lambda body, content_type: True)
        self.encode: Callable[[str, object], tuple[bytes, str | None]]
        self.decode: Callable[[str, bytes, str | None], object]
        keyed, plain = cast(KeyedCodec, codec), cast(Codec, codec)
        if hasattr(codec, "decode_for"):
            self.encode, self.decode = keyed.encode_for, keyed.decode_for
        else:
            self.encode = lambda key, value: plain.encode(value)
            self.decode = lambda key, body, content_type: plain.decode(body, content_type)


def is_well_formed(body: bytes, content_type: str | None) -> bool:
    """Whether a body is what its content type says, as far as the format knows the type: the same in every process."""
    try:
        if content_type is None or content_type.startswith(TEXT):
            body.decode()
        elif content_type == JSON:
            if not body.isascii():
                body.decode()  # msgspec does not look into the strings of what it leaves raw
            if _is_deep(body):
                return False
            try:
                _raw(body)
            except RecursionError:
                _check_flat(body)
    except (UnicodeDecodeError, msgspec.DecodeError):
        return False
    return True


_raw = msgspec.json.Decoder(msgspec.Raw).decode
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.S)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_INNERMOST = re.compile(rb"[\[{][^][{}]*[]}]")


def _is_deep(body: bytes) -> bool:
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return False
    outside = _STRING.sub(b"", body) if b"\\" in body else b"".join(body.split(b'"')[::2])
    brackets = left = outside.translate(None, _NO_BRACKETS)
    for _ in range(4):  # two levels at most, each; what is broad and not deep comes to nothing
        left = left.replace(b"{}", b"").replace(b"[]", b"")
    if len(left) <= DEEPEST - 8:
        return False
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        if depth > DEEPEST:
            return True
    return False


def _check_flat(body: bytes) -> None:
    """What ``_raw`` does, from within: for one who stands so deep in its own stack that there is no room to descend."""
    if body.strip(b" \t\r\n")[:1] not in (b"[", b"{"):
        _raw(body)
    _raw(b"[%b]" % b",".join(_STRING.findall(body)))
    flat, found = _STRING.sub(b'""', body), 1
    while found:
        for inner in set(_INNERMOST.findall(flat)):
            _raw(inner)
        flat, found = _INNERMOST.subn(b"null", flat)
    _raw(flat)
