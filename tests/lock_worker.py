"""What the processes of ``test_lock_processes.py`` do."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mqkv


@dataclass(frozen=True)
class Place:
    """Where the lock is."""

    url: str
    prefix: str
    layout: Any
    ttl: float

    def open(self) -> mqkv.Store:
        return mqkv.Store(self.url, prefix=self.prefix, layout=self.layout, read_timeout=20, write_timeout=30)


def obey(place: Place, pipe: Connection) -> None:
    """Do with one lock what the pipe says, and send what came of it."""
    with place.open() as store:
        lock = store.lock("jobs", ttl=place.ttl)
        pipe.send("ready")
        while (order := pipe.recv()) != "end":
            try:
                if order == "acquire":
                    pipe.send(lock.token if lock.acquire(60) else None)
                elif order == "owned":
                    pipe.send(lock.owned())
                elif order == "token":
                    pipe.send(lock.token)
                else:
                    pipe.send(lock.release())
            except mqkv.Error as error:
                pipe.send(type(error).__name__)


def contend(place: Place, folder: Path, threads: int, entries: int, pipe: Connection) -> None:
    """Enter from many threads, a few times each, and write down who was inside. Sends how often a thread found another there."""
    problems: list[str] = []
    gate = threading.Barrier(threads + 1)

    def enter(store: mqkv.Store) -> None:
        gate.wait()
        try:
            for _ in range(entries):
                with store.lock("jobs", ttl=place.ttl, timeout=300) as lock:
                    witness = os.open(folder / "inside", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                    try:
                        with (folder / "tokens").open("a") as tokens:
                            tokens.write(f"{lock.token}\n")
                    finally:
                        (folder / "inside").unlink()
                        os.close(witness)
        except Exception as error:
            problems.append(repr(error))

    with place.open() as store:
        store.lock("jobs").locked()
        workers = [threading.Thread(target=enter, args=(store,)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        pipe.send("ready")
        pipe.recv()
        gate.wait()
        for worker in workers:
            worker.join()
    pipe.send(problems)


def try_once(place: Place, timeout: float, pipe: Connection) -> None:
    """Ask once, send whether it was had, and end."""
    with place.open() as store:
        pipe.send(store.lock("jobs", ttl=place.ttl, timeout=timeout).acquire())
