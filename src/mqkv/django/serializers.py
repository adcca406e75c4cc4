"""How values become bytes. A serializer of your own is a class or an object with ``dumps(value)`` and ``loads(bytes)``."""

from __future__ import annotations

import json
import pickle
from typing import Any, Protocol

import msgspec
from django.core.serializers.json import DjangoJSONEncoder


class Serializer(Protocol):
    """Must be thread-safe, and give a fresh object at each ``loads``."""

    def dumps(self, value: Any, /) -> bytes: ...
    def loads(self, data: bytes, /) -> Any: ...


class PickleSerializer:
    """Anything that pickles. To unpickle is to run what the bytes say: for signed values, or where every publisher is trusted."""

    def dumps(self, value: Any) -> bytes:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


class JSONSerializer:
    """What JSON has, as ``DjangoJSONEncoder`` writes it: tuples come back as lists; dates, decimals and keys of dicts as str."""

    def dumps(self, value: Any) -> bytes:
        return json.dumps(value, cls=DjangoJSONEncoder, separators=(",", ":")).encode()

    def loads(self, data: bytes) -> Any:
        return json.loads(bytes(data))


class MsgpackSerializer:
    """What MessagePack has: quicker and smaller than JSON; tuples come back as lists."""

    def dumps(self, value: Any) -> bytes:
        return msgspec.msgpack.encode(value)

    def loads(self, data: bytes) -> Any:
        return msgspec.msgpack.decode(data)


SERIALIZERS: dict[str, type[Serializer]] = {"pickle": PickleSerializer, "json": JSONSerializer, "msgpack": MsgpackSerializer}
