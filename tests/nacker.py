"""A TCP proxy between a client and a broker that has chosen messages refused by a nack, as a broker does that can't take them.

No broker here sends nacks for a stream of its own accord. A chosen message is sent to a queue that does not exist, so it is not
written, and its confirm is turned into a nack.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

PUBLISH, ACK, NACK = (60, 40), (60, 80), (60, 120)
NACKED = struct.pack(">HH", *NACK)


class Nacker:
    """``refuse(n)`` says whether the n-th message of a connection, from 1 on, is refused."""

    def __init__(self, port: int, refuse: Callable[[int], bool]) -> None:
        self.port = port
        self.refuse = refuse
        self.published = 0
        self.refused: set[int] = set()
        self.passes: Callable[[bytes], bool] = lambda frame: True  #: whether a client is given this of its broker
        self.nacks = 0
        self.breaks: set[int] = set()  #: messages that break their channel: they go to an exchange that does not exist
        self._open: set[int] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._cut: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def address(self) -> int:
        return int(self._listener.getsockname()[1])

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection(("127.0.0.1", self.port))
                self._sockets += [client, broker]
                self.published = 0
                self._open.clear()
                for source, target, change in ((client, broker, self._from_client), (broker, client, self._from_broker)):
                    thread = threading.Thread(target=self._pump, args=(source, target, change))
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, source: socket.socket, target: socket.socket, change: Callable[[bytes], list[bytes]]) -> None:
        data = b""
        with contextlib.suppress(OSError):
            while received := source.recv(65536):
                data += received
                while len(data) >= 8:
                    if data[:4] == b"AMQP":
                        target.sendall(data[:8])
                        data = data[8:]
                        continue
                    kind, channel, length = struct.unpack_from(">BHI", data)
                    if len(data) < length + 8:
                        break
                    payload, data = data[7 : 7 + length], data[length + 8 :]
                    payloads = change(payload) if kind == 1 else [payload]
                    if change == self._from_broker:
                        payloads = [each for each in payloads if self.passes(each)]
                        self.nacks += sum(kind == 1 and each.startswith(NACKED) for each in payloads)
                    for each in payloads:
                        target.sendall(struct.pack(">BHI", kind, channel, len(each)) + each + b"\xce")
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _from_client(self, payload: bytes) -> list[bytes]:
        if struct.unpack_from(">HH", payload) == PUBLISH:
            self.published += 1
            self._open.add(self.published)
            if self.published in self.breaks:
                return [payload[:6] + b"\x04nope" + payload[7 + payload[6] :]]
            if self.refuse(self.published):
                self.refused.add(self.published)
                return [payload[:-2] + b"~\x00"]  # another name, and not mandatory
        return [payload]

    def _from_broker(self, payload: bytes) -> list[bytes]:
        if struct.unpack_from(">HH", payload) != ACK:
            return [payload]
        tag, multiple = struct.unpack_from(">QB", payload, 4)
        tags = sorted(each for each in list(self._open) if each <= tag) if multiple else [tag]
        self._open.difference_update(tags)
        return [struct.pack(">HHQB", *(NACK if each in self.refused else ACK), each, 0) for each in tags]

    def cut(self) -> None:
        """Break all connections."""
        sockets, self._sockets = self._sockets, []
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._cut += sockets

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for each in self._cut:
            each.close()


@contextlib.contextmanager
def nacker(port: int, refuse: Callable[[int], bool]) -> Iterator[Nacker]:
    proxy = Nacker(port, refuse)
    try:
        yield proxy
    finally:
        proxy.close()
