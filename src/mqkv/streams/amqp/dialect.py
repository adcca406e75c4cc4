"""All in which the brokers differ: RabbitMQ and LavinMQ. It does no I/O; it decides and computes.

The facts are measured. Rules:

1. Nobody else asks which broker it is.
2. An unknown broker is treated as RabbitMQ, whose ways ask for less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Dialect(NamedTuple):
    """How one kind of broker wants to be talked to."""

    product: str
    version: str
    #: A synchronous method's answer proves that what was readable before it, on its channel, has been delivered before it.
    barrier: bool
    #: The message count of a passive declare is exact, and offsets are dense.
    counts: bool
    #: A delivery may be forgotten until the next publish: look after so many seconds (own records, and idle tails). None: never.
    own_record_patience: float | None
    idle_look: float | None


def choose(server_properties: Mapping[str, Any] | None) -> Dialect:
    """The dialect of the broker that named itself so in the handshake."""
    properties = server_properties or {}
    product, version = str(properties.get("product", "")), str(properties.get("version", ""))
    if product.lower() == "lavinmq":
        return Dialect(product, version, barrier=False, counts=True, own_record_patience=0.03, idle_look=1.0)
    return Dialect(product, version, barrier=True, counts=False, own_record_patience=None, idle_look=None)


def newest(first: int, count: int) -> int | None:
    """The offset of the newest of ``count`` messages from ``first`` on, where offsets are dense."""
    return first + count - 1 if count > 0 else None
