"""The OPTIONS of a cache, in either case::

    name                    the keyspace: caches of one name share their keys. Default: django.PROJECT.ALIAS, where PROJECT is
                            the package of ROOT_URLCONF (and a mark of the secret, if many projects have such a package)
    prefix                  stands before the name in the stream's name. Default: mqkv
    layout                  "shared" (all keys in one stream; the default) or "per-key" (a stream a key)
    MAX_ENTRIES             the oldest writes are evicted past it, in all processes; the newest value that a process was given
                            holds, math.inf takes the bound away. Default: whatever holds; nothing, unless somebody gave one
    read_timeout            seconds that a read may wait. Default: 2
    write_timeout           seconds that a write may wait. Default: 2
    SOCKET_TIMEOUT          sets both
    SOCKET_CONNECT_TIMEOUT  the URL's connect_timeout. Default: 2
    max_staleness           for how many seconds without the broker reads are still answered. Default: for ever
    confirm                 False: writes return before the broker has them. Default: True
    serializer              "pickle" (the default), "json", "msgpack"; an object, a class, or a dotted path
    signed                  False: values are not signed. Default: True
    compressor              "zlib" or "lzma"; an object, a class, or a dotted path. Default: none
    compress_over           bytes: smaller values are left as they are. Default: 1024. Also COMPRESS_MIN_LENGTH
    max_decompressed        bytes: what would grow larger is not read. Default: 64 MiB
    IGNORE_EXCEPTIONS       True: without the broker reads are misses and writes are dropped. Default: False
    LOG_IGNORED_EXCEPTIONS  False: nothing is logged of those. Default: True
    REVERSE_KEY_FUNCTION    the way back from KEY_FUNCTION, for keys()
    CULL_FREQUENCY          is taken, and has no meaning here

What says how to reach the broker stands in the URL that is LOCATION::

    amqp://user:password@one,two:5673/virtual%2Fhost?heartbeat=30&connect_timeout=2&replicas=3
    amqps://...?cafile=/etc/ca.pem&certfile=...&keyfile=...&verify=true
    file:///var/lib/shop/cache?sync=full
    memory://

An entry from one URL in the environment: ``mqkv.django.cache_url(url)``. What stands beside OPTIONS is Django's: TIMEOUT,
KEY_PREFIX, VERSION, KEY_FUNCTION.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mqkv.django.errors import PAGE, Problem, Problems


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    # Packages that read settings from the environment pass text.
    if isinstance(value, str) and value.lower() in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        return value.lower() in ("true", "1", "yes", "on")
    raise ValueError("is not True or False")


def _positive(value: Any) -> float:
    number = float(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < math.inf:
        raise ValueError("is not a positive number")
    return number


def count(value: Any, least: int = 1) -> int:
    number = int(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ValueError(f"is not a whole number of {least} or more")
    return number


def _seconds_or_none(value: Any) -> float | None:
    return None if value is None or value == "" else _positive(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("is not a str, or empty")
    return value


def _layout(value: Any) -> str:
    if value not in ("shared", "per-key"):
        raise ValueError("is not 'shared' or 'per-key'")
    return str(value)


def _given(value: Any) -> Any:
    return value


#: Every option: how its value is read. Names are taken in either case.
OPTIONS: dict[str, Callable[[Any], Any]] = {
    "name": _text,
    "prefix": _text,
    "layout": _layout,
    "read_timeout": _positive,
    "write_timeout": _positive,
    "socket_timeout": _seconds_or_none,
    "socket_connect_timeout": _seconds_or_none,
    "confirm": _boolean,
    "max_entries": lambda value: value if value is None or value == math.inf else count(value),
    "cull_frequency": lambda value: count(value, least=0),
    "max_staleness": lambda value: 0 if value in (0, "0") else _seconds_or_none(value),
    "serializer": _given,
    "compressor": _given,
    "compress_over": lambda value: count(value, least=0),
    "max_decompressed": count,
    "signed": _boolean,
    "ignore_exceptions": _boolean,
    "log_ignored_exceptions": _boolean,
    "reverse_key_function": _given,
}

#: Names that other backends have for one of ours.
ALIASES = {"compress_min_length": "compress_over"}

#: What says how to reach a broker: it stands in the URL.
_OF_THE_URL = {
    **{name: f"{name}=..." for name in ("heartbeat", "connect_timeout", "replicas", "cafile", "certfile", "keyfile", "verify")},
    "sync": "file:///folder?sync=full",
    **dict.fromkeys(("username", "user", "password"), "amqp://user:password@host/vhost"),
    **dict.fromkeys(("host", "port", "vhost", "virtual_host"), "amqp://user:password@host:port/vhost"),
}

#: OPTIONS of django-redis, of Django's own RedisCache, and of redis-py's connections beneath both, without a meaning here.
FOREIGN = frozenset(
    (
        *("client_class", "connection_factory", "connection_pool_class", "connection_pool_class_kwargs"),
        *("connection_pool_kwargs", "redis_client_class", "redis_client_kwargs", "parser_class", "pool_class"),
        *("pickle_version", "replica_read_only", "close_connection", "sentinels", "sentinel_kwargs", "db"),
        *("max_connections", "retry", "retry_on_timeout", "retry_on_error", "health_check_interval", "decode_responses"),
        *("encoding", "encoding_errors", "protocol", "client_name", "lib_name", "lib_version", "driver_info"),
        *("socket_keepalive", "socket_keepalive_options", "socket_type", "socket_read_size", "command_packer"),
        *("single_connection_client", "auto_close_connection_pool", "redis_connect_func", "credential_provider"),
        *("cache", "cache_config", "event_dispatcher"),
    )
)


class Reading(NamedTuple):
    """What the OPTIONS of an entry mean."""

    options: dict[str, Any]  #: by our names; those that can't be read are left out
    problems: Problems
    foreign: list[Problem]  #: what is another backend's, and ignored


def examine_options(params: Mapping[str, Any]) -> Reading:
    """Read all OPTIONS, and find all that is wrong with them."""
    reading = Reading({}, Problems(), [])
    raw = params.get("OPTIONS")
    if raw is None:
        raw = {}
    if not isinstance(raw, Mapping):
        reading.problems.append(Problem("OPTIONS", f"it is a {type(raw).__name__}", "Give a dict."))
        return reading
    for name, value in raw.items():
        setting, low = f"OPTIONS[{name!r}]", str(name).lower()
        low = ALIASES.get(low, low)
        if low not in OPTIONS:
            if low in FOREIGN or low.startswith("ssl"):
                hint = "Remove it." if low in FOREIGN else "Remove it: TLS is amqps:// in LOCATION, with ?cafile= and the like."
                reading.foreign.append(Problem(setting, "it is an option of a Redis cache, and ignored", hint))
            else:
                reading.problems.append(_unknown(setting, low))
        elif low in reading.options:
            reading.problems.append(Problem(setting, "it is given twice, in two spellings", "Keep one of them."))
        else:
            try:
                reading.options[low] = OPTIONS[low](value)
            except (ValueError, TypeError) as error:
                why = error if str(error).startswith("is ") else "is not a number"
                reading.problems.append(Problem(setting, f"its value {why}", f"What it takes: {PAGE}"))
    return reading


def _unknown(setting: str, low: str) -> Problem:
    if low in ("timeout", "key_prefix", "version", "key_function"):
        return Problem(setting, "it is Django's, and no option", f"Write it beside OPTIONS: {low.upper()!r}: ...")
    where = _OF_THE_URL.get(low)
    if where is not None:
        example = where if "//" in where else f"amqp://user:password@host/vhost?{where}"
        return Problem(setting, "it is a part of the URL, and no option", f"Write it into LOCATION: {example}")
    near = difflib.get_close_matches(low, OPTIONS, 1)
    return Problem(setting, "there is no such option", f"{f'Is {near[0]} meant? ' if near else ''}All that there are: {PAGE}")


def read_options(params: Mapping[str, Any]) -> dict[str, Any]:
    """The OPTIONS, by their names in lower case. :class:`InvalidCacheOption` tells all that is wrong with them."""
    reading = examine_options(params)
    reading.problems.tell()
    return reading.options
