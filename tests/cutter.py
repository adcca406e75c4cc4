"""A TCP proxy that cuts its connections: each after a number of bytes of its own, wherever in a frame that is.

Counted in bytes and not in seconds: a run under load is cut under load, and in the same places of the protocol however slow the
machine is. Some connections are cut within their handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from types import TracebackType
from urllib.parse import urlsplit

CHUNK = 65_536


def acknowledge_at_once(way_back: asyncio.StreamWriter) -> None:
    """As the engine itself does: LavinMQ holds a packet back until the one before was acknowledged."""
    if hasattr(socket, "TCP_QUICKACK"):
        with contextlib.suppress(OSError):
            way_back.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class Cutter:
    """A context manager; ``url`` leads through it. ``cuts`` counts."""

    def __init__(self, url: str, *, seed: int, bytes_between_cuts: int) -> None:
        self.cuts = 0
        self._port = 0
        self._target = urlsplit(url)
        self._rng = random.Random(seed)
        self._mean = bytes_between_cuts
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cutter")

    def __enter__(self) -> Cutter:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        login, at, _ = self._target.netloc.rpartition("@")
        return self._target._replace(netloc=f"{login}{at}127.0.0.1:{self._port}").geturl()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._proxy, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _proxy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        left = [self._rng.randrange(5_000) if self._rng.random() < 0.2 else int(self._rng.uniform(0.2, 1.8) * self._mean)]

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, back: asyncio.StreamWriter) -> None:
            while left[0] and (data := await source.read(CHUNK)):
                acknowledge_at_once(back)
                data = data[: left[0]]
                left[0] -= len(data)
                sink.write(data)
                await sink.drain()

        pumps: list[asyncio.Task[None]] = []
        try:
            with contextlib.suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection(self._target.hostname, self._target.port or 5672)
                writers.append(far_writer)
                pumps = [
                    asyncio.ensure_future(pump(reader, far_writer, writer)),
                    asyncio.ensure_future(pump(far_reader, writer, far_writer)),
                ]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                self.cuts += not left[0]
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for each in writers:
                each.transport.abort()
