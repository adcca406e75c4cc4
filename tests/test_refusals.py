"""Messages that the broker refuses: it closes the channel with all that is under way. Who did it is told, all others go on."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

import mqkv
from broker import Broker, private_broker
from mqkv.errors import ConnectionFailed, OutcomeUnknown
from mqkv.streams.amqp import AmqpEngine
from mqkv.streams.base import Message, Promise, Start
from mqkv.url import parse
from test_amqp_faults import Cut, Sink, message, result, until

LIMIT = 100_000
LARGE = b"x" * (LIMIT + 1)


@pytest.fixture(scope="module")
def _strict_rabbitmq() -> Iterator[Broker]:
    with private_broker(f"max_message_size = {LIMIT}", settle=False) as node:
        yield node


@pytest.fixture
def strict(request: pytest.FixtureRequest, broker_kind: str) -> Any:
    """A broker to make users on; RabbitMQ's has a small ``max_message_size``."""
    return request.getfixturevalue("_strict_rabbitmq" if broker_kind == "rabbitmq" else "own_broker")


@pytest.fixture
def user(strict: Any) -> Iterator[str]:
    """The URL of a user who may read and declare, and not write."""
    name = f"u{uuid.uuid4().hex[:8]}"
    strict.add_user(name, name)
    strict.set_permissions(name, ".*", "^$", ".*")
    yield strict.url.replace("guest:guest", f"{name}:{name}")
    strict.delete_user(name)


def allow(strict: Any, url: str, write: str) -> None:
    strict.set_permissions(parse(url).user, ".*", write, ".*")


@pytest.mark.rabbitmq_only("LavinMQ 2.9.1 takes its limit from a configuration file; it refuses in the same way and words")
def test_a_value_that_the_broker_refuses_takes_no_other_with_it(strict: Any, layout: Any, prefix: str) -> None:
    with mqkv.Store(strict.url, prefix=prefix, layout=layout, confirm=False) as store:
        store.set("k", 0)
        for number in range(300):
            store.set(f"k{number % 20}", number)
            if number == 150:
                store.set("k", LARGE)
        store.set("k", 1)
        began = time.monotonic()
        store.flush()
        assert time.monotonic() - began < 5
        assert store.stats()["failed_writes"] == 1
        with mqkv.Store(strict.url, prefix=prefix, layout=layout) as other:
            for number in range(280, 300):
                assert other.get(f"k{number % 20}", fresh=True) == number
            assert other.get("k", fresh=True) == 1
        store.purge()


@pytest.mark.rabbitmq_only("LavinMQ 2.9.1 takes its limit from a configuration file; it refuses in the same way and words")
def test_the_refusal_names_the_limit(strict: Any, layout: Any, prefix: str) -> None:
    stop = threading.Event()
    errors: list[BaseException] = []
    written = [0] * 7

    def write(store: mqkv.Store, number: int) -> None:
        count = 0
        while not stop.is_set():
            try:
                store.set(f"k{number}", count)
                assert store.get(f"k{number}", fresh=True) == count
            except BaseException as error:
                errors.append(error)
                return
            count += 1
            written[number] = count

    with mqkv.Store(strict.url, prefix=prefix, layout=layout) as store:
        threads = [threading.Thread(target=write, args=(store, number)) for number in range(7)]
        for thread in threads:
            thread.start()
        for size in (LIMIT + 1, 2 * LIMIT, LIMIT + 1):
            began = time.monotonic()
            with pytest.raises(mqkv.ValueTooLarge, match=f"{LIMIT}.*max_message_size"):
                store.set("large", b"x" * size)
            assert time.monotonic() - began < 2
        store.set("large", b"x" * LIMIT)
        before = list(written)
        until(lambda: bool(errors) or all(now > then + 1 for now, then in zip(written, before, strict=True)))
        stop.set()
        for thread in threads:
            thread.join()
        assert not errors
        store.purge()


def test_a_user_who_may_not_write(strict: Any, user: str, layout: Any, prefix: str) -> None:
    refused: list[mqkv.ConnectionFailed] = []

    def write(store: mqkv.Store) -> None:
        with pytest.raises(mqkv.ConnectionFailed, match=r"write to the exchange amq\.default") as caught:
            store.set("k", 1)
        refused.append(caught.value)

    with mqkv.Store(strict.url, prefix=prefix, layout=layout) as owner:
        owner.set("k", 0)
        with mqkv.Store(user, prefix=prefix, layout=layout) as store:
            assert store.get("k") == 0
            began = time.monotonic()
            write(store)
            threads = [threading.Thread(target=write, args=(store,)) for _ in range(7)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(refused) == 8 and time.monotonic() - began < 3
            assert not any(parse(user).password in str(error).replace(f"'{parse(user).user}'", "") for error in refused)
            assert owner.history("k") == [0]
            allow(strict, user, ".*")
            store.set("k", 2)
            assert owner.get("k", fresh=True) == 2
        owner.purge()


def test_a_permission_that_is_taken_away(strict: Any, user: str, prefix: str) -> None:
    """Each write ends at once, in success, in a refusal, or in doubt; those that were refused for certain are not in the log."""
    allow(strict, user, ".*")
    engine, other = AmqpEngine(parse(user)), AmqpEngine(parse(strict.url))
    try:
        engine.declare(prefix, None, 10)
        sink, witness = Sink(), Sink()
        tail = engine.open(prefix, Start.FIRST, sink)
        result(other.open(prefix, Start.FIRST, witness).ready)
        promises: list[Promise[int]] = []
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                promises.append(tail.append(message(b"%d" % len(promises)), 30))
                if len(promises) % 20 == 0:
                    time.sleep(0.002)

        thread = threading.Thread(target=write)
        thread.start()
        until(lambda: len(sink.got) > 100)
        allow(strict, user, "^$")  # a channel goes by what it has looked up before, a new one does not
        cut = Cut(engine)
        cut.cut()
        cut.heal()
        until(lambda: bool(promises) and promises[-1].done() and promises[-1].error() is not None)
        stop.set()
        thread.join()
        for each in promises:
            assert each.wait(5)
        kinds = {type(each.error()) for each in promises}
        assert {type(None), ConnectionFailed} <= kinds <= {type(None), ConnectionFailed, OutcomeUnknown}
        until(lambda: len(witness.got) == len(sink.got))
        there = {each.body for _, each in witness.got}
        for number, each in enumerate(promises):
            if not isinstance(each.error(), OutcomeUnknown):
                assert (b"%d" % number in there) == (each.error() is None)
    finally:
        engine.close()
        other.close()


@pytest.mark.parametrize("burst", [True, False])
def test_refused_for_a_reason_that_names_nobody(strict: Any, prefix: str, burst: bool) -> None:
    """RabbitMQ wants an array in a header named CC. Among 300 on three streams, five are refused; the others keep their order."""
    engine, other = AmqpEngine(parse(strict.url)), AmqpEngine(parse(strict.url))
    try:
        names = [f"{prefix}-{number}" for number in range(3)]
        sinks = [Sink() for _ in names]
        tails, witnesses = [], [Sink() for _ in names]
        for name, sink, witness in zip(names, sinks, witnesses, strict=True):
            engine.declare(name, None, 10)
            tails.append(engine.open(name, Start.FIRST, sink))
            result(other.open(name, Start.FIRST, witness).ready)
        if not burst:
            for tail in tails:
                result(tail.append(message(b"first"), 10))
        bad = {3, 77, 78, 150, 299}
        promises = []
        for number in range(300):
            headers: dict[str, Any] = {"CC": "nobody"} if number in bad else {}
            promises.append(tails[number % 3].append(Message(b"%d" % number, headers, uuid.uuid4().hex), 20))
        for number, promise in enumerate(promises):
            assert promise.wait(10)
            if number in bad:
                assert isinstance(promise.error(), ConnectionFailed | OutcomeUnknown) and "CC" in str(promise.error())
            else:
                promise.result()
        for place, witness in enumerate(witnesses):
            expected = [b"first"] * (not burst) + [b"%d" % n for n in range(300) if n % 3 == place and n not in bad]
            until(lambda w=witness, e=expected: list(dict.fromkeys(w.bodies)) == e)  # type: ignore[misc]
        assert all(sink.events == [] for sink in sinks)
    finally:
        engine.close()
        other.close()
