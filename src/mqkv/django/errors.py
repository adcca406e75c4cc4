"""What is wrong with a cache's configuration, said when the backend is built."""

from __future__ import annotations

from django.core.cache.backends.base import InvalidCacheBackendError

import mqkv


class InvalidCacheOption(mqkv.Error, InvalidCacheBackendError):  # type: ignore[misc]
    """A cache can't be built from its entry in ``CACHES``. Also an ``ImproperlyConfigured``.

    ``setting`` names what is wrong (``LOCATION``, or an option), ``hint`` says what to do.
    """

    def __init__(self, setting: str, problem: str, hint: str) -> None:
        super().__init__(f"{setting}: {problem}. {hint}")
        self.setting = setting
        self.problem = problem
        self.hint = hint
