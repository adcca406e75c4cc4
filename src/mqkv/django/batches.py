"""Many keys in records of a size that a store takes, and what to say of a value that is too large for any."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import mqkv

logger = logging.getLogger("mqkv.django")

#: How many keys one record deletes at most.
AT_ONCE = 10_000


class Batch(dict[str, Any]):
    """Some of the values to be set, and whether they turned out to be too large for one record."""

    error: mqkv.ValueTooLarge | None = None

    def too_large(self, error: mqkv.ValueTooLarge) -> None:
        self.error = error


def batches(values: Mapping[str, Any]) -> Iterator[Batch]:
    """All values in one batch; halves of it, and so on, where the one before was too large."""
    waiting = [Batch(values)] if values else []
    while waiting:
        batch = waiting.pop()
        yield batch
        if batch.error is not None and len(batch) > 1:
            items = list(batch.items())
            middle = len(items) // 2
            waiting += [Batch(items[middle:]), Batch(items[:middle])]


def chunks(names: Iterable[str], size: int | None = None) -> Iterator[list[str]]:
    """The names, so many at a time."""
    rest = iter(names)
    while chunk := list(islice(rest, size or AT_ONCE)):
        yield chunk


def log_too_large(key: str, error: mqkv.ValueTooLarge) -> None:
    logger.warning("at=too-large key=%s reason=%s", key, error)
