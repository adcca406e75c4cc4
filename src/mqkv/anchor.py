"""Anchors: records of one key's stream that say what the key was after an earlier record. Pure.

They change nothing. Who begins to read in the middle of a stream, since its beginning is gone, learns from an anchor what it
could not know: it has read all records since the one that the anchor names, takes the state that the anchor tells for the one
after that, and folds what it has read since.
"""

from __future__ import annotations

from typing import NamedTuple

from mqkv.record import Record
from mqkv.state import Cell
from mqkv.streams.base import HeaderValue


class Anchor(NamedTuple):
    """What a key was after the record at an offset."""

    after: int
    cell: Cell | None  #: None: it had no value


def anchor(key: str, told: Anchor, written_ms: int, id: str) -> Record:
    """The record of an anchor."""
    after, cell = told
    args: dict[str, HeaderValue] = {"after": after}
    if cell is None:
        return Record("state", key, written_ms=written_ms, id=id, args=args)
    args["revision"] = cell.revision
    if cell.written_ms is not None:
        args["written_ms"] = cell.written_ms
    body, content_type, content_encoding, _, expires_ms, *_ = cell
    return Record("state", key, body, content_type, content_encoding, expires_ms, written_ms, id, args=args)


def told_by(record: Record) -> Anchor | None:
    """What the record of an anchor tells; None for a malformed one."""
    get = record.args.get
    after, revision, written_ms = get("after"), get("revision"), get("written_ms")
    if type(after) is not int or after < 0:
        return None
    if revision is None:
        return Anchor(after, None)
    if type(revision) is not int or not 0 <= revision <= after or not (written_ms is None or type(written_ms) is int):
        return None
    return Anchor(
        after,
        Cell(record.body, record.content_type, record.content_encoding, revision, record.expires_ms, written_ms),
    )
