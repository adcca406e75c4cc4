"""Settings of a shared keyspace: the record that its maker writes first, and what a store does that wishes for others."""

from __future__ import annotations

import logging
import math
import sys
import warnings

from mqkv.check import RESERVED
from mqkv.errors import ForeignKeyspaceWarning
from mqkv.fold import Settings
from mqkv.ids import new_id
from mqkv.layout.base import Options
from mqkv.logfmt import Log
from mqkv.record import Record, time_ms
from mqkv.streams.base import HeaderValue


def founding(options: Options) -> Record:
    """The first record of a keyspace: who makes it, and by which bound. Of several, the first in the log counts."""
    args: dict[str, HeaderValue] = {}
    if options.maker:
        args["maker"] = options.maker
    if _wish(options):
        args["max_entries"] = _wish(options) or 0
    return _record(options, args)


def change(options: Options, settings: Settings) -> Record | None:
    """What makes of a keyspace's settings those that the store was given by name; None where they are so, or none was."""
    wish = _wish(options)
    if wish is None or wish == (settings.max_entries or 0):
        return None
    return _record(options, {"change": True, "max_entries": wish})


def tell_maker(options: Options, settings: Settings, stream: str, log: Log) -> None:
    """Tell whoever opens a keyspace that another kind of user made."""
    made_by, opened_by = settings.maker, options.maker
    if not made_by or not opened_by or made_by == opened_by:
        return
    log(logging.WARNING, "maker", stream=stream, made_by=made_by, opened_by=opened_by)
    keyspace = stream.partition(f".{RESERVED}")[0]
    told = (
        f"keyspace {keyspace} was made by {made_by!r}, and is opened by {opened_by!r}: what one of them clears or evicts is gone "
        "for both. Unless that is meant, give one of them another name or prefix"
    )
    warnings.warn(told, ForeignKeyspaceWarning, stacklevel=_callers_level())


def _wish(options: Options) -> int | None:
    """The bound that was asked for; 0 for none, None where it is left to the keyspace."""
    wish = options.max_entries
    return None if wish is None else 0 if math.isinf(wish) else int(wish)


def _record(options: Options, args: dict[str, HeaderValue]) -> Record:
    return Record("settings", "", args=args, written_ms=time_ms(options.clock()), id=new_id())


def _callers_level() -> int:
    """Which line is to be shown: the first that is not ours."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "mqkv":
        level, frame = level + 1, frame.f_back
    return level
