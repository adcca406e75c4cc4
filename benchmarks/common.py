"""What benchmarks share: rounds that alternate, raw peers, fresh processes, rows and the table."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import socket
import sqlite3
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import pika

import mqkv

LAYOUTS = ("per-key", "shared")
VALUE = "v" * 100  # what is written everywhere, unless a benchmark says otherwise
FIRST = {"x-stream-offset": 0}  # not "first": that is broken on LavinMQ while a stream is empty

T = TypeVar("T")


@dataclass
class Row:
    name: str
    ours: str
    peer: str
    ratio: str
    goal: str
    ok: bool | None

    @property
    def verdict(self) -> str:
        return {True: "ok", False: "MISSED", None: ""}[self.ok]


class Bench:
    """One run: its broker, its folder, its rows."""

    def __init__(
        self, stack: contextlib.ExitStack, folder: Path, url: str | None, quick: bool, rows: list[Row], broker: str = "rabbitmq"
    ) -> None:
        self.folder, self.quick, self.rows = folder, quick, rows
        self.broker = broker
        self.node: Any = None  # the private node, if there is one
        self._stack, self._url = stack, url
        self._prefixes = 0
        self._id = uuid.uuid4().hex[:6]
        self.product = ""
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # of the last minute: other work on the machine

    @property
    def amqp(self) -> str:
        """The broker's URL; a private node is started when it is first asked for."""
        if self._url is None:
            sys.path.append(str(Path(__file__).parent.parent / "tests"))
            import broker

            print(f"starting a private {self.broker} node ...", file=sys.stderr)
            if self.broker == "lavinmq":
                broker.IN_MEMORY = self.folder / "none"  # on a disk, as a broker has it
            start = broker.private_lavinmq if self.broker == "lavinmq" else broker.private_broker
            self.node = self._stack.enter_context(start())
            self._url = self.node.url
        if not self.product:
            with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self._url))) as connection:
                properties = connection._impl.server_properties
                self.product = f"{properties['product']} {properties['version']}"
        return self._url

    @property
    def other(self) -> str:
        """The same broker by a URL that differs in a harmless option: stores of this URL have a connection of their own."""
        return f"{self.amqp}?heartbeat=31"

    def url(self, engine: str) -> str:
        if engine == "memory":
            return f"memory://bench-{self._id}"
        return f"file://{self.folder / 'mqkv'}" if engine == "file" else self.amqp

    def has(self, engine: str) -> bool:
        """Whether the engine is there at all."""
        try:
            importlib.import_module(f"mqkv.streams.{engine}")
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith("mqkv"):
                raise
            print(f"skipped: there is no {engine} engine yet", file=sys.stderr)
            return False
        return True

    def prefix(self) -> str:
        """A prefix that nothing has used."""
        self._prefixes += 1
        return f"bench-{self._id}-{self._prefixes}"

    def count(self, full: int) -> int:
        return max(full // 10, 2) if self.quick else full

    def row(self, name: str, ours: str, peer: str, ratio: float | None, goal: str, ok: bool | None) -> None:
        row = Row(name, ours, peer, "" if ratio is None else f"{ratio:.2f}", goal, ok)
        self.rows.append(row)
        shown = f" | ratio {row.ratio}" if row.ratio else ""
        print(f"{name}: {ours} | {peer}{shown} | goal: {goal} | {row.verdict}", flush=True)


@contextlib.contextmanager
def store(url: str, **options: Any) -> Iterator[mqkv.Store]:
    """A store whose streams are deleted in the end. Loading may take its time."""
    options.setdefault("read_timeout", 30.0)
    with mqkv.Store(url, **options) as opened:
        try:
            yield opened
        finally:
            opened.purge()


def acknowledge_at_once(connection: pika.BlockingConnection) -> None:
    """What mqkv does on LavinMQ, for the raw peer that is to be beaten: a delivery there waits for it."""
    if hasattr(socket, "TCP_QUICKACK"):
        connection._impl._transport._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class Raw:
    """What pika alone does: a BlockingConnection that publishes with confirms to a stream of its own."""

    def __init__(self, url: str, stream: str, declare: bool = True) -> None:
        self.stream = stream
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        if declare:
            self.channel.queue_declare(stream, durable=True, arguments={"x-queue-type": "stream"})
        self._declared = declare
        self.channel.confirm_delivery()
        self._properties = pika.BasicProperties(delivery_mode=2)

    def publish(self, body: bytes = VALUE.encode()) -> None:
        self.channel.basic_publish("", self.stream, body, self._properties, mandatory=True)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        if self._declared:
            self.channel.queue_delete(self.stream)
        self.connection.close()


def alternate(ours: Callable[[], object], peer: Callable[[], object], rounds: int, block: int) -> tuple[list[float], list[float]]:
    """Seconds of each call; ``block`` calls of the one, then of the other, and again. A first block of each is not counted."""
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for call, times in zip((ours, peer), taken, strict=True):
            for _ in range(block):
                begin = time.perf_counter()
                call()
                if number:
                    times.append(time.perf_counter() - begin)
    return taken


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


def fresh(function: Callable[..., T], *arguments: object) -> T:
    """Call a function of a module in a new process, which knows nothing yet."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def ns(seconds: float) -> str:
    return f"{seconds * 1e9:.0f} ns"


def rate(a_second: float) -> str:
    return f"{a_second:,.0f}/s"


def table(rows: Sequence[Row]) -> str:
    head = ("what", "mqkv", "peer", "ratio", "goal", "")
    lines = [head, ("---",) * len(head), *((r.name, r.ours, r.peer, r.ratio, r.goal, r.verdict) for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(bench: Bench) -> str:
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    load = f", load {bench.load:.1f} at the start and {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    parts = [
        f"{os.cpu_count()} cores ({model or platform.machine()}), {platform.system()} {platform.release()}{load}",
        f"Python {platform.python_version()}, pika {pika.__version__}, SQLite {sqlite3.sqlite_version}",
    ]
    with contextlib.suppress(ImportError):
        import diskcache

        parts[1] += f", diskcache {diskcache.__version__}"
    if bench.product:
        parts[1] += f", {bench.product} on the same machine"
    return "; ".join(parts) + "."


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
