"""Log lines are logfmt, tell what happened, and hold neither values nor passwords."""

from __future__ import annotations

import logging
import socket
import traceback
from typing import Any

import pytest

import mqkv
from mqkv import ids

SECRET = "s3cret-value-that-must-not-be-told"


def lines(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_what_is_logged(url: str, prefix: str, layout: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5, logger=logging.getLogger("test.mqkv")) as store:
        store.set("k", SECRET, ttl=60)
        store.set("a key", SECRET)
        store.get("k")
        store.preload("k")
        assert store.get("k") == SECRET
        with store.watch("k") as changes:
            store.set("k", [SECRET])
            assert changes.get(10) is not None
        store.delete("k")
        store.clear()
        store.purge()
    text = lines(caplog)
    for expected in (
        *(
            "at=declare",
            "at=set key=k ttl=60 revision=",
            'at=set key="a key"',
            "at=get key=k source=stream" if layout == "per-key" else "at=get",
        ),
        *(
            "at=get key=k source=cache",
            "at=preload keys=1",
            "at=watch pattern=k status=started",
            "at=watch pattern=k status=stopped",
        ),
        *("at=delete key=k", "at=clear", f"at=purge prefix={prefix}", "at=close url="),
    ):
        assert expected in text, expected
    if url.startswith("amqp"):
        assert "at=connect url=amqp://guest:***@" in text and "product=" in text
    assert SECRET not in text and "guest:guest" not in text


def test_a_broker_that_is_not_there_is_told_once(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    caplog.set_level(logging.INFO)
    with mqkv.Store(f"amqp://guest:guest@127.0.0.1:{port}/%2F", prefix=prefix, logger=logging.getLogger("test.mqkv")) as store:
        for n in range(50):
            with pytest.raises(mqkv.ConnectionFailed):
                store.set("k", n)
        assert lines(caplog).count("at=connect-failed") == 1


def test_nothing_tells_a_password_or_a_value(broker: Any, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = broker.url.replace("guest:guest@", "guest:s3cret-password@")
    texts = []
    store = mqkv.Store(url, prefix=prefix, logger=logging.getLogger("test.mqkv"))
    for call in (lambda: store.set("k", SECRET), lambda: store.get("k"), lambda: store.set("k", object())):
        try:
            call()
        except mqkv.Error as error:
            texts += [str(error), repr(error), "".join(traceback.format_exception(error))]
    texts += [repr(store), str(store.stats()), lines(caplog), repr(vars(store))]
    store.close()
    told = "\n".join(line for text in texts for line in text.splitlines() if "SECRET" not in line)
    assert len(texts) == 13 and "s3cret-password" not in told and SECRET not in told


def test_who_writes_beside_a_clock_that_is_apart_is_told(
    url: str, prefix: str, layout: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processes, as their ids have it; the second of them is seven minutes ahead."""
    logger, stores = logging.getLogger("test.mqkv"), []
    for process, (ahead, told) in enumerate([(0, ""), (420, ""), (0, "this_ahead=-420s"), (420, "")]):
        monkeypatch.setattr(ids, "_prefix", f"{process:016x}")
        caplog.clear()
        options: Any = {"prefix": prefix, "layout": layout, "read_timeout": 5, "logger": logger}
        stores.append(mqkv.Store(url, clock=lambda ahead=ahead: 1e9 + ahead, **options))
        stores[-1].get("k")
        stores[-1].set("k", process)
        stores[-1].set("k", process)
        text = lines(caplog)
        assert text.count("this_ahead") == bool(told) and told in text
        assert text.count("others_ahead=420s") == (layout == "shared" and process == 2)
    stores[0].purge()
    for store in stores:
        store.close()
