"""A table that began in the middle of a stream, and a record that may be a second copy: it is judged by the whole stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mqkv
from mqkv.record import Record, to_message
from mqkv.registry import _make_engine
from mqkv.streams.base import Tail
from mqkv.testing.tools import opened
from mqkv.url import parse
from places import ON_BROKERS


@pytest.fixture(params=["file", *ON_BROKERS])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/kv" if request.param == "file" else str(request.getfixturevalue(request.param).url)


@pytest.fixture
def stores(url: str, prefix: str) -> Iterator[tuple[mqkv.Store, mqkv.Store]]:
    """Two of one place, with connections of their own."""
    other = f"{url}?sync=full" if url.startswith("file") else f"{url}?heartbeat=31"
    with mqkv.Store(url, prefix=prefix, read_timeout=5) as one, mqkv.Store(other, prefix=prefix, read_timeout=5) as two:
        yield one, two
        one.purge()


@pytest.fixture
def raw(stores: tuple[mqkv.Store, mqkv.Store], url: str, prefix: str) -> Iterator[Tail]:
    """A way to append any record to the stream of ``k``."""
    stores[0].set("k", "first")
    engine = _make_engine(parse(url), None)
    tail, _ = opened(engine, f"{prefix}.k")
    yield tail
    engine.close()


def append(tail: Tail, record: Record) -> None:
    promise = tail.append(to_message(record, shared=False), 10)
    assert promise.wait(10)
    promise.result()


SET = Record("set", "k", b"old", "text/plain", id="w1")
INCR = Record("incr", "k", id="w2", args={"delta": 1})


@pytest.mark.parametrize("repeat", [True, False], ids=["second copy", "first copy"])
def test_a_set_that_is_marked_as_a_retry(stores: tuple[mqkv.Store, mqkv.Store], raw: Tail, repeat: bool) -> None:
    one, two = stores
    if repeat:
        append(raw, SET)
    one.set("k", "newer")
    two.preload("k")
    append(raw, SET._replace(retry=True))
    one.set("j", 1)  # orders what follows behind the copy, on engines that push
    two.sync()
    assert two.get("k") == two.get("k", fresh=True) == ("newer" if repeat else "old")
    assert one.get("k", fresh=True) == ("newer" if repeat else "old")


@pytest.mark.parametrize("repeat", [True, False], ids=["second copy", "first copy"])
def test_watches_miss_nothing_and_are_told_nothing_twice(stores: tuple[mqkv.Store, mqkv.Store], raw: Tail, repeat: bool) -> None:
    one, two = stores
    if repeat:
        append(raw, INCR)
    one.set("k", 10)
    with two.watch("k") as changes, two.watch("*") as others:
        append(raw, INCR._replace(retry=True))
        for number in (20, 21, 22):
            one.set("k", number)
        expected = [20, 21, 22] if repeat else [11, 20, 21, 22]
        for watch in (changes, others):
            seen: list[Any] = [watch.get(10) for _ in expected]
            assert [change and (change.kind, change.value) for change in seen] == [("set", value) for value in expected]
            assert watch.get(0.05) is None
        assert "k" not in two._keyspace._idle, "a table that is watched is not one to let go of"  # type: ignore[attr-defined]
    assert two.get("k") == 22


@pytest.mark.parametrize("operation", ["delete", "pop", "delete_many"])
@pytest.mark.parametrize("repeat", [True, False], ids=["second copy", "first copy"])
def test_operations_right_after_it(
    stores: tuple[mqkv.Store, mqkv.Store], raw: Tail, repeat: bool, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy comes between the loading of the table and the operation's own record."""
    from mqkv.table import Table

    one, two = stores
    gone = Record("delete", "k", id="w3")
    if repeat:
        append(raw, gone)
        one.set("k", "v2")
    two.preload("k")
    two.set("k", "w")
    expect = Table.expect

    def meanwhile(self: Table, id: str, message: Any, record: Record) -> None:
        expect(self, id, message, record)
        if record.key == "k" and record.op in ("delete", "pop"):
            append(raw, gone._replace(retry=True))

    monkeypatch.setattr(Table, "expect", meanwhile)
    if operation == "pop":
        assert two.pop("k", None) == ("w" if repeat else None)
    elif operation == "delete":
        assert two.delete("k") is repeat
    else:
        assert two.delete_many(["k"]) == int(repeat)
