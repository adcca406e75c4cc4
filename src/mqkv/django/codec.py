"""Values <-> signed bodies: a body that this project did not sign, for this key of this cache, is not looked into.

Whoever may publish to the broker can write any record into the stream; pickle would run what it says. So a body is

    | 1 byte: format (1) | 32 bytes: HMAC-SHA256 | payload |

over the cache (its keyspace), the content type, the full key and the payload: a value can't be replayed under another key, in
another cache, or as another type. Rules:

1. Nothing of a body is decoded, and nothing decompressed, before its signature is checked.
2. Numbers are JSON and not signed, since everybody must be able to add to them (``incr``): a number can be forged, and is data.
3. Unreadable is absent: forged, truncated, replayed, of another serializer, or of a class that is gone.
"""

from __future__ import annotations

import hashlib
import hmac
import inspect
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from mqkv import InvalidValue, UnreadableValue, ValueTooLarge
from mqkv.django.compressors import Compressor
from mqkv.django.serializers import Serializer

NUMBER = "application/json"

_FORMAT = b"\x01"
_HEAD = 33
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
_CONSTANTS: dict[bytes, object] = {b"none": None, b"true": True, b"false": False}

#: How many bodies, and bytes of them, are known to be signed well, so that each is checked once and not at every read.
_KNOWN, _KNOWN_BYTES = 65_536, 64 * 2**20
#: How many bodies that were signed here a moment ago are known as such, and how long one may be.
_SIGNED, _SIGNED_LENGTH = 4_096, 4_096


class Kind(NamedTuple):
    """What a content type says of a payload."""

    load: Callable[[Any], Any]
    compressed: bool
    shared: bool  #: whether its values are ones that nobody can change


class SignedCodec:
    """The codec of a :class:`mqkv.django.StreamCache`. Thread-safe.

    ``secrets``: the first signs, all are taken; none: bodies are not signed. ``context`` names the keyspace. ``compress_over``
    and ``max_length`` are bytes: what is larger is compressed, and nothing that decompresses to more is read.
    """

    unreadable_is_absent = True

    def __init__(
        self,
        serializer: Serializer,
        label: str,
        *,
        plain_text: bool = True,
        secrets: Sequence[bytes] = (),
        context: str = "",
        compressor: Compressor | None = None,
        compressor_label: str = "",
        compress_over: int = 1024,
        max_length: int = 64 * 2**20,
    ) -> None:
        self._dumps = serializer.dumps
        self._context = context.encode()
        self._keys = [hashlib.sha256(b"mqkv.django.StreamCache\0" + secret).digest() for secret in secrets]
        self._plain_text = plain_text
        self._compressor = compressor
        self._decompress = None if compressor is None else _capped(compressor, max_length)
        self._compress_over, self._max_length = compress_over, max_length
        family = f"application/x-mqkv-django{'' if secrets else '-unsigned'}; as="
        # Ours take a view of the body; those of others get bytes.
        loads: dict[str, Callable[[Any], Any]] = {label: serializer.loads}
        if not plain_text:
            loads[label] = lambda view: serializer.loads(bytes(view))
        else:
            loads |= {"str": _text, "bytes": bytes, "constant": _constant}
        self._types: dict[str, Kind] = {}
        for name, load in loads.items():
            self._types[f"{family}{name}"] = Kind(load, False, name != label)
            if compressor is not None:
                self._types[f"{family}{name}; in={compressor_label}"] = Kind(load, True, False)
        self._family, self._label, self._packed = family, label, f"; in={compressor_label}"
        self._known: dict[str, tuple[bytes, str, Kind, memoryview]] = {}
        self._known_bytes = 0
        self._signed: dict[str, tuple[bytes, str]] = {}
        self._lock = threading.Lock()

    def encode_for(self, key: str, value: Any) -> tuple[bytes, str | None]:
        kind = type(value)
        if (kind is int and _SMALLEST <= value <= _LARGEST) or (kind is float and math.isfinite(value)):
            return repr(value).encode(), NUMBER
        if kind is str and self._plain_text:
            try:
                payload, content_type = value.encode(), f"{self._family}str"
            except UnicodeEncodeError:  # lone surrogates
                payload, content_type = self._dumps(value), f"{self._family}{self._label}"
        elif kind is bytes and self._plain_text:
            payload, content_type = value, f"{self._family}bytes"
        elif (value is None or kind is bool) and self._plain_text:
            payload, content_type = str(value).lower().encode(), f"{self._family}constant"
        else:
            payload, content_type = self._dumps(value), f"{self._family}{self._label}"
        if not isinstance(payload, bytes):
            raise InvalidValue(f"the serializer gave {type(payload).__name__} for key {key!r}, not bytes")
        if self._compressor is not None and len(payload) > self._compress_over:
            if len(payload) > self._max_length:
                raise ValueTooLarge(
                    f"the value of key {key!r} takes {len(payload)} bytes, and max_decompressed is {self._max_length}"
                )
            packed = self._compressor.compress(payload)
            if len(packed) < len(payload):
                payload, content_type = packed, content_type + self._packed
        if not self._keys:
            return _FORMAT + payload, content_type
        body = b"".join((_FORMAT, self._signature(self._keys[0], key, content_type, payload), payload))
        if len(body) <= _SIGNED_LENGTH and self._types[content_type].shared:
            if len(self._signed) >= _SIGNED:
                self._signed.clear()
            self._signed[key] = body, content_type
        return body, content_type

    def decode_for(self, key: str, body: bytes, content_type: str | None) -> object:
        if content_type == NUMBER:
            return _number(body)
        known = self._known.get(key)
        if known is not None and known[0] is body and known[1] == content_type:
            return self._load(key, known[2], known[3])
        kind = self._types.get(content_type or "")
        if kind is None:
            raise UnreadableValue(f"the value of key {key!r} was not written by a cache of this configuration")
        if body[:1] != _FORMAT:
            raise UnreadableValue(f"the value of key {key!r} is of a format that this version does not know")
        if not self._keys:
            return self._load(key, kind, memoryview(body)[1:])
        payload = memoryview(body)[_HEAD:]
        # What comes back from the log as it was signed here a moment ago needs no second look.
        if self._signed.pop(key, None) != (body, content_type):
            self._check(key, content_type or "", body[1:_HEAD], payload)
        if not kind.shared:
            self._remember(key, body, content_type or "", kind, payload)
        return self._load(key, kind, payload)

    def _load(self, key: str, kind: Kind, payload: memoryview) -> object:
        try:
            if kind.compressed:
                assert self._decompress is not None
                return kind.load(self._decompress(bytes(payload)))
            return kind.load(payload)
        except Exception as error:  # noqa: BLE001 -- whatever a serializer, or the class of the value, raises
            raise UnreadableValue(f"the value of key {key!r} can't be read back ({type(error).__name__})") from None

    def may_share(self, body: bytes, content_type: str | None) -> bool:
        """Whether it is worth decoding ahead of a read: pickles are left alone until somebody wants them."""
        if content_type == NUMBER:
            return True
        kind = self._types.get(content_type or "")
        return kind is not None and kind.shared

    def _check(self, key: str, content_type: str, given: bytes, payload: memoryview) -> None:
        if not any(hmac.compare_digest(given, self._signature(secret, key, content_type, payload)) for secret in self._keys):
            raise UnreadableValue(f"the value of key {key!r} is not signed by this project, for this key")

    def _remember(self, key: str, body: bytes, content_type: str, kind: Kind, payload: memoryview) -> None:
        # By key, identity and type: what was checked as one thing proves nothing of another; and bytes don't change.
        with self._lock:
            old = self._known.get(key)
            self._known_bytes += len(body) - (0 if old is None else len(old[0]))
            if self._known_bytes > _KNOWN_BYTES or len(self._known) >= _KNOWN:
                self._known.clear()
                self._known_bytes = len(body)
            self._known[key] = body, content_type, kind, payload

    def _signature(self, secret: bytes, key: str, content_type: str, payload: bytes | memoryview) -> bytes:
        name, kind = key.encode("utf-8", "surrogatepass"), content_type.encode()
        head = b"%d:%b%d:%b%d:%b" % (len(self._context), self._context, len(kind), kind, len(name), name)
        return hmac.digest(secret, b"".join((head, payload)), "sha256")


def _text(data: Any) -> str:
    return str(data, "utf-8")


def _constant(data: Any) -> object:
    return _CONSTANTS[bytes(data)]


def _number(body: bytes) -> int | float:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        value = None
    if type(value) is int or type(value) is float:
        return value
    raise UnreadableValue("what is not signed can only be a number")


def _capped(compressor: Compressor, max_length: int) -> Callable[[bytes], bytes]:
    """The compressor's decompress, never giving more than ``max_length`` bytes."""
    try:
        takes_length = len(inspect.signature(compressor.decompress).parameters) >= 2
    except (TypeError, ValueError):
        takes_length = True

    def decompress(data: bytes) -> bytes:
        # One argument: of those who compress for other caches; what is signed was no bomb when we packed it.
        plain = compressor.decompress(data, max_length) if takes_length else compressor.decompress(data)  # type: ignore[call-arg]
        if len(plain) > max_length:
            raise ValueError("decompresses to more than max_decompressed")
        return plain

    return decompress
