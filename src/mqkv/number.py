"""Numbers as they stand in a body: read and written the same way by every process. Pure."""

from __future__ import annotations

import math
import re

import msgspec

from mqkv.codecs import JSON
from mqkv.state import Cell

_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
_WHOLE = re.compile(rb"-?[0-9]{1,19}").fullmatch
#: A number as JSON has it. Nothing else is decoded: no nesting, no text, no more digits than anybody means.
_JSON = re.compile(rb"[ \t\n\r]*-?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,9})?[ \t\n\r]*").fullmatch


def read(cell: Cell) -> int | float | None:
    """The number that a cell holds: JSON, or what the Ruby gem wrote as text; None if it holds anything else."""
    if cell.content_encoding is not None:
        return None
    if cell.content_type is None:
        return int(cell.body) if _WHOLE(cell.body) else None
    if cell.content_type != JSON or not _JSON(cell.body):
        return None
    try:
        value = msgspec.json.decode(cell.body)
    except msgspec.DecodeError:  # not finite, or a zero in front
        return None
    if type(value) is int:
        return value if _SMALLEST <= value <= _LARGEST else None  # a longer one cannot even be added to a float
    return value if type(value) is float else None


def render(number: int | float) -> bytes | None:
    """A number's body; None for one that takes more than 64 bits, or is not finite."""
    if isinstance(number, int):
        return b"%d" % number if _SMALLEST <= number <= _LARGEST else None
    return repr(number).encode() if math.isfinite(number) else None


def to_header(number: int | float) -> int | str:
    """A number as a header: brokers carry no floats, so those go as text."""
    return number if isinstance(number, int) else repr(number)


def from_header(value: object) -> int | float | None:
    """What ``to_header`` wrote; None for anything else."""
    if type(value) is int:
        return value if _SMALLEST <= value <= _LARGEST else None
    if type(value) is not str:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
