"""Feature flags: read as often as you like, at the speed of a dict, and fresh in every process.

python examples/feature_flags.py        (MQKV_URL=amqp://guest:guest@localhost for a broker)
"""

from __future__ import annotations

import os
import threading

import mqkv


class Flags:
    """Flags with defaults. A flag that was never set anywhere has its default."""

    def __init__(self, store: mqkv.Store, **defaults: bool) -> None:
        self._store, self._defaults = store, defaults
        store.preload(*defaults)

    def __getattr__(self, name: str) -> bool:
        return bool(self._store.get(name, self._defaults[name]))


def main() -> None:
    url = os.environ.get("MQKV_URL", "memory://")
    changed = threading.Event()

    def tell(change: mqkv.Change) -> None:
        print(f"{change.key} is now {change.value}")
        changed.set()

    with mqkv.Store(url, prefix="flags", layout="shared", name="shop") as store:
        flags = Flags(store, new_checkout=False, dark_mode=True)
        print("before:", flags.new_checkout, flags.dark_mode)
        with store.watch("*", tell):
            store.set("new_checkout", True)  # any process may do this
            changed.wait(10)
        print("after: ", flags.new_checkout, flags.dark_mode)
        store.purge()


if __name__ == "__main__":
    main()
