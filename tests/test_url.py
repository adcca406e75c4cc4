"""URLs are read strictly, and never shown with their password."""

from __future__ import annotations

import pytest

import mqkv
from mqkv.url import parse


def test_what_is_left_out_is_the_brokers_default() -> None:
    url = parse("amqp://localhost")
    assert (url.host, url.port, url.user, url.password, url.path) == ("localhost", 5672, "guest", "guest", "/")
    assert parse("amqps://h").port == 5671
    assert parse("amqp://h/").path == parse("amqp://h/%2F").path == "/"
    assert parse("amqp://localhost") == parse("amqp://guest:guest@localhost:5672/%2f")


def test_everything_is_decoded_once() -> None:
    url = parse("amqp://us%40er:p%3Aa%2Fss%25@host:1234/a%2Fb?heartbeat=10&connect_timeout=2.5")
    assert (url.user, url.password, url.host, url.port, url.path) == ("us@er", "p:a/ss%", "host", 1234, "a/b")
    assert url.option("heartbeat") == "10" and url.option("nope") is None
    assert parse("amqp://[::1]:5672").host == "::1"


def test_the_nodes_of_a_cluster() -> None:
    url = parse("amqp://user:s3cret@one,two:5673,[::1]:5674/v%2Fh?heartbeat=10")
    assert str(url) == "amqp://user:***@one:5672,two:5673,[::1]:5674/v%2Fh"
    assert [(node.host, node.port) for node in url.nodes] == [("one", 5672), ("two", 5673), ("::1", 5674)]
    assert url.nodes[1] == parse("amqp://user:s3cret@two:5673/v%2Fh?heartbeat=10")
    assert parse("amqp://user:a,b@one").nodes == [parse("amqp://user:a,b@one")]
    for text in ("amqp://one,", "amqp://,two", "amqp://one,,two", "amqp://u:s3cret@one,two:port"):
        with pytest.raises(mqkv.InvalidURL) as caught:
            parse(text)
        assert "s3cret" not in str(caught.value)


def test_embedded_places() -> None:
    assert parse("memory://").path == "" and parse("memory://name").path == "name"
    assert parse("file:///var/lib/kv/") == parse("file:///var/lib/kv") and parse("file:///a%20b").path == "/a b"
    assert parse("file:///x").option("sync") == "normal" and parse("file:///x?sync=full").option("sync") == "full"


@pytest.mark.parametrize(
    "text",
    [
        *("", "localhost", "http://x", "redis://h", "AMQP//x", "amqp:", "amqp://", "amqp:///vhost", "amqp://:5672"),
        *(
            "amqp://user@host",
            "amqp://h:port",
            "amqp://h:99999",
            "amqp://h:0",
            "amqp://h/a/b",
            "amqp://h/%zz",
            "amqp://h/%",
            "amqp://h/%ff",
        ),
        *(
            "amqp://h/ x",
            "amqp://h/\n",
            "amqp://h#f",
            "amqp://h?nope=1",
            "amqp://h?heartbeat",
            "amqp://h?heartbeat=x",
            "amqp://h?heartbeat=-1",
        ),
        *("amqp://h?verify=maybe", "amqp://h?heartbeat=1&heartbeat=2", "amqp://[::1", "amqp://u:p@h?connect_timeout=nan"),
        *("file://", "file:///", "file://host/path", "file:///x?sync=maybe", "file:///x?other=1", "memory://?x=1"),
    ],
)
def test_mistakes_are_errors(text: str) -> None:
    with pytest.raises(mqkv.InvalidURL):
        mqkv.Store(text)
    assert issubclass(mqkv.InvalidURL, ValueError)


def test_not_a_str() -> None:
    with pytest.raises(mqkv.InvalidURL):
        mqkv.Store(None)  # type: ignore[arg-type]


def test_the_password_is_never_shown() -> None:
    url = parse("amqp://user:s3cret@host/v")
    assert "s3cret" not in f"{url} {url!r} {mqkv.Store('amqp://user:s3cret@host/v')!r}"
    for text in (
        "amqp://user:s3cret@host:port",
        "amqp://user:s3cret@h/%zz",
        "s3cret://user:s3cret@h",
        "amqp://user:s3cret@h?no=1",
    ):
        with pytest.raises(mqkv.InvalidURL) as caught:
            parse(text)
        assert "user:s3cret" not in str(caught.value)
