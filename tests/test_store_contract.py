"""The store contract on every engine, and with connections of their own where there are such."""

from __future__ import annotations

from pathlib import Path

import pytest

from mqkv.testing import OperationsContract, StoreContract


class TestMemory(StoreContract, OperationsContract):
    @pytest.fixture
    def url(self, prefix: str) -> str:
        return f"memory://{prefix}"


class TestFile(StoreContract, OperationsContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/kv"

    @pytest.fixture
    def other_url(self, url: str) -> str:
        return f"{url}?sync=full"


class TestAmqp(StoreContract, OperationsContract):
    @pytest.fixture
    def url(self, broker: object) -> str:
        return str(broker.url)  # type: ignore[attr-defined]

    @pytest.fixture
    def other_url(self, url: str) -> str:
        return f"{url}?heartbeat=31"
