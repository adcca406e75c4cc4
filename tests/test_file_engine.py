"""What only the file engine has: processes, kills, permissions, damaged bits, forks."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqkv.errors import Closed, ConnectionFailed, Error, StreamDamaged, StreamMissing, UpgradeRequired, WriteTimeout
from mqkv.streams.base import Start
from mqkv.streams.file import FileEngine
from mqkv.streams.file.database import NAME, RUN, VERSION
from mqkv.testing.tools import RecordingSink, message, opened, put, result, run_threads
from mqkv.url import parse

SOURCE = str(Path(sys.modules["mqkv"].__file__ or "").parent.parent)
PRELUDE = """
import sys, time
sys.path.insert(0, {source!r})
from mqkv.streams.base import Message, Start
from mqkv.streams.file import FileEngine
from mqkv.testing.tools import RecordingSink, message, opened, put, result
from mqkv.url import parse
engine = FileEngine(parse({url!r}))
def say(*what): print(*what, flush=True)
"""

Make = Callable[..., FileEngine]


@pytest.fixture
def place(tmp_path: Path) -> str:
    return f"file://{tmp_path}/kv"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "kv" / NAME


@pytest.fixture
def make(place: str) -> Iterator[Make]:
    made: list[FileEngine] = []

    def make(options: str = "") -> FileEngine:
        made.append(FileEngine(parse(place + options)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def engine(make: Make) -> FileEngine:
    engine = make()
    engine.declare("s", None, 5)
    return engine


@contextlib.contextmanager
def process(place: str, code: str) -> Iterator[subprocess.Popen[str]]:
    """Python in a process of its own, with an ``engine`` of the place."""
    script = PRELUDE.format(source=SOURCE, url=place) + code
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    text = child.stdout.readline()
    assert text, "the child has died"
    return text.strip()


def tell(child: subprocess.Popen[str], text: str = "") -> None:
    assert child.stdin is not None
    child.stdin.write(text + "\n")
    child.stdin.flush()


# Processes


def test_a_write_that_returned_elsewhere_is_seen(engine: FileEngine, place: str) -> None:
    _, sink = opened(engine, "s")
    code = "tail, _ = opened(engine, 's', Start.NEXT)\nfor text in sys.stdin: say(put(tail, text.strip()))"
    with process(place, code) as child:
        for i in range(200):
            seen = engine.signal[0]
            tell(child, str(i))
            offset = int(line(child))
            assert engine.signal[0] != seen
            engine.catch_up()
            assert sink.deliveries[-1][0] == offset
            assert sink.bodies[-1] == str(i).encode()


def test_a_listening_process_is_woken(engine: FileEngine, place: str) -> None:
    """The time is measured from before the append to after the delivery, with one monotonic clock."""
    tail, _ = opened(engine, "s")
    code = """
arrivals = []
class Sink(RecordingSink):
    def deliver(self, batch):
        now = time.monotonic()
        arrivals.extend(now - float(message.body) for _, message in batch)
        super().deliver(batch)
sink = Sink()
engine.open("s", Start.NEXT, sink)
engine.listen()
say("ready")
sink.wait_for(200)
say(sorted(arrivals)[100], sorted(arrivals)[190])
engine.close()
"""
    with process(place, code) as child:
        assert line(child) == "ready"
        pause = threading.Event()
        for _ in range(200):
            put(tail, repr(time.monotonic()))
            pause.wait(0.002)  # apart, so that each has to wake the other anew
        median, slow = map(float, line(child).split())
    print(f"woken after {median * 1000:.3f} ms (median), {slow * 1000:.3f} ms (p95)")
    assert median < 0.02  # the goal is 1 ms; a busy machine has its moments


def test_processes_append_at_once(engine: FileEngine, place: str) -> None:
    """Nothing lost, nothing twice, one order for all; each sees its own at once."""
    code = """
tail, sink = opened(engine, "s")
say("ready"); sys.stdin.readline()
for i in range(300):
    offset = put(tail, f"{sys.argv[0]}{id(engine)}.{i}")
    assert sink.offsets[-1] == offset
say("done"); sys.stdin.readline()
engine.catch_up()
say(hash(tuple(sink.offsets)), len(sink.offsets))
engine.close()
"""
    _, sink = opened(engine, "s")
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(process(place, code)) for _ in range(3)]
        for step in ("ready", "done"):
            assert [line(child) for child in children] == [step] * 3
            for child in children:
                tell(child)
        engine.catch_up()
        assert len({message.id for message in sink.messages}) == 900
        assert sink.offsets == sorted(set(sink.offsets))
        assert {line(child) for child in children} == {f"{hash(tuple(sink.offsets))} 900"}


def test_deleted_by_another_process(engine: FileEngine, place: str) -> None:
    tail, sink = opened(engine, "s")
    put(tail, "a")
    with process(place, "engine.delete('s', 5); engine.declare('s', None, 5); say('done')") as child:
        line(child)
    with pytest.raises(StreamMissing):
        put(tail, "to the old one")
    assert isinstance(sink.error, StreamMissing)
    _, fresh = opened(engine, "s")
    assert fresh.deliveries == []


def test_deletions_seen_late(make: Make) -> None:
    """Only the newest record of deletions is kept: whoever slept through several must still find all of them."""
    one, two = make(), make()
    sinks = {}
    for name in "abc":
        one.declare(name, None, 5)
        sinks[name] = opened(one, name)[1]
    for name in "ab":
        two.delete(name, 5)
    one.catch_up()
    assert [sinks[name].events for name in "abc"] == [["ended"], ["ended"], []]


def test_offsets_are_never_given_again(make: Make) -> None:
    engine = make()
    offsets = []
    for _ in range(3):
        engine.declare("s", None, 5)
        offsets.append(put(opened(engine, "s")[0]))
        engine.delete("s", 5)
        engine.close()
        engine = make()
    assert offsets == sorted(set(offsets))


# Kills


def test_killed_writers_lose_nothing_acknowledged(engine: FileEngine, place: str, seed: int) -> None:
    chance = random.Random(seed)
    _, sink = opened(engine, "s")
    code = "tail, _ = opened(engine, 's', Start.NEXT)\ni = 0\nwhile True:\n    i += 1\n    say(put(tail, f'{i}'), i)"
    acknowledged: list[int] = []
    for _ in range(12):
        with process(place, code) as child:
            acknowledged.append(int(line(child).split()[0]))
            timer = threading.Timer(chance.uniform(0, 0.1), child.send_signal, [signal.SIGKILL])
            timer.start()
            assert child.stdout is not None
            for text in child.stdout:
                if re.fullmatch(r"\d+ \d+\n", text):
                    acknowledged.append(int(text.split()[0]))
            timer.join()
        engine.catch_up()
        assert set(acknowledged) <= set(sink.offsets)
        put(opened(engine, "s", Start.NEXT)[0], "own")  # whatever the child left behind, the next can write
    assert len(acknowledged) > 500, "too little was written for this to prove anything"
    assert sink.offsets == sorted(set(sink.offsets))
    assert engine.damaged == 0


def test_a_writer_killed_between_commit_and_signal(engine: FileEngine, make: Make) -> None:
    tail, sink = opened(engine, "s")
    offset = put(tail, "a")
    other = make()
    far_tail, far = opened(other, "s")
    put(far_tail, "b")
    assert engine._shared is not None
    engine._shared.words[0] = offset  # as if the other had been killed before it stored the signal
    third = put(tail, "c")
    assert sink.bodies == [b"a", b"b", b"c"]
    assert engine.signal[0] == third
    other.catch_up()
    assert far.deliveries == sink.deliveries


def test_what_the_newest_record_is_stands_in_tables(engine: FileEngine, make: Make) -> None:
    """A writer has committed and not told yet: who is told of its record by ``last`` finds it in the tails."""
    tail, sink = opened(engine, "s")
    told = put(tail, "told")
    far_tail, _ = opened(make(), "s")
    put(far_tail, "silent")
    assert engine._shared is not None
    engine._shared.words[0] = told  # as if the other stood between its commit and its signal
    newest = engine.last("s", 5)
    assert newest is not None and newest[1].body == b"silent"
    assert sink.offsets == [told, newest[0]]


def test_the_lock_of_a_killed_writer_is_free(engine: FileEngine, place: str) -> None:
    tail, _ = opened(engine, "s")
    with process(place, "opened(engine, 's')\nengine._shared.acquire(1)\nsay('held')\ntime.sleep(60)") as child:
        line(child)
        with pytest.raises(WriteTimeout):
            tail.append(message(), 0.1).result()
        child.kill()
        child.wait()
        put(tail)


# Files


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_permissions(make: Make, database: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        engine = make()
        engine.declare("s", None, 5)
        put(opened(engine, "s")[0])
        assert stat.S_IMODE(database.parent.stat().st_mode) == 0o700
        files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in database.parent.iterdir()}
    finally:
        os.umask(old)
    assert {NAME, f"{NAME}-wal", f"{NAME}-shm"} < set(files)
    assert set(files.values()) == {0o600}


@pytest.mark.parametrize(("options", "number"), [("", 1), ("?sync=normal", 1), ("?sync=full", 2)])
def test_sync(make: Make, options: str, number: int) -> None:
    engine = make(options)
    engine.declare("s", None, 5)
    assert engine._database is not None
    assert engine._database.number("PRAGMA synchronous") == number
    assert engine._database.execute("PRAGMA journal_mode").fetchone()[0] in ("wal", b"wal")


@pytest.mark.parametrize(
    "content", [b"this is no database at all, but long enough to look at" * 100, b"SQLite format 3\x00" + b"\xff" * 5000]
)
def test_a_file_of_something_else(make: Make, database: Path, content: bytes) -> None:
    database.parent.mkdir()
    database.write_bytes(content)
    engine = make()
    with pytest.raises(StreamDamaged, match="kv is damaged or no database"):
        engine.declare("s", None, 5)
    with pytest.raises(StreamDamaged):
        engine.open("s", Start.FIRST, RecordingSink()).ready.result()
    assert database.read_bytes() == content


def test_a_database_of_something_else(make: Make, database: Path) -> None:
    database.parent.mkdir()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    with pytest.raises(StreamDamaged, match="something else"):
        make().declare("s", None, 5)


def test_a_newer_format(engine: FileEngine, make: Make, database: Path) -> None:
    engine.close()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(UpgradeRequired):
        make().declare("s", None, 5)


@pytest.mark.parametrize("path", ["/proc/mqkv", "{tmp}/a-file/kv", "/dev/null"])
def test_a_folder_that_can_not_be(tmp_path: Path, path: str) -> None:
    (tmp_path / "a-file").write_text("")
    engine = FileEngine(parse("file://" + path.format(tmp=tmp_path)))
    with pytest.raises(ConnectionFailed, match="folder"):
        engine.declare("s", None, 5)
    tail = engine.open("s", Start.FIRST, RecordingSink())
    with pytest.raises(ConnectionFailed):
        tail.ready.result()
    with pytest.raises(ConnectionFailed):
        put(tail)
    engine.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own needs root")
def test_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("can't mount a tmpfs here")
    try:
        engine = FileEngine(parse(f"file://{folder}/kv"))
        engine.declare("s", None, 5)
        tail, sink = opened(engine, "s")
        written = []
        with pytest.raises(ConnectionFailed, match="full"):  # noqa: PT012 -- some of them fit
            for _ in range(100):
                written.append(put(tail, b"x" * 100_000))
        assert written
        assert sink.offsets == written
        engine.close()
        engine = FileEngine(parse(f"file://{folder}/kv"))
        assert opened(engine, "s")[1].offsets == written
        engine.close()
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


# Damage


def test_a_damaged_record_is_passed_over(engine: FileEngine, make: Make, database: Path) -> None:
    tail, sink = opened(engine, "s")
    for body in ("first", "second", "third"):
        put(tail, body)
    engine.close()
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE log SET body = replace(body, 'second', 'zecond') WHERE offset = ?", (sink.offsets[1],))
    engine = make()
    _, far = opened(engine, "s")
    assert far.bodies == [b"first", b"third"]
    assert engine.damaged == 1
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE log SET stream = 1, at = at + 1 WHERE offset = ?", (sink.offsets[2],))
    with pytest.raises(StreamDamaged):
        engine.last("s", 5)


def test_flipped_bits_never_make_a_wrong_value(engine: FileEngine, make: Make, database: Path, seed: int) -> None:
    chance = random.Random(seed)
    tail, sink = opened(engine, "s")
    for i in range(300):
        put(tail, f"{i}:" + "v" * chance.randrange(200), n=i)
    engine.close()
    right = dict(sink.deliveries)
    whole = database.read_bytes()
    found = {"fine": 0, "passed over": 0, "error": 0}
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        database.write_bytes(damaged)
        engine = make()
        try:
            far = RecordingSink()
            engine.open("s", Start.FIRST, far).ready.result()
            for offset, got in far.deliveries:
                assert right[offset] == got
            newest = engine.last("s", 5)
            assert newest is None or right[newest[0]] == newest[1]
            found["fine" if len(far.deliveries) == 300 else "passed over"] += 1
        except Error:
            found["error"] += 1
        finally:
            engine.close()
    print(found)
    assert found["passed over"] > 30


def test_a_schema_that_is_no_text_is_an_error_of_ours(engine: FileEngine, make: Make, database: Path) -> None:
    opened(engine, "s")
    engine.close()
    whole = database.read_bytes()
    begin = whole.index(b"CREATE TABLE streams")
    damaged = 0
    for at in range(begin, begin + 60):
        database.write_bytes(whole[:at] + bytes([whole[at] ^ 0x80]) + whole[at + 1 :])
        engine = make()
        try:
            opened(engine, "s")
        except StreamDamaged:
            damaged += 1
        finally:
            engine.close()
    assert damaged > 30


# Forks and threads


def test_a_fork(engine: FileEngine, make: Make) -> None:
    """The parent goes on; the child's engine is unusable, and one that it makes works."""
    tail, sink = opened(engine, "s")
    engine.listen()
    put(tail, "before")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            try:
                put(tail, "never")
            except Closed:
                code = 2
            own = make()
            own_tail, own_sink = opened(own, "s")
            put(own_tail, "child")
            own.close()
            code = 0 if code == 2 and own_sink.bodies == [b"before", b"child"] else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    put(tail, "after")
    assert sink.bodies == [b"before", b"child", b"after"]


def test_forks_under_load(engine: FileEngine, make: Make) -> None:
    tail, sink = opened(engine, "s")
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            put(tail, "parent")

    def fork() -> None:
        try:
            for _ in range(10):
                child = os.fork()
                if child == 0:
                    code = 1
                    try:
                        own = FileEngine(engine.url)
                        own_tail, _ = opened(own, "s", Start.NEXT)
                        for _ in range(20):
                            put(own_tail, "child")
                        own.close()
                        code = 0
                    finally:
                        os._exit(code)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            done.set()

    run_threads([write, fork])
    engine.catch_up()
    assert sink.bodies.count(b"child") == 200
    assert sink.offsets == sorted(set(sink.offsets))
    assert opened(make(), "s")[1].deliveries == sink.deliveries


def test_a_storm_of_threads_at_first_use(make: Make) -> None:
    engine = make()
    run_threads([lambda: engine.declare("s", None, 10)] * 30)
    run_threads([lambda: put(opened(engine, "s")[0])] * 30)
    assert len(opened(engine, "s")[1].deliveries) == 30


class Struck:
    """A lock that a signal's exception strikes in, once: when it was just had, or just before."""

    def __init__(self, lock: Any, had: bool) -> None:
        self._lock, self._had, self._struck = lock, had, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)

    def acquire(self, **options: Any) -> bool:
        if not self._struck:
            self._struck = True
            if self._had:
                self._lock.acquire(**options)
            raise KeyboardInterrupt
        return bool(self._lock.acquire(**options))


@pytest.mark.parametrize("had", [True, False])
@pytest.mark.parametrize("verb", ["append", "last"])
def test_what_strikes_between_lock_and_work_leaves_no_lock(engine: FileEngine, verb: str, had: bool) -> None:
    engine.declare("s", None, 5)
    tail, _ = opened(engine, "s")
    calls: dict[str, Callable[[], object]] = {"append": lambda: put(tail), "last": lambda: engine.last("s", 5)}
    lock = engine._lock
    engine._lock = Struck(lock, had)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        calls[verb]()
    engine._lock = lock
    run_threads([lambda: tail.append(message("later"), 1).result()])
    assert result(engine.begin_last("s", 5))[1].body == b"later"


def test_close_ends_the_listener(engine: FileEngine) -> None:
    engine.listen()
    listener = engine._listener
    assert listener is not None
    engine.close()
    assert not listener.is_alive()


# Size


def test_many_streams_and_the_index(engine: FileEngine, make: Make) -> None:
    """Records far apart, indexed and not yet indexed, and more than one batch of them."""
    tails = {}
    for i in range(20):
        engine.declare(f"s{i}", None, 5)
        tails[i] = opened(engine, f"s{i}")
    for n in range(3000):
        put(tails[n % 20][0] if n % 2 else tails[7][0], str(n))
    other = make()
    for i, (_, sink) in tails.items():
        assert opened(other, f"s{i}")[1].deliveries == sink.deliveries
        newest = other.last(f"s{i}", 5)
        assert newest == (sink.deliveries[-1] if sink.deliveries else None)
    middle = tails[7][1].deliveries[700][0]
    assert opened(other, "s7", middle)[1].deliveries == tails[7][1].deliveries[700:]


def test_what_is_too_old_goes_and_the_newest_stays(engine: FileEngine, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    engine.declare("aged", 60, 5)
    tail, _ = opened(engine, "aged")
    other, _ = opened(engine, "s")
    put(other, "kept")
    first = put(tail, "old")
    for i in range(600):
        put(tail, str(i))
    monkeypatch.setattr("mqkv.streams.file.engine.time.time", lambda: now + 3600)
    for i in range(600):
        put(tail, str(i))
    far = opened(make(), "aged")[1]
    assert far.offsets[0] > first + 500
    assert far.bodies[-1] == b"599"
    assert opened(make(), "s")[1].bodies == [b"kept"]


def test_what_is_too_old_goes_in_whole_runs_and_a_small_history_stays(
    engine: FileEngine, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, now = RUN, time.time()
    engine.declare("aged", 60, 5)
    tail, _ = opened(engine, "aged")
    other, _ = opened(engine, "s")
    old = [put(tail, str(i)) for i in range(2 * run - 1)]
    monkeypatch.setattr("mqkv.streams.file.engine.time.time", lambda: now + 3600)
    for _ in range(2 * run):
        put(other)
    sink = opened(make(), "aged")[1]
    assert sink.offsets == old and not sink.beheaded, "fewer than two runs"
    for i in range(2 * run):
        put(tail, str(i))
    sink = opened(make(), "aged")[1]
    assert sink.beheaded and sink.offsets[0] == old[run]
    assert not opened(make(), "aged", old[run] + 1)[1].beheaded and not opened(make(), "s")[1].beheaded


def test_a_folder_of_format_1_says_what_may_have_lost_its_beginning(engine: FileEngine, make: Make, database: Path) -> None:
    for name in ("before", "trimmed", "lone"):
        engine.declare(name, 60, 5)
    before, trimmed = opened(engine, "before")[0], opened(engine, "trimmed")[0]
    put(before, "first")
    lost, left = put(trimmed, "lost"), put(trimmed, "left")
    put(opened(engine, "s")[0], "kept")
    engine.close()
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table in ("log", "place"):  # as it was done: without a mark
            connection.execute(f"DELETE FROM {table} WHERE offset = ?", (lost,))
        connection.execute("PRAGMA user_version = 1")
    for _ in range(2):
        reader = make()
        sink = opened(reader, "trimmed")[1]
        assert sink.beheaded and sink.offsets == [left] and sink.bodies == [b"left"]
        assert result(reader.begin_read("trimmed", 0, 1000, 5)).truncated
        for name, bodies in (("before", [b"first"]), ("s", [b"kept"]), ("lone", [])):
            whole = opened(reader, name)[1]
            assert not whole.beheaded and whole.bodies == bodies, name
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)


def test_a_process_that_slept_while_records_grew_too_old_begins_again(
    engine: FileEngine, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, run = time.time(), RUN
    engine.declare("aged", 60, 5)
    tail, _ = opened(engine, "aged")
    put(tail, "known")
    sleeper = make()
    _, sink = opened(sleeper, "aged")
    for i in range(2 * run):
        put(tail, f"old {i}")
    monkeypatch.setattr("mqkv.streams.file.engine.time.time", lambda: now + 3600)
    for i in range(2 * run):
        put(tail, f"new {i}")
    sleeper.catch_up()
    fresh = opened(make(), "aged")[1]
    assert sink.beheaded and sink.events[1:4] == ["interrupted", "reset", "deliver"] and sink.events[-1] == "resumed"
    assert sink.deliveries == fresh.deliveries and len(fresh.deliveries) < 4 * run
    put(tail, "after")
    sleeper.catch_up()
    assert sink.bodies[-1] == b"after"


def test_records_that_grow_too_old_while_they_are_loaded(engine: FileEngine, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqkv.streams.file.tails.BATCH", 10)
    monkeypatch.setattr("mqkv.streams.file.database.BATCH", 10)
    monkeypatch.setattr("mqkv.streams.file.database.RUN", 20)
    engine.declare("aged", 60, 5)
    tail, _ = opened(engine, "aged")
    for i in range(60):
        put(tail, str(i))

    def trim(base: Any) -> None:
        base.index()
        base.trim(base.find("aged")[0], 2**60)

    class Slow(RecordingSink):
        """Before its second batch, what it was not yet given is removed."""

        def deliver(self, batch: Any) -> None:
            super().deliver(batch)
            if self.events.count("deliver") == 1:
                engine._with(trim, 5)

    sink = Slow()
    result(make().open("aged", Start.FIRST, sink).ready)
    assert sink.beheaded and sink.events[:2] == ["deliver", "reset"]
    assert sink.bodies == [b"%d" % i for i in range(20, 60)]
