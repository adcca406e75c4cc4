"""Locks, as the log decides them. Pure.

A lock is asked for by a ``lock`` record, whose id names the owner from then on; ``unlock``, ``renew`` and ``break`` name that
owner. Whoever asks while it is held queues, in the order of the log. The record that grants a lock gives it its fencing token:
the record's own offset.

No clock is asked. A holder renews; a waiter that has heard nothing of the holder for the lease's whole ttl, by a clock that only
measures, breaks the lease, and names the record by which it heard the holder last. If the holder has renewed meanwhile, that
record is not its last, and the break does nothing. A holder counts its ttl from before it sends, a waiter from after it has
heard: so the holder gives up before anybody can break its lease, however wrong the clocks on the wall are.
"""

from __future__ import annotations

from collections.abc import Mapping

from mqkv.batch import of_sets, pack
from mqkv.record import Record
from mqkv.state import Lease, Lock, Outcome, State

#: Who waits for one lock, at most.
MAX_QUEUE = 10_000

_DONE, _REFUSED, _FULL = Outcome("lock"), Outcome("lock", done=False), Outcome("lock", done=False, why="too many wait")


def lock(state: State, offset: int, record: Record) -> Outcome | None:
    """Take a lock that is free; else queue, if the record says ``wait``."""
    ttl_ms, owner = record.args.get("ttl_ms"), record.id
    if type(ttl_ms) is not int or ttl_ms < 1 or owner is None or not record.key:
        return None
    held = state.locks.get(record.key)
    if held is None:
        state.locks[record.key] = Lock(Lease(owner, offset, ttl_ms, offset), {})
        return _DONE
    if record.args.get("wait") is not True:
        _witness(state, record, held)
        return _REFUSED
    if len(held.queue) >= MAX_QUEUE:
        return _FULL
    held.queue[owner] = ttl_ms
    return _REFUSED


def unlock(state: State, offset: int, record: Record) -> Outcome | None:
    """Let go of a lock that one holds, or of one's place in the queue."""
    held, owner = state.locks.get(record.key), record.args.get("owner")
    if type(owner) is not str:
        return None
    if held is not None and held.holder.owner == owner:
        _grant_next(state, offset, record.key, held)
        return _DONE
    if held is not None:
        _witness(state, record, held)
        if held.queue.pop(owner, None) is not None:
            return _DONE
    state.is_repeat(owner)  # what asked for it may be under way still, and has nobody behind it now
    return _REFUSED


def renewal(owners: Mapping[str, str], id: str) -> Record:
    """The record by which the holders of locks (name -> owner) say that they live: all that a process has, in one."""
    batch = of_sets((name, owner.encode(), None) for name, owner in owners.items())
    return Record("renew", "", pack(batch), id=id, batch=batch)


def renew(state: State, offset: int, record: Record) -> Outcome | None:
    """Holders live; those that are none any more are not among the outcome's keys."""
    if record.batch is None:
        return None
    renewed = []
    for name, owner, _ in record.batch.items():
        held = state.locks.get(name)
        if held is not None and held.holder.owner.encode("utf-8", "surrogatepass") == owner:
            state.locks[name] = held._replace(holder=held.holder._replace(renewed=offset, silent_ms=0))
            renewed.append(name)
    return Outcome("lock", done=bool(renewed), keys=renewed)


def break_lease(state: State, offset: int, record: Record) -> Outcome:
    """The holder was silent since the record at ``renewed``."""
    held = state.locks.get(record.key)
    if held is None or (held.holder.owner, held.holder.renewed) != (record.args.get("owner"), record.args.get("renewed")):
        return _REFUSED
    _grant_next(state, offset, record.key, held)
    return _DONE


def _witness(state: State, record: Record, held: Lock) -> None:
    """Somebody has heard nothing of the holder for ``silent_ms`` since the record at ``renewed``."""
    holder, silent_ms = held.holder, record.args.get("silent_ms")
    if type(silent_ms) is not int or silent_ms <= holder.silent_ms:
        return
    if (holder.owner, holder.renewed) == (record.args.get("holder"), record.args.get("renewed")):
        state.locks[record.key] = held._replace(holder=holder._replace(silent_ms=silent_ms))


def _grant_next(state: State, offset: int, name: str, held: Lock) -> None:
    if not held.queue:
        del state.locks[name]
        return
    owner = next(iter(held.queue))
    ttl_ms = held.queue.pop(owner)
    state.locks[name] = Lock(Lease(owner, offset, ttl_ms, offset), held.queue)
