"""Globs as Redis reads them, in the words of ours (``fnmatch``'s). Pure."""

from __future__ import annotations

import glob
import re

_PIECE = re.compile(r"\\(?P<plain>.)|\[(?P<none>\^?)(?P<among>(?:\\.|[^\]\\])+)\]|(?P<other>.)", re.S)


def of_redis(pattern: str) -> str:
    """``[^a]`` is any but ``a`` (``[!a]`` is, too), and a backslash takes what follows as it is."""
    return "".join(map(_piece, _PIECE.finditer(pattern)))


def _piece(found: re.Match[str]) -> str:
    if found["plain"] is not None:
        return glob.escape(found["plain"])
    if found["among"] is not None:
        # In ours a bracket is one of several if it comes first.
        among = re.sub(r"\\(.)", r"\1", found["among"], flags=re.S)
        first = "]" if "]" in among else ""
        return f"[{'!' if found['none'] else ''}{first}{among.replace(']', '')}]"
    return found["other"]
