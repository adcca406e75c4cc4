"""dogpile's bytes <-> bodies, signed or not. Pure.

What a region has serialized, creation time included, is signed as it is: so a signature holds whatever serializer the region was
given, and nothing of a body is parsed or unpickled before it was checked.

    | 32 bytes: HMAC-SHA256 over keyspace, key and payload | payload |
"""

from __future__ import annotations

import functools
import hashlib
import hmac

from mqkv.errors import InvalidValue, UnreadableValue

PLAIN = "application/octet-stream"
SIGNED = "application/x-mqkv-dogpile-signed"

_SIZE = hashlib.sha256().digest_size


class BytesCodec:
    """Bytes as they are. What another kind of writer put under the key counts as absent."""

    unreadable_is_absent = True

    def encode(self, value: object) -> tuple[bytes, str | None]:
        return _checked(value), PLAIN

    def decode(self, body: bytes, content_type: str | None) -> object:
        if content_type != PLAIN:
            raise UnreadableValue(f"not bytes that a region without a secret wrote, but {content_type or 'text'}")
        return body


class SignedCodec:
    """Bytes with a signature of keyspace, key and content. What is not signed with this secret for this key counts as absent."""

    unreadable_is_absent = True

    def __init__(self, secret: bytes, keyspace: str) -> None:
        # A key of its own for each keyspace: what was signed for one is worth nothing in another.
        self._secret = hmac.digest(secret, b"mqkv.dogpile\0" + keyspace.encode(), "sha256")

    def encode_for(self, key: str, value: object) -> tuple[bytes, str | None]:
        payload = _checked(value)
        return self._signature(key, payload) + payload, SIGNED

    def decode_for(self, key: str, body: bytes, content_type: str | None) -> object:
        payload = body[_SIZE:]
        if content_type != SIGNED or not hmac.compare_digest(body[:_SIZE], self._signature(key, payload)):
            raise UnreadableValue(f"the value of key {key!r} is not signed with this secret, for this key")
        return payload

    def _signature(self, key: str, payload: bytes) -> bytes:
        name = key.encode()
        return hmac.digest(self._secret, len(name).to_bytes(4, "big") + name + payload, "sha256")


PLAIN_CODEC = BytesCodec()


@functools.cache
def signed_codec(secret: bytes, keyspace: str) -> SignedCodec:
    """One object for each secret and keyspace: stores share a table only where they share the codec."""
    return SignedCodec(secret, keyspace)


def _checked(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise InvalidValue(f"a dogpile backend stores bytes, not {type(value).__name__}: give the region a serializer")
    return value
