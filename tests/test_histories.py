"""What several processes see, their clocks minutes apart, is linearizable: with connections cut and processes killed, too."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import histories
import mqkv
from cutter import Cutter
from histories import History, Job, Local, Logged, Noted
from linearizability import READS, Call, Verdict, check, witness
from mqkv.record import Record, to_message
from places import ON_BROKERS


@pytest.fixture(params=["file", *ON_BROKERS])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that processes can share."""
    return f"file://{tmp_path}/kv" if request.param == "file" else str(request.getfixturevalue(request.param).url)


@pytest.fixture
def job(url: str, prefix: str, layout: Any, seed: int, tmp_path: Path) -> Iterator[Job]:
    folder = tmp_path / "histories"
    folder.mkdir()
    yield Job(url, prefix, layout, str(folder), seed, client=0, calls=0)
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=10) as store:
        store.purge()


def judged(job: Job) -> History:
    """The history of a run that is over; fails unless both checks accept it."""
    history = histories.collect(Path(job.folder))
    log = histories.read_log(job.url, job.prefix, job.layout, [f"k{number}" for number in range(job.keys)])
    placed, problems = histories.place(history, log)
    problems += witness(placed, one_stream=job.layout == "shared")
    problems += histories.local_problems(history, placed)
    told = Counter(call.operation for call in history.calls if call.returned is not None)
    refused = sum(each.refused for each in history.noted)
    unknown = [call for call in placed if call.returned is None]
    print(
        f"{dict(told)}, {len(history.local)} reads from memory, {len(log)} records, {refused} refused, {len(unknown)} unknown, ",
        end="",
    )
    print(f"{sum(call.offset is not None for call in unknown)} of them in the log")
    assert not problems, "\n".join([f"{len(problems)} problems", *problems[:20]])
    report = check(history.calls)
    assert report.verdict is Verdict.GOOD, str(report)
    return history


def did(history: History) -> int:
    return sum(call.returned is not None for call in history.calls) + len(history.local)


def test_a_short_history(job: Job) -> None:
    """Three processes, one of them with two threads, one with its keys preloaded."""
    jobs = [replace(job, calls=100, client=10 * who, threads=1 + (who == 1), follow=who == 2) for who in range(3)]
    histories.run(jobs)
    assert did(judged(job)) >= 400


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_long_history(job: Job) -> None:
    """Five processes with 20,000 calls, and others that are killed in mid-call; on a broker connections are cut now and then.

    Some give their writes so little time that those come to nothing or to an unknown end when the connection is cut.
    """
    rng = random.Random(job.seed)
    job = replace(job, seconds=200)
    jobs = [replace(job, client=10 * who, calls=4_000, follow=who % 2 == 1) for who in range(4)]
    jobs.append(replace(job, client=40, calls=2_000, threads=2, write_timeout=0.1))
    victims = [replace(job, client=10 * who, calls=100_000, dies_after=rng.randrange(400)) for who in (5, 6, 7)]

    def go(through: Callable[[Job], Job]) -> None:
        histories.run([through(each) for each in (*jobs, *victims)])

    if job.url.startswith("file"):
        go(lambda each: each)
    else:
        with Cutter(job.url, seed=job.seed, bytes_between_cuts=250_000) as cutter:
            go(lambda each: replace(each, url=cutter.url))
        print(f"{cutter.cuts} cuts")
        assert cutter.cuts >= 20
    history = judged(job)
    assert did(history) >= 20_000
    hasty = [each for each in history.noted if each.call.client in (40, 41) and each.call.operation not in READS]
    assert max(each.seconds for each in hasty) < 1.1 and max(each.seconds for each in history.noted) < 11, "a deadline was missed"


@pytest.mark.parametrize("each", [100, pytest.param(1_000, marks=[pytest.mark.slow, pytest.mark.timeout(240)])])
def test_a_counter_counts_every_increment_once(job: Job, each: int) -> None:
    jobs = [replace(job, client=who, calls=each, mix=["incr"], count=True, keys=1) for who in range(8)]
    began = time.monotonic()
    histories.run(jobs)
    print(f"{8 * each / (time.monotonic() - began):.0f} increments a second")
    history = judged(replace(job, keys=1))
    assert sorted(call.result for call in history.calls) == list(range(1, 8 * each + 1))
    with mqkv.Store(job.url, prefix=job.prefix, layout=job.layout, read_timeout=10) as store:
        assert store.get("k0", fresh=True) == 8 * each


# The judges themselves

A = Noted(Call(1, "k0", "set", "a", 0, 10, None, 5), refused=False, after_ms=100, until_ms=101, seconds=0.0)
B = Noted(Call(1, "k0", "set", "b", 20, 30, None, 6), refused=False, after_ms=101, until_ms=102, seconds=0.0)
GONE = Noted(Call(2, "k0", "delete", None, 40, 50, True), refused=False, after_ms=900, until_ms=903, seconds=0.0)


def record(offset: int, stamp: int, id: str, key: str = "k0", op: str = "set") -> Logged:
    return Logged(key, offset, to_message(Record(op, key, b"", written_ms=stamp, id=id), shared=True))


LOG = [record(5, 101, "a"), record(6, 102, "b"), record(9, 902, "gone", op="delete")]


@pytest.mark.parametrize(
    ("noted", "log", "problem"),
    [
        ([A, B, GONE], LOG, None),
        ([A, B, GONE], [*LOG, record(10, 102, "b")], None),
        ([A, B, GONE], [*LOG, record(10, 102, "b again")], "two records of one call"),
        ([A, B, GONE], [*LOG, record(10, 103, "x")], "from nowhere"),
        ([A, B, GONE], [*LOG, record(10, 7, "x")], "from nowhere"),
        ([A, B, GONE], [LOG[0], record(6, 102, "b", key="k1"), LOG[2]], "from nowhere"),
        ([A, B._replace(refused=True), GONE], LOG, "refused, and yet in the log"),
        ([A, B, GONE], [LOG[0], record(7, 102, "b"), LOG[2]], "another revision"),
        ([A, B, GONE], [LOG[0], LOG[2]], "another revision"),
        ([A, B, GONE], LOG[:2], "no moment of the log"),
    ],
)
def test_who_wrote_what(noted: list[Noted], log: list[Logged], problem: str | None) -> None:
    placed, problems = histories.place(History(noted, []), log)
    problems += witness(placed, one_stream=True)
    assert problems == [] if problem is None else problem in problems[0]


READS_FROM_MEMORY: dict[str, tuple[bool, list[tuple[int, int | None, Any, int, int]]]] = {
    "in order": (True, [(1, 5, "a", 15, 1), (1, 6, "b", 35, 2), (1, None, None, 55, 2)]),
    "absent before and after": (True, [(2, None, None, 5, 0), (2, 5, "a", 15, 0), (2, None, None, 55, 1)]),
    "own write missed": (False, [(1, 5, "a", 35, 2)]),
    "absent after an own write": (False, [(1, None, None, 15, 1)]),
    "back": (False, [(2, 6, "b", 35, 0), (2, 5, "a", 36, 0)]),
    "back over a delete": (False, [(2, None, None, 55, 1), (2, 6, "b", 56, 1)]),
    "before it was written": (False, [(2, 6, "b", 15, 0)]),
    "another revision's value": (False, [(2, 5, "b", 35, 0)]),
    "from nowhere": (False, [(2, 7, "c", 35, 0)]),
}


@pytest.mark.parametrize("name", READS_FROM_MEMORY)
def test_reads_from_memory(name: str) -> None:
    good, reads = READS_FROM_MEMORY[name]
    local = [Local(client, "k0", revision, value, at, place) for client, revision, value, at, place in reads]
    placed, problems = histories.place(History([A, B, GONE], local), LOG)
    problems += histories.local_problems(History([A, B, GONE], local), placed)
    assert (problems == []) is good, problems
