"""User code that must type-check under mypy --strict. It is never run."""

import mqkv


def strings() -> int:
    with mqkv.Store("memory://", prefix="app", layout="shared") as store:
        revision: int = store.set("k", "v", ttl=60)
        there: bool = store.exists("k")
        entry = store.entry("k")
        if entry is not None:
            revision += entry.revision
        return revision + there


def mapping() -> list[str]:
    with mqkv.StreamDict("memory://") as d:
        d["k"] = "v"
        return list(d)
