"""Reads and watches while a log is found to be another one: what happens in between, one step after the other."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import mqkv
from mqkv.layout.base import NOTHING
from mqkv.table import Table


def test_a_read_between_a_reset_and_its_notice(prefix: str) -> None:
    """The table is empty already, and the keyspace does not know yet: that is no answer."""
    with mqkv.Store(f"memory://{prefix}", layout="shared", read_timeout=0.2) as store:
        store.set_many({"k": 1, "list": [1]})
        assert store.get("k") == 1
        keyspace: Any = store._keyspace
        table: Table = keyspace._table
        notice, answers = table.on_change, []
        assert notice is not None

        def look() -> None:
            for read in (
                lambda: store.get("k", "absent"),
                lambda: store.get("list", "absent"),
                lambda: store.get_many(["k", "list"]),
                store.keys,
                store.items,
            ):
                try:
                    answers.append(read())
                except mqkv.ReadTimeout:
                    answers.append("not now")

        def between() -> None:
            table.on_change = notice
            look()
            notice()  # type: ignore[misc]

        table.on_change = between
        table.reset()
        assert [answer for answer in answers if answer not in (1, "not now")] == []
        look()
        assert answers[5:] == ["not now"] * 5
        keyspace.engine.faults.truncate("mqkv.default", tail=0)  # delivers all anew
        assert store.get("k") == 1 and store.get("list") == [1] and sorted(store.keys()) == ["k", "list"]


@pytest.mark.parametrize("layout", ["shared", "per-key"])
def test_a_reset_while_a_reader_serves(prefix: str, layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader has found the table well; before it says so, the table is reset."""
    with mqkv.Store(f"memory://{prefix}", layout=layout, read_timeout=0.2, max_staleness=60) as store:
        store.set("k", 1)
        store.preload("k")
        assert store.get("k") == 1
        keyspace: Any = store._keyspace
        table: Table = keyspace._table if layout == "shared" else keyspace._tables["k"]
        once = threading.Event()
        reset = threading.Thread(target=lambda: (table.interrupted(), table.reset()))

        class Late(Table):
            @property
            def out_of_touch_since(self) -> float | None:  # type: ignore[override]
                found = self.__dict__.get("since")
                if threading.current_thread() is not reset and not once.is_set():
                    once.set()
                    reset.start()
                    reset.join(0.3)  # it has to wait, or is done: both are well
                return found

            @out_of_touch_since.setter
            def out_of_touch_since(self, since: float | None) -> None:
                self.__dict__["since"] = since

        since = table.__dict__.pop("out_of_touch_since")
        table.__class__ = Late
        table.__dict__["since"] = since
        keyspace._serve(table) if layout == "shared" else keyspace._serve()
        reset.join()
        assert once.is_set() and keyspace.cells is NOTHING


def test_a_key_that_is_being_read_anew_is_not_shown(prefix: str) -> None:
    with mqkv.Store(f"memory://{prefix}", read_timeout=0.2) as store:
        for number in range(3):
            store.set("k", number)
        store.preload("k")
        keyspace: Any = store._keyspace
        table: Table = keyspace._tables["k"]
        log = keyspace.engine._streams["mqkv.k"]
        table.reset()
        table.deliver(log.since(0)[:2])
        with pytest.raises(mqkv.ReadTimeout):
            store.get("k")
        assert store.peek("k") is None and store.get("k", fresh=True) == 2
        table.deliver(log.since(0)[2:])
        table.resumed()
        assert store.get("k") == store.peek("k") == 2 and "k" in keyspace.cells


def test_a_table_that_is_let_go_of_before_it_is_watched(url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with mqkv.Store(url, prefix=prefix, read_timeout=5) as store:
        store.set("k", 0)
        keyspace: Any = store._keyspace
        live, tables = keyspace.live, []

        async def late(key: str, deadline: Any, *, create: bool) -> Table:
            table: Table = await live(key, deadline, create=create)
            tables.append(table)
            if len(tables) == 1:
                keyspace._forget(key)
            return table

        monkeypatch.setattr(keyspace, "live", late)
        with store.watch("k") as watch:
            store.set("k", 1)
            change = watch.get(10)
            assert change is not None and change.value == 1 and len(tables) == 2
        store.purge()
