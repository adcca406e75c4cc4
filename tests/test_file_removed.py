"""The folder of a file engine is removed, moved or swept while processes have it open: that is noticed, and nothing is written to
what nobody can open any more."""

from __future__ import annotations

import os
import queue
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mqkv
from mqkv.streams.file import FileEngine
from mqkv.streams.file.database import NAME
from mqkv.testing.tools import message, opened, put
from mqkv.url import parse


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kv"


@pytest.fixture(params=["shared", "per-key"])
def make(request: pytest.FixtureRequest, folder: Path) -> Iterator[Callable[[str], mqkv.Store]]:
    made: list[mqkv.Store] = []

    def make(options: str = "") -> mqkv.Store:
        """A store; with other ``options``, one whose engine is another, as in another process."""
        made.append(mqkv.Store(f"file://{folder}{options}", layout=request.param))
        return made[-1]

    yield make
    for store in made:
        store.close()


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def move(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


def sweep(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("away", [remove, move, sweep])
def test_what_is_written_after_the_folder_has_gone_is_there_for_all(
    make: Callable[..., mqkv.Store], folder: Path, away: Callable[[Path], None]
) -> None:
    store = make()
    store.set("k", "old")
    assert store.get("k", fresh=True) == "old" and store.incr("n", initial=5) == 6
    away(folder)
    store.set("j", "new")
    other = make("?sync=full")
    assert other.get("j") == "new" and other.get("k") is None and store.get("k", fresh=True) is None
    assert other.incr("n", initial=0) == 1 and store.incr("n") == 2
    other.set("k", "theirs")
    assert store.get("k") == "theirs"


def test_a_fresh_read_sees_that_the_folder_has_gone(make: Callable[..., mqkv.Store], folder: Path) -> None:
    store, other = make(), make("?sync=full")
    store.set("k", "old")
    assert store.get("k", fresh=True) == other.get("k", fresh=True) == "old"
    shutil.rmtree(folder)
    assert store.get("k", fresh=True) is None
    assert other.get("k") is None, "who had the files open, too, was told by whoever noticed"


def test_a_lock_of_a_folder_that_has_gone_is_lost(make: Callable[..., mqkv.Store], folder: Path) -> None:
    store = make()
    lock = store.lock("jobs", ttl=30)
    assert lock.acquire() and lock.owned()
    shutil.rmtree(folder)
    store.set("k", 1)
    assert make("?sync=full").lock("jobs", ttl=30).acquire(1)
    store.sync()
    assert not lock.owned()


def test_a_watch_goes_on_in_the_folder_that_is_there_now(make: Callable[..., mqkv.Store], folder: Path) -> None:
    store, told = make(), queue.Queue[mqkv.Change]()
    store.set("k", "old")
    store.watch("k", told.put)
    shutil.rmtree(folder)
    store.set("k", "new")
    kinds = []
    while (change := told.get(timeout=10)).kind != "set":
        kinds.append(change.kind)
    assert change.value == "new"
    assert make("?sync=full").set("k", "newer") > 0
    assert told.get(timeout=10).value == "newer"


@pytest.mark.parametrize("name", ["mqkv.lock", "mqkv.signal"])
def test_what_a_cleaner_takes_one_by_one(make: Callable[..., mqkv.Store], folder: Path, name: str) -> None:
    store = make()
    store.set("k", "value")
    (folder / name).unlink()
    other = make("?sync=full")
    assert other.get("k") == "value"
    other.set("k", "theirs")
    assert store.get("k", fresh=True) == "theirs"
    store.set("k", "ours")
    assert other.get("k") == "ours"


def test_who_closes_what_has_gone_harms_nobody(folder: Path) -> None:
    """SQLite would remove its log by name; it looks first whether that is its own."""
    first, second = (FileEngine(parse(f"file://{folder}{options}")) for options in ("", "?sync=full"))
    first.declare("s", None, 5)
    put(opened(first, "s")[0], message("old"))
    shutil.rmtree(folder)
    second.declare("s", None, 5)
    put(opened(second, "s")[0], message("new"))
    first.close()
    assert os.path.exists(folder / f"{NAME}-wal")
    base = sqlite3.connect(folder / NAME)
    assert base.execute("SELECT count(*) FROM log").fetchone() == (1,)
    base.close()
    second.close()
