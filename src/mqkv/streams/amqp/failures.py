"""Foreign errors turned into ours. It knows pika's exceptions and AMQP's reply codes; no password passes it.

Rules:

1. A ``Dropped`` is for the engine alone: the channel or the connection went away under a request, so try again on a new one.
2. What the broker says about a queue is turned into an error of ``mqkv.errors`` once, here.
"""

from __future__ import annotations

import re
import socket
import ssl
from typing import Any

from pika import exceptions
from pika.adapters.utils import connection_workflow

from mqkv.errors import (
    ConnectionFailed,
    Error,
    NotAStream,
    OutcomeUnknown,
    ReadTimeout,
    StreamDamaged,
    StreamMissing,
    ValueTooLarge,
)
from mqkv.url import URL

#: AMQP's reply codes.
CONNECTION_FORCED, ACCESS_REFUSED = 320, 403

_TOO_LARGE = re.compile(r"message size \d+ (?:is )?larger than (?:configured )?max size (\d+)")

#: What OpenSSL says, by its version, where a handshake is answered by something else.
_NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL", "HTTP_REQUEST"}
_NOT_AMQP = (exceptions.IncompatibleProtocolError, exceptions.StreamLostError, exceptions.ProtocolSyntaxError)
_HUNG_UP = (*_NOT_AMQP, ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError)


class Dropped(Exception):
    """The channel or connection of a request is gone. ``code`` is AMQP's reply code, if the broker gave one."""

    def __init__(self, reason: object = "", code: int = 0) -> None:
        super().__init__(str(reason))
        self.code = code


class Unavailable(Exception):
    """The queue is there, and can't be used at this moment: try again soon."""


class Behind(Unavailable):
    """The replica that answers knows less than this process has seen."""


def dropped(reason: BaseException | None) -> Dropped:
    if isinstance(reason, (exceptions.ConnectionClosed, exceptions.ChannelClosed)):
        return Dropped(f"{reason.reply_code} {reason.reply_text}", reason.reply_code)
    return Dropped(type(reason).__name__ if reason is not None else "")


def is_away(text: str) -> bool:
    """Whether a 404 speaks of a queue that exists on a node that is down or still starting."""
    return "home node" in text or "down or inaccessible" in text or "not available" in text


def queue_error(drop: Dropped, stream: str) -> Exception:
    """What a broken request about one queue means."""
    text = str(drop)
    if drop.code == 404:
        return Unavailable(text) if is_away(text) else StreamMissing(f"there is no stream {stream}")
    if drop.code == 406 and ("x-queue-type" in text or "x-stream-offset" in text or "durable" in text):
        return not_a_stream(stream)
    if drop.code == 403:
        return ConnectionFailed(
            f"the broker refused access to stream {stream}: give the user configure, write and read rights on it"
        )
    return drop


def not_a_stream(stream: str) -> NotAStream:
    return NotAStream(f"the queue {stream} exists and is not a stream: choose another prefix, or delete the queue")


def size_limit(drop: Dropped) -> int | None:
    """The size of a message's body that the broker takes, where it closed a channel for a larger one."""
    found = _TOO_LARGE.search(str(drop))
    return int(found[1]) if found else None


def too_large(stream: str, size: int, limit: int) -> ValueTooLarge:
    return ValueTooLarge(
        f"the broker takes messages of up to {limit} bytes (its max_message_size), and this one for {stream} has {size}: store"
        " less in one value, compress it, or raise the broker's limit; nothing was written"
    )


def refusal(drop: Dropped, stream: str, size: int, doubt: bool) -> Error:
    """What it means that the broker closed a channel, or a connection, for a message. ``doubt``: a copy may be written."""
    limit = size_limit(drop)
    if limit is not None:
        return too_large(stream, size, limit)
    why = f"the broker refused a write to stream {stream}"
    if drop.code == ACCESS_REFUSED:
        why += ": give the user the permission to write to the exchange amq.default, through which all streams are written"
    why += f" ({_plain(drop)})"
    if doubt:
        return OutcomeUnknown(f"{why}; it was sent before, and may stand in the log, or not")
    return ConnectionFailed(f"{why}; nothing was written")


def damaged(stream: str) -> StreamDamaged:
    return StreamDamaged(f"stream {stream} breaks the connection when it is read: the broker finds it corrupt (541)")


def _last_cause(problem: BaseException | None) -> BaseException | None:
    error: Any = problem
    while True:
        if isinstance(error, connection_workflow.AMQPConnectionWorkflowFailed) and error.exceptions:
            error = error.exceptions[-1]
        elif isinstance(error, connection_workflow.AMQPConnectorPhaseErrorBase):
            error = error.exception
        elif type(error) is exceptions.AMQPConnectionError and error.args and isinstance(error.args[0], BaseException):
            error = error.args[0]
        else:
            break
    return error if isinstance(error, BaseException) else None


def connect_error(error: BaseException | None, url: URL) -> ConnectionFailed:
    """Why a connection could not be made, and what to do."""
    cause = _last_cause(error)
    problem = ConnectionFailed(f"can't connect to {url}: {_why(cause, url.scheme == 'amqps')}")
    problem.__cause__ = cause if _safe(cause, url) else None
    return problem


def _safe(cause: BaseException | None, url: URL) -> bool:
    return not url.password or url.password == "guest" or url.password not in f"{cause!r}{cause}"


def _why(cause: BaseException | None, tls: bool) -> str:
    if isinstance(cause, (exceptions.AuthenticationError, exceptions.ProbableAuthenticationError)):
        return "the broker refused the login: check user and password in the URL"
    if isinstance(cause, exceptions.ProbableAccessDeniedError):
        return "the broker refused the virtual host: check its name in the URL and the user's rights on it"
    if isinstance(cause, exceptions.ConnectionClosed):
        return f"the broker hung up: {cause.reply_code} {_plain(cause.reply_text)}"
    if isinstance(cause, socket.gaierror):
        return "unknown host: check the host in the URL"
    if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
        return f"the other side does not speak TLS ({cause.reason}): is this the TLS port of the broker (5671, mostly)?"
    if tls and isinstance(cause, _HUNG_UP):
        return "the other side hung up in the handshake: is this the TLS port of the broker (5671, mostly)?"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed ({_plain(cause.reason or 'no reason given')}): check ?cafile= and the broker's certificate"
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused: is the broker running, and is this its port?"
    if isinstance(cause, _NOT_AMQP):
        return "the other side hung up in the handshake: is this the AMQP port of a broker (amqps:// for TLS)?"
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.strerror}: is the broker running and reachable?"
    return "no answer in time: is the broker running and reachable?"


def _plain(text: object) -> str:
    return re.sub(r"[\x00-\x1f]+", " ", str(text))[:200]


def ours(error: BaseException, url: URL) -> Error:
    """The error that may leave the engine."""
    if isinstance(error, Error):
        return error
    if isinstance(error, Behind):
        return ReadTimeout(str(error))
    problem = ConnectionFailed(f"the connection to {url} was lost ({_plain(error)})")
    problem.__cause__ = error
    return problem
