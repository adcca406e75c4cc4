"""Every error that mqkv raises, sorted by who is to blame.

What the caller did wrong is also a ``ValueError``, what a key is, is also a ``KeyError``, and what the world did is also an
``OSError`` or a ``TimeoutError``: ordinary code catches them without knowing us. A message says what happened, to which key or
stream, and what to do; it never holds a value or a password.
"""

from __future__ import annotations


class Error(Exception):
    """The base of every error that mqkv raises."""


# What the caller did wrong.


class InvalidKey(Error, ValueError):
    """The key (or prefix, or name) is of the wrong type, empty, too long, or holds characters that no broker takes."""


class InvalidTTL(Error, ValueError):
    """The ttl is not a positive, finite number of seconds."""


class InvalidURL(Error, ValueError):
    """The URL names no engine that mqkv has, or is malformed."""


class InvalidOption(Error, ValueError):
    """An option of a Store has a value that it can't have."""


class InvalidValue(Error, TypeError):
    """The codec can't encode this value. (No ``ValueError``: what caches on top of a mapping, as cachetools does, takes that for
    a value that is too large, and goes on without a word.)"""


class NotANumber(Error, ValueError, TypeError):
    """The value can't be added to: it is no number, or the sum would not fit 64 bits. Nothing was changed."""


class LockHeld(Error, RuntimeError):
    """This thread (or task) holds the lock already; waiting for it would last for ever."""


class LockLost(Error, RuntimeError):
    """The lock is not held by this one: it was never acquired, or its lease ran out, and others may hold it."""


class ValueTooLarge(Error, ValueError):
    """The encoded value is larger than a record may be."""


class Closed(Error, ValueError):
    """The store (or watch) was closed; open a new one."""


# What the key is.


class KeyNotFound(Error, KeyError):
    """The key has no value."""

    def __str__(self) -> str:
        return Exception.__str__(self)


# What the world did.


class ConnectionFailed(Error, ConnectionError):
    """The broker can't be reached, refused us, or hung up. Nothing was written."""


class ReadTimeout(Error, TimeoutError):
    """A read did not get its answer within its deadline."""


class OutcomeUnknown(Error, TimeoutError):
    """A write was sent and its outcome is unknown: it may stand in the log, or come to stand there, or not."""


class LockTimeout(Error, TimeoutError):
    """The lock was not to be had within the timeout."""


class WriteTimeout(Error, TimeoutError):
    """A write could not be sent within its deadline. Nothing was written."""


class StreamMissing(Error, OSError):
    """The stream does not exist."""


class StreamDamaged(Error, OSError):
    """The stream is there and can't be read: a checksum failed, or the broker says that it is corrupt."""


class LogTruncated(StreamDamaged):
    """The beginning of a stream is gone: a retention policy (or ``x-max-age``) dropped records that its state rests on, so nobody
    who reads it now can know that state. Take the policy away. A key is set anew, a keyspace purged."""


class NotAStream(Error, OSError):
    """A queue of this name exists, and is not a stream."""


class UpgradeRequired(Error, RuntimeError):
    """The stream holds records of a newer format than this version of mqkv knows. Upgrade mqkv."""


class Stale(Error, OSError):
    """What could be read may be older than was asked for: the table has been out of touch with its stream for longer than
    ``max_staleness``, or a fresh read can't be had from replicas that may lag."""


class UnreadableValue(Error, ValueError):
    """The value of this key was written by a codec that this store does not have."""


class ForeignKeyspaceWarning(UserWarning):
    """A keyspace was opened that another kind of user made: an adapter, a ``StreamDict``, another project. What one clears or
    evicts is gone for the other, and neither may be able to read the other's values. Give one of them another name or prefix."""
