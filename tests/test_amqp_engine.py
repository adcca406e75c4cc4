"""The AMQP engine on a real broker: what goes past the engine contract."""

from __future__ import annotations

import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pika
import pytest

from mqkv.errors import Closed, ConnectionFailed, Error, NotAStream, OutcomeUnknown, StreamMissing
from mqkv.streams.amqp import AmqpEngine
from mqkv.streams.amqp.frames import Connection
from mqkv.streams.base import Delivery, Message, Promise, Start, Tail
from mqkv.url import parse


class Sink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.got: list[Delivery] = []
        self.events: list[object] = []

    def deliver(self, batch: Sequence[Delivery]) -> None:
        self.got += batch

    def truncated(self) -> None: ...

    def interrupted(self) -> None:
        self.events.append("interrupted")

    def resumed(self) -> None:
        self.events.append("resumed")

    def reset(self) -> None:
        self.events.append("reset")
        self.got = []

    def ended(self, error: Exception) -> None:
        self.events.append(error)

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for _, message in self.got]


def result(promise: Promise[Any], timeout: float = 10) -> Any:
    assert promise.wait(timeout)
    return promise.result()


def message(body: bytes, **headers: Any) -> Message:
    return Message(body, headers, uuid.uuid4().hex)


def until(condition: Callable[[], bool], timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def engines(broker: Any) -> Iterator[Callable[[], AmqpEngine]]:
    made: list[AmqpEngine] = []

    def make() -> AmqpEngine:
        made.append(AmqpEngine(parse(broker.url)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def engine(engines: Callable[[], AmqpEngine]) -> AmqpEngine:
    return engines()


@pytest.fixture
def stream(engine: AmqpEngine) -> Iterator[str]:
    name = f"amqp-{uuid.uuid4().hex}"
    engine.declare(name, None, 10)
    yield name
    engine.delete(name, 10)


@pytest.fixture
def raw(broker: Any) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.confirm_delivery()
    yield channel
    connection.close()


def opened(engine: AmqpEngine, stream: str, start: Start | int = Start.FIRST) -> tuple[Tail, Sink]:
    sink = Sink()
    return engine.open(stream, start, sink), sink


@pytest.mark.parametrize("quick", [True, False])
def test_quick_and_slow_readers(quick: bool, broker: Any, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "quick", quick)
    engine = AmqpEngine(parse(broker.url))
    try:
        tail, sink = opened(engine, stream)
        result(tail.attached)
        sent = [message(b"x" * size, n=size, s="é", b=True) for size in (0, 1, 300_000, 5)]
        for each in sent:
            result(tail.append(each, 10))
        assert [each for _, each in sink.got] == sent
        for number in range(20):
            offset = result(tail.append(message(b"%d" % number), 10))
            newest = engine.last(stream, 5)
            assert newest is not None and (newest[0], newest[1].body) == (offset, b"%d" % number)
        other, second = opened(engine, stream)
        result(other.ready)
        assert second.got == sink.got
        other.close()
        with pytest.raises(StreamMissing):
            engine.last("no-such-stream", 5)
    finally:
        engine.close()


def test_the_newest_right_after_anothers_confirmed_write(engine: AmqpEngine, stream: str, raw: Any) -> None:
    properties = pika.BasicProperties(delivery_mode=2)
    for number in range(2_000):
        for extra in range(number % 3):
            raw.basic_publish("", stream, b"before %d" % extra, properties, mandatory=True)
        raw.basic_publish("", stream, b"%d" % number, properties, mandatory=True)
        newest = engine.last(stream, 5)
        assert newest is not None and newest[1].body == b"%d" % number


def test_a_read_waits_for_no_timer_of_the_kernel(engine: AmqpEngine, stream: str, raw: Any) -> None:
    """LavinMQ leaves Nagle's algorithm on: what follows an answer waits until that was acknowledged, 40 ms if nobody does."""
    for _ in range(3):
        raw.basic_publish("", stream, b"x", pika.BasicProperties(delivery_mode=2), mandatory=True)
    took = []
    for _ in range(21):
        began = time.monotonic()
        engine.last(stream, 5)
        took.append(time.monotonic() - began)
    assert sorted(took)[10] < 0.035, took


def test_the_newest_of_a_chunk_larger_than_the_prefetch(engine: AmqpEngine, stream: str) -> None:
    tail, _ = opened(engine, stream)
    result(tail.attached)
    promises = [tail.append(message(b"%d" % number), 30) for number in range(12_000)]
    result(promises[-1], 30)
    newest = engine.last(stream, 5)
    assert newest is not None and newest[1].body == b"11999"


@pytest.mark.parametrize("start", [Start.FIRST, Start.LAST, 0])
def test_ready_means_all_that_was_confirmed_before(
    engines: Callable[[], AmqpEngine], stream: str, start: Start | int, raw: Any
) -> None:
    engine = engines()
    properties = pika.BasicProperties(delivery_mode=2)
    for number in range(150):
        raw.basic_publish("", stream, b"%d" % number, properties, mandatory=True)
        tail, sink = opened(engine, stream, start)
        result(tail.ready)
        assert sink.bodies[-1] == b"%d" % number
        tail.close()


def test_ready_on_a_long_stream_under_load(engines: Callable[[], AmqpEngine], stream: str) -> None:
    writer, reader = engines(), engines()
    tail, _ = opened(writer, stream)
    result(tail.attached)
    promises = [tail.append(message(b"x" * 50), 60) for _ in range(20_000)]
    newest = result(promises[-1], 60)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            result(tail.append(message(b"y"), 10))

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(3):
            other, sink = opened(reader, stream)
            result(other.ready, 30)
            offsets = [offset for offset, _ in sink.got]
            assert offsets == sorted(set(offsets)) and offsets[-1] >= newest
            other.close()
    finally:
        stop.set()
        thread.join()


def test_next_begins_behind_what_was_there(engine: AmqpEngine, stream: str, raw: Any) -> None:
    raw.basic_publish("", stream, b"old", mandatory=True)
    tail, sink = opened(engine, stream, Start.NEXT)
    result(tail.attached)
    raw.basic_publish("", stream, b"new", mandatory=True)
    until(lambda: sink.bodies == [b"new"])


def test_many_opens_at_once_and_missing_ones_among_them(engine: AmqpEngine) -> None:
    names = [f"amqp-{uuid.uuid4().hex}" for _ in range(60)]
    for name in names[::2]:
        engine.declare(name, None, 10)
    tails = [opened(engine, name, Start.LAST)[0] for name in names]
    for tail in tails[::2]:
        result(tail.attached)
    for tail in tails[1::2]:
        with pytest.raises(StreamMissing):
            result(tail.ready)
    for number, tail in enumerate(tails[::2]):
        assert result(tail.append(message(b"%d" % number), 10)) in (0, 1)  # RabbitMQ counts from 0, LavinMQ from 1
    for name in names[::2]:
        engine.delete(name, 10)


def test_appends_go_to_a_missing_stream(engine: AmqpEngine) -> None:
    tail, sink = opened(engine, f"amqp-{uuid.uuid4().hex}")
    with pytest.raises(StreamMissing):
        result(tail.append(message(b"x"), 5))
    with pytest.raises(StreamMissing):
        result(tail.append(message(b"x"), 5))
    assert sink.events == []


def test_a_classic_queue_disturbs_nobody(engine: AmqpEngine, stream: str, raw: Any) -> None:
    name = f"amqp-{uuid.uuid4().hex}"
    raw.queue_declare(name, durable=True)
    try:
        raw.basic_publish("", name, b"keep me")
        tail, sink = opened(engine, stream)
        result(tail.append(message(b"one"), 5))
        with pytest.raises(NotAStream):
            engine.declare(name, None, 5)
        with pytest.raises(NotAStream):
            engine.last(name, 5)
        with pytest.raises(NotAStream):
            result(opened(engine, name)[0].ready)
        result(tail.append(message(b"two"), 5))
        assert sink.bodies == [b"one", b"two"]
        assert raw.queue_declare(name, passive=True).method.message_count == 1
    finally:
        raw.queue_delete(name)


def test_messages_of_strangers(engine: AmqpEngine, stream: str, raw: Any) -> None:
    tail, sink = opened(engine, stream)
    result(tail.attached)
    for headers in (
        {"x-stream-offset": "evil"},
        {"x-stream-offset": 2**40},
        {"list": [1, 2], "table": {"a": 1}, "bytes": b"\xff", "none": None, "n": 1},
        None,
    ):
        raw.basic_publish("", stream, b"strange", pika.BasicProperties(headers=headers, delivery_mode=2), mandatory=True)
    raw.basic_publish("", stream, b"strange", mandatory=True)
    offset = result(tail.append(message(b"end"), 5))
    assert sink.bodies == [b"strange"] * 5 + [b"end"] and offset == sink.got[0][0] + 5 == sink.got[-1][0]
    assert sink.got[2][1].headers.get("n") == 1


def test_a_sink_that_raises_ends_its_own_tail_only(engine: AmqpEngine, stream: str, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Sink):
        def deliver(self, batch: Sequence[Delivery]) -> None:
            raise RuntimeError("broken")

    tail, sink = opened(engine, stream)
    broken = Broken()
    other = engine.open(stream, Start.FIRST, broken)
    result(other.attached)
    result(tail.append(message(b"one"), 5))
    until(lambda: len(broken.events) == 1)
    assert isinstance(broken.events[0], RuntimeError)
    result(tail.append(message(b"two"), 5))
    assert sink.bodies == [b"one", b"two"]
    assert "a sink failed" in caplog.text


def test_all_tails_of_an_engine_have_what_was_appended(engine: AmqpEngine, stream: str) -> None:
    tails = [opened(engine, stream) for _ in range(4)]
    result(tails[0][0].append(message(b"first"), 5))
    for tail, _ in tails:
        result(tail.ready)
    for number in range(300):
        body = b"%d" % number
        result(tails[number % 4][0].append(message(body), 5))
        assert all(sink.bodies[-1] == body for _, sink in tails)


def test_an_append_of_an_id_that_is_under_way(engine: AmqpEngine, stream: str) -> None:
    tail, _ = opened(engine, stream)
    each = message(b"x")
    first, second = tail.append(each, 5), tail.append(each, 5)
    assert result(first) == result(second)


def test_closed(engine: AmqpEngine, stream: str) -> None:
    other = AmqpEngine(engine.url)
    tail, sink = opened(other, stream)
    result(tail.append(message(b"x"), 5))
    other.close()
    other.close()
    for call in (
        lambda: other.declare(stream, None, 1),
        lambda: other.last(stream, 1),
        lambda: other.open(stream, Start.FIRST, Sink()),
        lambda: tail.append(message(b"y"), 1),
        lambda: other.delete(stream, 1),
        other.catch_up,
    ):
        with pytest.raises(Closed):
            call()  # type: ignore[no-untyped-call]
    assert sink.events == []


def test_closing_settles_what_is_under_way(engine: AmqpEngine, stream: str) -> None:
    other = AmqpEngine(engine.url)
    tail, _ = opened(other, stream)
    result(tail.attached)
    promises = [tail.append(message(b"x"), 30) for _ in range(2_000)]
    other.close()
    for promise in promises:
        assert promise.wait(1)
        assert promise.error() is None or isinstance(promise.error(), (OutcomeUnknown, Closed))


# Connections that can't be made


@pytest.fixture
def black_hole() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refused(url: str, within: float) -> str:
    """Every call fails within the time; the text of the errors, which holds no password."""
    logger = logging.getLogger(f"mqkv.test.{uuid.uuid4().hex}")
    engine = AmqpEngine(parse(url), logger=logger)
    texts = []
    try:
        for call in (
            lambda: engine.last("s", 10),
            lambda: engine.declare("s", None, 10),
            lambda: result(engine.open("s", Start.FIRST, Sink()).attached),
            lambda: result(engine.open("s", Start.FIRST, Sink()).append(message(b"x"), 10)),
        ):
            began = time.monotonic()
            with pytest.raises(ConnectionFailed) as caught:
                call()
            assert time.monotonic() - began < within + 1
            error: BaseException | None = caught.value
            while error is not None:
                texts += [str(error), repr(error)]
                error = error.__cause__ or error.__context__
    finally:
        engine.close()
    text = " ".join(texts)
    assert "s3cr3t" not in text
    assert "***" in text
    return text


def test_a_closed_port(closed_port: int) -> None:
    assert "refused" in refused(f"amqp://guest:s3cr3t@127.0.0.1:{closed_port}/%2F", 1)


def test_a_black_hole(black_hole: int) -> None:
    refused(f"amqp://guest:s3cr3t@127.0.0.1:{black_hole}/%2F?connect_timeout=0.3", 0.3)


def test_a_black_hole_behind_tls(black_hole: int) -> None:
    refused(f"amqps://guest:s3cr3t@127.0.0.1:{black_hole}/%2F?connect_timeout=0.3", 0.3)


def test_an_unknown_host() -> None:
    refused("amqp://guest:s3cr3t@no-such-host.invalid/%2F?connect_timeout=2", 2)


def test_a_cafile_that_is_not_there(black_hole: int) -> None:
    refused(f"amqps://guest:s3cr3t@127.0.0.1:{black_hole}/%2F?cafile=/no/such/file", 1)


def test_a_wrong_login(broker: Any) -> None:
    url = parse(broker.url)
    assert "login" in refused(f"amqp://guest:s3cr3t@{url.host}:{url.port}/%2F", 5)


def test_a_wrong_virtual_host(broker: Any) -> None:
    url = parse(broker.url)
    text = refused(f"amqp://{url.user}:{url.password}@{url.host}:{url.port}/s3cr3t".replace("s3cr3t", "nowhere"), 5)
    assert "nowhere" in text


def test_a_peer_that_hangs_up() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def hang_up() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            refused(f"amqp://guest:s3cr3t@127.0.0.1:{listener.getsockname()[1]}/%2F", 5)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_after_a_failure_the_next_call_tries_again(broker: Any, closed_port: int) -> None:
    engine = AmqpEngine(parse(f"amqp://guest:guest@127.0.0.1:{closed_port}/%2F"))
    try:
        with pytest.raises(Error):
            engine.last("s", 5)
        engine._link.url = parse(broker.url)
        with pytest.raises(StreamMissing):
            engine.last("no-such-stream", 5)
    finally:
        engine.close()
