"""Streams in a folder of this machine, for any number of its processes: SQLite in WAL mode, and a few shared words to wake by."""

from mqkv.streams.file.engine import FileEngine

__all__ = ["FileEngine"]
