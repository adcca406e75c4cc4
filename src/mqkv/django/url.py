"""A cache's entry in ``CACHES`` from one URL, as it stands in an environment variable."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode

from mqkv.django.errors import InvalidCacheOption
from mqkv.django.options import ALIASES, OPTIONS, read_options

_TOP = {"timeout": "TIMEOUT", "key_prefix": "KEY_PREFIX", "version": "VERSION", "key_function": "KEY_FUNCTION"}


def cache_url(url: str) -> dict[str, Any]:
    """``CACHES = {"default": mqkv.django.cache_url(os.environ["CACHE_URL"])}``.

    ``amqp://user:password@host/%2F?timeout=60&key_prefix=shop&layout=per-key``: what the query says of the cache (``timeout``,
    ``key_prefix``, ``version``, ``key_function``, and all OPTIONS) goes to its place, what it says of the connection stays. The
    rest of the URL is left as it is. ``timeout=none`` is for values that never expire.
    """
    head, _, query = url.partition("?")
    entry: dict[str, Any] = {"BACKEND": "mqkv.django.StreamCache"}
    options: dict[str, Any] = {}
    kept: list[tuple[str, str]] = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        low = name.lower()
        if low in _TOP:
            entry[_TOP[low]] = _read(low, value)
        elif ALIASES.get(low, low) in OPTIONS:
            options[low] = value
        else:
            kept.append((name, value))
    if options:
        entry["OPTIONS"] = read_options({"OPTIONS": options})
    return {**entry, "LOCATION": f"{head}?{urlencode(kept)}" if kept else head}


def _read(name: str, value: str) -> Any:
    if name == "timeout" and value.lower() == "none":
        return None
    if name in ("timeout", "version"):
        try:
            return int(value)
        except ValueError:
            raise InvalidCacheOption(name, "it is not a whole number", "Write timeout=60, or timeout=none.") from None
    return value
