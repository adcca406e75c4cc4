"""The database of a folder: its schema and statements, its checksums, and SQLite's errors turned into ours.

It knows rows, and no tail or sink. Used by one thread at a time. Rules:

1. One table, ``log``, holds the records of all streams; ``offset`` counts over all of them, so one number says how far a process
   has read. Records of stream 0 are the engine's own: the newest of them says that some stream was deleted.
2. A record is one insert, and dirties one page. Where a stream's records are stands in ``place``, brought up to date
   some hundreds of records at once (an index proper costs 9 us an insert, this under 1); the few newer ones are found by reading
   ``log``.
3. The newest record of ``log`` is never removed, so no offset is given twice. What is too old goes in whole runs of a stream's
   records, never its newest run, and leaves a mark in ``place``: -1 - the newest offset that is gone.
4. The checksum covers body, offset, stream and time. SQLite does not check its pages: a flipped bit would be served as a value.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from zlib import crc32

import msgspec

from mqkv.errors import ConnectionFailed, Error, OutcomeUnknown, StreamDamaged, UpgradeRequired, WriteTimeout
from mqkv.streams.base import Message

Row = tuple[int, int, int, int, bytes]  #: offset, stream, at, checksum, blob

NAME = "mqkv.sqlite"
APPLICATION = 0x6D716B76
#: 2: what was removed as too old has left a mark. A folder of format 1 is brought up to date by the first who opens it.
VERSION = 2
#: So many records may be missing in ``place``.
INDEX_EVERY = 256
BATCH = 1000
#: What is too old is removed so many records of a stream at a time, and so many are kept at least.
RUN = 256
BUSY = 1.0  #: seconds that SQLite waits for its own locks; the writers' lock keeps us from needing them

Conflict = sqlite3.IntegrityError
#: What SQLite raises; a message of its that quotes a damaged schema need not be UTF-8.
Failure = (sqlite3.Error, UnicodeDecodeError)

_SCHEMA = f"""
CREATE TABLE log
 (offset INTEGER PRIMARY KEY, stream INTEGER NOT NULL, at INTEGER NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE streams (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, max_age INTEGER);
CREATE TABLE place (stream INTEGER NOT NULL, offset INTEGER NOT NULL, PRIMARY KEY (stream, offset)) WITHOUT ROWID;
CREATE TABLE state (id INTEGER PRIMARY KEY, indexed INTEGER NOT NULL);
INSERT INTO state VALUES (1, 0);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""
INSERT = "INSERT INTO log VALUES (?, ?, ?, ?, ?)"
_SINCE = "SELECT offset, stream, at, crc, body FROM log WHERE offset > ? ORDER BY offset LIMIT ?"
_OF_STREAM = """
SELECT offset, stream, at, crc, body FROM log WHERE offset IN (SELECT offset FROM place WHERE stream = ?1 AND offset >= ?2
ORDER BY offset LIMIT ?3)
UNION ALL SELECT offset, stream, at, crc, body FROM log
WHERE offset > max((SELECT indexed FROM state), ?2 - 1) AND stream = ?1 ORDER BY offset LIMIT ?3"""
_NEWEST_NEW = """SELECT offset, stream, at, crc, body FROM log WHERE stream = ? AND offset > (SELECT indexed FROM state)
ORDER BY offset DESC LIMIT 1"""
_NEWEST_OLD = """SELECT offset, stream, at, crc, body FROM log WHERE offset =
(SELECT offset FROM place WHERE stream = ? ORDER BY offset DESC LIMIT 1)"""

_FIRST_GONE = """SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM log WHERE offset = 1)
UNION ALL SELECT offset + 1 FROM log AS here WHERE NOT EXISTS (SELECT 1 FROM log WHERE offset = here.offset + 1) LIMIT 1"""

_HEAD = Struct("<QQQ").pack
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[bytes, str | None, str | None, str | None, dict[str, str | bool | int | float]])
_encode = _encoder.encode
_decode = _decoder.decode


def blob_of(message: Message) -> bytes:
    body, headers, id, content_type, content_encoding = message
    return _encode((body, id, content_type, content_encoding, headers if type(headers) is dict else dict(headers)))


def checksum(offset: int, stream: int, at: int, blob: bytes) -> int:
    return crc32(blob, crc32(_HEAD(offset, stream, at)))


def message_of(row: Row) -> Message | None:
    """The message of a row; None for a damaged one."""
    offset, stream, at, crc, blob = row
    # A flipped bit can change the type of a column as well.
    if not (type(stream) is type(at) is int and type(blob) is bytes and at >= 0 <= stream):
        return None
    if checksum(offset, stream, at, blob) != crc:
        return None
    try:
        body, id, content_type, content_encoding, headers = _decode(blob)
    except msgspec.MsgspecError:
        return None
    return Message(body, headers, id, content_type, content_encoding)


class Database:
    """A connection. To be made and changed with the writers' lock held."""

    def __init__(self, folder: str, sync: str) -> None:
        self.path = str(Path(folder) / NAME)
        self._create()
        # One thread at a time is the engine's business.
        self.connection = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None, check_same_thread=False)
        self.connection.text_factory = bytes  # a flipped bit can make a text of a blob, and one that is no UTF-8
        cursor = self.connection.cursor()
        self.execute = cursor.execute
        try:
            self._check()
            self._set_up(sync)
        except BaseException:
            self.connection.close()
            raise
        self.indexed = 0  #: a lower bound

    def _create(self) -> None:
        """SQLite gives the -wal and -shm files the mode that the database has. An existing file is not opened here: closing it
        would let go of the locks that other connections of this process hold."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def _check(self) -> None:
        application, version = self.number("PRAGMA application_id"), self.number("PRAGMA user_version")
        if application == APPLICATION:
            if version > VERSION:
                raise UpgradeRequired(
                    f"{self.path} was written by a newer mqkv (format {version}, this one knows {VERSION}): upgrade"
                )
        elif application or version or self.number("SELECT count(*) FROM sqlite_master"):
            raise StreamDamaged(f"{self.path} is a database of something else: move it away, or give mqkv a folder of its own")

    def _set_up(self, sync: str) -> None:
        # Small pages: a record writes one to the log, and SQLite checksums all of it.
        for pragma in (
            "page_size=2048",
            "journal_mode=WAL",
            f"synchronous={sync}",
            "wal_autocheckpoint=8000",
            "cell_size_check=ON",
        ):
            self.execute(f"PRAGMA {pragma}")
        self.execute("PRAGMA journal_size_limit=67108864")
        if self.number("PRAGMA application_id") != APPLICATION:
            self.connection.executescript(f"BEGIN;{_SCHEMA}COMMIT;")
        elif self.number("PRAGMA user_version") < VERSION:
            self._upgrade()

    def _upgrade(self) -> None:
        """Format 1 left no mark of what it dropped: a stream with a max-age may have lost its beginning if anything that
        was written before what is left of it is gone. Whether it was another stream's can't be told."""
        self.execute("BEGIN IMMEDIATE")
        try:
            self._index()
            gone = self.number(_FIRST_GONE)
            for stream, first in self.execute(
                "SELECT id, (SELECT min(offset) FROM place WHERE stream = id) FROM streams WHERE max_age IS NOT NULL"
            ).fetchall():
                if first is not None and first > gone:  # below 0: it has a mark
                    self.execute("INSERT INTO place VALUES (?, ?)", (stream, -first))
            self.execute(f"PRAGMA user_version = {VERSION}")
            self.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def number(self, query: str, values: tuple[int, ...] = ()) -> int:
        row = self.execute(query, values).fetchone()
        return int(row[0]) if row and row[0] is not None else 0

    def end(self) -> int:
        """The newest offset of all."""
        return self.number("SELECT max(offset) FROM log")

    def close(self) -> None:
        self.connection.close()

    # Streams

    def find(self, name: str) -> tuple[int, int | None] | None:
        row: tuple[int, int | None] | None = self.execute("SELECT id, max_age FROM streams WHERE name = ?", (name,)).fetchone()
        return row

    def exists(self, stream: int) -> bool:
        return self.execute("SELECT 1 FROM streams WHERE id = ?", (stream,)).fetchone() is not None

    def declare(self, name: str, max_age: int | None) -> None:
        self.execute("INSERT OR IGNORE INTO streams (name, max_age) VALUES (?, ?)", (name, max_age))

    def delete(self, stream: int, at: int) -> int:
        """Remove a stream; the offset of the record that tells the other processes."""
        self.execute("BEGIN IMMEDIATE")
        try:
            offset = self.end() + 1
            self._index()
            for old in (stream, 0):
                self.execute("DELETE FROM log WHERE offset IN (SELECT offset FROM place WHERE stream = ?)", (old,))
                self.execute("DELETE FROM place WHERE stream = ?", (old,))
            self.execute("DELETE FROM streams WHERE id = ?", (stream,))
            self.execute(INSERT, (offset, 0, at, checksum(offset, 0, at, b""), b""))
            self.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        return offset

    def trimmed(self, stream: int) -> int:
        """The offset of the newest record that was removed from a stream's beginning; -1 for none."""
        return -1 - self.number("SELECT min(offset) FROM place WHERE stream = ? AND offset < 0", (stream,))

    # Reading

    def since(self, offset: int) -> list[Row]:
        """The next rows of all streams after an offset."""
        return self.execute(_SINCE, (offset, BATCH)).fetchall()

    def of_stream(self, stream: int, offset: int) -> list[Row]:
        """The next rows of a stream from an offset on."""
        return list(self.each_of_stream(stream, offset))

    def each_of_stream(self, stream: int, offset: int) -> Iterator[Row]:
        """The same, read from the disk as they are taken."""
        return self.execute(_OF_STREAM, (stream, offset, BATCH))

    def newest(self, stream: int) -> Row | None:
        # If the first finds none, what there was is indexed: the second finds it, or one that came since.
        row = self.execute(_NEWEST_NEW, (stream,)).fetchone() or self.execute(_NEWEST_OLD, (stream,)).fetchone()
        return row or None

    # Keeping house

    def index(self) -> None:
        """Bring ``place`` up to date."""
        self.execute("BEGIN IMMEDIATE")
        try:
            self._index()
            self.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _index(self) -> None:
        start, end = self.number("SELECT indexed FROM state"), self.end()
        self.execute(
            "INSERT OR IGNORE INTO place SELECT stream, offset FROM log WHERE offset > ? AND offset <= ? ORDER BY stream, offset",
            (start, end),
        )
        self.execute("UPDATE state SET indexed = ?", (end,))
        self.indexed = end

    def trim(self, stream: int, before: int) -> None:
        """Remove a stream's oldest run of records if all of it was written before a time, and another run is there."""
        rows = self.execute(
            "SELECT offset FROM place WHERE stream = ? AND offset >= 0 ORDER BY offset LIMIT ?", (stream, 2 * RUN)
        ).fetchall()
        if len(rows) < 2 * RUN:
            return
        last = rows[RUN - 1][0]
        which = "offset IN (SELECT offset FROM place WHERE stream = ? AND offset BETWEEN 0 AND ?)"
        newest = self.execute(f"SELECT max(at) FROM log WHERE {which}", (stream, last)).fetchone()[0]
        if newest is not None and newest >= before:
            return
        self.execute("BEGIN IMMEDIATE")
        try:
            self.execute(f"DELETE FROM log WHERE {which}", (stream, last))
            self.execute("DELETE FROM place WHERE stream = ? AND offset <= ?", (stream, last))
            self.execute("INSERT INTO place VALUES (?, ?)", (stream, -1 - last))
            self.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self.connection.in_transaction:
            self.execute("ROLLBACK")


_DAMAGE = ("malformed", "not a database", "encrypted", "no such table", "no such column", "disk image", "unable to decode")


def mapped(error: BaseException, path: str, *, writing: bool = False) -> Error:
    """SQLite's error, or the system's, as one of ours that says where and what to do."""
    if isinstance(error, Error):
        return error
    text = str(error)
    # What a flipped bit does to a column can surface as any of SQLite's errors; these are not of the damaged kind.
    if "locked" in text or "busy" in text:
        if writing:
            return WriteTimeout(f"{path} is locked by another program: nothing was written, try again")
        return ConnectionFailed(f"{path} is locked by another program: try again")
    if "full" in text:
        return ConnectionFailed(f"the disk of {path} is full: nothing was written; make room")
    if not text or isinstance(error, UnicodeDecodeError) or any(word in text for word in _DAMAGE):
        return StreamDamaged(f"{path} is damaged or no database of mqkv ({text}): restore it from a backup, or move it away")
    if "I/O" in text and writing:
        return OutcomeUnknown(f"the disk of {path} failed while writing ({text}): the record may come to stand there, or not")
    return ConnectionFailed(f"can't use {path} ({text}): check that this user may read and write the folder and its files")
