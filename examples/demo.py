"""The demonstration behind ``scripts/demo``: two processes and one store, in some twenty lines of output.

python examples/demo.py            on the embedded engine, in a temporary folder that is removed at the end
python examples/demo.py amqp://..  on a broker; every queue it made there is deleted at the end
"""

from __future__ import annotations

import contextlib
import multiprocessing
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from rich.console import Console
from rich.markup import escape

import mqkv

USAGE = "usage: scripts/demo [URL]      URL: amqp://user:password@host/vhost, amqps://..., or file:///folder"
PATIENCE = 30  # seconds that one process waits for the other before it gives up
ROUNDS = 200  # sets whose latency is measured

console = Console(highlight=False)


class Trouble(Exception):
    """Something that is told in one sentence."""


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        asked = arguments[0] in ("-h", "--help")
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        with place(arguments) as url:
            demonstrate(url)
    except (mqkv.Error, Trouble) as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def complain(sentence: str) -> None:
    sentence = sentence[:1].upper() + sentence[1:]
    Console(stderr=True, highlight=False).print(f"[red]{escape(sentence)}[/]", soft_wrap=True)


@contextlib.contextmanager
def place(arguments: list[str]) -> Iterator[str]:
    """The URL to work on: the one that was given, or a temporary folder."""
    if not arguments:
        with tempfile.TemporaryDirectory(prefix="mqkv-demo-") as folder:
            yield f"file://{folder}/kv"
        return
    if arguments[0].startswith("memory:"):
        raise Trouble("memory:// belongs to one process, and this demo has two: give an amqp:// or file:// URL, or none.")
    yield arguments[0]


def demonstrate(url: str) -> None:
    prefix = f"mqkv-demo-{secrets.token_hex(4)}"
    with (
        mqkv.Store(url, prefix=prefix, read_timeout=5) as store,
        mqkv.StreamDict(url, prefix=f"{prefix}-dict", read_timeout=5) as d,
    ):
        store.get("anything")  # connects, and fails here if there is nobody to talk to
        console.print(f"\n[bold]mqkv {mqkv.__version__}[/]  {escape(without_password(store))}\n")
        try:
            with worker(url, prefix) as there:
                show_watch(store, there)
            show_ttl(store)
            show_history(store)
            show_preload(store)
            show_keys(store)
            show_dict(d)
        finally:
            store.purge()
            d.store.purge()
    console.print("\n[dim]Done; everything that was written is deleted.[/]")


# The second process


@contextlib.contextmanager
def worker(url: str, prefix: str) -> Iterator[Connection]:
    """A process of its own that watches; the URL goes through a pipe, not through its command line."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=follow, args=(url, prefix, there), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()  # the worker reads the end of the pipe, and goes
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()


def follow(url: str, prefix: str, pipe: Connection) -> None:
    """What the second process does: tell each change, and when it saw it."""

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the first process, and that ends this one

    def seen(change: mqkv.Change) -> None:
        now = time.monotonic_ns()  # one clock for all processes of a machine
        with contextlib.suppress(OSError):  # the first process has what it wants and has gone
            pipe.send((change.key, change.value, change.revision, now))

    try:
        with mqkv.Store(url, prefix=prefix, read_timeout=5) as store, store.watch("config:theme", seen):
            pipe.send("ready")
            with contextlib.suppress(EOFError, OSError):
                pipe.recv()
    except mqkv.Error as error:
        with contextlib.suppress(OSError):
            pipe.send(error)


def receive(there: Connection) -> Any:
    try:
        if not there.poll(PATIENCE):
            raise Trouble(f"The second process saw nothing for {PATIENCE} seconds.")
        message = there.recv()
    except EOFError:
        raise Trouble("The second process ended early.") from None
    if isinstance(message, mqkv.Error):
        raise message
    return message


# What is shown


def show_watch(store: mqkv.Store, there: Connection) -> None:
    receive(there)
    for value in ("light", {"mode": "dark", "contrast": 7}):
        begun = time.monotonic_ns()
        revision = store.set("config:theme", value)
        took = (time.monotonic_ns() - begun) / 1e6
        key, seen, at, when = receive(there)
        say("this process", f'set("config:theme", {value!r})', f"revision {revision}, {took:.2f} ms")
        say("other process", f"a watch saw {key} = {seen!r}", f"revision {at}, {(when - begun) / 1e6:.2f} ms after the call")
    latencies = []
    for number in range(ROUNDS):
        begun = time.monotonic_ns()
        store.set("config:theme", number)
        latencies.append((receive(there)[3] - begun) / 1e6)
    cuts = statistics.quantiles(latencies, n=100)
    say("both", f"{ROUNDS} more sets, each seen there", f"p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms")


def show_ttl(store: mqkv.Store) -> None:
    store.set("session", "abc123", ttl=1)
    say("ttl", 'set("session", "abc123", ttl=1); get("session")', repr(store.get("session")))
    say("", 'ttl("session")', f"{store.ttl('session') or 0:.2f} s")
    time.sleep(1.05)
    say("", 'a second later: get("session")', repr(store.get("session")))


def show_history(store: mqkv.Store) -> None:
    for value in ("one", "two", "three"):
        store.set("counter", value)
    say("history", 'history("counter", limit=2)', repr(store.history("counter", limit=2)))


def show_preload(store: mqkv.Store) -> None:
    store.set("user:1", "Alice")
    say("preload", 'get("user:1"), read from its stream each time', f"{rate(store, 50):,.0f} reads/s")
    begun = time.perf_counter()
    store.preload("user:1")
    say("", 'preload("user:1")', f"{(time.perf_counter() - begun) * 1000:.1f} ms")
    say("", 'get("user:1"), now from memory, kept fresh', f"{rate(store, 50_000):,.0f} reads/s")


def rate(store: mqkv.Store, count: int, seconds: float = 0.3) -> float:
    """Reads a second, over at least ``seconds``."""
    get: Callable[[str], Any] = store.get
    done, begun = 0, time.perf_counter()
    while (took := time.perf_counter() - begun) < seconds:
        for _ in range(count):
            get("user:1")
        done += count
    return done / took


def show_keys(store: mqkv.Store) -> None:
    say("keys", "sorted(store.keys())", repr(sorted(store.keys())))
    say("", 'delete("counter"); len(store), "counter" in store', f"{store.delete('counter')}; {len(store)}, {'counter' in store}")


def show_dict(d: mqkv.StreamDict) -> None:
    d.update({"a": 1, "b": [2, 3]})
    del d["a"]
    say("dict", 'd = mqkv.StreamDict(url); d["b"] = [2, 3]; dict(d)', repr(dict(d)))


def say(who: str, what: str, result: str) -> None:
    console.print(f"  [cyan]{who:<14}[/] {escape(what):<58} [green]{escape(result)}[/]", soft_wrap=True)


def without_password(store: mqkv.Store) -> str:
    return repr(store).split()[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
