"""Ids of operations: unique over processes, forks and machines, and cheap."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterator

_next: Iterator[int]
_prefix: str


def _renew() -> None:
    global _next, _prefix
    _prefix = secrets.token_hex(8)
    _next = itertools.count()


def new_id() -> str:
    """An id that nobody else makes: 64 random bits a process, and a counter (its ``next`` is atomic)."""
    return f"{_prefix}{next(_next):x}"


_renew()
os.register_at_fork(after_in_child=_renew)
