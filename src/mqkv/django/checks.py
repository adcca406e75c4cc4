"""System checks of the caches that are mqkv's, under ``Tags.caches``. They run wherever the backend is named in CACHES.

=========  =========================================================================================
mqkv.E001  a LOCATION that no store can be at
mqkv.E002  an OPTION that does not exist, or has a value that it can't have
mqkv.E003  anything else in the entry that has a value that it can't have
mqkv.W001  pickled values that are not signed: whoever may publish to the broker can run code here
mqkv.W002  an entry has a name that nobody reads
mqkv.W003  (deploy) the user guest on a broker that is not on this machine
mqkv.W004  (deploy) amqp:// without TLS to a broker that is not on this machine
mqkv.W005  an OPTION of a Redis cache, without a meaning here
mqkv.W006  two caches in one keyspace, one of which clears what the other keeps
mqkv.W007  a setting of django-redis that nobody reads
=========  =========================================================================================
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core import checks
from django.utils.module_loading import import_string

from mqkv.django.backend import StreamCache
from mqkv.django.config import TOP_LEVEL, read_location, store_config
from mqkv.django.errors import InvalidCacheOption, Problem
from mqkv.django.options import examine_options
from mqkv.django.run import register

#: Settings of django-redis, and what takes their place.
_OF_DJANGO_REDIS = {
    "DJANGO_REDIS_IGNORE_EXCEPTIONS": "Set OPTIONS['IGNORE_EXCEPTIONS'] of each cache, and remove it.",
    "DJANGO_REDIS_LOG_IGNORED_EXCEPTIONS": "Set OPTIONS['LOG_IGNORED_EXCEPTIONS'] of each cache, and remove it.",
    "DJANGO_REDIS_LOGGER": "Remove it: the logger is 'mqkv.django'.",
    "DJANGO_REDIS_SCAN_ITERSIZE": "Remove it.",
    "DJANGO_REDIS_CONNECTION_FACTORY": "Remove it.",
    "DJANGO_REDIS_CLOSE_CONNECTION": "Remove it.",
}

_HERE = {"localhost", "127.0.0.1", "::1"}


def _ours() -> Iterator[tuple[str, type[StreamCache], Mapping[str, Any]]]:
    for alias, entry in settings.CACHES.items():
        try:
            backend = import_string(entry.get("BACKEND", ""))
        except ImportError:
            continue  # Django tells of it
        if isinstance(backend, type) and issubclass(backend, StreamCache):
            yield alias, backend, entry


def _params(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("BACKEND", "LOCATION")}


@register()
def check_entries(app_configs: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Each entry can be built, and is safe."""
    found: list[checks.CheckMessage] = []
    for alias, backend, entry in _ours():
        params = _params(entry)
        for each in _problems(backend, entry.get("LOCATION", ""), params):
            number = "E001" if each.setting == "LOCATION" else "E002" if each.setting.startswith("OPTIONS") else "E003"
            text = f"CACHES[{alias!r}]: {each.setting}: {each.problem}."
            found.append(checks.Error(text, hint=each.hint, id=f"mqkv.{number}"))
        reading = examine_options(params)
        options = reading.options
        if not options.get("signed", True) and options.get("serializer", "pickle") not in ("json", "msgpack"):
            problem = "values are not signed, nor JSON or msgpack: whoever may publish to the broker can run code here."
            hint = "Remove OPTIONS['signed'], or set OPTIONS['serializer'] to 'json' or 'msgpack'."
            found.append(_warning(alias, "W001", problem, hint))
        unknown = sorted(str(name) for name in params if name not in TOP_LEVEL)
        if unknown:
            hint = "Names are spelt in capitals; what is mqkv's goes into OPTIONS."
            found.append(_warning(alias, "W002", f"nobody reads {', '.join(unknown)}.", hint))
        for each in reading.foreign:
            found.append(_warning(alias, "W005", f"{each.setting}: {each.problem}.", each.hint))
    return found


def _problems(backend: type[StreamCache], location: Any, params: dict[str, Any]) -> Sequence[Problem]:
    try:
        broken = backend(location, params)._broken
    except InvalidCacheOption as error:
        broken = error
    return () if broken is None else broken.problems


@register()
def check_keyspaces(app_configs: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """No cache clears what another keeps."""
    found: list[checks.CheckMessage] = []
    caches: list[tuple[str, Hashable, str]] = []
    for alias, _, entry in _ours():
        params = _params(entry)
        options = examine_options(params).options
        try:
            config = store_config(read_location(entry.get("LOCATION", "")), options, alias, None)
        except InvalidCacheOption:
            continue  # told of already
        where = (config.url, config.prefix, config.name, config.layout)
        # With a KEY_FUNCTION clear() is of the whole keyspace, and keys may look like anything.
        own = f"{params.get('KEY_PREFIX', '')}:" if params.get("KEY_FUNCTION") is None else ""
        for other, there, theirs in caches:
            if there == where and (own.startswith(theirs) or theirs.startswith(own)):
                problem = f"it is in one keyspace with CACHES[{other!r}], and clear() of one removes keys of the other."
                hint = "Give each a KEY_PREFIX, or an OPTIONS['name'], of its own."
                found.append(_warning(alias, "W006", problem, hint))
        caches.append((alias, where, own))
    return found


@register()
def check_settings(app_configs: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """No setting of django-redis is left that somebody counts on."""
    if not any(_ours()) or any("django_redis" in str(entry.get("BACKEND", "")) for entry in settings.CACHES.values()):
        return []
    return [
        checks.Warning(f"settings.{name}: it is django-redis's, and nobody reads it.", hint=hint, id="mqkv.W007")
        for name, hint in _OF_DJANGO_REDIS.items()
        if hasattr(settings, name)
    ]


@register(deploy=True)
def check_brokers(app_configs: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Brokers on other machines are not spoken to in the clear, nor as guest."""
    found: list[checks.CheckMessage] = []
    for alias, _, entry in _ours():
        try:
            # A cluster's nodes stand in one URL; users and schemes are those of the first.
            url = read_location(entry.get("LOCATION", ""))
            scheme, _, rest = url.partition("://")
            parts = [urlsplit(f"//{host}") for host in rest.partition("/")[0].split("?")[0].rpartition("@")[2].split(",")]
            user = urlsplit(url).username
            hosts = [part.hostname or "" for part in parts]
        except (InvalidCacheOption, ValueError):
            continue
        if not scheme.startswith("amqp") or all(host in _HERE for host in hosts):
            continue
        if user in (None, "guest"):
            hint = "Make a user for this project, with a password."
            found.append(_warning(alias, "W003", "the user is guest, on a broker that is not on this machine.", hint))
        if scheme == "amqp":
            hint = "Use amqps://, or a network that nobody else is in."
            found.append(_warning(alias, "W004", "values and the password travel in the clear.", hint))
    return found


def _warning(alias: str, number: str, problem: str, hint: str) -> checks.CheckMessage:
    return checks.Warning(f"CACHES[{alias!r}]: {problem}", hint=hint, id=f"mqkv.{number}")
