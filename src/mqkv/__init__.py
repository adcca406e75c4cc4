"""A key-value store on the streams of a message broker, or in a file, or in memory."""

from mqkv.aio import AsyncLock, AsyncStore, AsyncWatch
from mqkv.codecs import Codec, DefaultCodec, KeyedCodec
from mqkv.errors import (
    Closed,
    ConnectionFailed,
    Error,
    ForeignKeyspaceWarning,
    InvalidKey,
    InvalidOption,
    InvalidTTL,
    InvalidURL,
    InvalidValue,
    KeyNotFound,
    LockHeld,
    LockLost,
    LockTimeout,
    LogTruncated,
    NotANumber,
    NotAStream,
    OutcomeUnknown,
    ReadTimeout,
    Stale,
    StreamDamaged,
    StreamMissing,
    UnreadableValue,
    UpgradeRequired,
    ValueTooLarge,
    WriteTimeout,
)
from mqkv.lock import Lock
from mqkv.mapping import StreamDict
from mqkv.store import Entry, Store
from mqkv.watch import Change, Watch

__version__ = "0.1.0"

__all__ = [
    "AsyncLock",
    "AsyncStore",
    "AsyncWatch",
    "Change",
    "Closed",
    "Codec",
    "ConnectionFailed",
    "DefaultCodec",
    "Entry",
    "Error",
    "ForeignKeyspaceWarning",
    "InvalidKey",
    "InvalidOption",
    "InvalidTTL",
    "InvalidURL",
    "InvalidValue",
    "KeyNotFound",
    "KeyedCodec",
    "Lock",
    "LockHeld",
    "LockLost",
    "LockTimeout",
    "LogTruncated",
    "NotANumber",
    "NotAStream",
    "OutcomeUnknown",
    "ReadTimeout",
    "Stale",
    "Store",
    "StreamDamaged",
    "StreamDict",
    "StreamMissing",
    "UnreadableValue",
    "UpgradeRequired",
    "ValueTooLarge",
    "Watch",
    "WriteTimeout",
]
