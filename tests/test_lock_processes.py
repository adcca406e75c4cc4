"""Locks between processes: some are killed, some are stopped, many contend."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

import mqkv
from lock_worker import Place, contend, obey
from places import ON_BROKERS

TTL = 1.0


class Other:
    """Another process, which does what it is told."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
        self.process.start()
        theirs.close()
        assert self.answer(60) == "ready"

    def tell(self, order: str) -> None:
        self._pipe.send(order)

    def answer(self, timeout: float = 20) -> Any:
        assert self._pipe.poll(timeout), f"no answer for {timeout:g} s"
        return self._pipe.recv()

    def ask(self, order: str) -> Any:
        self.tell(order)
        return self.answer()

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self._pipe.close()


@pytest.fixture(params=["file", *ON_BROKERS])
def place(request: pytest.FixtureRequest, tmp_path: Path, prefix: str, layout: Any) -> Iterator[Place]:
    """A place that processes can share."""
    url = f"file://{tmp_path}/kv" if request.param == "file" else str(request.getfixturevalue(request.param).url)
    place = Place(url, prefix, layout, TTL)
    yield place
    with place.open() as store:
        store.purge()


@pytest.fixture(scope="module", autouse=True)
def _helper_of_multiprocessing() -> None:
    resource_tracker.ensure_running()  # it stays, and is no test's leak


@pytest.fixture
def start() -> Iterator[Callable[..., Other]]:
    started: list[Other] = []

    def start(target: Callable[..., None], *arguments: object) -> Other:
        started.append(Other(target, *arguments))
        return started[-1]

    yield start
    for other in started:
        other.end()


def test_the_lock_of_a_killed_holder_goes_to_the_next(place: Place, start: Callable[..., Other]) -> None:
    holder, waiter = start(obey, place), start(obey, place)
    token = holder.ask("acquire")
    with place.open() as store:
        second = store.lock("jobs")
        assert not second.acquire(0)
        waiter.tell("acquire")
        assert not second.acquire(1.5 * TTL), "the lease of a living holder was broken"
        holder.signal(signal.SIGKILL)
        began = time.monotonic()
        assert waiter.answer() > token
        assert time.monotonic() - began < TTL + 1
        assert not second.acquire(0), "two owners"
        assert waiter.ask("owned") is True and waiter.ask("release") is None
        assert second.acquire(5)


def test_a_killed_waiter_holds_up_nobody(place: Place, start: Callable[..., Other]) -> None:
    holder, dead, waiter = (start(obey, place) for _ in range(3))
    holder.ask("acquire")
    dead.tell("acquire")
    with place.open() as store:
        assert not store.lock("jobs").acquire(0.5)  # time for ``dead`` to queue
        waiter.tell("acquire")
        assert not store.lock("jobs").acquire(0.5)
        dead.signal(signal.SIGKILL)
        dead.process.join()
        assert holder.ask("release") is None
        began = time.monotonic()
        assert waiter.answer() > 0
        assert time.monotonic() - began < TTL + 1


def test_a_stopped_holder_finds_that_it_has_lost(place: Place, start: Callable[..., Other]) -> None:
    holder, waiter = start(obey, place), start(obey, place)
    token = holder.ask("acquire")
    waiter.tell("acquire")
    holder.signal(signal.SIGSTOP)
    began = time.monotonic()
    later = waiter.answer()
    assert later > token and time.monotonic() - began < TTL + 1
    holder.signal(signal.SIGCONT)
    assert holder.ask("owned") is False
    assert holder.ask("token") == holder.ask("release") == "LockLost"
    assert waiter.ask("owned") is True and waiter.ask("token") == later, "the one that was stopped has taken it back"
    holder.tell("acquire")
    assert waiter.ask("release") is None
    assert holder.answer() > later, "it can have it again, in its turn"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_200_threads_of_8_processes(place: Place, start: Callable[..., Other], tmp_path: Path) -> None:
    """One at a time, each in its turn, tokens in the order of the entries."""
    processes, threads, entries = 8, 25, 3
    place = Place(place.url, place.prefix, place.layout, ttl=10)
    others = [start(contend, place, tmp_path, threads, entries) for _ in range(processes)]
    began = time.monotonic()
    for other in others:
        other.tell("go")
    problems = [problem for other in others for problem in other.answer(240)]
    took = time.monotonic() - began
    assert not problems, problems[:5]
    tokens = [int(line) for line in (tmp_path / "tokens").read_text().split()]
    total = processes * threads * entries
    print(f"{total} entries in {took:.1f} s, {took / total * 1000:.2f} ms each")
    assert len(tokens) == total and tokens == sorted(set(tokens))
    with place.open() as store:
        assert store.lock("jobs").acquire(0), "somebody left something behind"


def test_a_lock_outlives_nobody(place: Place, start: Callable[..., Other]) -> None:
    """With no one waiting: who comes later counts the ttl from its own first look, and then has it."""
    holder = start(obey, place)
    token = holder.ask("acquire")
    holder.signal(signal.SIGKILL)
    holder.process.join()
    with place.open() as store:
        lock = store.lock("jobs", ttl=TTL)
        began = time.monotonic()
        with pytest.raises(mqkv.LockTimeout), store.lock("jobs", timeout=0):
            pytest.fail("the lease has not run out")
        assert lock.acquire(TTL + 1) and time.monotonic() - began < TTL + 1 and lock.token > token
