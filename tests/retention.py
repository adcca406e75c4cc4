"""Retention in tests: streams that lose their beginning, on every engine."""

from __future__ import annotations

from typing import Any

import pika
import pytest

import mqkv
from mqkv.streams.base import Start
from mqkv.streams.file import FileEngine, database
from mqkv.streams.memory import MemoryEngine
from mqkv.testing.tools import opened, put

RUN = 5  #: records that the file engine removes at a time, here
NOT_OURS = {"__mqkv_op__": "unheard-of"}
#: Filler that makes a broker's segments roll: those that were declared small on RabbitMQ, 8 MiB on LavinMQ.
FILLER = {"rabbitmq": (300, b"x" * 1_000), "lavinmq": (25, b"x" * 1_000_000)}


class Retention:
    """Makes streams that retention acts on, and has it act."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._url = url
        monkeypatch.setattr(database, "RUN", RUN)

    def declare(self, store: mqkv.Store, stream: str) -> None:
        """Make a stream that may lose its beginning."""
        if not self._url.startswith("amqp"):
            self._engine(store).declare(stream, 1, 5)
            return
        limits = {"x-max-length-bytes": 100_000, "x-stream-max-segment-size-bytes": 10_000}
        with pika.BlockingConnection(pika.URLParameters(self._url)) as connection:
            connection.channel().queue_declare(stream, durable=True, arguments={"x-queue-type": "stream", **limits})

    def act(self, store: mqkv.Store, stream: str) -> None:
        """Drop all that stands in a stream by now. What is left is nothing of ours."""
        engine = self._engine(store)
        if isinstance(engine, MemoryEngine):
            put(opened(engine, stream, Start.NEXT)[0], **NOT_OURS)
            engine.faults.retain(stream, 1)
        elif isinstance(engine, FileEngine):
            tail, _ = opened(engine, stream, Start.NEXT)
            for _ in range(2 * RUN):
                put(tail, **NOT_OURS)

            def trim(base: database.Database) -> None:
                found = base.find(stream)
                assert found is not None
                base.index()
                while True:
                    gone = base.trimmed(found[0])
                    base.trim(found[0], 2**60)
                    if base.trimmed(found[0]) == gone:
                        return

            engine._with(trim, 5)
        else:
            with pika.BlockingConnection(pika.URLParameters(self._url)) as connection:
                product = connection._impl.server_properties["product"].lower()  # type: ignore[attr-defined]
                count, filler = FILLER[product]
                channel = connection.channel()
                channel.confirm_delivery()
                for _ in range(count):
                    channel.basic_publish("", stream, filler, pika.BasicProperties(delivery_mode=2, headers=NOT_OURS))

    def _engine(self, store: mqkv.Store) -> Any:
        return store._open_keyspace().engine
