"""The first write to a log that takes longer to load than the write may take: the load is bounded by its progress, and the
write's own time begins when it can be sent."""

from __future__ import annotations

import time
from typing import Any

import pytest

import mqkv

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

RECORDS = 40_000
SHORT = 0.25  # seconds; the load takes a second or more


def test_the_first_write_does_not_pay_for_the_load(broker: Any, prefix: str) -> None:
    options: dict[str, Any] = {"prefix": prefix, "layout": "shared", "read_timeout": 5}
    with mqkv.Store(broker.url, confirm=False, write_timeout=120, **options) as writer:
        for number in range(RECORDS):
            writer.set(f"k{number % 1_000}", number)
        writer.flush(120)
        for connection, confirm in ((31, True), (32, False)):  # each with a connection and a table of its own
            url = f"{broker.url}?heartbeat={connection}"
            with mqkv.Store(url, confirm=confirm, write_timeout=SHORT, **options) as store:
                began = time.monotonic()
                for number in range(10):
                    store.set(f"new{number}", connection + number)
                assert time.monotonic() - began > SHORT, "the log was too short to show anything"
                store.flush(5)
                assert store.stats()["failed_writes"] == 0
                assert [store.get(f"new{number}", fresh=True) for number in range(10)] == [connection + n for n in range(10)]
        with mqkv.Store(f"{broker.url}?heartbeat=33", write_timeout=SHORT, **options) as store:
            assert store.incr("counter", initial=0) == 1
        writer.purge()
