"""The creation lock: one creator at a time in all threads and processes, waiters that are woken, holders that die."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from dogpile.cache.region import CacheRegion

import mqkv
from lock_tools import queue_of
from mqkv.dogpile import StreamBackend, StreamMutex
from places import ON_BROKERS
from test_fork import in_child

Make = Callable[..., StreamBackend]
PLACES = ["file", *ON_BROKERS]


@pytest.fixture
def make(url: str, prefix: str) -> Iterator[Make]:
    backends: list[StreamBackend] = []

    def made(**arguments: Any) -> StreamBackend:
        backends.append(StreamBackend({"url": url, "prefix": prefix, "distributed_lock": True, **arguments}))
        return backends[-1]

    yield made
    for number, backend in enumerate(backends):
        if number == 0:
            backend.store.purge()
        backend.close()


def mutex_of(backend: StreamBackend, key: str = "k") -> StreamMutex:
    mutex = backend.get_mutex(key)
    assert mutex is not None
    return mutex


def elsewhere(url: str) -> str:
    """The same place by a URL that shares no connection and no table: what another process has."""
    return url + ("?heartbeat=31" if url.startswith("amqp") else "?sync=full")


def records(backend: StreamBackend) -> int:
    """How far the log is: the revision of a write."""
    return backend.store.set("-", b"")


def soon(condition: Callable[[], object], within: float = 5) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# One process


def test_without_the_option_dogpile_locks_by_itself(make: Make) -> None:
    assert make(distributed_lock=False).get_mutex("k") is None


def test_two_backends_two_mutexes_one_lock(make: Make) -> None:
    one, other = mutex_of(make()), mutex_of(make())
    assert one.acquire() and other.locked()
    assert not other.acquire(False) and not one.acquire(False)
    assert mutex_of(make(), "another key").locked() is False
    one.release()
    assert not other.locked()
    assert other.acquire(False)
    with pytest.raises(mqkv.LockLost):
        one.release()
    assert one.locked()
    other.release()
    with pytest.raises(mqkv.LockLost):
        other.release()


def test_a_mutex_is_shared_by_threads_and_released_by_any(make: Make) -> None:
    mutex = mutex_of(make())
    with ThreadPoolExecutor(1) as thread:
        assert mutex.acquire()
        assert thread.submit(mutex.acquire, False).result(10) is False
        waiting = thread.submit(mutex.acquire)
        time.sleep(0.1)
        assert not waiting.done()
        threading.Timer(0, mutex.release).start()
        assert waiting.result(10) is True
    mutex.release()  # by another thread than the one that took it
    assert mutex.acquire(False)
    # dogpile asks so in the thread that handed its lock to a runner.
    threading.Timer(0.1, mutex.release).start()
    assert mutex.acquire()
    mutex.release()


def test_who_waits_too_long_is_told(make: Make) -> None:
    mutex = mutex_of(make())
    mutex.acquire()
    with ThreadPoolExecutor(1) as thread:
        for options in ({"lock_blocking_timeout": 0.2}, {"lock_blocking": False}, {"lock_blocking_timeout": 0}):
            impatient = mutex_of(make(**options))
            began = time.monotonic()
            with pytest.raises(mqkv.LockTimeout):
                thread.submit(impatient.acquire).result(10)
            assert time.monotonic() - began < 2
            assert thread.submit(impatient.acquire, False).result(10) is False
            with pytest.raises(mqkv.LockLost):
                impatient.release()
    assert mutex.locked()
    mutex.release()


def test_a_mutex_that_is_forgotten_lets_go(make: Make) -> None:
    backend = make()
    assert mutex_of(backend).acquire()
    gc.collect()
    other = mutex_of(backend)
    assert other.acquire()
    other.release()


def test_many_keys_of_which_one_is_taken(url: str, prefix: str) -> None:
    """dogpile forgets the locks that it has when a later one of get_or_create_multi raises."""
    region = make_region()
    region.configure("mqkv", arguments={"url": url, "prefix": prefix, "distributed_lock": True, "lock_blocking_timeout": 0.1})
    taken = mutex_of(region.backend, "b")
    taken.acquire()
    with pytest.raises(mqkv.LockTimeout):
        region.get_or_create_multi(["a", "b"], lambda *keys: list(keys))
    gc.collect()
    soon(lambda: not region.key_is_locked("a"))
    taken.release()
    assert region.get_or_create_multi(["a", "b"], lambda *keys: list(keys)) == ["a", "b"]
    region.backend.store.purge()
    region.backend.close()


@pytest.mark.parametrize("url", PLACES, indirect=True)
def test_who_was_refused_does_not_write_a_record_a_time(make: Make, url: str) -> None:
    backend = make()
    mutex, other = mutex_of(backend), mutex_of(make(url=elsewhere(url)))
    mutex.acquire()
    with ThreadPoolExecutor(1) as thread:
        before = records(backend)
        for _ in range(200):
            assert thread.submit(other.acquire, False).result(10) is False
        assert records(backend) - before < 20
        mutex.release()
        soon(lambda: thread.submit(other.acquire, False).result(10))
    other.release()


def test_threads_that_wait_together_are_one_in_the_stream(url: str, prefix: str) -> None:
    region = make_region()
    region.configure("mqkv", arguments={"url": url, "prefix": prefix, "distributed_lock": True})
    before = records(region.backend)
    created: list[float] = []

    def create() -> int:
        time.sleep(0.3)
        created.append(time.monotonic())
        return 1

    def ask(_: int) -> float:
        assert region.get_or_create("k", create) == 1
        return time.monotonic()

    with ThreadPoolExecutor(30) as threads:
        done = list(threads.map(ask, range(30)))
    assert len(created) == 1 and max(done) - created[0] < 2
    assert records(region.backend) - before < 10
    assert not region.key_is_locked("k")
    region.backend.store.purge()
    region.backend.close()


@pytest.mark.parametrize("url", PLACES, indirect=True)
def test_a_crowd_of_threads_does_not_keep_another_process_out(make: Make, url: str) -> None:
    backend, other = make(), make(url=elsewhere(url))
    stop = threading.Event()
    inside: list[int] = []

    def work() -> None:
        while not stop.is_set():
            mutex = mutex_of(backend)
            mutex.acquire()
            inside.append(len(inside))
            time.sleep(0.01)
            mutex.release()

    with ThreadPoolExecutor(4) as threads:
        working = [threads.submit(work) for _ in range(4)]
        try:
            for _ in range(5):
                mutex = mutex_of(other)
                began = time.monotonic()
                assert mutex.acquire()
                assert time.monotonic() - began < 2
                count = len(inside)
                time.sleep(0.05)
                assert len(inside) == count  # nobody else has it
                mutex.release()
        finally:
            stop.set()
        for each in working:
            each.result(10)


class Interrupted(BaseException):
    """What a signal's handler may raise."""


@pytest.mark.parametrize("others", [0, 1])
def test_who_is_interrupted_when_its_turn_has_come_passes_it_on(make: Make, others: int) -> None:
    mutex = mutex_of(make())
    mutex.acquire()

    def interrupt(*_: object) -> None:
        release = threading.Thread(target=mutex.release)
        release.start()
        release.join()
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    with ThreadPoolExecutor(1) as threads:
        try:
            waiting = [threads.submit(lambda: (time.sleep(0.2), mutex.acquire())[1]) for _ in range(others)]
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(Interrupted):
                mutex.acquire()
        finally:
            signal.signal(signal.SIGALRM, before)
        for each in waiting:
            assert each.result(10)
            mutex.release()
    soon(lambda: not mutex.locked())
    assert mutex.acquire(False)
    mutex.release()


def test_a_lock_that_was_taken_past_dogpile(make: Make) -> None:
    backend = make()
    mutex = mutex_of(backend)
    with backend.store.lock("_lockk"):
        assert mutex.locked() and not mutex.acquire(False)
        with pytest.raises(mqkv.LockHeld):
            mutex.acquire()
    assert mutex.acquire()
    mutex.release()


def test_a_lease_that_was_lost_is_a_warning_only(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    backend = make()
    region = make_region()
    region.configure("mqkv", arguments={"url": "memory://unused"})
    region.backend.close()
    region.backend = backend

    def create() -> int:
        backend.store.purge()
        return 1

    assert region.get_or_create("k", create) == 1
    assert "status=lost" in caplog.text
    assert region.get("k") == 1 and not region.key_is_locked("k")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_child_is_not_stopped_by_what_threads_of_its_parent_hold(make: Make) -> None:
    backend = make()
    mutex = mutex_of(backend)
    mutex.acquire()

    def work() -> None:
        mine = mutex_of(backend)
        if not repr(backend).count("memory"):
            assert not mine.acquire(False)
            assert mutex_of(backend, "other").acquire()
        else:  # a place in memory is the child's own
            assert mine.acquire(False)
        mutex.release()  # the parent's: a warning in the log, and nothing more

    in_child(work)
    assert mutex.locked()
    mutex.release()


# Several processes

PROCESS = """
import sys, time
from dogpile.cache import make_region
import mqkv
url, prefix, what = sys.argv[1:]
region = make_region()
region.configure("mqkv", 60, {"url": url, "prefix": prefix, "distributed_lock": True, "lock_timeout": 1.5})
region.get("warm")
print("ready", flush=True)
sys.stdin.readline()
def create():
    with mqkv.Store(url, prefix=prefix, layout="shared", name="counts") as counts:
        counts.incr("created", initial=0)
    time.sleep(0.5)
    return "value"
if what == "create":
    print(region.get_or_create("k", create), flush=True)
elif what == "hold":
    mutex = region.backend.get_mutex("k")
    mutex.acquire()
    print("held", flush=True)
    sys.stdin.readline()
    mutex.release()
    print("%.6f" % time.time(), flush=True)
    sys.stdin.readline()
region.backend.close()
"""


@pytest.fixture
def start(url: str, prefix: str) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def process(what: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, url, prefix, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        return started[-1]

    yield process
    for each in started:
        each.kill()
        each.communicate()


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.mark.parametrize("url", PLACES, indirect=True)
def test_one_process_creates_for_all(start: Any, url: str, prefix: str, make: Make) -> None:
    make()
    processes = [start("create") for _ in range(3)]
    assert [told(process) for process in processes] == ["ready"] * 3
    for process in processes:
        tell(process)
    assert [told(process) for process in processes] == ["value"] * 3
    with mqkv.Store(url, prefix=prefix, layout="shared", name="counts") as counts:
        assert counts.get("created") == 1
        counts.purge()


@pytest.mark.parametrize("url", PLACES, indirect=True)
def test_a_waiter_is_woken_by_the_release(start: Any, make: Make) -> None:
    mutex = mutex_of(make())
    process = start("hold")
    told(process)
    tell(process)
    assert told(process) == "held"
    soon(mutex.locked)
    assert not mutex.acquire(False)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(lambda: (mutex.acquire(), time.time()))
        time.sleep(0.2)
        tell(process)
        _, woken = waiting.result(10)
        assert woken - float(told(process)) < 0.25
    mutex.release()


@pytest.mark.parametrize("url", PLACES, indirect=True)
def test_a_killed_holder_is_given_up_after_its_lease(start: Any, make: Make) -> None:
    mutex = mutex_of(make())
    process = start("hold")
    told(process)
    tell(process)
    assert told(process) == "held"
    time.sleep(2)  # longer than the lease: a holder that lives keeps it
    assert mutex.locked() and not mutex.acquire(False)
    process.send_signal(signal.SIGKILL)
    process.wait()
    began = time.monotonic()
    assert mutex.acquire()
    assert time.monotonic() - began < 1.5 + 1
    mutex.release()


@pytest.mark.parametrize("url", PLACES, indirect=True)
def test_a_reader_of_an_expired_value_takes_over_from_a_killed_creator(start: Any, url: str, prefix: str, make: Make) -> None:
    make()
    region: CacheRegion = make_region()
    region.configure("mqkv", 0.01, {"url": url, "prefix": prefix, "distributed_lock": True})
    region.set("k", "old")
    process = start("hold")
    told(process)
    tell(process)
    assert told(process) == "held"
    process.send_signal(signal.SIGKILL)
    process.wait()
    soon(lambda: region.get_or_create("k", lambda: "new") == "new", within=1.5 + 1.5)
    region.backend.close()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_while_the_broker_is_away(own_broker: Any, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    region = make_region()
    arguments = {"url": own_broker.url, "prefix": prefix, "distributed_lock": True, "lock_timeout": 1, "write_timeout": 1}
    region.configure("mqkv", 60, arguments)
    region.set("k", 1)
    mutex = mutex_of(region.backend)
    assert mutex.acquire()
    own_broker.kill()
    time.sleep(1.5)
    assert region.get("k") == 1
    begun = time.monotonic()
    region.set("k", 2)
    assert region.get_or_create("missing", lambda: 1) == 1
    assert region.get("k") == 2 and region.get_or_create("missing", lambda: 2) == 1
    mutex.release()
    with pytest.raises(OSError):
        region.delete("k")
    assert time.monotonic() - begun < 3
    soon(lambda: "status=lost" in caplog.text)
    own_broker.ensure()

    def works() -> bool:
        region.set("else", 1)
        return not region.backend._outage.on

    soon(works, within=60)
    assert caplog.text.count("at=outage status=began") == 1
    assert region.get("missing") in (NO_VALUE, 1)
    assert region.get("k") in (1, 2)  # the write whose outcome was unknown may have come to stand in the log
    assert mutex.acquire()
    mutex.release()
    region.backend.store.purge()
    region.backend.close()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_who_waits_for_another_process_notices_that_the_broker_has_gone(own_broker: Any, prefix: str) -> None:
    def region(number: int) -> CacheRegion:
        arguments = {"url": f"{own_broker.url}?heartbeat={30 + number}", "prefix": prefix, "distributed_lock": True}
        made = make_region().configure("mqkv", 60, {**arguments, "write_timeout": 1})
        made.set("else", 1)
        return made

    one, other = region(1), region(2)  # as two processes: a connection and a gate each
    mutex = mutex_of(one.backend)
    assert mutex.acquire()
    took: list[float] = []

    def wait() -> None:
        assert other.get_or_create("k", lambda: "created here") == "created here"
        took.append(time.monotonic())

    waiter = threading.Thread(target=wait)
    waiter.start()
    soon(lambda: queue_of(one.backend.store, "_lockk") == 1)
    own_broker.kill()
    killed = time.monotonic()
    waiter.join(60)
    assert took and took[0] - killed < 6, "not after lock_timeout, 30 seconds"
    for each in (one, other):
        each.backend.close()
    own_broker.ensure()
