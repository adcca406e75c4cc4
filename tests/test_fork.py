"""A process may fork at any time: the child has a connection and tables of its own, the parent notices nothing."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest

import mqkv

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]


def in_child(work: Callable[[], object]) -> None:
    """Run in a forked child; a failure there fails here."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "see the child's traceback above"


def test_parent_and_child_write_and_read(url: str, prefix: str, layout: Any) -> None:
    if url.startswith("memory"):
        with mqkv.Store(url, prefix=prefix, layout=layout) as store:
            store.set("k", "parent")
            in_child(lambda: _check(store.get("k") is None and store.set("k", "child") is not None))
            assert store.get("k") == "parent"
        return
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5) as store:
        store.set("k", "parent")
        store.preload("k")
        watch = store.watch("k")
        assert store.get("k") == "parent"

        def child() -> None:
            assert store.get("k") == "parent"
            store.set("k", "child")
            assert store.get("k") == "child" and store.peek("k") == "child" and watch.closed and list(watch) == []
            with store.watch("k") as changes:
                store.set("child", 1)
                store.set("k", "child 2")
                change = changes.get(10)
                assert change is not None and change.value == "child 2"
            store.close()

        for _ in range(2):
            in_child(child)
            assert store.get("k", fresh=True) == "child 2" and store.get("child", fresh=True) == 1
            assert [watch.get(10), watch.get(10)][1].value == "child 2"  # type: ignore[union-attr]
            store.set("k", "parent")
            assert watch.get(10) is not None
        assert store.get("k") == "parent"
        store.purge()


def test_a_child_that_does_nothing_disturbs_nothing(url: str, prefix: str) -> None:
    with mqkv.Store(url, prefix=prefix, layout="shared", read_timeout=5) as store:
        store.set("k", 1)
        in_child(lambda: None)
        in_child(store.close)
        store.set("k", 2)
        assert store.get("k") == 2
        store.purge()


def _check(condition: bool) -> None:
    assert condition
