"""The dogpile backend: what a region takes for granted, and what it is told when it is configured wrongly."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from dogpile.cache.proxy import ProxyBackend
from dogpile.cache.region import CacheRegion
from dogpile.cache.util import sha1_mangle_key

import mqkv
from mqkv.dogpile import StreamBackend, UnknownArgument

Make = Callable[..., CacheRegion]


@pytest.fixture
def make(url: str, prefix: str) -> Iterator[Make]:
    """Regions over one keyspace, with arguments of their own."""
    regions: list[CacheRegion] = []

    def configured(region: CacheRegion | None = None, *, wrap: Any = (), expiration: Any = None, **arguments: Any) -> CacheRegion:
        region = make_region() if region is None else region
        region.configure("mqkv", expiration, {"url": url, "prefix": prefix, **arguments}, wrap=wrap)
        regions.append(region)
        return region

    yield configured
    for number, region in enumerate(regions):
        if number == 0:
            region.actual_backend.store.purge()
        region.actual_backend.close()


def test_the_example_runs() -> None:
    example = Path(__file__).parent.parent / "examples" / "dogpile_region.py"
    environment = {name: value for name, value in os.environ.items() if name != "MQKV_URL"}
    done = subprocess.run([sys.executable, example], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" computes ") == 2 and done.stdout.count(" has the report ") == 9


# Configuration

WRONG: list[dict[str, Any]] = [
    {"url": None},
    {"url": 5},
    {"url": "redis://localhost"},
    {"url": "amqp://user:hunter2@/vhost"},
    {"prefix": ""},
    {"name": 7},
    {"name": "a\nb"},
    {"layout": "both"},
    *({"read_timeout": value} for value in (0, -1, "1", True)),
    {"write_timeout": 0},
    *({"max_entries": value} for value in (0, 1.5, "many")),
    {"max_staleness": -1},
    *({name: value} for name in ("confirm", "distributed_lock", "lock_blocking") for value in ("true", 2, None, 1.5)),
    *({"lock_timeout": value} for value in (0, -1, "30", True, float("nan"), float("inf"))),
    *({"lock_blocking_timeout": value} for value in (-1, "1", False, float("nan"))),
    *({"lock_prefix": value} for value in ("", "x", "x" * 11, "a b", 5)),
    *({name: value} for name in ("mqkv_expiration_time", "redis_expiration_time") for value in (-1, "60", True, 1e12)),
    {"mqkv_expiration_time": 60, "redis_expiration_time": 61},
    {"key_mangler": "sha1"},
    {"logger": 5},
    *({"secret": value} for value in ("", b"", 12345, ["hunter2"])),
]


@pytest.mark.parametrize("arguments", WRONG, ids=repr)
def test_a_wrong_value_is_an_error_when_the_region_is_configured(arguments: dict[str, Any]) -> None:
    region = make_region()
    with pytest.raises((mqkv.InvalidOption, mqkv.InvalidURL, mqkv.InvalidKey)) as error:
        region.configure("mqkv", arguments={"url": "memory://wrong", **arguments})
    assert "hunter2" not in str(error.value) and "12345" not in str(error.value)
    assert next(iter(arguments)).split("_")[-1] in str(error.value) or "url" in arguments
    assert not region.is_configured


def test_arguments_are_needed() -> None:
    with pytest.raises(mqkv.InvalidOption, match="url"):
        make_region().configure("mqkv")


def test_a_misspelled_argument_is_told() -> None:
    with pytest.warns(UnknownArgument, match=r"'distributed_locks' \(did you mean 'distributed_lock'\?\)"):
        backend = StreamBackend({"url": "memory://misspelled", "distributed_locks": True})
    backend.close()


def test_arguments_of_the_redis_backend_that_mean_nothing_here_are_taken() -> None:
    backend = StreamBackend({"url": "memory://redis", "lock_sleep": 0.1, "thread_local_lock": False, "redis_expiration_time": 0})
    backend.close()


def test_configured_from_a_file(prefix: str) -> None:
    config = {
        "cache.backend": "mqkv",
        "cache.expiration_time": "60",
        "cache.arguments.url": f"memory://{prefix}",
        "cache.arguments.distributed_lock": "true",
        "cache.arguments.lock_timeout": "12.5",
        "cache.arguments.lock_blocking": "1",
        "cache.arguments.mqkv_expiration_time": "120",
        "cache.arguments.secret": "a secret",
        "cache.arguments.logger": "app.cache",
    }
    region = make_region().configure_from_config(config, "cache.")
    region.set("k", "v")
    assert region.get("k") == "v" and region.expiration_time == 60
    assert 119 < region.backend.store.ttl("k") <= 120
    assert region.backend.get_mutex("k") is not None
    region.backend.close()


def test_nothing_shows_the_password_or_the_secret() -> None:
    arguments = {"url": "amqp://user:hunter2@127.0.0.1:1/", "secret": "s3cr3t", "distributed_lock": True}
    backend = StreamBackend({**arguments, "ignore_exceptions": False})
    shown = f"{backend!r} {backend.store!r} {backend.get_mutex('k')!r}"
    assert "hunter2" not in shown and "s3cr3t" not in shown
    with pytest.raises(mqkv.ConnectionFailed) as error:
        backend.get_serialized("k")
    assert "hunter2" not in str(error.value)
    backend.close()


def test_closing_twice_is_fine_and_what_comes_after_is_told(prefix: str) -> None:
    backend = StreamBackend({"url": f"memory://{prefix}"})
    backend.close()
    backend.close()
    with pytest.raises(mqkv.Closed):
        backend.get_serialized("k")


# Values and keys


def test_values_are_shared_and_survive_the_region(make: Make) -> None:
    one, other = make(), make()
    for number, value in enumerate([None, 0, "", b"\x00|\xff", {"a": [1, (2, 3)]}, {4, 5}, "☃" * 1000]):
        one.set(f"k{number}", value)
        assert other.get(f"k{number}") == value
    one.set_multi({"a": 1, "b": 2})
    assert other.get_multi(["b", "nothing", "a", "b"]) == [2, NO_VALUE, 1, 2]
    other.delete_multi(["a", "b", "nothing"])
    assert one.get_multi(["a", "b"]) == [NO_VALUE, NO_VALUE]
    one.delete("k0")
    assert other.get("k0") is NO_VALUE


ODD_KEYS = ["", " ", "a\nb", "a b", "\x00", "\ud800", "é☃", "x" * 5000, "☃" * 500, "__mqkv_k", "invalidated:", "sha256:", "*"]


@pytest.mark.parametrize("options", [{}, {"layout": "per-key"}], ids=repr)
def test_any_text_is_a_key(make: Make, options: dict[str, Any]) -> None:
    region = make(**options, distributed_lock=True)
    for number, key in enumerate(ODD_KEYS):
        assert region.get_or_create(key, lambda number=number: number) == number
    assert region.get_multi(ODD_KEYS) == list(range(len(ODD_KEYS)))
    hashed = next(key for key in region.backend.store.keys() if key.startswith("sha256:"))  # noqa: SIM118 -- a store is no dict
    assert region.get(hashed) is NO_VALUE
    region.delete_multi(ODD_KEYS)
    assert region.get_multi(ODD_KEYS) == [NO_VALUE] * len(ODD_KEYS)


def test_a_key_that_is_no_text_is_refused(prefix: str) -> None:
    backend = StreamBackend({"url": f"memory://{prefix}"})
    with pytest.raises(mqkv.InvalidKey, match="key_mangler"):
        backend.get_serialized(b"k")  # type: ignore[arg-type]
    backend.close()


def test_key_manglers(make: Make) -> None:
    make(make_region(key_mangler=sha1_mangle_key)).set("k", 1)
    plain = make()
    assert plain.get("k") is NO_VALUE and plain.get(sha1_mangle_key(b"k")) == 1
    upper = make(key_mangler=str.upper)
    upper.set("k", 2)
    assert plain.get("K") == 2


class Suffixed(ProxyBackend):
    """A proxy, and a use of the backend as proxies use it."""

    def get_serialized(self, key: str) -> Any:
        return self.proxied.get_serialized(key + "!")

    def set_serialized(self, key: str, value: bytes) -> None:
        self.proxied.set_serialized(key + "!", value)


def test_proxies(make: Make) -> None:
    region = make(wrap=[Suffixed, Suffixed()], distributed_lock=True)
    assert region.get_or_create("k", lambda: 1) == 1
    assert isinstance(region.actual_backend, StreamBackend)
    assert make().get("k!!") == 1


def test_values_are_gone_after_the_expiration_time_of_the_backend(make: Make) -> None:
    region = make(mqkv_expiration_time=0.4)
    region.set("k", 1)
    region.set_multi({"a": 1})
    assert region.get_multi(["k", "a"]) == [1, 1]
    time.sleep(0.5)
    assert region.get("k", ignore_expiration=True) is NO_VALUE
    assert region.get_multi(["k", "a"], ignore_expiration=True) == [NO_VALUE, NO_VALUE]


def test_more_values_at_once_than_a_record_takes(make: Make) -> None:
    region = make()
    values = {f"k{number}": bytes([number]) * 3_000_000 for number in range(8)}
    region.set_multi(values)
    assert make().get_multi(list(values)) == list(values.values())


def test_many_at_once_are_created_once(make: Make) -> None:
    region, other = make(distributed_lock=True, expiration=60), make(distributed_lock=True, expiration=60)
    asked: list[str] = []

    def create(*keys: str) -> list[str]:
        asked.extend(keys)
        return [key.upper() for key in keys]

    assert region.get_or_create_multi(["a", "b", "c"], create) == ["A", "B", "C"]
    assert other.get_or_create_multi(["c", "d", "a"], create) == ["C", "D", "A"]
    assert asked == ["a", "b", "c", "d"]


def test_what_cannot_be_unpickled_is_created_anew(make: Make) -> None:
    region = make(expiration=60)
    region.set("k", 1)
    meta = region.backend.get_serialized("k").partition(b"|")[0]
    for payload in (b"", b"no pickle", b"cno.such.module\nthing\n."):
        region.backend.set_serialized("k", meta + b"|" + payload)
        assert region.get("k") is NO_VALUE
        assert region.get_or_create("k", lambda: 2) == 2


def test_what_others_wrote_under_a_key_is_no_value(make: Make, url: str, prefix: str) -> None:
    region = make()
    region.set("k", 1)
    with mqkv.Store(url, prefix=prefix, layout="shared", name="dogpile", _maker="") as store:
        store.set("k", "text")
        store.set("n", 5)
    region.backend.store.sync()
    assert region.get("k") is NO_VALUE and region.get_multi(["k", "n"]) == [NO_VALUE, NO_VALUE]


def test_names_are_keyspaces_apart(make: Make) -> None:
    one, other = make(name="one"), make(name="other")
    one.set("k", 1)
    assert other.get("k") is NO_VALUE
    other.backend.store.purge()


# Signed values


class Raw:
    """A codec that sees bodies as they stand in the stream: what an attacker sees."""

    def encode(self, value: Any) -> tuple[bytes, str | None]:
        return value  # type: ignore[no-any-return]

    def decode(self, body: bytes, content_type: str | None) -> object:
        return body, content_type


class Bomb:
    def __reduce__(self) -> Any:
        return _exploded.append, (1,)


_exploded: list[int] = []


def test_only_what_was_signed_for_the_key_is_read(make: Make, url: str, prefix: str) -> None:
    region = make(secret="one")
    region.set_multi({"k": 1, "other": 2})
    assert make(secret=b"one").get("k") == 1
    assert make(secret="two").get("k") is NO_VALUE
    assert make().get("k") is NO_VALUE
    meta, _, _ = region.backend.get_serialized("k").partition(b"|")
    with mqkv.Store(url, prefix=prefix, layout="shared", name="dogpile", codec=Raw(), _maker="") as store:
        body, content_type = store.get("k")
        bomb = meta + b"|" + pickle.dumps(Bomb())
        changed = body[:-2] + bytes([body[-2] ^ 1]) + body[-1:]
        elsewhere = store.get("other")[0]
        for forged in (changed, elsewhere, body[:32], body[:10], b"", bytes(32) + bomb, bomb):
            store.set("k", (forged, content_type))
            region.backend.store.sync()
            assert region.get("k") is NO_VALUE
        store.set("k", (bomb, "application/octet-stream"))
        region.backend.store.sync()
        assert region.get("k") is NO_VALUE and not _exploded
        assert region.backend.store.stats()["unreadable_values"]
        store.set("k", (body, content_type))
    region.backend.store.sync()
    assert region.get("k") == 1


def test_what_was_signed_for_one_keyspace_is_nothing_in_another(make: Make, url: str, prefix: str) -> None:
    region, other = make(secret="one"), make(secret="one", name="other")
    region.set("k", 1)
    with (
        mqkv.Store(url, prefix=prefix, layout="shared", name="dogpile", codec=Raw(), _maker="") as source,
        mqkv.Store(url, prefix=prefix, layout="shared", name="other", codec=Raw(), _maker="") as target,
    ):
        target.set("k", source.get("k"))
    assert other.get("k") is NO_VALUE
    other.backend.store.purge()


# Creation


def test_an_expired_value_is_created_by_the_runner(make: Make) -> None:
    done = threading.Event()

    def run(cache: CacheRegion, key: str, creator: Callable[[], Any], mutex: Any) -> None:
        def work() -> None:
            try:
                cache.set(key, creator())
            finally:
                mutex.release()
                done.set()

        threading.Thread(target=work).start()

    region = make(make_region(async_creation_runner=run), distributed_lock=True, expiration=0.2)
    values = iter(range(10))
    go = threading.Event()
    assert region.get_or_create("k", lambda: next(values)) == 0
    time.sleep(0.3)
    slow = lambda: (go.wait(10), next(values))[1]  # noqa: E731
    assert region.get_or_create("k", slow) == 0
    assert region.key_is_locked("k")
    # This thread took the lock that the runner holds: it is refused as any other, and not told that it would wait for itself.
    assert region.get_or_create("k", slow) == 0
    go.set()
    assert done.wait(10)
    assert region.get("k") == 1 and not region.key_is_locked("k")


def test_a_creator_may_use_the_region(make: Make) -> None:
    region = make(distributed_lock=True)
    assert region.get_or_create("outer", lambda: region.get_or_create("inner", lambda: "in") + "out") == "inout"


def test_a_creator_that_raises_lets_go(make: Make) -> None:
    region = make(distributed_lock=True)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            region.get_or_create("k", lambda: 1 / 0)
    assert region.get_or_create("k", lambda: 1) == 1
