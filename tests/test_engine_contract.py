"""Every engine of ours against the contract."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqkv.streams.base import Engine
from mqkv.streams.file import FileEngine
from mqkv.streams.memory import MemoryEngine
from mqkv.testing.engine import EngineContract
from mqkv.url import parse


class TestMemory(EngineContract):
    @pytest.fixture
    def engine(self) -> Iterator[Engine]:
        engine = MemoryEngine(parse(f"memory://{uuid.uuid4().hex}"))
        yield engine
        engine.close()

    @pytest.fixture
    def another_engine(self, engine: Engine) -> Engine:
        return engine  # the data is the engine's own


class TestFile(EngineContract):
    @pytest.fixture
    def engine(self, tmp_path: Path) -> Iterator[Engine]:
        engine = FileEngine(parse(f"file://{tmp_path}/kv"))
        yield engine
        engine.close()

    @pytest.fixture
    def another_engine(self, tmp_path: Path) -> Iterator[Engine]:
        engine = FileEngine(parse(f"file://{tmp_path}/kv"))
        yield engine
        engine.close()


class TestFileSynced(TestFile):
    """The same with ``sync=full``; on one engine in two, to mix them."""

    @pytest.fixture
    def engine(self, tmp_path: Path) -> Iterator[Engine]:
        engine = FileEngine(parse(f"file://{tmp_path}/kv?sync=full"))
        yield engine
        engine.close()


class TestAmqp(EngineContract):
    @pytest.fixture
    def engine(self, broker) -> Iterator[Engine]:  # type: ignore[no-untyped-def]
        from mqkv.streams.amqp import AmqpEngine

        engine = AmqpEngine(parse(broker.url))
        yield engine
        engine.close()

    @pytest.fixture
    def another_engine(self, broker) -> Iterator[Engine]:  # type: ignore[no-untyped-def]
        from mqkv.streams.amqp import AmqpEngine

        engine = AmqpEngine(parse(broker.url))
        yield engine
        engine.close()
