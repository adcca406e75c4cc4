"""A cache's entry in ``CACHES``, read strictly: what is wrong is an error when the backend is built, not at the first request."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

import mqkv
from mqkv.django.errors import PAGE, InvalidCacheOption, Problem, Problems
from mqkv.django.options import count

#: What stands between the URLs of one LOCATION.
_BETWEEN = re.compile(r"\s*[;,]\s*(?=[A-Za-z][A-Za-z0-9+.-]*://)")
_CLUSTER = re.compile(r"(?P<head>amqps?://(?:[^@/?]*@)?)(?P<hosts>[^@/?]*)(?P<tail>.*)", re.S).fullmatch

#: What an entry may hold beside OPTIONS. Old spellings of Django's are among them.
TOP_LEVEL = {"TIMEOUT", "KEY_PREFIX", "VERSION", "KEY_FUNCTION", "REVERSE_KEY_FUNCTION", "OPTIONS"} | {
    "timeout",
    "max_entries",
    "cull_frequency",
}

#: What a project that was moved here may still name, and who does the same.
_OURS = {
    "django_redis.serializers.pickle.PickleSerializer": "pickle",
    "django_redis.serializers.json.JSONSerializer": "json",
    "django_redis.serializers.msgpack.MSGPackSerializer": "msgpack",
    "django_redis.compressors.zlib.ZlibCompressor": "zlib",
    "django_redis.compressors.gzip.GzipCompressor": "zlib",
    "django_redis.compressors.lzma.LzmaCompressor": "lzma",
}

#: Packages of URLs that templates for projects, and tutorials, make. One more renames the keyspaces of all who have it.
_MANY_HAVE = {
    *("api", "app", "backend", "conf", "config", "core", "main", "mysite"),
    *("project", "server", "settings", "site", "src", "tests", "urls", "web"),
}

#: Seconds that a call waits at most: a request of a user who waits, too.
WEB_TIMEOUT = 2.0


@dataclass(frozen=True)
class StoreConfig:
    """Whatever makes two backend objects share a store: equal configurations have one in a process."""

    url: str = field(repr=False)
    name: str
    prefix: str
    layout: str
    maker: str
    secrets: tuple[bytes, ...] = field(repr=False)
    serializer: Any
    compressor: Any
    compress_over: int
    max_decompressed: int
    logs_outages: bool
    store_options: tuple[tuple[str, Any], ...]

    @property
    def stream_prefix(self) -> str:
        """What the names of the streams begin with. Where each key has one, the keyspace's name is a part of it: two caches, or
        two projects, would have one keyspace else."""
        return f"{self.prefix}.{self.name}" if self.layout == "per-key" else self.prefix


def examine_params(params: Mapping[str, Any]) -> Problems:
    """What Django would take in silence, and replace by a default of its own."""
    problems = Problems()
    timeout = params.get("timeout", params.get("TIMEOUT", 300))
    if timeout is not None and not _is_whole(timeout):
        hint = "Give a number (of a timedelta, its total_seconds()), or None for values that never expire."
        problems.append(Problem("TIMEOUT", "it is not a number of seconds", hint))
    if not isinstance(params.get("KEY_PREFIX", ""), str):
        problems.append(Problem("KEY_PREFIX", "it is not a str", "Give a str, or leave it out."))
    if not _is_whole(params.get("VERSION", 1)) or isinstance(params.get("VERSION", 1), float):
        problems.append(Problem("VERSION", "it is not a whole number", "Give a number, or leave it out for 1."))
    if "max_entries" in params:
        try:
            count(params["max_entries"])
        except (ValueError, TypeError):
            problems.append(Problem("max_entries", "it is not a whole number of 1 or more", "Give a number."))
    for name in ("KEY_FUNCTION", "REVERSE_KEY_FUNCTION"):
        function = params.get(name)
        if function is not None and not callable(function):
            with problems.gathered():
                import_option(name, function)
    return problems


def _is_whole(value: Any) -> bool:
    try:
        int(value)
    except (ValueError, TypeError, OverflowError):
        return False
    return not isinstance(value, bool)


def import_option(setting: str, path: Any) -> Any:
    """What a dotted path names."""
    if not isinstance(path, str):
        raise InvalidCacheOption(setting, f"it is a {type(path).__name__}", "Give a dotted path, or the object itself.")
    try:
        return import_string(path)
    except ImportError as error:
        ours = _OURS.get(path)
        hint = f"Give {ours!r}: it needs no django-redis." if ours else "Give a dotted path: 'package.module.Name'."
        raise InvalidCacheOption(setting, f"{path!r} can't be imported ({error})", hint) from error


def read_location(location: Any) -> str:
    """The one URL that a LOCATION means: the URL itself, a list of the URLs of a cluster's nodes, or nothing."""
    if location is None or location == "" or location == []:
        return embedded_url()
    urls = _BETWEEN.split(location.strip()) if isinstance(location, str) else location
    if not isinstance(urls, (list, tuple)) or not all(isinstance(url, str) for url in urls):
        raise InvalidCacheOption("LOCATION", "it is not a str or a list of them", "Give a URL: amqp://user:password@host/%2F.")
    urls = [url.strip() for url in urls]
    return urls[0] if len(urls) == 1 else _merged(urls)


def _merged(urls: list[str]) -> str:
    """The nodes of one cluster, in one URL: amqp://user:password@one:5672,two:5672/vhost."""
    parts = [_CLUSTER(url) for url in urls]
    first = parts[0]
    hosts = []
    for part in parts:
        if part is None or first is None:
            raise InvalidCacheOption("LOCATION", "only amqp:// and amqps:// URLs can be several", "Give one URL.")
        if (part["head"], part["tail"]) != (first["head"], first["tail"]):
            hint = "Give URLs that differ in host and port only: they are the nodes of one cluster."
            raise InvalidCacheOption("LOCATION", "its URLs name different users, virtual hosts or options", hint)
        hosts.append(part["hosts"])
    assert first is not None
    return f"{first['head']}{','.join(hosts)}{first['tail']}"


def embedded_url() -> str:
    """A folder for this project and this user, below the system's temporary one: the same for all of the project's processes."""
    project = f"{getattr(settings, 'BASE_DIR', '')}|{os.environ.get('DJANGO_SETTINGS_MODULE', '')}"
    user = os.getuid() if hasattr(os, "getuid") else 0
    name = f"mqkv-django-{user}-{hashlib.sha256(project.encode()).hexdigest()[:12]}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and (folder.is_symlink() or folder.stat().st_uid != user):
        # Anybody may make a folder there first, and then read what we put in.
        raise InvalidCacheOption(
            "LOCATION", f"the folder {folder} is not this user's own", "Set LOCATION to file:///a/folder/of/yours."
        )
    return folder.as_uri()


def package_name() -> str:
    """The package of the project's URLs, or of its settings: the same in all of its processes, on every machine, in every
    release."""
    for named in (getattr(settings, "ROOT_URLCONF", None), os.environ.get("DJANGO_SETTINGS_MODULE")):
        path = named if isinstance(named, str) else getattr(named, "__name__", "")
        package = path.partition(".")[0]
        if package and package != "__main__":
            return package
    return "project"


def project_name(package: str) -> str:
    """A word for this project: its package, with a mark of its secret where many projects have a package of that name."""
    if package not in _MANY_HAVE:
        return package
    try:
        oldest = read_secrets()[-1]  # while a key is rotated, nothing changes
    except (ImproperlyConfigured, IndexError):  # there is none, and nothing is signed
        oldest = b""
    return f"{package}-{hashlib.sha256(b'mqkv.django.project' + oldest).hexdigest()[:8]}"


def find_aliases(backend: type, location: Any, params: Mapping[str, Any]) -> list[str]:
    """The aliases whose entry in CACHES a backend object was built from; Django does not tell it."""
    found = []
    for alias, entry in caches.settings.items():
        rest = {name: value for name, value in entry.items() if name not in ("BACKEND", "LOCATION")}
        if entry.get("LOCATION", "") != location or rest != dict(params):
            continue
        try:
            same = import_string(entry["BACKEND"]) is backend
        except ImportError:
            same = False
        if same:
            found.append(alias)
    return found


def read_secrets() -> tuple[bytes, ...]:
    """SECRET_KEY, which signs, and SECRET_KEY_FALLBACKS, which are taken still."""
    given = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    return tuple(secret if isinstance(secret, bytes) else str(secret).encode() for secret in given if secret)


def store_config(url: str, options: Mapping[str, Any], alias: str, max_entries: int | None) -> StoreConfig:
    """What the store of a cache is made from."""
    if url.startswith("amqp") and "connect_timeout=" not in url:
        connect = options.get("socket_connect_timeout") or WEB_TIMEOUT
        url += f"{'&' if '?' in url else '?'}connect_timeout={connect:g}"
    chosen: dict[str, Any] = {"max_entries": options.get("max_entries", max_entries)}
    chosen["read_timeout"] = chosen["write_timeout"] = WEB_TIMEOUT
    if options.get("socket_timeout") is not None:
        chosen["read_timeout"] = chosen["write_timeout"] = options["socket_timeout"]
    for name in ("read_timeout", "write_timeout", "confirm", "max_staleness"):
        if name in options:
            chosen[name] = options[name]
    package = package_name()
    return StoreConfig(
        url=url,
        name=options.get("name") or f"django.{project_name(package)}.{alias}",
        prefix=options.get("prefix", "mqkv"),
        layout=options.get("layout", "shared"),
        maker=f"django:{package}"[:100],
        secrets=read_secrets() if options.get("signed", True) else (),
        serializer=_hashable(options.get("serializer", "pickle")),
        compressor=_hashable(options.get("compressor")),
        compress_over=options.get("compress_over", 1024),
        max_decompressed=options.get("max_decompressed", 64 * 2**20),
        logs_outages=options.get("log_ignored_exceptions", True),
        store_options=tuple(sorted(chosen.items())),
    )


class Same:
    """An object, equal to itself only: options may be objects that can't be hashed."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return f"<{type(self.value).__name__}>"


def _hashable(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else Same(value)


def error_of(error: mqkv.Error, setting: str = "OPTIONS") -> InvalidCacheOption:
    """What the store says of an option, as an error of configuration."""
    where = "LOCATION" if isinstance(error, mqkv.InvalidURL) else setting
    hint = "Give a URL: amqp://user:password@host/vhost." if where == "LOCATION" else "Give another."
    return InvalidCacheOption(where, str(error), f"{hint} What there is: {PAGE}")
