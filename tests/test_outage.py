"""Who asks a broker that is away, and who goes on without it. Time stands still unless the test moves it."""

from __future__ import annotations

import logging

import pytest

import mqkv
from mqkv.outage import LONGEST_PAUSE, SHORTEST_PAUSE, Outage, is_outage

ERROR = mqkv.ConnectionFailed("nobody answers")


class World:
    def __init__(self) -> None:
        self.now, self.in_touch, self.calls = 1_000.0, True, 0
        self.error: BaseException | None = None
        self.takes = 0.0
        self.outage = Outage(lambda: self.in_touch, logging.getLogger("outage"), monotonic=lambda: self.now)

    def ask(self) -> str:
        self.calls += 1
        self.now += self.takes
        if self.error is not None:
            raise self.error
        return "answer"

    def read(self) -> object:
        return self.outage.call("dropped", self.ask, writing=False)

    def write(self) -> object:
        return self.outage.call("dropped", self.ask, writing=True)


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> World:
    caplog.set_level(logging.INFO, "outage")
    return World()


def test_what_is_an_outage() -> None:
    for error in (
        mqkv.ConnectionFailed,
        mqkv.ReadTimeout,
        mqkv.WriteTimeout,
        mqkv.OutcomeUnknown,
        mqkv.Stale,
        mqkv.UpgradeRequired,
    ):
        assert is_outage(error("x"))
    for theirs in (mqkv.InvalidKey, mqkv.ValueTooLarge, mqkv.KeyNotFound, mqkv.LockTimeout, mqkv.LockLost, mqkv.Closed, OSError):
        assert not is_outage(theirs("x"))


def test_one_caller_finds_out_and_the_others_go_on(world: World) -> None:
    assert world.read() == "answer" and not world.outage.on
    world.error, world.takes = ERROR, 3
    assert world.read() == "dropped" and world.outage.on and world.calls == 2
    assert [world.read(), world.write()] == ["dropped", "dropped"] and world.calls == 2, "they wait for nothing"
    world.now += 3
    assert not world.outage.resting(writing=False) and world.outage.resting(writing=False), "one is let through"
    world.now += LONGEST_PAUSE
    assert world.read() == "dropped" and world.calls == 3, "it never said what it found"
    world.now, world.error = world.now + 3, None
    assert world.read() == "answer" and not world.outage.on


@pytest.mark.parametrize(("takes", "pause"), [(0, SHORTEST_PAUSE), (3, 3), (60, LONGEST_PAUSE)])
def test_the_pause_is_as_long_as_the_failure_took(world: World, takes: float, pause: float) -> None:
    world.error, world.takes = ERROR, takes
    world.read()
    world.now += pause - 0.01
    assert world.outage.resting(writing=True)
    world.now += 0.02
    assert not world.outage.resting(writing=True)


def test_an_answer_from_memory_ends_nothing(world: World) -> None:
    world.error = ERROR
    world.read()
    world.error, world.in_touch, world.now = None, False, world.now + 2
    assert world.read() == "answer" and world.outage.on and world.outage.resting(writing=False)
    world.in_touch, world.now = True, world.now + 2
    assert world.read() == "answer" and not world.outage.on


def test_reads_go_on_where_only_writes_fail(world: World) -> None:
    world.error = ERROR
    world.write()
    world.now += 2
    assert world.write() == "dropped" and world.calls == 2
    world.now, world.error = world.now + 0.99, None
    assert world.read() == "dropped", "it may be the broker, and then it would wait, too"
    world.now += 0.01
    assert world.read() == "answer" and world.outage.on, "what a write began only a write ends"
    assert world.read() == "answer" and world.calls == 4
    assert world.write() == "answer" and not world.outage.on


def test_one_outage_is_one_line_and_another_at_its_end(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.error = ERROR
    for _ in range(1_000):
        world.read()
        world.write()
        world.now += 0.01
    assert [record.getMessage() for record in caplog.records] == [
        'at=outage status=began error=ConnectionFailed reason="nobody answers"'
    ]
    world.error, world.now = None, world.now + 30
    world.write()
    assert "status=over seconds=40.0" in caplog.records[1].getMessage() and len(caplog.records) == 2
    world.error = ERROR
    world.read()
    assert len(caplog.records) == 3, "another outage"


@pytest.mark.parametrize(
    "error", [mqkv.ValueTooLarge("large"), mqkv.InvalidKey("bad"), TypeError(), SystemExit(), KeyboardInterrupt()]
)
@pytest.mark.parametrize("writing", [True, False])
def test_what_says_nothing_of_the_broker_ends_nothing_and_holds_nobody_up(
    world: World, error: BaseException, writing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    calls = [lambda: world.outage.call("dropped", world.ask, writing=writing)]
    if writing:
        calls.append(lambda: world.outage.insist(world.ask))
    for call in calls:
        world.error = ERROR
        world.write()
        world.error, world.now = error, world.now + 20
        caplog.clear()
        with pytest.raises(type(error)):
            call()
        assert world.outage.on and not caplog.records, "it was judged without the broker"
        world.error = None
        assert world.write() == "answer" and not world.outage.on, "the next one finds out at once"


def test_what_another_finds_meanwhile_counts(world: World) -> None:
    world.error = ERROR
    world.write()
    world.error, world.now = None, world.now + 2

    def in_touch() -> bool:
        world.outage.failed(ERROR, world.now, writing=True)
        return True

    world.outage._in_touch = in_touch
    assert world.write() == "answer" and world.outage.on and world.outage.resting(writing=True)


@pytest.mark.parametrize("error", [mqkv.KeyNotFound("k"), mqkv.NotANumber("k")])
def test_an_error_that_is_an_answer_ends_it(world: World, error: mqkv.Error) -> None:
    world.error = ERROR
    world.write()
    world.error, world.now = error, world.now + 2
    with pytest.raises(type(error)):
        world.write()
    assert not world.outage.on
