"""All in which the brokers differ: RabbitMQ and LavinMQ. It does no I/O; it decides and computes.

The facts are measured. Rules:

1. Nobody else asks which broker it is.
2. An unknown broker is treated as RabbitMQ, whose ways ask for less.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import quote

#: What LavinMQ takes in the name of a queue.
_PRINTABLE_ASCII = re.compile("[ -~]+").fullmatch
_ALL_PRINTABLE_ASCII = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

#: The longest name that fits AMQP's short string.
LONGEST_NAME = 255


class Dialect(NamedTuple):
    """How one kind of broker wants to be talked to."""

    product: str
    version: str
    #: A synchronous method's answer proves that what was readable before it, on its channel, has been delivered before it.
    barrier: bool
    #: The message count of a passive declare is exact, and offsets are dense.
    counts: bool
    #: The offset of a stream's first message ever.
    first_offset: int
    #: A record is delivered before it is confirmed: before it is on a disk, and with the other nodes of a cluster.
    delivers_early: bool
    #: A second packet is held back until we have acknowledged the first (the broker leaves Nagle's algorithm on): acknowledge at
    #: once, not after the 40 ms that the kernel waits for something to send along.
    acknowledge_at_once: bool
    #: A consumer that asks for an offset is given the messages of a queue of another kind too, which would empty it: ask before.
    mixes_kinds: bool
    #: A node of a cluster answers from its own replica, which may be behind what others have confirmed.
    replicas_lag: bool
    #: A queue's name may only hold printable ASCII.
    ascii_names: bool
    #: A delivery may be forgotten until the next publish: look after so many seconds (own records, and idle tails). None: never.
    own_record_patience: float | None
    idle_look: float | None

    def queue(self, stream: str) -> str:
        """The name of the queue of a stream."""
        return ascii_name(stream) if self.ascii_names else stream


def choose(server_properties: Mapping[str, Any] | None) -> Dialect:
    """The dialect of the broker that named itself so in the handshake."""
    properties = server_properties or {}
    product, version = str(properties.get("product", "")), str(properties.get("version", ""))
    if product.lower() == "lavinmq":
        return Dialect(
            product,
            version,
            barrier=False,
            counts=True,
            first_offset=1,
            delivers_early=True,
            acknowledge_at_once=True,
            mixes_kinds=True,
            replicas_lag=False,
            ascii_names=True,
            own_record_patience=0.1,
            idle_look=1.0,
        )
    return Dialect(
        product,
        version,
        barrier=True,
        counts=False,
        first_offset=0,
        delivers_early=False,
        acknowledge_at_once=False,
        mixes_kinds=False,
        replicas_lag=True,
        ascii_names=False,
        own_record_patience=None,
        idle_look=None,
    )


def newest(first: int, count: int) -> int | None:
    """The offset of the newest of ``count`` messages from ``first`` on, where offsets are dense."""
    return first + count - 1 if count > 0 else None


def ascii_name(stream: str) -> str:
    """A name in printable ASCII: itself, if it is that and does not end with ``%``; else with what is not that as ``%XX``, and
    a ``%`` at the end. What would be too long is cut, with a digest of the whole and ``%%`` at the end. No two come out the same.
    """
    if _PRINTABLE_ASCII(stream) and not stream.endswith("%"):
        return stream
    name = quote(stream, safe=_ALL_PRINTABLE_ASCII) + "%"
    if len(name) <= LONGEST_NAME:
        return name
    digest = sha256(stream.encode()).hexdigest()
    return f"{name[: LONGEST_NAME - len(digest) - 3]}.{digest}%%"
