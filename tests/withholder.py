"""A proxy before a broker that holds deliveries back, as one would that forgets to wake a consumer up; or confirms.

``hold`` makes it keep back every delivery of the consumers that there are. A consumer that begins later is not touched, and
what is held back never comes: who waits for it must look, and consume again. ``hold_confirms`` keeps confirms back until
``let_confirms_go``; ``cut`` ends all connections.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from urllib.parse import urlsplit

CONSUME_OK, DELIVER, ACK = (60, 21), (60, 60), (60, 80)


class Withholder:
    """A context manager; ``url`` leads through it."""

    def __init__(self, url: str) -> None:
        self.held = 0  #: deliveries
        self._confirms: list[tuple[socket.socket, bytes]] | None = None
        self._sending = threading.Lock()
        self._consumers: set[tuple[int, bytes]] = set()
        self._muted: set[tuple[int, bytes]] = set()
        self._target = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="withholder")]

    def __enter__(self) -> Withholder:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for each in (self._listener, *self._sockets):
            each.close()
        for thread in self._threads:
            thread.join(10)

    @property
    def url(self) -> str:
        login, at, _ = self._target.netloc.rpartition("@")
        return self._target._replace(netloc=f"{login}{at}127.0.0.1:{self._listener.getsockname()[1]}").geturl()

    def hold(self) -> None:
        self._muted |= self._consumers

    def hold_confirms(self) -> None:
        self._confirms = []

    def let_confirms_go(self) -> None:
        with self._sending:
            held, self._confirms = self._confirms or [], None
            for near, frame in held:
                with contextlib.suppress(OSError):
                    near.sendall(frame)

    def cut(self) -> None:
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            far = socket.create_connection((self._target.hostname, self._target.port or 5672))
            self._sockets += (near, far)
            for pump in (lambda near=near, far=far: self._up(near, far), lambda near=near, far=far: self._down(far, near)):
                self._threads.append(threading.Thread(target=pump, name="withholder"))
                self._threads[-1].start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65_536):
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)

    def _down(self, far: socket.socket, near: socket.socket) -> None:
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = b""
        muted: set[int] = set()  # channels in the midst of a delivery that is held back
        with contextlib.suppress(OSError):
            while data := far.recv(65_536):
                buffer += data
                while len(buffer) >= 7:
                    kind, channel, length = struct.unpack_from(">BHI", buffer)
                    if len(buffer) < length + 8:
                        break
                    frame, buffer = buffer[: length + 8], buffer[length + 8 :]
                    if kind == 1:
                        muted.discard(channel)
                        method = struct.unpack_from(">HH", frame, 7)
                        consumer = channel, frame[12 : 12 + frame[11]] if method in (CONSUME_OK, DELIVER) else b""
                        if method == ACK and self._confirms is not None:
                            self._confirms.append((near, frame))
                            continue
                        if method == CONSUME_OK:
                            self._consumers.add(consumer)
                        if method == DELIVER and consumer in self._muted:
                            self.held += 1
                            muted.add(channel)
                    if channel not in muted or kind == 8:
                        with self._sending:
                            near.sendall(frame)
            near.shutdown(socket.SHUT_WR)
