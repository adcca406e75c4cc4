"""Threads that send for themselves, in place of the I/O thread: whole frames, in order, whatever interrupts them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

import mqkv
from mqkv.streams.amqp import AmqpEngine
from mqkv.streams.amqp.questions import Question
from mqkv.streams.base import Promise, Start
from mqkv.url import parse
from test_amqp_faults import Cut, Sink, message, result, until


@pytest.fixture
def engine(broker: Any) -> Iterator[AmqpEngine]:
    engine = AmqpEngine(parse(broker.url))
    yield engine
    engine.close()


@pytest.fixture
def other(broker: Any) -> Iterator[AmqpEngine]:
    engine = AmqpEngine(parse(broker.url))
    yield engine
    engine.close()


@pytest.fixture
def stream(other: AmqpEngine) -> Iterator[str]:
    name = f"send-{uuid.uuid4().hex}"
    other.declare(name, None, 10)
    yield name
    other.delete(name, 10)


def body(thread: int, number: int, size: int) -> bytes:
    text = b"%d %d " % (thread, number)
    block = hashlib.sha256(text).digest()
    return (text + block * (size // len(block) + 1))[: max(size, len(text))]


@pytest.mark.parametrize("cuts", [0, 4])
def test_bodies_of_several_frames_from_many_threads(
    engine: AmqpEngine, other: AmqpEngine, stream: str, seed: int, cuts: int
) -> None:
    """Eight threads, bodies of none to four frames, reads between them, and the connection lost in the midst of it."""
    witness, sink = Sink(), Sink()
    result(other.open(stream, Start.FIRST, witness).ready)
    tail = engine.open(stream, Start.FIRST, sink)
    result(tail.ready)
    result(tail.append(message(b"first"), 10))
    sent: list[list[tuple[bytes, Promise[int]]]] = [[] for _ in range(8)]

    def write(thread: int) -> None:
        dice = random.Random(f"{seed} {thread}")
        for number in range(40):
            each = body(thread, number, dice.choice([0, 10, 200, 131_064, 131_065, 300_000, 500_000]))
            sent[thread].append((each, tail.append(message(each), 60)))
            if dice.random() < 0.5:
                assert sent[thread][-1][1].wait(60)
            if dice.random() < 0.1:
                with contextlib.suppress(mqkv.Error):
                    engine.last(stream, 5)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    cut = Cut(engine)
    for _ in range(cuts):
        time.sleep(0.2)
        cut.cut()
        cut.heal()
        until(lambda: engine._link.session is not None)
    for each in threads:
        each.join()
    offsets = {text: result(promise, 60) for own in sent for text, promise in own}
    until(lambda: bool(witness.got) and witness.got[-1][0] >= max(offsets.values()), 60)
    first: dict[bytes, int] = {}
    for offset, each in witness.got:
        first.setdefault(each.body, offset)
    assert set(first) == {b"first", *offsets}
    if not cuts:
        assert len(witness.got) == len(first) and sink.events == []
    for own in sent:
        places = [first[text] for text, _ in own]
        assert places == sorted(places)


def test_appends_of_one_thread_keep_their_order(engine: AmqpEngine, stream: str) -> None:
    """Some are sent by the thread itself and some by the I/O thread, as it happens."""
    sink = Sink()
    tail = engine.open(stream, Start.FIRST, sink)
    promises = []
    for number in range(3_000):
        promises.append(tail.append(message(b"%d" % number), 20))
        if number % 7 == 0:
            assert promises[-1].wait(20)
        if number % 100 == 0:
            engine._link.call(lambda: time.sleep(0.002))
    for promise in promises:
        result(promise)
    assert sink.bodies == [b"%d" % number for number in range(3_000)]


def test_a_deadline_in_a_thread_of_its_own(engine: AmqpEngine, stream: str) -> None:
    """The I/O thread sleeps for seconds, and an append that it did not send itself is late sooner."""
    tail: Any = engine.open(stream, Start.FIRST, Sink())
    result(tail.append(message(b"first"), 10))
    settle, engine._publisher.settle = engine._publisher.settle, lambda append, offset: None  # type: ignore[method-assign]
    time.sleep(0.1)
    began = time.monotonic()
    assert tail.append(message(b"late"), 0.3).wait(5)
    assert time.monotonic() - began < 1
    engine._publisher.settle = settle  # type: ignore[method-assign]


class Interrupted(BaseException):
    pass


def test_a_thread_that_is_interrupted(broker: Any, layout: Any, prefix: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a signal's exception at any point of a call, hundreds of times: no lock stays taken, no half frame is sent, and all
    that returned is there."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # some meet a destructor
    dice = random.Random(seed)
    interrupts = 0

    def interrupt(*_: object) -> None:
        nonlocal interrupts
        interrupts += 1
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0002, 0.004))
        raise Interrupted

    with (
        mqkv.Store(broker.url, prefix=prefix, layout=layout) as store,
        mqkv.Store(broker.url, prefix=prefix, layout=layout) as same,
    ):
        store.set("k", -1)
        before = signal.signal(signal.SIGALRM, interrupt)
        written, number, end = -1, 0, time.monotonic() + 3

        def write() -> None:
            nonlocal written, number
            while time.monotonic() < end:
                with contextlib.suppress(Interrupted, mqkv.ConnectionFailed, mqkv.OutcomeUnknown):
                    number += 1
                    store.set("k", number)
                    written = number

        try:
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            for _ in range(1_000):  # an interrupt between two calls ends a round
                with contextlib.suppress(Interrupted):
                    write()
                    break
        except Interrupted:
            pass
        finally:
            while True:
                with contextlib.suppress(Interrupted):
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    signal.signal(signal.SIGALRM, before)
                    break
        store.set("k", "end")
        assert same.get("k", fresh=True) == "end"
        history = [each for each in store.history("k", 100_000) if isinstance(each, int)]
        assert interrupts > 20 and written > 0
        assert history == sorted(history) and written in history
        store.purge()


def test_the_main_thread_runs_no_task_of_the_engine(engine: AmqpEngine, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's exception strikes there: it must come out of the call, and a task would keep it."""
    result(engine.open(stream, Start.FIRST, Sink()).append(message(b"one"), 10))
    askers: list[threading.Thread] = []
    begin = Question.begin

    def noted(question: Question[Any], ask: Any) -> None:
        askers.append(threading.current_thread())
        begin(question, ask)

    monkeypatch.setattr(Question, "begin", noted)
    for _ in range(20):
        engine.last(stream, 5)
    assert threading.current_thread() is threading.main_thread() and threading.main_thread() not in askers
    assert len(askers) == 20


def test_forks_while_threads_send(engine: AmqpEngine, stream: str) -> None:
    sink = Sink()
    tail = engine.open(stream, Start.FIRST, sink)
    result(tail.append(message(b"first"), 10))
    stop = threading.Event()
    count = [0] * 4

    def write(thread: int) -> None:
        while not stop.is_set():
            result(tail.append(message(body(thread, count[thread], 200_000)), 20))
            count[thread] += 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    children = []
    for _ in range(10):
        time.sleep(0.03)
        child = os.fork()
        if child == 0:
            try:
                engine.after_fork()
                with contextlib.suppress(mqkv.Closed):
                    tail.append(message(b"of the child"), 0.1)
            finally:
                os._exit(0)
        children.append(child)
    stop.set()
    for each in threads:
        each.join()
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sink.events == [] and len(sink.got) == 1 + sum(count) and b"of the child" not in sink.bodies
