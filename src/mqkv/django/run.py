"""Which run of Django's system checks is under way, if any.

Django's own checks build every cache. An error would end the run there, and our checks could tell nothing; so what is wrong
with a cache is kept until they do. And where the backend is imported by that very run, ours come too late for it, unless they
join.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from django.core import checks
from django.core.checks.registry import CheckRegistry

Check = TypeVar("Check", bound=Callable[..., list[checks.CheckMessage]])

_ours: list[tuple[Any, bool]] = []


def register(*, deploy: bool = False) -> Callable[[Check], Check]:
    """Have a check run under ``Tags.caches``, in the run that is under way as well."""

    def registered(check: Check) -> Check:
        checks.register(checks.Tags.caches, deploy=deploy)(check)
        _ours.append((check, deploy))
        frame = _under_way()
        queue = None if frame is None else _queue(frame)
        if frame is not None and queue is not None:
            tags = frame.f_locals.get("tags")
            if (tags is None or checks.Tags.caches in tags) and (not deploy or frame.f_locals.get("include_deployment_checks")):
                queue.append(check)
        return check

    return registered


def will_tell() -> bool:
    """Whether a run is under way in which our checks tell, or have told, what is wrong with a cache."""
    frame = _under_way()
    queue = None if frame is None else _queue(frame)
    return queue is not None and any(check in queue for check, deploy in _ours if not deploy)


def _under_way() -> FrameType | None:
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not CheckRegistry.run_checks.__code__:
        frame = frame.f_back
    return frame


def _queue(frame: FrameType) -> list[Any] | None:
    """The checks of a run, in the order in which it makes them: Django goes through a list of its own."""
    queue = frame.f_locals.get("checks")
    return queue if isinstance(queue, list) else None
