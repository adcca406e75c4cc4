"""Waiting in the kernel where this process's threads are greenlets (gevent, eventlet): in a native thread, or nobody would go on.

Neither library is needed: who has not patched the threads has the call made as it is. What comes of the wait is delivered by the
greenlet that waited, so that greenlets alone ever touch their locks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

#: Waits under way at once: a listener an engine, and who waits for the writers' lock.
POOL = 100


def without_holding_up(call: Callable[[], object]) -> None:
    """Make a call that may block for long."""
    if "gevent.monkey" in sys.modules and sys.modules["gevent.monkey"].is_module_patched("threading"):
        _gevent(call)
    elif "eventlet.patcher" in sys.modules and sys.modules["eventlet.patcher"].is_monkey_patched("thread"):
        _eventlet(call)
    else:
        call()


def _gevent(call: Callable[[], object]) -> None:
    import gevent

    # A pool of our own: the hub's has ten threads, and resolves names.
    hub: Any = gevent.get_hub()
    pool = getattr(hub, "_mqkv_pool", None)
    if pool is None:
        from gevent.threadpool import ThreadPool

        pool = hub._mqkv_pool = ThreadPool(POOL)
    pool.apply(call)


def _eventlet(call: Callable[[], object]) -> None:
    from eventlet import tpool

    tpool.execute(call)
