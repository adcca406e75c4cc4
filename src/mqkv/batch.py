"""Many keys in one record: packed into its body, and unpacked. Pure.

::

    body    MessagePack: [keys, bodies, kinds, types]
    keys    [str, ...]
    bodies  [bin, ...], one a key; empty in a batch of deletes
    kinds   bin, one byte a key: which of ``types`` its content type is; empty if all have the first
    types   [str or nil, ...]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from mqkv.codecs import is_well_formed


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """Keys, and the bodies that they get. No key is there twice."""

    keys: list[str]
    bodies: list[bytes] = []
    kinds: bytes = b""
    types: list[str | None] = []

    def items(self) -> Iterator[tuple[str, bytes, str | None]]:
        """Key, body and content type of each."""
        types = self.types
        if not self.kinds:
            only = types[0] if types else None
            return ((key, body, only) for key, body in zip(self.keys, self.bodies, strict=True))
        return ((key, body, types[kind]) for key, body, kind in zip(self.keys, self.bodies, self.kinds, strict=True))


#: Content types in one batch: an index of one byte tells them apart.
MOST_TYPES = 256

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Batch).decode


def of_sets(items: Iterable[tuple[str, bytes, str | None]]) -> Batch:
    """Keys with their bodies and content types (at most ``MOST_TYPES`` of those)."""
    keys, bodies, kinds = [], [], bytearray()
    types: dict[str | None, int] = {}
    for key, body, content_type in items:
        keys.append(key)
        bodies.append(body)
        kinds.append(types.setdefault(content_type, len(types)))
    return Batch(keys, bodies, bytes(kinds) if len(types) > 1 else b"", list(types))


def of_deletes(keys: Iterable[str]) -> Batch:
    """Keys alone."""
    return Batch(list(keys))


def pack(batch: Batch) -> bytes:
    """The body of a batch."""
    return _encode(batch)


def unpack(body: bytes, *, sets: bool) -> Batch | None:
    """Read a batch; None for what is none, or has a part that no plain record could have."""
    try:
        batch = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    keys = batch.keys
    if not all(keys) or len(set(keys)) != len(keys):
        return None
    if not sets:
        return None if batch.bodies else batch
    if len(batch.bodies) != len(keys) or not batch.types:
        return None
    kinds = batch.kinds
    if kinds and (len(kinds) != len(keys) or max(kinds) >= len(batch.types)):
        return None
    return batch if all(is_well_formed(body, content_type) for _, body, content_type in batch.items()) else None
