"""What is wrong with a cache's configuration, said when the backend is built; all of it at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from django.core.cache.backends.base import InvalidCacheBackendError

import mqkv

#: Where a user of the installed package finds the options. A hint ends with it, so that it can be copied.
PAGE = "python -m pydoc mqkv.django.options"


class Problem(NamedTuple):
    """One thing that is wrong, and what to do."""

    setting: str  #: ``LOCATION``, ``OPTIONS['name']``, ``TIMEOUT``, ...
    problem: str
    hint: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}. {self.hint}"


class InvalidCacheOption(mqkv.Error, InvalidCacheBackendError):  # type: ignore[misc]
    """A cache can't be built from its entry in ``CACHES``. Also an ``ImproperlyConfigured``.

    ``setting`` names what is wrong (``LOCATION``, or an option), ``hint`` says what to do; ``problems`` are all that were found.
    """

    def __init__(self, setting: str, problem: str, hint: str, *others: Problem) -> None:
        self.problems = (Problem(setting, problem, hint), *others)
        super().__init__("\n".join(map(str, self.problems)))
        self.setting, self.problem, self.hint = self.problems[0]


class Problems(list[Problem]):
    """What is wrong, gathered over several steps."""

    @contextmanager
    def gathered(self) -> Iterator[None]:
        try:
            yield
        except InvalidCacheOption as error:
            self.extend(each for each in error.problems if each not in self)

    def tell(self) -> None:
        """Raise what was gathered, if anything was."""
        if self:
            raise InvalidCacheOption(*self[0], *self[1:])


class InvalidTimeout(mqkv.InvalidTTL, TypeError):
    """A timeout that is no number of seconds."""

    @classmethod
    def of(cls, timeout: object) -> InvalidTimeout:
        what = {timedelta: "pass its total_seconds()", str: "pass the number"}.get(type(timeout), "pass an int or a float")
        kind = type(timeout).__name__
        return cls(f"a timeout is a number of seconds, None (for ever) or 0 (gone at once), not a {kind}: {what}")
