"""Silence, as the log adds it up: whoever breaks a lease, and for whatever it has heard, the holder has given up by then.

One holder renews when it likes. Processes come, whose clocks have nothing in common but their pace; they hear the log late, open
and close tables, go away and say what they have heard, and break the lease as soon as they may.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, precondition, rule

from mqkv.fold import Lock, Outcome, State, fold
from mqkv.hearing import Hearing, Memory, witness
from mqkv.locks import renewal
from mqkv.record import Record, parse, to_message
from mqkv.streams.base import HeaderValue

TTL = 10.0
spans = st.floats(0, TTL, allow_nan=False)


class Process:
    def __init__(self, world: World, ahead: float) -> None:
        self.world, self.ahead, self.memory = world, ahead, Memory()
        self.open()

    def now(self) -> float:
        return self.world.now + self.ahead

    def open(self) -> None:
        """Another store: its table hears the log anew."""
        self.state, self.hearing, self.position = State(), Hearing(self.now, self.memory), 0

    def hear(self, records: int) -> None:
        for offset, record in self.world.log[self.position : self.position + records]:
            self.position += 1
            fold(self.state, offset, record)
            self.hearing.note("l", self.state.locks.get("l"))

    def heard(self) -> tuple[Lock, float] | None:
        held = self.state.locks.get("l")
        return None if held is None else (held, self.hearing.since("l", held))


class World(RuleBasedStateMachine):
    processes = Bundle("processes")

    @initialize()
    def begin(self) -> None:
        self.now, self.log, self.state, self.count = 0.0, [], State(), 0
        self.good_until, self.owner = TTL, "holder0"
        self.append(Record("lock", "l", id=self.owner, args={"ttl_ms": int(TTL * 1000)}))

    def append(self, record: Record) -> Outcome | None:
        self.count += 1
        record = parse(to_message(record, shared=True))
        self.log.append((self.count, record))
        return fold(self.state, self.count, record)

    def publish(self, op: str, **args: HeaderValue) -> Outcome | None:
        return self.append(Record(op, "l", id=f"{self.count}", args=args))

    @rule(span=spans)
    def time_passes(self, span: float) -> None:
        self.now += span

    @rule(delay=spans)
    def the_holder_renews(self, delay: float) -> None:
        """What it sends may be under way for long; it counts from before."""
        sent = self.now
        self.now += delay
        outcome = self.append(renewal({"l": self.owner}, f"{self.count}"))
        assert outcome is not None
        if outcome.done:
            self.good_until = sent + TTL

    @rule(target=processes, ahead=st.floats(-1e6, 1e6, allow_nan=False))
    def a_process_comes(self, ahead: float) -> Process:
        return Process(self, ahead)

    @rule(process=processes, records=st.integers(1, 3) | st.just(1_000))
    def it_hears(self, process: Process, records: int) -> None:
        process.hear(records)

    @rule(process=processes)
    def it_opens_another_store(self, process: Process) -> None:
        process.open()

    @rule(process=processes, waited=st.booleans(), delay=st.just(0.0) | spans)
    def it_goes_away_without_the_lock(self, process: Process, waited: bool, delay: float) -> None:
        heard = process.heard()
        told = {} if heard is None else witness(*heard, process.now())
        self.now += delay
        if waited:
            self.publish("unlock", owner="nobody", **told)
        else:
            self.publish("lock", ttl_ms=1, **told)

    @rule(process=consumes(processes))
    def it_ends(self, process: Process) -> None:
        pass

    @rule(process=processes)
    def it_breaks_the_lease_if_it_may(self, process: Process) -> None:
        heard = process.heard()
        if heard is None or process.now() - heard[1] < TTL:
            return
        outcome = self.publish("break", owner=heard[0].holder.owner, renewed=heard[0].holder.renewed)
        assert outcome is not None
        if outcome.done:
            assert self.now >= self.good_until - 0.01, "two owners"
            self.owner, self.good_until = f"holder{self.count}", self.now + TTL
            self.append(Record("lock", "l", id=self.owner, args={"ttl_ms": int(TTL * 1000)}))

    @precondition(lambda self: self.state.locks)
    @rule()
    def what_the_log_says_is_true(self) -> None:
        assert self.now - (self.good_until - TTL) >= self.state.locks["l"].holder.silent_ms / 1000 - 0.01


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


def test_many_short_waits_add_up() -> None:
    """Each hears nothing for two seconds of ten, and overlaps with the next: the sixth may break the lease."""
    world = World()
    world.begin()
    for _ in range(9):
        process = Process(world, 0.0)
        process.hear(100)
        world.now += 1
        world.it_goes_away_without_the_lock(process, waited=True, delay=0.0)
    last = Process(world, -1e9)
    last.hear(100)
    heard = last.heard()
    assert heard is not None and 8.99 < last.now() - heard[1] < 9.01
    world.the_holder_renews(0.0)
    last.hear(1)
    heard = last.heard()
    assert heard is not None and heard[1] == last.now() and world.state.locks["l"].holder.silent_ms == 0


def test_what_was_said_of_another_holder_does_not_count() -> None:
    """An offset may be given out again, in a stream that was made anew."""
    state = State()
    fold(state, 1, Record("lock", "l", id="mine", args={"ttl_ms": 1_000}))
    for holder, renewed, silent, counts in (
        ("theirs", 1, 900, 0),
        ("mine", 0, 900, 0),
        ("mine", 1, "900", 0),
        ("mine", 1, 900, 900),
    ):
        told: dict[str, HeaderValue] = {"owner": "nobody", "holder": holder, "renewed": renewed, "silent_ms": silent}
        fold(state, 2, Record("unlock", "l", id=f"{holder} {renewed} {silent!r}", args=told))
        assert state.locks["l"].holder.silent_ms == counts
