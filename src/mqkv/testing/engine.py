"""What every engine does (``mqkv.streams.base``): a class of tests to inherit from. It needs pytest and nothing else.

::

    class TestMyEngine(EngineContract):
        @pytest.fixture
        def engine(self, tmp_path):
            engine = MyEngine(parse(f"my://{tmp_path}"))
            yield engine
            engine.close()

        @pytest.fixture
        def another_engine(self, tmp_path): ...  # a connection of its own to the same place; the same engine if none can be
"""

from __future__ import annotations

import threading
import uuid

import pytest

from mqkv.errors import Closed, Error, StreamMissing
from mqkv.streams.base import Delivery, Engine, HeaderValue, Message, Promise, Start
from mqkv.testing.tools import PATIENCE, RecordingSink, message, opened, put, result, run_threads

__all__ = ["EngineContract", "RecordingSink"]


class EngineContract:
    """The fixtures ``engine`` and ``another_engine`` are yours to give."""

    @pytest.fixture
    def engine(self) -> Engine:
        raise TypeError("an EngineContract needs a fixture 'engine'")

    @pytest.fixture
    def another_engine(self) -> Engine:
        raise TypeError("an EngineContract needs a fixture 'another_engine'")

    @pytest.fixture
    def stream(self) -> str:
        return f"contract-{uuid.uuid4().hex}"

    @pytest.fixture
    def declared(self, engine: Engine, stream: str) -> str:
        engine.declare(stream, None, PATIENCE)
        return stream

    # Streams

    def test_declare_is_idempotent(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        tail, _ = opened(engine, declared)
        put(tail, "kept")
        engine.declare(declared, None, PATIENCE)
        engine.declare(declared, 3600, PATIENCE)
        another_engine.declare(declared, 60, PATIENCE)
        assert opened(engine, declared)[1].bodies == [b"kept"]

    def test_declare_with_a_max_age(self, engine: Engine, stream: str) -> None:
        engine.declare(stream, 3600, PATIENCE)
        tail, sink = opened(engine, stream)
        put(tail, "young")
        assert sink.bodies == [b"young"]

    def test_a_missing_stream(self, engine: Engine, stream: str) -> None:
        for start in (*Start, 0):
            tail = engine.open(stream, start, RecordingSink())
            with pytest.raises(StreamMissing):
                result(tail.attached)
            with pytest.raises(StreamMissing):
                result(tail.ready)
            tail.close()
        with pytest.raises(StreamMissing):
            engine.last(stream, PATIENCE)
        engine.delete(stream, PATIENCE)

    def test_opening_does_not_declare(self, engine: Engine, stream: str) -> None:
        engine.open(stream, Start.FIRST, RecordingSink()).ready.wait(PATIENCE)
        with pytest.raises(StreamMissing):
            engine.last(stream, PATIENCE)

    def test_streams_are_separate(self, engine: Engine, declared: str) -> None:
        names = [f"{declared}-{i}" for i in range(3)]
        for name in names:
            engine.declare(name, None, PATIENCE)
        tails = [opened(engine, name) for name in names]
        for i in range(30):
            put(tails[i % 3][0], str(i))
        for i, (_, sink) in enumerate(tails):
            assert sink.bodies == [str(n).encode() for n in range(i, 30, 3)]
            assert engine.last(names[i], PATIENCE)[1].body == str(27 + i).encode()  # type: ignore[index]
            engine.delete(names[i], PATIENCE)

    @pytest.mark.parametrize("name", ["ünïcode ☃ \U0001f40d", "with space", "a.b/c:d#e*f", "-", "'\"%2F;--", "x" * 200])
    def test_names(self, engine: Engine, stream: str, name: str) -> None:
        name = f"{stream[:20]}{name}"
        engine.declare(name, None, PATIENCE)
        tail, sink = opened(engine, name)
        put(tail, name)
        assert sink.bodies == [name.encode()]
        assert engine.last(name, PATIENCE)[1].body == name.encode()  # type: ignore[index]
        engine.delete(name, PATIENCE)

    def test_a_stream_that_has_all_its_messages_does_not_look_as_if_it_had_lost_some(self, engine: Engine, stream: str) -> None:
        for _ in range(2):  # and so does one that is made anew
            engine.declare(stream, None, PATIENCE)
            empty = opened(engine, stream)[1]
            tail, _ = opened(engine, stream, Start.NEXT)
            put(tail)
            sinks = [empty, *(opened(engine, stream, start)[1] for start in (Start.FIRST, Start.LAST, 0))]
            assert [(len(sink.deliveries), sink.beheaded) for sink in sinks] == [(1, False)] * 4
            engine.delete(stream, PATIENCE)

    # Order

    def test_offsets_rise(self, engine: Engine, declared: str) -> None:
        tail, sink = opened(engine, declared)
        offsets = [put(tail, str(i)) for i in range(100)]
        assert offsets == sorted(set(offsets))
        assert sink.offsets == offsets
        assert sink.bodies == [str(i).encode() for i in range(100)]

    def test_an_append_is_settled_after_its_own_sinks_saw_it(self, engine: Engine, declared: str) -> None:
        sinks = [opened(engine, declared)[1] for _ in range(2)]
        tail, sink = opened(engine, declared)
        for i in range(50):
            offset = put(tail, str(i))
            for each in (*sinks, sink):
                assert each.offsets[-1] == offset

    def test_appends_without_waiting_keep_their_order(self, engine: Engine, declared: str) -> None:
        tail, sink = opened(engine, declared)
        promises = [tail.append(message(str(i)), PATIENCE) for i in range(500)]
        offsets = [result(promise) for promise in promises]
        assert sink.offsets == offsets == sorted(offsets)
        assert sink.bodies == [str(i).encode() for i in range(500)]

    def test_many_threads(self, engine: Engine, declared: str) -> None:
        tail, sink = opened(engine, declared)
        run_threads([lambda who=who: [put(tail, f"{who}.{i}") for i in range(50)] for who in range(8)])  # type: ignore[misc]
        seen = [body.decode().split(".") for body in sink.bodies]
        assert sink.offsets == sorted(set(sink.offsets))
        assert len(seen) == 400
        for who in range(8):
            assert [int(i) for name, i in seen if name == str(who)] == list(range(50))
        assert not sink.overlapped
        assert opened(engine, declared)[1].deliveries == sink.deliveries

    def test_two_engines_append_at_once(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        (one, first), (two, second) = opened(engine, declared), opened(another_engine, declared)
        jobs = [
            lambda tail=tail, who=who: [put(tail, f"{who}.{i}") for i in range(50)] for who, tail in enumerate((one, two) * 2)
        ]
        run_threads(jobs)
        engine.catch_up()
        another_engine.catch_up()
        assert first.wait_for(200) == second.wait_for(200)
        assert len(set(first.bodies)) == 200
        assert not first.overlapped
        assert not second.overlapped

    # Messages

    @pytest.mark.parametrize("size", [0, 1, 100_000, 1 << 20])
    def test_bodies(self, engine: Engine, another_engine: Engine, declared: str, size: int) -> None:
        body = bytes(range(256)) * (size // 256) + b"\x00\xff\x80"[: size % 256]
        tail, sink = opened(engine, declared)
        put(tail, body)
        assert sink.bodies == [body]
        assert opened(another_engine, declared)[1].bodies == [body]
        assert another_engine.last(declared, PATIENCE)[1].body == body  # type: ignore[index]

    def test_headers_and_properties(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        headers: dict[str, HeaderValue] = {
            "text": "naïve ☃",
            "empty": "",
            "yes": True,
            "no": False,
            "n": 7,
            "big": 2**62,
            "less": -(2**62),
            "ключ": 0,
        }
        sent = Message(b"b", headers, "id-1", "application/json; v=1", "zstd")
        tail, sink = opened(engine, declared)
        result(tail.append(sent, PATIENCE))
        far = opened(another_engine, declared)[1].messages[0]
        newest = another_engine.last(declared, PATIENCE)
        assert newest is not None
        for got in (sink.messages[0], far, newest[1]):
            assert got == sent
            assert {name: type(value) for name, value in got.headers.items()} == {name: type(v) for name, v in headers.items()}

    def test_absent_properties_stay_absent(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        tail, _ = opened(engine, declared)
        result(tail.append(Message(b"", {}, "id-2"), PATIENCE))
        assert opened(another_engine, declared)[1].messages == [Message(b"", {}, "id-2", None, None)]

    # Reading in pieces

    def test_pieces(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        assert result(engine.begin_read(declared, 0, 1_000, PATIENCE)) == ([], True, False)
        tail, sink = opened(engine, declared)
        for i in range(40):
            put(tail, b"x" * 5_000 if i % 10 == 0 else str(i))
        found: list[Delivery] = []
        begin = pieces = 0
        while True:
            piece, complete, _ = result(another_engine.begin_read(declared, begin, 3_000, PATIENCE))
            assert len(piece) >= 2 or complete
            found += piece[1:] if found and piece[0] == found[-1] else piece  # read from the last message on, as who compares
            pieces, begin = pieces + 1, found[-1][0]
            if complete:
                break
        assert found == sink.deliveries and pieces > 4
        assert result(engine.begin_read(declared, begin, 3_000, PATIENCE)) == ([found[-1]], True, False)
        assert result(engine.begin_read(declared, begin + 1, 3_000, PATIENCE)) == ([], True, False)

    def test_pieces_of_a_missing_stream(self, engine: Engine, stream: str) -> None:
        with pytest.raises(StreamMissing):
            result(engine.begin_read(stream, 0, 1_000, PATIENCE))

    # Where a tail begins

    def test_first(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        tail, sink = opened(engine, declared)
        for i in range(20):
            put(tail, str(i))
        assert opened(another_engine, declared)[1].deliveries == sink.deliveries

    def test_first_of_an_empty_stream(self, engine: Engine, declared: str) -> None:
        sink = RecordingSink()
        tail = engine.open(declared, Start.FIRST, sink)
        result(tail.attached)
        put(tail, "a")
        assert sink.bodies == [b"a"]

    def test_last(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        tail, sink = opened(engine, declared)
        for i in range(20):
            put(tail, str(i))
        _, far = opened(another_engine, declared, Start.LAST)
        assert far.deliveries
        assert sink.deliveries[-len(far.deliveries) :] == far.deliveries

    def test_next(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        tail, _ = opened(engine, declared)
        put(tail, "before")
        far_tail, far = opened(another_engine, declared, Start.NEXT)
        put(tail, "after")
        another_engine.catch_up()
        far.wait_for(1)
        put(far_tail, "own")
        assert far.bodies == [b"after", b"own"]

    def test_an_offset(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        tail, sink = opened(engine, declared)
        offsets = [put(tail, str(i)) for i in range(20)]
        assert opened(another_engine, declared, offsets[7])[1].deliveries == sink.deliveries[7:]
        assert opened(another_engine, declared, offsets[7] + 1)[1].deliveries == sink.deliveries[8:]
        assert opened(another_engine, declared, 0)[1].deliveries == sink.deliveries

    def test_loading_and_appending_at_once(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        tail, sink = opened(engine, declared)
        stop = threading.Event()
        sinks: list[RecordingSink] = []

        def write() -> None:
            for i in range(2500):
                tail.append(message(str(i)), PATIENCE)
                if i % 100 == 0:
                    put(tail, f"{i} in between")
            stop.set()

        def load() -> None:
            while not stop.is_set() and len(sinks) < 20:
                sinks.append(opened(another_engine, declared)[1])

        run_threads([write, load])
        put(tail, "end")
        another_engine.catch_up()
        for each in sinks:
            assert each.wait_until(lambda each=each: b"end" in each.bodies[-1:])  # type: ignore[misc]
            assert each.offsets == sink.offsets

    # The newest message

    def test_last_of_an_empty_stream(self, engine: Engine, declared: str) -> None:
        try:
            assert engine.last(declared, 0.5) is None
        except Error as error:  # a broker gives no evidence but silence
            assert isinstance(error, TimeoutError)  # noqa: PT017

    def test_last_is_exact(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        tail, _ = opened(engine, declared)
        for i in range(100):
            offset = put(tail, str(i))
            newest = another_engine.last(declared, PATIENCE)
            assert newest is not None
            assert (newest[0], newest[1].body) == (offset, str(i).encode())

    # Other engines

    def test_a_write_that_returned_is_there_after_catch_up(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        (one, first), (two, second) = opened(engine, declared), opened(another_engine, declared)
        for i in range(50):
            for tail, other, sink in ((one, another_engine, second), (two, engine, first)):
                put(tail, str(i))
                other.catch_up()
                sink.wait_until(lambda sink=sink, i=i: sink.bodies[-1:] == [str(i).encode()])  # type: ignore[misc]
        first.wait_for(100)
        second.wait_for(100)
        assert first.deliveries == second.deliveries

    def test_the_signal_changes_with_a_write_elsewhere(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        tail, _ = opened(engine, declared)
        opened(another_engine, declared)
        if another_engine.signal == (0,):
            return  # an engine that pushes
        for i in range(50):
            seen = another_engine.signal[0]
            put(tail, str(i))
            assert another_engine.signal[0] != seen

    def test_listen_delivers_without_being_asked(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        tail, _ = opened(engine, declared)
        _, far = opened(another_engine, declared)
        another_engine.listen()
        another_engine.listen()
        for i in range(20):
            put(tail, str(i))
            assert far.wait_for(i + 1)[-1][1].body == str(i).encode()

    # The end of things

    def test_delete_ends_tails(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        (tail, sink), (far_tail, far) = opened(engine, declared), opened(another_engine, declared)
        put(tail, "gone soon")
        engine.delete(declared, PATIENCE)
        sink.wait_event("ended")
        assert isinstance(sink.error, StreamMissing)
        another_engine.catch_up()
        far.wait_event("ended")
        assert isinstance(far.error, StreamMissing)
        for each in (tail, far_tail):
            with pytest.raises(StreamMissing):
                put(each)
        with pytest.raises(StreamMissing):
            engine.last(declared, PATIENCE)
        engine.delete(declared, PATIENCE)

    def test_a_stream_made_anew_is_another(self, engine: Engine, another_engine: Engine, declared: str) -> None:
        tail, sink = opened(engine, declared)
        put(tail, "old")
        another_engine.delete(declared, PATIENCE)
        another_engine.declare(declared, None, PATIENCE)
        fresh_tail, fresh = opened(another_engine, declared)
        put(fresh_tail, "new")
        engine.catch_up()
        sink.wait_event("ended")
        assert sink.bodies == [b"old"]
        assert fresh.bodies == [b"new"]

    def test_a_closed_tail_delivers_nothing(self, engine: Engine, declared: str) -> None:
        tail, sink = opened(engine, declared)
        other, _ = opened(engine, declared)
        put(other, "a")
        tail.close()
        tail.close()
        put(other, "b")
        assert sink.bodies == [b"a"]

    def test_a_closed_engine(self, engine: Engine, declared: str) -> None:
        tail, sink = opened(engine, declared)
        put(tail, "a")
        engine.close()
        engine.close()
        for call in (
            lambda: engine.declare(declared, None, 1),
            lambda: engine.last(declared, 1),
            lambda: engine.delete(declared, 1),
            lambda: result(engine.open(declared, Start.FIRST, RecordingSink()).ready),
            lambda: put(tail, "b"),
        ):
            with pytest.raises(Closed):
                call()
        tail.close()
        assert "ended" not in sink.events

    # Promises

    def test_promises(self, engine: Engine, declared: str) -> None:
        tail, sink = opened(engine, declared)
        seen: list[tuple[int, bool]] = []
        done = threading.Event()

        def callback(promise: Promise[int]) -> None:
            seen.append((promise.result(), promise.result() in sink.offsets))
            if len(seen) == 2:
                done.set()

        promise = tail.append(message("a"), PATIENCE)
        promise.then(callback)
        offset = result(promise)
        assert promise.done()
        assert promise.error() is None
        assert promise.wait(0)
        promise.then(callback)  # at once
        assert done.wait(PATIENCE)
        assert seen == [(offset, True)] * 2
