"""The ``arguments`` of a region, read once and strictly: a wrong value is an error when the backend is built. Pure.

Names are those of dogpile's redis backend where they mean the same, and those of :class:`mqkv.Store` for the rest.
"""

from __future__ import annotations

import difflib
import logging
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mqkv.errors import InvalidOption

#: For how many seconds a holder of the creation lock may be silent before others take it.
LOCK_TIMEOUT = 30.0

#: Seconds that a call may take in all, unless told otherwise: a user may be waiting for the page.
PATIENCE = 2.0

#: The logger of those who give none.
LOGGER = "mqkv.dogpile"

_STORE = {"prefix", "name", "layout", "read_timeout", "write_timeout", "max_entries", "max_staleness"}
_OWN = {
    *("url", "confirm", "ignore_exceptions", "logger", "secret", "key_mangler", "mqkv_expiration_time", "redis_expiration_time"),
    *("distributed_lock", "lock_timeout", "lock_blocking", "lock_blocking_timeout", "lock_prefix"),
}
#: Arguments of the redis backend that say how to do what is done otherwise here: waiters are woken, and any thread may release.
_IDLE = {"lock_sleep", "thread_local_lock"}
_LOCK_PREFIX = re.compile(r"[\w\-.:]{2,10}", re.ASCII)
_LONGEST = 100 * 365 * 86_400


class UnknownArgument(UserWarning):
    """An argument that the backend does not know. dogpile's contract is that it is ignored; a misspelled one should be seen."""


class Options(NamedTuple):
    """What the arguments of a region say."""

    url: str
    store: dict[str, Any]  #: options of :class:`mqkv.Store`
    logger: logging.Logger
    secret: bytes | None
    ttl: float | None  #: seconds that a value is kept; None: for good
    key_mangler: Callable[[str], str] | None
    distributed_lock: bool
    lock_ttl: float
    lock_wait: float | None  #: seconds that somebody without a value waits for a creator; None: as long as it takes
    lock_prefix: str
    ignore_exceptions: bool  #: whether to create values without the broker while it is away
    max_staleness: float | None


def read(arguments: Mapping[str, Any]) -> Options:
    """Check the arguments; :class:`mqkv.InvalidOption` says what is wrong with them."""
    unknown = sorted(str(name) for name in arguments if name not in _STORE | _OWN | _IDLE)
    if unknown:
        warnings.warn(_about(unknown), UnknownArgument, stacklevel=4)
    given = {"layout": "shared", "name": "dogpile", "read_timeout": PATIENCE, "write_timeout": PATIENCE, **arguments}
    if given.get("url") is None:
        raise InvalidOption("the mqkv backend needs a url: arguments={'url': 'amqp://user:password@host/vhost'}")
    store = {name: given[name] for name in _STORE & given.keys()}
    store["confirm"] = _flag(given, "confirm", True)
    store["logger"] = logger = _logger(given.get("logger"))
    return Options(
        url=given["url"],
        store=store,
        logger=logger,
        secret=_secret(given.get("secret")),
        ttl=_ttl(given),
        key_mangler=_key_mangler(given.get("key_mangler")),
        distributed_lock=_flag(given, "distributed_lock", False),
        lock_ttl=_seconds(given, "lock_timeout") or LOCK_TIMEOUT,
        lock_wait=_lock_wait(given),
        lock_prefix=_lock_prefix(given.get("lock_prefix")),
        ignore_exceptions=_flag(given, "ignore_exceptions", True),
        max_staleness=given.get("max_staleness"),
    )


def _about(unknown: list[str]) -> str:
    told = []
    for name in unknown:
        near = difflib.get_close_matches(name, _STORE | _OWN, 1)
        told.append(f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name))
    return f"the mqkv backend ignores arguments that it does not know: {', '.join(told)}"


def _flag(given: Mapping[str, Any], name: str, default: bool) -> bool:
    value = given.get(name, default)
    # dogpile's reader of configuration files makes a number of "1" and "0".
    if not isinstance(value, int) or value not in (0, 1):
        raise InvalidOption(f"{name} is True or False, not {value!r}")
    return bool(value)


def _seconds(given: Mapping[str, Any], name: str, *, zero: bool = False) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _LONGEST or not (value or zero):
        raise InvalidOption(f"{name} is a {'' if zero else 'positive '}number of seconds or None, not {value!r}")
    return float(value)


def _ttl(given: Mapping[str, Any]) -> float | None:
    own, redis = (_seconds(given, f"{whose}_expiration_time", zero=True) for whose in ("mqkv", "redis"))
    if own is not None and redis is not None and own != redis:
        raise InvalidOption("mqkv_expiration_time and redis_expiration_time mean the same here, and were given different values")
    return (redis if own is None else own) or None


def _lock_wait(given: Mapping[str, Any]) -> float | None:
    limit = _seconds(given, "lock_blocking_timeout", zero=True)
    return limit if _flag(given, "lock_blocking", True) else 0.0


def _lock_prefix(value: object) -> str:
    if value is None:
        return "_lock"
    if not isinstance(value, str) or not _LOCK_PREFIX.fullmatch(value):
        raise InvalidOption(f"lock_prefix is 2 to 10 letters, digits or any of _-.: and not {value!r}")
    return value


def _key_mangler(value: Any) -> Callable[[str], str] | None:
    if value is not None and not callable(value):
        raise InvalidOption(f"key_mangler is a function from a key to a key, not {type(value).__name__}")
    mangler: Callable[[str], str] | None = value
    return mangler


def _logger(value: object) -> logging.Logger:
    if value is None or isinstance(value, str):
        return logging.getLogger(value or LOGGER)
    if isinstance(value, logging.Logger):
        return value
    raise InvalidOption(f"logger is a logging.Logger or the name of one, not {type(value).__name__}")


def _secret(value: object) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, (str, bytes)):
        # The value stays out of the message: it may be the secret, of which a configuration file's reader made a number.
        raise InvalidOption(
            f"secret is a str or bytes, not {type(value).__name__} (dogpile makes numbers of digits in a configuration file: "
            "have a letter in it)"
        )
    if not value:
        raise InvalidOption("secret is empty: leave it out, or give one that nobody can guess")
    return value if isinstance(value, bytes) else value.encode()
