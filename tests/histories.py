"""Histories of several processes on one keyspace: the program that each process runs, and what its parent does with them.

Rules:

1. A process writes what it does as it does it, a line before each call and one after: one that is killed leaves its history.
2. Each client (a thread of a process) has a clock of its own, minutes off the others', that never shows the same millisecond
   twice. So the time that a record carries names the call that wrote it, and nothing need be added to a record or looked into.
3. The values that are written are unique, and so are the numbers that counters begin with.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import mqkv
from linearizability import KEY_NOT_FOUND, NOT_A_NUMBER, Call, apply
from mqkv.check import queue_name
from mqkv.record import parse
from mqkv.streams.amqp import AmqpEngine
from mqkv.streams.base import Engine, Message
from mqkv.streams.file import FileEngine
from mqkv.testing.tools import opened
from mqkv.url import parse as parse_url

MIX = (*["set", "get", "local", "incr", "compare_and_set"] * 3, *["add", "delete", "pop"] * 2)
STEP = 600  # seconds between the clocks of two clients; a run is shorter
LONG_AGO = 1_600_000_000


@dataclass(frozen=True)
class Job:
    """What a process is to do."""

    url: str
    prefix: str
    layout: Literal["per-key", "shared"]
    folder: str
    seed: int
    client: int  #: of the first thread; the others count on
    calls: int  #: each thread
    threads: int = 1
    keys: int = 10
    mix: Sequence[str] = MIX
    count: bool = False  #: increments by one from zero, all of one key
    follow: bool = False  #: preload the keys
    write_timeout: float = 10.0
    seconds: float = 60.0  #: the longest it may go on
    dies_after: int | None = None  #: calls, and somewhere in the next ones


# The process


class Clock:
    """A wall clock for each thread, minutes apart. Half a millisecond is added, so that rounding down gives the number back."""

    def __init__(self) -> None:
        self._own = threading.local()

    def start(self, client: int) -> None:
        self._own.ms = (LONG_AGO + client * STEP) * 1000
        self._own.ahead_ms = self._own.ms - time.monotonic_ns() // 1_000_000

    @property
    def last_ms(self) -> int:
        last: int = self._own.ms
        return last

    def __call__(self) -> float:
        own = self._own
        if not hasattr(own, "ms"):
            return LONG_AGO - 1
        own.ms = max(own.ms + 1, time.monotonic_ns() // 1_000_000 + own.ahead_ms)
        return float(own.ms + 0.5) / 1000


class Client:
    """Does random calls, one after another, and writes down what it asked and what it was told."""

    def __init__(self, job: Job, client: int, store: mqkv.Store, clock: Clock) -> None:
        self._job, self._client, self._store, self._clock = job, client, store, clock
        self._rng = random.Random(f"{job.seed} {client}")
        self._file = os.open(Path(job.folder) / f"{client}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def run(self) -> None:
        self._clock.start(self._client)
        self._clock()
        done, end = 0, time.monotonic() + self._job.seconds
        while done < self._job.calls and time.monotonic() < end:
            if done == self._job.dies_after:
                threading.Timer(self._rng.uniform(0, 0.02), os.kill, (os.getpid(), signal.SIGKILL)).start()
            if self._step(done):
                done += 1
            else:
                threading.Event().wait(0.02)  # as a caller would back off
        os.close(self._file)

    def _note(self, *what: Any) -> None:
        os.write(self._file, json.dumps(what).encode() + b"\n")

    def _step(self, number: int) -> bool:
        rng, store = self._rng, self._store
        key, operation = f"k{rng.randrange(self._job.keys)}", rng.choice(self._job.mix)
        unique = self._client * 1_000_000 + number
        value = f"v{unique}" if rng.random() < 0.5 else unique * 1_000_000
        calls: dict[str, tuple[Any, Callable[[], Any]]] = {
            "get": (None, lambda: store.get(key, fresh=True)),
            "set": (value, lambda: store.set(key, value)),
            "delete": (None, lambda: store.delete(key)),
            "add": (value, lambda: store.add(key, value)),
            "pop": (None, lambda: store.pop(key, None)),
        }
        if operation in ("local", "compare_and_set"):
            entry = self._local(key)
            if operation == "local" or isinstance(entry, mqkv.Error):
                return not isinstance(entry, mqkv.Error)
            seen, revision = (entry.value, entry.revision) if entry else (None, None)
            return self._call(key, operation, [seen, value], lambda: store.compare_and_set(key, value, revision))
        if operation == "incr":
            delta, initial = (1, 0) if self._job.count else (rng.randrange(1, 9), rng.choice([None, unique * 1_000_000]))
            return self._call(key, operation, [delta, initial], lambda: store.incr(key, delta, initial=initial))
        return self._call(key, operation, *calls[operation])

    def _local(self, key: str) -> mqkv.Entry | mqkv.Error | None:
        try:
            entry = self._store.entry(key)
        except mqkv.Error as error:
            return error
        at = time.monotonic_ns()
        self._note("local", key, *((entry.revision, entry.value) if entry else (None, None)), at)
        return entry

    def _call(self, key: str, operation: str, argument: Any, work: Callable[[], Any]) -> bool:
        before = self._clock.last_ms
        self._note("call", key, operation, argument, before, time.monotonic_ns())
        how, result = "told", None
        try:
            result = work()
        except mqkv.KeyNotFound:
            result = KEY_NOT_FOUND
        except mqkv.NotANumber:
            result = NOT_A_NUMBER
        except mqkv.OutcomeUnknown as error:
            how, result = "unknown", repr(error)
        except (mqkv.ConnectionFailed, mqkv.WriteTimeout, mqkv.ReadTimeout) as error:
            how, result = "refused", repr(error)
        self._note(how, result, self._clock.last_ms, time.monotonic_ns())
        return how != "refused"


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    clock = Clock()
    options: dict[str, Any] = {"prefix": job.prefix, "layout": job.layout, "read_timeout": 10, "write_timeout": job.write_timeout}
    with mqkv.Store(job.url, clock=clock, **options) as store:
        if job.follow:
            with contextlib.suppress(mqkv.Error):
                store.preload(*(f"k{number}" for number in range(job.keys)))
        clients = [Client(job, job.client + thread, store, clock) for thread in range(job.threads)]
        print("ready", flush=True)
        sys.stdin.readline()
        failed: list[BaseException] = []
        threading.excepthook = lambda args: failed.append(args.exc_value or args.exc_type())
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]


# The parent


@contextlib.contextmanager
def started(jobs: Sequence[Job]) -> Iterator[list[subprocess.Popen[str]]]:
    """A process for each job, all of them started before any of them begins."""
    command = [sys.executable, str(Path(__file__))]
    processes = [
        subprocess.Popen([*command, json.dumps(asdict(job))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for job in jobs
    ]
    try:
        for process in processes:
            assert _of(process.stdout).readline() == "ready\n", "a process failed to start: see its traceback"
        for process in processes:
            _of(process.stdin).write("\n")
            _of(process.stdin).flush()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _of(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def run(jobs: Sequence[Job]) -> None:
    """Run processes to their end; one that is to die must, and no other may fail."""
    with started(jobs) as processes:
        for job, process in zip(jobs, processes, strict=True):
            code = process.wait(job.seconds + 60)
            assert code == (0 if job.dies_after is None else -signal.SIGKILL), f"a process ended with {code}: see its traceback"


class Noted(NamedTuple):
    """A call as its client noted it."""

    call: Call
    refused: bool
    after_ms: int  #: its records carry a time later than this ...
    until_ms: int  #: ... and not later than this
    seconds: float  #: how long it took


class Local(NamedTuple):
    """A read from memory, and what its client knew before."""

    client: int
    key: str
    revision: int | None
    value: Any
    at: int  #: when it had its answer
    place: int  #: how many calls its client had noted before


@dataclass
class History:
    noted: list[Noted]
    local: list[Local]

    @property
    def calls(self) -> list[Call]:
        """All that may have happened."""
        return [each.call for each in self.noted if not each.refused]


def collect(folder: Path) -> History:
    """The histories of all clients."""
    history = History([], [])
    for path in sorted(folder.glob("*.jsonl")):
        client, lines = int(path.stem), [json.loads(line) for line in path.read_text().splitlines()]
        calls = 0
        for line, next_line in zip(lines, [*lines, None][1:], strict=True):
            if line[0] == "local":
                _, key, revision, value, at = line
                history.local.append(Local(client, key, revision, value, at, calls))
            elif line[0] == "call":
                calls += 1
                _, key, operation, argument, after_ms, called = line
                how, result, until_ms, returned = next_line or ("unknown", None, (LONG_AGO + (client + 1) * STEP) * 1000, None)
                revision = result if operation == "set" and how == "told" else None
                result = None if operation == "set" or how != "told" else result
                call = Call(client, key, operation, argument, called, returned if how == "told" else None, result, revision)
                seconds = 0.0 if returned is None else (returned - called) / 1e9
                history.noted.append(Noted(call, how == "refused", after_ms, until_ms, seconds))
    return history


# The log


class Logged(NamedTuple):
    key: str
    offset: int
    message: Message


def read_log(url: str, prefix: str, layout: str, keys: Sequence[str]) -> list[Logged]:
    """All records of keys, as they stand in the streams."""
    parsed = parse_url(url)
    engine: Engine = FileEngine(parsed) if parsed.scheme == "file" else AmqpEngine(parsed)
    found: list[Logged] = []
    try:
        for key in keys if layout == "per-key" else [""]:
            with contextlib.suppress(mqkv.StreamMissing):
                tail, sink = opened(engine, queue_name(prefix, key or "default"))
                tail.close()
                for offset, message in sink.deliveries:
                    record = parse(message, key or None)
                    if record.key and record.op not in ("sync", "state"):  # anchors are nobody's call
                        found.append(Logged(record.key, offset, message))
    finally:
        engine.close()
    return found


def place(history: History, log: Sequence[Logged]) -> tuple[list[Call], list[str]]:
    """The calls with the offsets of their records, and what is wrong about who wrote what."""
    noted = sorted(history.noted, key=lambda each: each.after_ms)
    afters = [each.after_ms for each in noted]
    offsets: dict[int, int] = {}
    writers: dict[str | None, int] = {}
    problems = []
    for key, offset, message in log:
        if message.id in writers:
            continue  # a second copy: it does nothing
        stamp = parse(message, key).written_ms
        number = bisect_right(afters, (stamp or 0) - 1) - 1
        writers[message.id] = number
        by = noted[number] if number >= 0 else None
        if by is None or stamp is None or stamp > by.until_ms or by.call.key != key:
            problems.append(f"a record from nowhere: {key!r} at {offset}: {message}")
        elif by.refused:
            problems.append(f"refused, and yet in the log at {offset}: {by.call}")
        elif number in offsets:
            problems.append(f"two records of one call, at {offsets[number]} and {offset}: {by.call}")
        else:
            offsets[number] = offset
    calls = []
    for number, (call, refused, *_) in enumerate(noted):
        if call.offset is not None and call.offset != offsets.get(number):
            problems.append(f"told another revision than that of its record, {offsets.get(number)}: {call}")
        if not refused:
            calls.append(call._replace(offset=offsets.get(number)))
    return calls, problems


def local_problems(history: History, placed: Sequence[Call]) -> list[str]:
    """Reads from memory that go back, that miss a write of their own client, or that show what the log does not, or not yet."""
    versions: dict[str, list[tuple[int, Any, int]]] = defaultdict(lambda: [(-1, None, 0)])
    for call in sorted((call for call in placed if call.offset is not None), key=lambda call: call.offset or 0):
        state = versions[call.key][-1][1]
        _, after = apply(state, call.operation, call.argument)
        if after != state:
            versions[call.key].append((call.offset or 0, after, call.called))
    offsets = {(call.client, call.called): call.offset for call in placed if call.returned is not None}
    own: dict[int, list[Call]] = defaultdict(list)
    for each in history.noted:
        own[each.call.client].append(each.call)
    floors: dict[tuple[int, str], int] = defaultdict(lambda: -1)
    taken: dict[int, int] = defaultdict(int)
    problems = []
    for read in history.local:
        for call in own[read.client][taken[read.client] : read.place]:
            offset = offsets.get((call.client, call.called))
            floors[call.client, call.key] = max(floors[call.client, call.key], -1 if offset is None else offset)
        taken[read.client] = read.place
        floor = floors[read.client, read.key]
        of_key = versions[read.key]
        in_force = bisect_right(of_key, floor, key=lambda version: version[0]) - 1
        possible = [at for at, state, begun in of_key[max(in_force, 0) :] if state == read.value and begun <= read.at]
        if read.revision is not None:
            possible = [at for at in possible if at == read.revision]
        if possible:
            floors[read.client, read.key] = max(floor, possible[0])
        else:
            problems.append(f"a read from memory that does not follow {floor}: {read}")
    return problems


if __name__ == "__main__":
    main()
