"""Live configuration: settings that change in every process at once, without a restart.

In one terminal    python examples/live_config.py watch
in another         python examples/live_config.py set log_level DEBUG

Both use a folder of this machine; MQKV_URL=amqp://guest:guest@localhost puts the same on a broker, for all machines.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import mqkv

URL = os.environ.get("MQKV_URL", f"file://{Path(tempfile.gettempdir()) / 'mqkv-live-config'}")


def watch(store: mqkv.Store) -> None:
    # "last" tells what is there first, then each change: nothing is missed in between.
    with store.watch("*", start="last") as changes:
        for change in changes:
            if change.kind == "reset":
                print("changes were missed; all settings now:", dict(store.items()), flush=True)
            else:
                print(f"{change.key} = {change.value!r}" if change.kind == "set" else f"{change.key} is gone", flush=True)


def main(arguments: list[str]) -> None:
    with mqkv.Store(URL, prefix="live-config") as store:
        match arguments:
            case ["watch"]:
                watch(store)
            case ["set", name, value]:
                print("revision", store.set(name, value))
            case ["delete", name]:
                print("deleted" if store.delete(name) else "was not there")
            case _:
                sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except mqkv.Error as error:
        sys.exit(str(error))
