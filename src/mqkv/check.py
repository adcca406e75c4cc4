"""What a caller may pass, checked once at the public edge. Pure.

What comes out of it is a plain ``str``, also where a subclass was passed: not every engine takes those.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from mqkv.errors import InvalidKey, InvalidOption, InvalidTTL

#: Names over 200 bytes break RabbitMQ's stream coordinator (it adds a suffix to make a folder of them).
MAX_QUEUE_NAME = 200

#: A key of a shared stream stands in a header, and all headers must fit one frame of 128 KiB.
MAX_SHARED_KEY = 32_768

#: Keys and names that mqkv keeps for streams of its own.
RESERVED = "__mqkv_"

#: The longest ttl: a hundred years.
MAX_TTL = 100 * 366 * 86_400

_CLEAN = re.compile("[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+").fullmatch


def plain(text: str) -> str:
    """The characters of a ``str``, whatever its class makes of them."""
    return text if type(text) is str else str.__str__(text)


def key_text(key: object, what: str = "key") -> str:
    """The key, if it is one that every layout takes."""
    if not isinstance(key, str):
        raise InvalidKey(f"a {what} must be a str, not {type(key).__name__}")
    key = plain(key)
    if not key:
        raise InvalidKey(f"a {what} must not be empty")
    if _CLEAN(key) is None:
        raise InvalidKey(f"a {what} must not hold newlines, control characters or lone surrogates: {key[:80]!a}")
    if key.startswith(RESERVED):
        raise InvalidKey(f"a {what} must not begin with {RESERVED}: {key[:80]!r}")
    return key


def name_text(name: object, what: str) -> str:
    """A prefix or the name of a keyspace: what is reserved stands at the end of names, too."""
    text = key_text(name, what)
    if RESERVED in text:
        raise InvalidKey(f"a {what} must not hold {RESERVED}: {text[:80]!r}")
    return text


def shared_key(key: object) -> str:
    text = key_text(key)
    if len(text) > MAX_SHARED_KEY // 4 and len(text.encode()) > MAX_SHARED_KEY:
        raise InvalidKey(f"a key may take {MAX_SHARED_KEY} bytes of UTF-8, and this one takes {len(text.encode())}")
    return text


def shared_keys(keys: Iterable[object]) -> list[str]:
    """Many keys at once: the same rules, a fifth of the cost."""
    texts: list[Any] = list(keys)
    if not texts:
        return []
    try:
        texts = list(map(str.__str__, texts))
        joined = "".join(texts)
    except TypeError:  # not all of them are str
        joined = RESERVED
    if RESERVED in joined or not _CLEAN(joined) or not all(texts) or len(max(texts, key=len)) > MAX_SHARED_KEY // 4:
        return [shared_key(key) for key in texts]
    return texts


def queue_name(prefix: str, name: str) -> str:
    """The queue name of a key or keyspace; :class:`mqkv.InvalidKey` where no broker would take it."""
    queue = f"{prefix}.{name}"
    if len(queue) > MAX_QUEUE_NAME // 4 and len(queue.encode()) > MAX_QUEUE_NAME:
        raise InvalidKey(
            f"the queue name {queue[:60]!r}... takes {len(queue.encode())} bytes of UTF-8, and brokers take {MAX_QUEUE_NAME}: "
            "shorten the key, or use layout='shared'"
        )
    if queue.startswith(("amq.", "mqtt.")):
        raise InvalidKey(f"queue names that begin with amq. or mqtt. are the broker's own: {queue!r}: choose another prefix")
    return queue


def ttl_ms(ttl: object) -> int | None:
    """A ttl in whole milliseconds, rounded up; None for none."""
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise InvalidTTL(f"a ttl is a number of seconds or None, not {type(ttl).__name__}")
    if not 0 < ttl <= MAX_TTL:  # NaN is refused here too: it compares with nothing
        raise InvalidTTL(f"a ttl must be over 0 and at most {MAX_TTL} seconds, not {ttl!r}: to remove a key, delete it")
    return math.ceil(ttl * 1000)


def is_content_type(content_type: object) -> bool:
    """Whether every engine keeps it as it is (a broker: as a string of up to 255 bytes)."""
    if content_type is None:
        return True
    return isinstance(content_type, str) and _CLEAN(content_type) is not None and len(content_type.encode()) <= 255


def positive(name: str, value: object, *, whole: bool = False) -> None:
    """Refuse what is not a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not 0 < value < math.inf:
        raise InvalidOption(f"{name} must be a positive {'whole ' if whole else ''}number, not {value!r}")
