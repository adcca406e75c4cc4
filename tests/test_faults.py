"""The broker is killed and comes back while stores are open: nothing acknowledged is lost, nothing comes twice, no table stays
stale."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

import mqkv

pytestmark = pytest.mark.slow


class Load:
    """A thread that writes numbers, and knows which were acknowledged, and which may or may not be in the log."""

    def __init__(self, store: mqkv.Store, key: str) -> None:
        self.store, self.key = store, key
        self.acknowledged: list[int] = []
        self.revisions: list[int] = []
        self.unknown: list[int] = []
        self.refused = 0
        self.slowest = 0.0
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            began = time.monotonic()
            try:
                self.revisions.append(self.store.set(self.key, number))
                self.acknowledged.append(number)
            except mqkv.OutcomeUnknown:
                self.unknown.append(number)
            except mqkv.ConnectionFailed:
                self.refused += 1
                self._stop.wait(0.05)  # as a caller would back off; the loop would spin for seconds otherwise
            except BaseException as error:
                self.errors.append(error)
                return
            self.slowest = max(self.slowest, time.monotonic() - began)

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.acknowledged) < count and not self.errors:
            assert time.monotonic() < deadline, f"only {len(self.acknowledged)} writes in 60 s"
            self._stop.wait(0.01)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive() and not self.errors, self.errors


def in_touch(store: mqkv.Store) -> None:
    """All its tables are: each comes back when the broker has its stream ready again."""
    deadline = time.monotonic() + 20
    while store.stats()["staleness"]:
        assert time.monotonic() < deadline, store.stats()
        time.sleep(0.01)


@pytest.mark.timeout(240)
def test_a_killed_broker_comes_back(own_broker: Any, prefix: str) -> None:
    url = own_broker.url
    options: dict[str, Any] = {"prefix": prefix, "read_timeout": 5, "write_timeout": 30}
    with (
        mqkv.Store(url, **options) as writer,
        mqkv.Store(url, layout="shared", **options) as shared_writer,
        mqkv.Store(f"{url}?heartbeat=31", **options) as preloaded,
        mqkv.Store(f"{url}?heartbeat=31", layout="shared", **options) as table,
    ):
        writer.set("k", 0)
        writer.set("quiet", "unchanged")
        shared_writer.set("k", 0)
        shared_writer.set("quiet", "unchanged")
        preloaded.preload("k", "quiet")
        table.preload()
        with preloaded.watch("k") as changes, table.watch("k") as shared_changes:
            per_key, shared = Load(writer, "k"), Load(shared_writer, "k")
            for _ in range(2):
                before = len(per_key.acknowledged), len(shared.acknowledged)
                per_key.wait_for(before[0] + 200)
                shared.wait_for(before[1] + 200)
                own_broker.kill()
                assert preloaded.get("quiet") == table.get("quiet") == "unchanged", "reads go on from memory"
                own_broker.start()
                per_key.wait_for(len(per_key.acknowledged) + 50)
                shared.wait_for(len(shared.acknowledged) + 50)
            for load in (per_key, shared):
                load.stop()
            for load, store, reader, watch in (
                (per_key, writer, preloaded, changes),
                (shared, shared_writer, table, shared_changes),
            ):
                last = store.set("k", "the end")
                seen = []
                while True:
                    change = watch.get(30)
                    assert change is not None and change.kind == "set", change
                    if change.value == "the end":
                        break
                    seen.append(change)
                values = [change.value for change in seen]
                print(
                    len(load.acknowledged),
                    "acknowledged",
                    len(load.unknown),
                    "unknown",
                    load.refused,
                    "refused",
                    load.slowest,
                    "s",
                )
                assert set(load.acknowledged) <= set(values), "an acknowledged write was lost, or not told"
                assert set(values) <= set(load.acknowledged) | set(load.unknown), "a record from nowhere"
                assert len(values) == len(set(values)) and values == sorted(values), "told twice, or out of order"
                assert [change.revision for change in seen] == sorted({change.revision for change in seen})
                assert load.revisions == sorted(set(load.revisions)) and last > load.revisions[-1]
                assert load.slowest < 31
                # No table is stale: neither the preloaded key nor the shared table.
                assert reader.get("k") == reader.peek("k") == "the end" and reader.get("quiet") == "unchanged"
                assert store.get("k") == "the end"
                in_touch(reader)
                history = [value for value in store.history("k", limit=1_000_000) if value not in (0, "the end")]
                assert history == values
        writer.purge()
        shared_writer.purge()


def test_calls_while_the_broker_is_down_end_in_time(own_broker: Any, prefix: str) -> None:
    for layout in ("per-key", "shared"):
        options: dict[str, Any] = {"prefix": prefix, "layout": layout, "read_timeout": 0.5, "write_timeout": 1}
        with mqkv.Store(own_broker.url, **options) as store, mqkv.Store(own_broker.url, max_staleness=0.2, **options) as strict:
            for key in ("k", "other"):
                store.set(key, "v")
            store.preload("k")
            strict.preload("k")
            own_broker.kill()
            began = time.monotonic()
            for call in (lambda: store.set("k", "w"), lambda: store.set("new", "w"), lambda: store.get("other", fresh=True)):
                with pytest.raises((mqkv.ConnectionFailed, mqkv.WriteTimeout, mqkv.OutcomeUnknown)):
                    call()
            assert time.monotonic() - began < 8 and store.get("k") == "v"
            with pytest.raises(mqkv.Stale):
                strict.get("k")
            own_broker.start()
            store.set("k", "again")
            assert store.get("k") == "again" and strict.get("k", fresh=True) == "again"
            store.purge()


@pytest.mark.timeout(180)
def test_a_log_that_lost_its_end_rebuilds_the_table(own_broker: Any, prefix: str) -> None:
    """The stream is deleted and made anew, shorter, while a reader is cut off: its table holds what the log holds now."""
    url = own_broker.url
    with mqkv.Store(url, prefix=prefix, layout="shared", read_timeout=5) as writer:
        for number in range(50):
            writer.set(f"k{number}", number)
        with mqkv.Store(f"{url}?heartbeat=31", prefix=prefix, layout="shared", read_timeout=5) as reader:
            assert len(reader) == 50
            with reader.watch("*") as changes:
                writer.purge()
                writer.set("new", "log")
                while True:
                    change = changes.get(10)
                    assert change is not None
                    if change.kind == "reset":
                        break
            assert reader.get("new", fresh=True) == "log" and reader.keys() == ["new"]
        writer.purge()
