"""Globs as Redis reads them, in the words of ours (``fnmatch``'s). Pure."""

from __future__ import annotations

import glob

#: What no character is among.
_NONE = "[!\0-\U0010ffff]"

#: What means something in a class of ours; a range that ends in one is made of what is between, and that one by itself.
_SPECIAL = "]!^[\\-&~|"


def of_redis(pattern: str) -> str:
    """A backslash takes what follows as it is, in a class too; ``[^a]`` is any but ``a``, while ``[!a]`` is one of the two."""
    ours, at = [], 0
    while at < len(pattern):
        char = pattern[at]
        if char == "[":
            piece, at = _class(pattern, at + 1)
            ours.append(piece)
            continue
        if char == "\\" and at + 1 < len(pattern):
            at += 1
            char = glob.escape(pattern[at])
        ours.append(char)
        at += 1
    return "".join(ours)


def _class(pattern: str, at: int) -> tuple[str, int]:
    """The class whose inside begins at ``at``, and where it ends. As in Redis, one that nothing closes ends with the pattern, and
    a range may be written from its end."""
    none = pattern[at : at + 1] == "^"
    at += none
    alone, ranges, end = "", "", len(pattern)
    while at < end and pattern[at] != "]":
        if pattern[at] == "\\" and at + 1 < end:
            alone += pattern[at + 1]
            at += 2
        elif at + 2 < end and pattern[at + 1] == "-":
            first, last = sorted((pattern[at], pattern[at + 2]))
            while first < last and first in _SPECIAL:
                alone, first = alone + first, chr(ord(first) + 1)
            while first < last and last in _SPECIAL:
                alone, last = alone + last, chr(ord(last) - 1)
            if first == last:
                alone += first
            else:
                ranges += f"{first}-{last}"
            at += 3
        else:
            alone += pattern[at]
            at += 1
    return _ours(dict.fromkeys(alone), ranges, none), min(at + 1, end)


def _ours(alone: dict[str, None], ranges: str, none: bool) -> str:
    if not alone and not ranges:
        return "?" if none else _NONE
    if len(alone) == 1 and not ranges and not none:
        return glob.escape(next(iter(alone)))
    # In ours a bracket is one of several if it comes first, a hyphen if last, an exclamation mark if it does not come first.
    plain = "".join(char for char in alone if char not in "]-!")
    first, mark, last = ("]" if "]" in alone else ""), ("!" if "!" in alone else ""), ("-" if "-" in alone else "")
    inside = first + ranges + plain + mark + last
    if inside == "!-":
        inside = "-!"
    return f"[{'!' if none else ''}{inside}]"
