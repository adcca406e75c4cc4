"""URLs of engines, read strictly: a mistake is an error here, not a connection to somewhere else.

pika takes ``http://x`` and an empty URL for plaintext localhost; we do not.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from mqkv.errors import InvalidURL

SCHEMES = ("amqp", "amqps", "file", "memory")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CLUSTER = re.compile(r"(?P<head>amqps?://(?:[^/?#]*@)?)(?P<hosts>[^@/?#]*)(?P<tail>.*)", re.S).fullmatch
_CONTROL = re.compile(r"[\x00-\x20\x7f]")


class URL(NamedTuple):
    """A parsed URL. Two URLs that mean the same place are equal. ``repr`` and ``str`` never hold the password."""

    scheme: str
    host: str = ""
    port: int = 0
    user: str = ""
    password: str = ""
    path: str = ""  #: the virtual host, the folder, or the name in memory
    options: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[str, int], ...] = ()  #: the further nodes of a cluster: hosts and ports

    @property
    def nodes(self) -> list[URL]:
        """The URL of each node of the cluster, in the order given."""
        return [self._replace(host=host, port=port, others=()) for host, port in ((self.host, self.port), *self.others)]

    def option(self, name: str) -> str | None:
        return dict(self.options).get(name)

    def __str__(self) -> str:
        if self.scheme == "memory":
            return f"memory://{self.path}"
        if self.scheme == "file":
            return f"file://{self.path}"
        places = ((self.host, self.port), *self.others)
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in places)
        vhost = "%2F" if self.path == "/" else self.path.replace("%", "%25").replace("/", "%2F")
        return f"{self.scheme}://{self.user}:***@{hosts}/{vhost}"

    def __repr__(self) -> str:
        return str(self)


def parse(text: str) -> URL:
    """Read a URL; :class:`InvalidURL` (never with the password in it) says what is wrong with it.

    ``amqp://user:password@one:5672,two:5672/vhost`` names the nodes of one cluster.
    """
    if not isinstance(text, str):
        raise InvalidURL(f"a URL must be a str, not {type(text).__name__}")
    cluster = _CLUSTER(text)
    if cluster is None or "," not in cluster["hosts"]:
        return _parse(text)
    nodes = [_parse(f"{cluster['head']}{host}{cluster['tail']}") for host in cluster["hosts"].split(",")]
    return nodes[0]._replace(others=tuple((node.host, node.port) for node in nodes[1:]))


def _parse(text: str) -> URL:
    scheme, colon, _ = text.partition("://")
    if not colon or scheme not in SCHEMES:
        shown = scheme if colon and re.fullmatch(r"[A-Za-z0-9+.-]{1,20}", scheme) else "none"
        raise InvalidURL(f"unknown scheme ({shown}): use one of amqp://, amqps://, file:///path, memory://")
    if _CONTROL.search(text):
        raise InvalidURL("a URL must not hold spaces, newlines or control characters: percent-encode them")
    if _BAD_PERCENT.search(text):
        raise InvalidURL("bad percent-encoding in the URL: a literal % is written %25")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidURL("the URL's host or port is malformed: expected amqp://user:password@host:port/vhost") from None
    if parts.fragment:
        raise InvalidURL("a URL must not hold '#': percent-encode it as %23")
    try:
        options = tuple(sorted(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), errors="strict")))
        path = unquote(parts.path, errors="strict")
        user = unquote(parts.username or "", errors="strict")
        password = unquote(parts.password or "", errors="strict")
    except ValueError:
        raise InvalidURL("the URL's percent-encoding is not UTF-8, or its query is not name=value&name=value") from None
    if len(dict(options)) != len(options):
        raise InvalidURL("an option stands twice in the URL's query")
    if scheme == "memory":
        return _memory(parts.netloc, path, options)
    if scheme == "file":
        return _file(parts.netloc, path, options)
    return _amqp(scheme, parts.netloc, parts.path, port, user, password, parts.hostname, parts.password, options)


def _known(options: tuple[tuple[str, str], ...], names: set[str]) -> None:
    for name, _ in options:
        if name not in names:
            raise InvalidURL(f"unknown option in the URL; known here: {', '.join(sorted(names)) or 'none'}")


def _memory(netloc: str, path: str, options: tuple[tuple[str, str], ...]) -> URL:
    _known(options, set())
    return URL("memory", path=unquote(netloc) + path)


def _file(netloc: str, path: str, options: tuple[tuple[str, str], ...]) -> URL:
    if netloc not in ("", "localhost"):
        raise InvalidURL("a file URL has three slashes before the path: file:///var/lib/app/kv")
    if not path.strip("/"):
        raise InvalidURL("a file URL must name a folder: file:///var/lib/app/kv")
    if "\x00" in path:
        raise InvalidURL("a file path must not hold NUL")
    _known(options, {"sync"})
    sync = dict(options).get("sync", "normal")
    if sync not in ("full", "normal"):
        raise InvalidURL("?sync= is full or normal")
    return URL("file", path="/" + path.strip("/"), options=(("sync", sync),))


_AMQP_OPTIONS = {"heartbeat", "connect_timeout", "cafile", "certfile", "keyfile", "verify", "replicas"}


def _amqp(
    scheme: str,
    netloc: str,
    raw_path: str,
    port: int | None,
    user: str,
    password: str,
    host: str | None,
    given_password: str | None,
    options: tuple[tuple[str, str], ...],
) -> URL:
    if not host:
        raise InvalidURL("the URL names no host: expected amqp://user:password@host:port/vhost")
    if "@" in netloc and given_password is None:
        raise InvalidURL("the URL has a user and no password: expected amqp://user:password@host:port/vhost")
    if port == 0:
        raise InvalidURL("port 0 can't be connected to")
    vhost = raw_path[1:]
    if "/" in vhost:
        raise InvalidURL("a virtual host that holds a slash is written with %2F: amqp://host/%2F")
    _known(options, _AMQP_OPTIONS)
    for name, text in options:
        if name in ("heartbeat", "connect_timeout", "replicas"):
            try:
                number = float(text)
            except ValueError:
                number = -1
            if not 0 < number < 86_400 or (name != "connect_timeout" and number != int(number)):
                raise InvalidURL(f"?{name}= must be a positive number")
        elif name == "verify" and text not in ("true", "false"):
            raise InvalidURL("?verify= is true or false")
    return URL(
        scheme,
        host=unquote(host),
        port=port or (5671 if scheme == "amqps" else 5672),
        user=user if "@" in netloc else "guest",
        password=password if "@" in netloc else "guest",
        path=unquote(vhost) or "/",
        options=options,
    )
