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
from histories import History, Job
from linearizability import Verdict, check, witness


@pytest.fixture(params=["file", pytest.param("amqp", marks=pytest.mark.broker)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that processes can share."""
    return f"file://{tmp_path}/kv" if request.param == "file" else str(request.getfixturevalue("broker").url)


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
    job = replace(job, seconds=120)
    jobs = [replace(job, client=10 * who, calls=4_000, follow=who % 2 == 1) for who in range(4)]
    jobs.append(replace(job, client=40, calls=2_000, threads=2, write_timeout=0.1))
    victims = [replace(job, client=10 * who, calls=100_000, dies_after=rng.randrange(400)) for who in (5, 6, 7)]

    def go(through: Callable[[Job], Job]) -> None:
        histories.run([through(each) for each in (*jobs, *victims)])

    if job.url.startswith("file"):
        go(lambda each: each)
    else:
        port = mqkv.url.parse(job.url).port
        with Cutter(port, seed=job.seed, bytes_between_cuts=250_000) as cutter:
            go(lambda each: replace(each, url=cutter.url))
        print(f"{cutter.cuts} cuts")
        assert cutter.cuts >= 20
    history = judged(job)
    assert did(history) >= 20_000


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
