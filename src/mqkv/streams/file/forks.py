"""What a fork must find: engines without a connection of SQLite.

SQLite keeps in each process a list of the files that are open and of the locks on them. A child inherits the list and not the
locks, and would corrupt the database by its own, new connections too. So connections are closed before a fork, and opened again
at the next use.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forks(Protocol):
    """An engine, as far as forks go."""

    def before_fork(self) -> None: ...

    def after_fork_in_parent(self) -> None: ...

    def after_fork(self) -> None: ...


_engines: weakref.WeakSet[Forks] = weakref.WeakSet()
_forking: list[Forks] = []


def enlist(engine: Forks) -> None:
    """Have an engine told of forks for as long as it lives."""
    _engines.add(engine)


def _before() -> None:
    _forking[:] = _engines
    for engine in _forking:
        engine.before_fork()


def _in_parent() -> None:
    for engine in _forking:
        engine.after_fork_in_parent()
    _forking.clear()


def _in_child() -> None:
    for engine in _forking:
        engine.after_fork()
    _forking.clear()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
