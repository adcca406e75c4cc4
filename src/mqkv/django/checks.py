"""System checks of the caches that are mqkv's, under ``Tags.caches``.

=========  =========================================================================================
mqkv.E001  a LOCATION that no store can be at
mqkv.E002  an OPTION that does not exist, or has a value that it can't have
mqkv.E003  anything else in the entry that has a value that it can't have
mqkv.W001  pickled values that are not signed: whoever may publish to the broker can run code here
mqkv.W002  an entry has a name that nobody reads
mqkv.W003  (deploy) the user guest on a broker that is not on this machine
mqkv.W004  (deploy) amqp:// without TLS to a broker that is not on this machine
=========  =========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core import checks
from django.utils.module_loading import import_string

from mqkv.django.backend import StreamCache
from mqkv.django.config import TOP_LEVEL, read_location, read_options
from mqkv.django.errors import InvalidCacheOption

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


@checks.register(checks.Tags.caches)  # type: ignore[untyped-decorator]
def check_entries(app_configs: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Each entry can be built, and is safe."""
    found: list[checks.CheckMessage] = []
    for alias, backend, entry in _ours():
        subject = f"CACHES[{alias!r}]"
        try:
            built = backend(entry.get("LOCATION", ""), _params(entry))
            broken = built._broken
        except InvalidCacheOption as error:
            broken = error
        if broken is not None:
            kind = "E001" if broken.setting == "LOCATION" else "E002" if broken.setting.startswith("OPTIONS") else "E003"
            found.append(checks.Error(f"{subject}: {broken.setting}: {broken.problem}.", hint=broken.hint, id=f"mqkv.{kind}"))
            continue
        options = read_options(_params(entry))
        if not options.get("signed", True) and options.get("serializer", "pickle") not in ("json", "msgpack"):
            problem = "values are not signed, nor JSON or msgpack: whoever may publish to the broker can run code here."
            hint = "Remove OPTIONS['signed'], or set OPTIONS['serializer'] to 'json' or 'msgpack'."
            found.append(checks.Warning(f"{subject}: {problem}", hint=hint, id="mqkv.W001"))
        unknown = sorted(str(name) for name in _params(entry) if name not in TOP_LEVEL)
        if unknown:
            hint = "Names are spelt in capitals; what is mqkv's goes into OPTIONS."
            found.append(checks.Warning(f"{subject}: nobody reads {', '.join(unknown)}.", hint=hint, id="mqkv.W002"))
    return found


@checks.register(checks.Tags.caches, deploy=True)  # type: ignore[untyped-decorator]
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
