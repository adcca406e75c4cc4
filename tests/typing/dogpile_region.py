"""What a user of the dogpile backend writes, which must type-check with ``mypy --strict``. Never run."""

from __future__ import annotations

from dogpile.cache import make_region

import mqkv
from mqkv.dogpile import StreamBackend, StreamInvalidation, StreamMutex, UnknownArgument


def use_a_region() -> None:
    region = make_region("reports")
    invalidation: StreamInvalidation = StreamInvalidation(region, name="reports")
    region.configure("mqkv", 300, {"url": "amqp://localhost", "distributed_lock": True}, region_invalidator=invalidation)


def use_a_backend() -> None:
    backend = StreamBackend({"url": "memory://"})
    store: mqkv.Store = backend.store
    invalidation = StreamInvalidation(store)
    soft: bool = invalidation.was_soft_invalidated() and StreamInvalidation(backend).is_invalidated(0.0)
    mutex: StreamMutex | None = backend.get_mutex("k")
    if mutex is not None and mutex.acquire(wait=soft):
        mutex.release()
    category: type[Warning] = UnknownArgument
    print(category)
    backend.close()
