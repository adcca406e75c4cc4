"""What tells a replica that is behind from a log that was rewritten, and what was given out from what may be answered."""

from __future__ import annotations

from typing import Any

import pytest

from mqkv.streams.amqp import seen
from mqkv.streams.amqp.seen import RECENT, Recent, Seen
from mqkv.streams.base import Delivery, Message


def log(*ids: str | None, start: int = 0) -> list[Delivery]:
    return [(start + number, Message(str(ident).encode(), {}, ident)) for number, ident in enumerate(ids)]


def test_the_same_messages_are_a_replica_that_is_behind() -> None:
    recent = Recent()
    recent.add(log("a", "b", "c", None))
    assert not recent.differs(log("a", "b"), 3, ())
    assert not recent.differs(log("c", None, start=2), 3, ())
    assert not recent.differs(log(None, start=3), 3, ()), "what stands at the position is compared whole"


def test_another_message_is_another_log() -> None:
    recent = Recent()
    recent.add(log("a", "b", None, "d"))
    assert recent.differs(log("a", "x"), 3, ())
    assert recent.differs([(2, Message(b"other"))], 3, ())


def test_a_message_that_is_awaited_was_not_there_before() -> None:
    """A marker that comes back before the position: the log has lost its end, however far that is from what is remembered."""
    recent = Recent()
    assert recent.differs(log("old", "marker"), 1_000_000, {"marker": None})
    assert not recent.differs(log("old"), 1_000_000, {"marker": None})
    assert not recent.differs(log("marker", start=7), 6, {"marker": None})


def test_so_many_are_remembered() -> None:
    recent = Recent()
    recent.add(log(*map(str, range(RECENT * 2))))
    assert not recent.differs(log("x"), 10**6, ())
    assert recent.differs(log("x", start=RECENT * 2 - 1), 10**6, ())
    recent.clear()
    assert not recent.differs(log("x", start=RECENT * 2 - 1), 10**6, ())


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(seen, "time", clock)
    return clock


def test_an_answer_behind_what_was_given_out_waits_for_a_minute(clock: Clock) -> None:
    known = Seen(cluster=True)
    assert not known.behind("s", -1)
    known.note("s", -1)
    assert not known.behind("s", -1), "nothing was given out"
    known.note("s", 5)
    known.note("s", 3)
    assert known.newest("s") == 5
    assert known.behind("s", 4)
    clock.now = seen.LAG - 1
    assert known.behind("s", 4)
    assert not known.behind("s", 5), "it has caught up"
    clock.now = seen.LAG + 1
    assert known.behind("s", 4), "it counts anew"
    clock.now = seen.LAG * 2 + 1
    assert not known.behind("s", 4)
    assert known.newest("s") == -1
    known.note("s", 7)
    known.forget("s")
    assert not known.behind("s", 0)


def test_nothing_is_remembered_of_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Seen(cluster=False)
    alone.note("s", 5)
    assert not alone.behind("s", 0) and not alone.lags(None)
    monkeypatch.setattr(seen, "STREAMS", 2)
    known = Seen(cluster=True)
    for number, stream in enumerate(("a", "b", "a", "c")):
        known.note(stream, number)
    found: dict[str, Any] = {stream: known.newest(stream) for stream in "abc"}
    assert found == {"a": 2, "b": -1, "c": 3}
