"""Values <-> bodies: what goes in comes out. Pure.

The default codec takes ``str``, ``bytes`` and what JSON has, and tells them apart by the content type. A codec of your own takes
more; it is handed to ``Store(codec=...)``, and every process that reads the keyspace must have it.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from mqkv.errors import InvalidValue, UnreadableValue

TEXT = "text/plain"
BYTES = "application/octet-stream"
JSON = "application/json"

#: Values of these types can be handed out again and again: nobody can change them.
IMMUTABLE = frozenset({str, bytes, int, float, bool, type(None)})


class Codec(Protocol):
    """How values become bodies. Must be thread-safe; ``decode`` must give a fresh object where the value is mutable."""

    def encode(self, value: object) -> tuple[bytes, str | None]:
        """The body and its content type. Raise :class:`mqkv.InvalidValue` for what you can't take."""

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
        return body, JSON

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


def is_well_formed(body: bytes, content_type: str | None) -> bool:
    """Whether a body is what its content type says, as far as the format knows the type: the same in every process."""
    try:
        if content_type is None or content_type.startswith(TEXT):
            body.decode()
        elif content_type == JSON:
            msgspec.json.decode(body, type=msgspec.Raw)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return False
    return True
