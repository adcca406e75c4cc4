"""A cluster in which the replica of one node is behind: nothing that was read goes back, no watch is told of a log that was
rewritten, and a fresh read that can't be had raises."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mqkv
from broker import NoBroker
from cluster import Cluster, private_cluster
from cutter import Cutter

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.timeout(300)]

FIRST, LAGS = 0, 2  # the node that leads, since the client that declares is connected to it; and the one that will lag


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(private_cluster())
        except NoBroker as error:
            pytest.fail(str(error), pytrace=False)
        yield started


def until(condition: Callable[[], object], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(mqkv.Error):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lasting(seconds: float) -> Iterator[float]:
    """Ten times a second, for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield end - time.monotonic()
        time.sleep(0.1)


@contextlib.contextmanager
def first_node(cluster: Cluster) -> Iterator[tuple[str, Callable[[], None]]]:
    """The URL of the first node and of the one that lags, and what cuts the first off."""
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(Cutter(cluster.url(FIRST), seed=2, bytes_between_cuts=10**12))
        port = proxy.url.rpartition(":")[2].partition("/")[0]
        yield f"amqp://guest:guest@127.0.0.1:{port},127.0.0.1:{cluster.nodes[LAGS].port}/%2F?connect_timeout=2", stack.close


def test_reads_do_not_go_back_after_a_failover_to_a_node_that_lags(cluster: Cluster, prefix: str, layout: Any) -> None:
    options: dict[str, Any] = {"prefix": prefix, "layout": layout}
    with first_node(cluster) as (url, cut_off), mqkv.Store(url, read_timeout=0.5, write_timeout=5, **options) as store:
        until(lambda: store.set("k", 1) >= 0)
        store.set("preloaded", 1)
        store.preload("preloaded")
        with mqkv.Store(cluster.url(LAGS), read_timeout=5, **options) as there:
            until(lambda: there.get("k") == there.get("preloaded") == 1)
        with store.watch("k") as changes, cluster.lagging(FIRST, LAGS):
            revision = store.set("k", 2)
            store.set("preloaded", 2)
            change = changes.get(5)
            assert change is not None and change.value == 2
            cut_off()
            answers: list[object] = []
            for _ in lasting(5):
                for key in ("k", "preloaded"):
                    with contextlib.suppress(mqkv.Error):
                        answers.append(store.get(key))
            assert set(answers) == {2} and len(answers) > 20
            assert float(str(store.stats()["staleness"])) > 1, "a tail that waits for its replica is out of touch, and says so"
            assert changes.get(0) is None, "the log was not rewritten"
        until(lambda: store.stats()["staleness"] == 0)
        until(lambda: store.set("k", 3) > revision)
        assert store.get("k") == 3


def test_a_watch_goes_on_when_the_replica_has_caught_up(cluster: Cluster, prefix: str, layout: Any) -> None:
    options: dict[str, Any] = {"prefix": prefix, "layout": layout}
    with first_node(cluster) as (url, cut_off), mqkv.Store(url, read_timeout=0.5, write_timeout=5, **options) as store:
        until(lambda: store.set("k", 0) >= 0)
        with mqkv.Store(cluster.url(LAGS), read_timeout=5, **options) as there:
            until(lambda: there.get("k") == 0)
        with store.watch("k") as changes:
            with cluster.lagging(FIRST, LAGS):
                for number in range(1, 4):
                    store.set("k", number)
                cut_off()
                time.sleep(2)
                with mqkv.Store(cluster.url(FIRST), read_timeout=5, **options) as elsewhere:
                    elsewhere.set("k", 4)
            told = []
            while not told or told[-1].value != 4:
                change = changes.get(20)
                assert change is not None
                told.append(change)
            assert [(change.kind, change.value) for change in told] == [("set", number) for number in range(1, 5)]


def test_a_fresh_read_on_a_node_that_lags_raises(cluster: Cluster, prefix: str, layout: Any) -> None:
    options: dict[str, Any] = {"prefix": prefix, "layout": layout, "read_timeout": 1}
    with mqkv.Store(cluster.url(FIRST), **options) as writer, mqkv.Store(cluster.url(LAGS, FIRST), **options) as reader:
        until(lambda: writer.set("k", 1) >= 0)
        until(lambda: reader.get("k") == 1)
        reader.preload("k")
        expected = mqkv.ReadTimeout if layout == "shared" else mqkv.Stale
        with cluster.lagging(FIRST, LAGS):
            writer.set("k", 2)
            with pytest.raises(expected):
                reader.get("k", fresh=True)
            with pytest.raises(expected):
                reader.sync()
            assert reader.get("k") == 1, "what is not fresh may be what the replica knows"
        until(lambda: reader.get("k") == 2)
        if layout == "shared":
            writer.set("k", 3)
            assert reader.get("k", fresh=True) == 3
        else:
            with pytest.raises(mqkv.Stale):  # nobody can know that it does not lag
                reader.get("k", fresh=True)


@pytest.mark.parametrize("records", [0, 1])
def test_a_log_that_was_made_anew_is_noticed(
    cluster: Cluster, prefix: str, records: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a record that differs; and where there is none, silence decides, after a minute."""
    if not records:
        monkeypatch.setattr("mqkv.streams.amqp.tails.LAG", 3.0)
    options: dict[str, Any] = {"prefix": prefix, "layout": "shared", "read_timeout": 2, "write_timeout": 5}
    with first_node(cluster) as (url, cut_off), mqkv.Store(url, **options) as store:
        until(lambda: store.set("k0", 0) >= 0)
        for number in range(20):
            store.set(f"k{number}", number)
        with store.watch("*") as changes, mqkv.Store(cluster.url(FIRST), **options) as elsewhere:
            assert len(elsewhere) == 20
            engine: Any = store._keyspace.engine
            connect, engine._link.connect = engine._link.connect, lambda: None
            cut_off()
            until(lambda: engine._link.session is None)
            elsewhere.purge()
            if records:
                until(lambda: elsewhere.set("new", 1) >= 0)
            else:
                made: Any = elsewhere._keyspace
                until(lambda: made.engine.declare(made.stream, None, 5) is None)
            engine._link.connect = connect
            engine._link.call(connect)
            kinds = []
            while "reset" not in kinds:
                change = changes.get(20)
                assert change is not None
                kinds.append(change.kind)
            if not records:
                until(lambda: elsewhere.set("new", 1) >= 0)
            until(lambda: store.get("new", fresh=True) == 1 and store.keys() == ["new"])
