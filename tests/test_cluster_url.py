"""A URL that names several nodes: the first one that answers is taken, and another one when it is gone."""

from __future__ import annotations

import socket
from typing import Any

import pytest

import mqkv


def nobody() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def with_nodes(url: str, *nodes: str) -> str:
    head, at, tail = url.rpartition("@")
    host, _, vhost = tail.partition("/")
    return f"{head}{at}{','.join(host if node == 'broker' else node for node in nodes)}/{vhost}"


@pytest.mark.parametrize("nodes", [("broker", "dead"), ("dead", "broker"), ("dead", "dead", "broker")])
def test_a_node_that_answers_is_found(broker: Any, prefix: str, nodes: tuple[str, ...]) -> None:
    url = with_nodes(broker.url, *(node if node == "broker" else nobody() for node in nodes))
    with mqkv.Store(url, prefix=prefix, layout="shared", read_timeout=5) as store:
        assert store.get("k") is None
        store.set("k", 1)
        assert store.get("k", fresh=True) == 1
        store.purge()


def test_no_node_answers() -> None:
    dead = nobody(), nobody()
    with mqkv.Store(f"amqp://guest:guest@{dead[0]},{dead[1]}/%2F", layout="shared", read_timeout=2) as store:
        for _ in range(2):
            with pytest.raises(mqkv.ConnectionFailed, match=dead[1]):
                store.set("k", 1)


@pytest.mark.slow
def test_a_node_that_goes_is_replaced(own_broker: Any, broker: Any, prefix: str) -> None:
    """(Two brokers that share nothing stand in for a cluster: what counts here is which of them is spoken to.)"""
    url = with_nodes(own_broker.url, f"127.0.0.1:{own_broker.port}", f"127.0.0.1:{broker.port}")
    with mqkv.Store(url, prefix=prefix, layout="shared", read_timeout=5) as store:
        store.set("k", "first")
        own_broker.kill()
        with mqkv.Store(broker.url, prefix=prefix, layout="shared", read_timeout=5) as second:
            second.set("k", "second")
            store.set("l", 1)
            assert second.get("l", fresh=True) == 1
            second.purge()
    own_broker.start()
