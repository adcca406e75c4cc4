"""Whoever may publish to the broker must not be able to run code here: what this project did not sign is not looked into."""

from __future__ import annotations

import hashlib
import hmac
import logging
import pickle
import uuid
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import caches

import mqkv
import mqkv.django
from mqkv.django.codec import SignedCodec
from mqkv.django.compressors import LzmaCompressor, ZlibCompressor
from mqkv.django.serializers import PickleSerializer
from mqkv.record import Record, to_message
from mqkv.testing.tools import opened, result

RAN: list[str] = []


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return RAN.append, ("ran",)


class Raw:
    """A codec that writes what it is given: somebody who may publish, and has no secret."""

    def encode(self, value: Any) -> tuple[bytes, str | None]:
        return value

    def decode(self, body: bytes, content_type: str | None) -> object:
        return body, content_type


def of_cache(alias: str = "default") -> dict[str, Any]:
    """The keyspace of a cache, as one who takes no side opens it."""
    return {"name": f"django.django_project.{alias}", "_maker": ""}


@pytest.fixture
def attacker(cache: Any, url: str, prefix: str) -> Iterator[mqkv.Store]:
    RAN.clear()
    cache.set("made", 1)
    with mqkv.Store(url, prefix=prefix, layout="shared", **of_cache(), codec=Raw(), read_timeout=5) as store:
        yield store
    assert not RAN, "code of an attacker has run"


def forge(attacker: mqkv.Store, body: bytes, content_type: str | None) -> None:
    """A record that no store would write."""
    keyspace = attacker._keyspace
    tail, _ = opened(keyspace.engine, keyspace.stream)
    message = to_message(Record("set", ":1:k", body, content_type, id=uuid.uuid4().hex), shared=True)
    result(tail.append(message, 5))
    tail.close()


def misses(cache: Any) -> bool:
    """Whether ``k`` is absent, and that was counted: as a value at each read, or as a record that is not even what it says."""
    store = mqkv.django.get_store()
    store.sync()
    before = int(str(store.stats()["unreadable_values"]))
    assert cache.get("k", "miss") == "miss" and not cache.has_key("k") and cache.get_many(["k"]) == {}
    stats = store.stats()
    return int(str(stats["unreadable_values"])) - before == 3 or stats["unreadable"] == 1


def bodies() -> list[tuple[str, bytes, str | None]]:
    payload = pickle.dumps(Bomb())
    wrong = hmac.digest(hashlib.sha256(b"guess").digest(), payload, "sha256")
    pickled = "application/x-mqkv-django; as=pickle"
    return [
        ("bare", payload, pickled),
        ("unsigned", b"\x01" + payload, "application/x-mqkv-django-unsigned; as=pickle"),
        ("no content type", payload, None),
        ("as bytes", payload, "application/octet-stream"),
        ("zeros", b"\x01" + bytes(32) + payload, pickled),
        ("guessed", b"\x01" + wrong + payload, pickled),
        ("another format", b"\x02" + wrong + payload, pickled),
        ("short", b"\x01abc", pickled),
        ("empty", b"", pickled),
        ("text", b"text", "text/plain"),
        ("JSON", b'{"a": 1}', "application/json"),
        ("deep JSON", b"[" * 10_000 + b"]" * 10_000, "application/json"),
        ("constant", b"\x01" + bytes(32) + b"true", "application/x-mqkv-django; as=constant"),
        ("str", b"\x01" + bytes(32) + b"text", "application/x-mqkv-django; as=str"),
    ]


@pytest.mark.parametrize(("body", "content_type"), [each[1:] for each in bodies()], ids=[each[0] for each in bodies()])
@pytest.mark.parametrize("url", ["memory"], indirect=True)
def test_a_forged_record_is_a_miss(
    cache: Any, attacker: mqkv.Store, body: bytes, content_type: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mqkv.django"):
        forge(attacker, body, content_type)
        assert misses(cache)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1 and "text" not in told[0].replace("content", "")
    # It heals.
    assert cache.get_or_set("k", [0]) == [0] and cache.get("k") == [0]
    cache.set("k", [1])
    assert cache.get("k") == [1]


def test_a_record_replayed_under_another_key_is_a_miss(cache: Any, attacker: mqkv.Store) -> None:
    cache.set_many({"admin": ["yes"], "text": "yes", "truth": True})
    assert cache.get("admin") == ["yes"], "checked, and remembered to be good: for this key"
    for key in ("admin", "text", "truth"):
        attacker.sync()
        attacker.set(":1:k", attacker.get(f":1:{key}"))
        assert misses(cache)


def test_a_record_of_another_cache_or_type_is_a_miss(memory_entry: Any, settings: Any, prefix: str) -> None:
    settings.CACHES = {"default": memory_entry(), "other": memory_entry()}
    caches["other"].set("k", ["other"])
    caches["default"].set("made", 1)
    place = {"prefix": prefix, "layout": "shared", "codec": Raw()}
    with (
        mqkv.Store(f"memory://{prefix}", **of_cache("other"), **place) as other,
        mqkv.Store(f"memory://{prefix}", **of_cache(), **place) as default,
    ):
        body, content_type = other.get(":1:k")
        default.set(":1:k", (body, content_type))
        assert misses(caches["default"])
        default.set(":1:k", (body, "application/x-mqkv-django; as=bytes"))
        assert misses(caches["default"])
        other.set(":1:k", (body, "application/x-mqkv-django; as=bytes"))
        assert caches["other"].get("k") is None


def test_every_cut_and_every_flipped_byte_is_found() -> None:
    codec = SignedCodec(PickleSerializer(), "pickle", secrets=[b"secret"], context="mqkv.default")
    body, content_type = codec.encode_for("k", [1, 2])
    assert codec.decode_for("k", body, content_type) == [1, 2]
    broken = [body[:cut] for cut in range(len(body))]
    broken += [body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :] for at in range(len(body))]
    for each in [*broken, body + b"\0"]:
        with pytest.raises(mqkv.UnreadableValue):
            codec.decode_for("k", each, content_type)


def test_what_is_signed_can_not_be_moved_between_its_parts() -> None:
    one = SignedCodec(PickleSerializer(), "pickle", secrets=[b"secret"], context="mqkv.a")
    body, content_type = one.encode_for("bc", [1])
    for context, key in (("mqkv.ab", "c"), ("mqkv.", "abc")):
        other = SignedCodec(PickleSerializer(), "pickle", secrets=[b"secret"], context=context)
        with pytest.raises(mqkv.UnreadableValue):
            other.decode_for(key, body, content_type)


def test_secret_keys_rotate(memory_entry: Any, settings: Any) -> None:
    settings.CACHES = {"default": memory_entry()}
    caches["default"].set_many({"old": [1], "text": "old"})

    def reopened(secret: str, fallbacks: list[str]) -> Any:
        settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = secret, fallbacks
        settings.CACHES = {"default": memory_entry()}
        return caches["default"]

    old = settings.SECRET_KEY
    cache = reopened("new", [old])
    assert cache.get_many(["old", "text"]) == {"old": [1], "text": "old"}
    cache.set("new", [2])
    assert reopened("new", []).get_many(["old", "text", "new"]) == {"new": [2]}
    assert reopened(old, []).get_many(["old", "text", "new"]) == {"old": [1], "text": "old"}


def test_a_number_can_be_forged_and_is_a_number(cache: Any, attacker: mqkv.Store) -> None:
    attacker.set(":1:k", (b"7", "application/json"))
    mqkv.django.get_store().sync()
    assert cache.get("k") == 7 and cache.incr("k") == 8


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
@pytest.mark.parametrize("signed", [True, False])
def test_the_other_serializers(memory_entry: Any, settings: Any, serializer: str, signed: bool) -> None:
    RAN.clear()
    settings.CACHES = {"default": memory_entry(OPTIONS={"SERIALIZER": serializer, "signed": signed, "compressor": "zlib"})}
    cache = caches["default"]
    value = {"a": [1, 2.5, None, True, "x" * 3000]}
    cache.set_many({"k": value, "n": 5, "s": "text", "none": None, "b": b"\xff"})
    assert cache.get_many(["k", "n", "s", "none", "b"]) == {"k": value, "n": 5, "s": "text", "none": None, "b": b"\xff"}
    assert cache.incr("n") == 6
    pickled = SignedCodec(PickleSerializer(), "pickle").encode_for(":1:p", Bomb())
    config = caches["default"]._shared.config
    with mqkv.Store(config.url, prefix=config.prefix, layout="shared", **of_cache(), codec=Raw()) as store:
        store.set(":1:p", pickled)
    assert cache.get("p") is None and not RAN


@pytest.mark.parametrize("compressor", [ZlibCompressor(), LzmaCompressor()], ids=["zlib", "lzma"])
def test_compression_and_its_bombs(compressor: Any) -> None:
    options: dict[str, Any] = {"compressor": compressor, "compressor_label": "c", "max_length": 100_000}
    codec = SignedCodec(PickleSerializer(), "pickle", secrets=[b"s"], **options)
    for value in ("x" * 50_000, b"x" * 50_000, ["x" * 50_000]):
        body, content_type = codec.encode_for("k", value)
        assert len(body) < 1_000 and codec.decode_for("k", body, content_type) == value
        assert len(codec.encode_for("k", value[:1] if isinstance(value, (str, bytes)) else [])[0]) < 100
    with pytest.raises(mqkv.ValueTooLarge):
        codec.encode_for("k", "x" * 100_001)
    # With the secret, and a configuration that allows more: what it writes is still not read here.
    generous = SignedCodec(PickleSerializer(), "pickle", secrets=[b"s"], **{**options, "max_length": 2**30})
    bomb, content_type = generous.encode_for("k", "x" * 100_001)
    with pytest.raises(mqkv.UnreadableValue):
        codec.decode_for("k", bomb, content_type)
    with pytest.raises(ValueError):
        compressor.decompress(compressor.compress(b"x" * 1000)[:-9], 10_000)


def test_a_bomb_without_a_secret_is_not_decompressed(memory_entry: Any, settings: Any, prefix: str) -> None:
    settings.CACHES = {"default": memory_entry(OPTIONS={"COMPRESSOR": "zlib", "MAX_DECOMPRESSED": 1000})}
    cache = caches["default"]
    cache.set("k", "a" * 900)
    bomb = b"\x01" + bytes(32) + zlib.compress(bytes(10**7))
    with mqkv.Store(f"memory://{prefix}", prefix=prefix, layout="shared", **of_cache(), codec=Raw()) as store:
        store.set(":1:k", (bomb, "application/x-mqkv-django; as=str; in=zlib"))
    assert misses(cache)


def test_what_is_known_to_be_signed_well_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqkv.django.codec._KNOWN", 10)
    monkeypatch.setattr("mqkv.django.codec._KNOWN_BYTES", 1000)
    codec = SignedCodec(PickleSerializer(), "pickle", secrets=[b"s"])
    bodies = {f"k{n}": codec.encode_for(f"k{n}", [n] * (n % 7)) for n in range(100)}
    for _ in range(2):
        for key, (body, content_type) in bodies.items():
            assert codec.decode_for(key, body, content_type) == [int(key[1:])] * (int(key[1:]) % 7)
            assert len(codec._known) <= 10 and sum(len(body) for body, *_ in codec._known.values()) == codec._known_bytes <= 1000


def test_values_and_secrets_stay_out_of_logs_and_reprs(cache: Any, settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        cache.set("k", ["a-value-of-mine"])
        cache.get("k")
        shown = repr(caches["default"]) + repr(caches["default"]._shared.config) + caplog.text
    assert "a-value-of-mine" not in shown and settings.SECRET_KEY not in shown and "guest:guest" not in shown
