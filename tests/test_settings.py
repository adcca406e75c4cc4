"""The settings of a keyspace: who made it, by which bound it is kept, and what becomes of it when its maker died."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mqkv
from mqkv.dogpile import StreamBackend
from mqkv.fold import State, fold
from mqkv.record import Record, parse, to_message
from mqkv.streams.base import Engine, Message
from mqkv.testing.tools import opened, put, result, run_threads


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """A way to the streams themselves."""
    with mqkv.Store(url) as store:
        yield store._keyspace.engine


@pytest.fixture
def shared(url: str, prefix: str) -> Iterator[Callable[..., mqkv.Store]]:
    """Stores of one keyspace; with a number, on a connection of their own, as in a process of their own."""
    made: list[mqkv.Store] = []

    def make(connection: int = 0, **options: Any) -> mqkv.Store:
        where = f"{url}?heartbeat={30 + connection}" if url.startswith("amqp") and connection else url
        made.append(mqkv.Store(where, prefix=prefix, layout="shared", read_timeout=10, **options))
        return made[-1]

    yield make
    make().purge()
    for store in made:
        store.close()


def settings_of(engine: Engine, stream: str) -> list[dict[str, Any]]:
    """The settings records of a stream, in its order."""
    tail, sink = opened(engine, stream)
    tail.close()
    records = [
        parse(message) for message in sink.messages if "__mqkv_key__" in message.headers or "__mqkv_op__" in message.headers
    ]
    return [dict(record.args) for record in records if record.op == "settings"]


def fill(store: mqkv.Store, count: int = 5) -> None:
    for number in range(count):
        store.set(f"k{number}", number)


# Who made it


def test_the_default_names_differ(url: str, prefix: str) -> None:
    with (
        mqkv.Store(url, prefix=prefix, layout="shared", read_timeout=10) as store,
        mqkv.StreamDict(url, prefix=prefix, read_timeout=10) as d,
    ):
        backend = StreamBackend({"url": url, "prefix": prefix, "read_timeout": 10})
        store.set("k", "the store's")
        backend.set_serialized("k", b"dogpile's")
        d["k"] = "the dict's"
        d.clear()
        assert store.get("k", fresh=True) == "the store's" and backend.get_serialized("k") == b"dogpile's" and len(d) == 0
        for each in (store, d.store, backend.store):
            each.purge()
        backend.close()


def test_whoever_opens_anothers_keyspace_is_told_once(
    url: str, prefix: str, layout: Any, caplog: pytest.LogCaptureFixture
) -> None:
    where: Any = {"prefix": prefix, "layout": layout, "name": "one", "read_timeout": 10}
    with mqkv.StreamDict(url, **where) as d, mqkv.Store(url, logger=logging.getLogger("told"), **where) as store:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            d["k"] = "v"
            assert list(d) == ["k"]
        with pytest.warns(mqkv.ForeignKeyspaceWarning, match="'dict'") as told:
            store.set("k2", "v")
        assert len(told) == 1 and told[0].filename == __file__
        assert len(store) == 2 and store.get("k") == "v"
        store.clear()
        lines = [record for record in caplog.records if "at=maker" in record.message]
        assert len(lines) == 1 and lines[0].levelno == logging.WARNING and "made_by=dict" in lines[0].message
        store.purge()


def test_a_reader_is_told_too(url: str, prefix: str) -> None:
    backend = StreamBackend({"url": url, "prefix": prefix, "read_timeout": 10})
    backend.set_serialized("k", b"v")
    with mqkv.Store(url, prefix=prefix, layout="shared", name="dogpile", read_timeout=10) as store:
        with pytest.warns(mqkv.ForeignKeyspaceWarning, match="'dogpile'"):
            assert store.get("k") == b"v"
        store.purge()
    backend.close()


def test_an_adapter_may_say_more_than_its_name(shared: Callable[..., mqkv.Store]) -> None:
    shared(_maker="django of one").set("k", "v")
    with pytest.warns(mqkv.ForeignKeyspaceWarning, match="'django of one'"):
        shared(_maker="django of two").get("k")


def test_who_takes_no_sides_is_not_told(shared: Callable[..., mqkv.Store], engine: Engine, prefix: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared(_maker="").set("k", "v")
        assert settings_of(engine, f"{prefix}.default") == [{}]
        assert shared(_maker="dict").get("k") == "v"
        shared().purge()
        shared().set("k", "v")
        assert shared(_maker="").get("k") == "v"


# Changes


def test_an_explicit_value_is_appended_as_a_change_and_all_follow(
    shared: Callable[..., mqkv.Store], engine: Engine, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        script = shared(1)  # whoever opens it first
        script.set("k", "v")
        bounded = shared(2, max_entries=3, logger=logging.getLogger("settings"))
        fill(bounded)
        assert len(bounded) == 3
        script.sync()
        assert len(script) == 3
        assert len(shared(3)) == 3, "who names none follows"
        smaller = shared(4, max_entries=2)
        assert smaller.get("k4") == 4, "a read is enough"
        smaller.set("k5", 5)
        for store in (script, bounded):
            store.sync()
            assert store.keys() == ["k4", "k5"]
    first, *changes = settings_of(engine, f"{prefix}.default")
    assert first == {"maker": "store"} and changes == [{"change": True, "max_entries": number} for number in (3, 2)]
    assert any("at=settings" in each.message and "max_entries=3" in each.message for each in caplog.records)


def test_two_explicit_values_do_not_chase_each_other(shared: Callable[..., mqkv.Store], engine: Engine, prefix: str) -> None:
    three, two = shared(1, max_entries=3), shared(2, max_entries=2)
    for number in range(3):
        three.set(f"a{number}", number)
        two.set(f"b{number}", number)
        assert three.get("x", fresh=True) is two.get("x", fresh=True) is None
    assert len(three) == len(two) == 2, "the newest holds"
    assert [args["max_entries"] for args in settings_of(engine, f"{prefix}.default")] == [3, 2]
    three.close()
    again = shared(3, max_entries=3)
    fill(again)
    two.sync()
    assert len(again) == len(two) == 3


def test_of_two_who_make_it_at_once_one_is_heard_last(shared: Callable[..., mqkv.Store]) -> None:
    stores = [shared(number, max_entries=number) for number in (2, 3, 4)]
    run_threads([lambda store=store: fill(store) for store in stores])  # type: ignore[misc]
    for store in stores:
        store.sync()
    sizes = {len(store) for store in stores}
    assert len(sizes) == 1 and sizes < {2, 3, 4}


def test_a_bound_can_be_taken_away(shared: Callable[..., mqkv.Store]) -> None:
    bounded = shared(1, max_entries=2)
    fill(bounded)
    free = shared(2, max_entries=math.inf)
    fill(free)
    bounded.sync()
    assert len(free) == len(bounded) == 5


def test_a_keyspace_that_was_made_anew_meanwhile(shared: Callable[..., mqkv.Store]) -> None:
    bounded = shared(1, max_entries=2)
    fill(bounded)
    other = shared(2)
    other.purge()
    other.set("k", "v")
    fill(bounded)
    other.sync()
    assert len(bounded) == len(other) == 2, "the bound is this store's wish for the new one as well"


def test_a_log_that_was_lost_meanwhile(prefix: str) -> None:
    with mqkv.Store(f"memory://{prefix}", layout="shared", max_entries=2) as store:
        fill(store)
        engine: Any = store._keyspace.engine
        engine.faults.truncate("mqkv.default", tail=6)
        assert len(store) == 0
        fill(store)
        assert len(store) == 2, "it is a new one, and has the settings of whoever writes first"
        assert settings_of(engine, "mqkv.default") == [{"maker": "store", "max_entries": 2}]


def test_a_change_names_what_it_changes_and_nothing_else() -> None:
    state = State()
    fold(state, 0, Record("settings", "", args={"max_entries": 5, "maker": "store", "unheard_of": 7}, id="a"))
    assert (state.settings.max_entries, state.settings.maker) == (5, "store")
    fold(state, 1, Record("settings", "", args={"change": True, "unheard_of": 8}, id="b"))
    assert state.settings.max_entries == 5
    fold(state, 2, Record("settings", "", args={"change": True, "max_entries": 0, "maker": "thief"}, id="c"))
    assert (state.settings.max_entries, state.settings.maker) == (None, "store")


# No settings


def test_a_maker_that_died_before_it_wrote_the_settings(shared: Callable[..., mqkv.Store], engine: Engine, prefix: str) -> None:
    engine.declare(f"{prefix}.default", None, 10)
    assert shared(1).get("k") is None, "reading makes nothing"
    store = shared(2, max_entries=2)
    fill(store)
    assert len(store) == 2
    assert settings_of(engine, f"{prefix}.default") == [{"maker": "store", "max_entries": 2}]
    with pytest.warns(mqkv.ForeignKeyspaceWarning):
        assert len(shared(3, _maker="dict")) == 2


@pytest.mark.parametrize("confirm", [True, False])
def test_it_is_settled_by_the_first_who_writes(
    shared: Callable[..., mqkv.Store], engine: Engine, prefix: str, confirm: bool
) -> None:
    engine.declare(f"{prefix}.default", None, 10)
    stores = [shared(number, _maker=f"maker {number}", confirm=confirm) for number in (1, 2)]
    stores[0].set("k", "v")
    stores[0].flush()
    with pytest.warns(mqkv.ForeignKeyspaceWarning, match="'maker 1', and is opened by 'maker 2'"):
        stores[1].set("k", "v")
    stores[1].flush()
    assert settings_of(engine, f"{prefix}.default") == [{"maker": "maker 1"}]


def test_a_map_of_the_gem_stays_as_it_is(shared: Callable[..., mqkv.Store], engine: Engine, prefix: str) -> None:
    stream = f"{prefix}.default"
    engine.declare(stream, None, 10)
    tail, _ = opened(engine, stream)
    put(tail, "by the gem", __mqkv_key__="k")
    store = shared(1)
    assert store.get("k") == "by the gem" and len(store) == 1
    store.set("k2", "v")
    assert settings_of(engine, stream) == []
    bounded = shared(2, max_entries=1)
    assert bounded.get("k2") == "v"
    bounded.set("k3", "v")
    store.sync()
    assert len(store) == 1 and settings_of(engine, stream) == [{"change": True, "max_entries": 1}]
    tail.close()


def test_settings_of_a_later_version_are_ignored(shared: Callable[..., mqkv.Store], engine: Engine, prefix: str) -> None:
    stream = f"{prefix}.default"
    engine.declare(stream, None, 10)
    tail, _ = opened(engine, stream)
    first = Record("settings", "", args={"maker": "store", "max_entries": 2, "history": 3, "codec": "cbor"}, id="first")
    result(tail.append(Message(*to_message(first, shared=True)), 10))
    store = shared(1)
    fill(store)
    assert len(store) == 2 and store.stats()["unreadable"] == 0
    tail.close()


@pytest.mark.slow
@pytest.mark.rabbitmq_only("its user is made with rabbitmqctl")
def test_who_may_not_write_can_open_it_still(own_broker: Any, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    own_broker.ctl("add_user", "reader", "secret")
    own_broker.ctl("set_permissions", "reader", "", "", ".*")
    url = own_broker.url.replace("guest:guest", "reader:secret")
    with mqkv.Store(own_broker.url, prefix=prefix, layout="shared", read_timeout=10) as store:
        fill(store)
        options: Any = {"layout": "shared", "read_timeout": 10, "write_timeout": 2, "max_entries": 2}
        with mqkv.Store(url, prefix=prefix, logger=logging.getLogger("reader"), **options) as reader:
            assert len(reader) == 5 and reader.get("k0") == 0
            store.set("k0", "changed")
            with reader.watch("k0", start="last") as changes:
                change = changes.get(10)
                assert change is not None and change.value in (0, "changed")
        assert any("op=settings" in each.message for each in caplog.records)
