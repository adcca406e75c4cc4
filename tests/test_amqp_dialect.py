"""What differs between the brokers: decisions, on measured facts."""

from __future__ import annotations

import pytest

from mqkv.errors import ConnectionFailed, NotAStream, StreamMissing
from mqkv.streams.amqp.dialect import LONGEST_NAME, ascii_name, choose, newest
from mqkv.streams.amqp.failures import Dropped, Unavailable, queue_error


def test_rabbitmq() -> None:
    dialect = choose({"product": "RabbitMQ", "version": "3.10.8"})
    assert (dialect.barrier, dialect.counts, dialect.own_record_patience, dialect.idle_look) == (True, False, None, None)
    assert (dialect.acknowledge_at_once, dialect.mixes_kinds) == (False, False)
    assert dialect.queue("p.ünïcode ☃ %") == "p.ünïcode ☃ %"


def test_lavinmq() -> None:
    dialect = choose({"product": "LavinMQ", "version": "2.9.1"})
    assert (dialect.barrier, dialect.counts, dialect.acknowledge_at_once, dialect.mixes_kinds) == (False, True, True, True)
    assert (dialect.queue("p.k"), dialect.queue("p.é ☃")) == ("p.k", "p.%C3%A9 %E2%98%83%")
    assert dialect.own_record_patience is not None and 0.05 < dialect.own_record_patience <= 0.2, "over a delayed acknowledgement"
    assert dialect.idle_look == 1.0


@pytest.mark.parametrize("properties", [None, {}, {"product": b"bytes"}, {"product": "Other"}])
def test_an_unknown_broker_is_taken_for_rabbitmq(properties: dict[str, object] | None) -> None:
    assert choose(properties).barrier


def test_newest_by_count() -> None:
    assert newest(1, 0) is None
    assert newest(1, 1) == 1  # LavinMQ's first offset is 1
    assert newest(2207, 10) == 2216  # after retention


NAMES = [
    "k",
    "k%",
    "k%%",
    "é",
    "%C3%A9",
    "%C3%A9%",
    "%25",
    "%",
    "%%",
    "e\u0301",
    " ",
    "☃" * 66,
    "☃" * 65 + "é",
    "x" * 200,
    "é" * 100,
]


def test_names_in_ascii_are_never_the_same() -> None:
    names = [*NAMES, *map(ascii_name, NAMES)]
    assert len({ascii_name(name) for name in names}) == len(set(names))
    for name in names:
        there = ascii_name(name)
        assert there.isascii() and there.isprintable() and len(there) <= LONGEST_NAME
        if name.isascii() and not name.endswith("%"):
            assert there == name, "what other programs can name keeps its name"


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (404, "404 NOT_FOUND - no queue 's' in vhost '/'", StreamMissing),
        (404, "404 NOT_FOUND - home node 'n1@h' of durable queue 's' in vhost '/' is down or inaccessible", Unavailable),
        (406, "406 PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 's' ...: received 'stream'", NotAStream),
        (
            406,
            "406 PRECONDITION_FAILED - invalid arg 'x-stream-offset' for queue 's' of type classic",
            NotAStream,
        ),
        (406, "406 PRECONDITION_FAILED - inequivalent arg 'x-max-age' for queue 's'", Dropped),
        (403, "403 ACCESS_REFUSED - access to queue 's' refused for user 'u'", ConnectionFailed),
        (541, "541 INTERNAL_ERROR", Dropped),
    ],
)
def test_what_a_refusal_means(code: int, text: str, kind: type[Exception]) -> None:
    assert type(queue_error(Dropped(text, code), "s")) is kind
