"""A broker that is down, silent, or does not want us: a clear error within the connect timeout, without the password."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import mqkv

CALLS: list[Callable[[mqkv.Store], object]] = [
    lambda store: store.get("k"),
    lambda store: store.set("k", "v"),
    lambda store: store.preload("k"),
    lambda store: store.keys(),
    lambda store: store.history("k"),
    lambda store: store.delete("k"),
    lambda store: store.watch("k"),
]


def check(url: str, within: float = 3, match: str | None = None) -> None:
    for layout in ("per-key", "shared"):
        with mqkv.Store(url, layout=layout, read_timeout=1, write_timeout=1) as store:  # type: ignore[arg-type]
            for call in CALLS:
                began = time.monotonic()
                with pytest.raises(mqkv.ConnectionFailed, match=match) as caught:
                    call(store)
                assert time.monotonic() - began < within
                assert "s3cret" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
                assert isinstance(caught.value, OSError)
            assert store.peek("k") is None and store.stats()["tables"] == 0


@contextmanager
def server(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            behave(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"amqp://user:s3cret@127.0.0.1:{listener.getsockname()[1]}/%2F?connect_timeout=1"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for connection in connections:
            connection.close()


def test_a_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    check(f"amqp://user:s3cret@127.0.0.1:{port}/%2F")


def test_an_unknown_host() -> None:
    check("amqp://user:s3cret@no-such-host.invalid/%2F")


def test_a_peer_that_says_nothing() -> None:
    with server(lambda connection: None) as url:
        check(url)


def test_a_peer_that_hangs_up_in_the_handshake() -> None:
    with server(lambda connection: connection.close()) as url:
        check(url)


def test_a_peer_that_speaks_something_else() -> None:
    with server(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as url:
        check(url)


def test_a_tls_url_on_a_plain_port(broker: Any) -> None:
    check(f"amqps://user:s3cret@127.0.0.1:{broker.port}/%2F?connect_timeout=3", match="is this the TLS port")


@pytest.mark.parametrize("answer", [b"", b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_peer_that_speaks_no_tls(answer: bytes) -> None:
    def behave(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(answer)
        connection.close()

    with server(behave) as url:
        check(url.replace("amqp:", "amqps:"), match="is this the TLS port")


def test_a_login_that_is_refused(broker: Any) -> None:
    check(f"amqp://guest:s3cret@127.0.0.1:{broker.port}/%2F?connect_timeout=3", within=5)


def test_a_vhost_that_is_not_there(broker: Any) -> None:
    check(f"amqp://guest:guest@127.0.0.1:{broker.port}/nowhere?connect_timeout=3", within=5)


def test_a_classic_queue_of_that_name(broker: Any, prefix: str) -> None:
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.queue_declare(f"{prefix}.k")
    with mqkv.Store(broker.url, prefix=prefix) as store:
        for call in (lambda: store.get("k"), lambda: store.set("k", "v"), lambda: store.preload("k")):
            with pytest.raises(mqkv.NotAStream):
                call()
        store.set("other", "v")
        assert store.get("other") == "v"
        store.purge()
    channel.queue_delete(f"{prefix}.k")
    connection.close()
