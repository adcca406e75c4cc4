"""What all tests share: brokers, places to store things, names, and the check that a test leaks nothing.

``broker``       one private RabbitMQ node for the whole run, started by the first test that asks for it: use it, don't kill it
``own_broker``   a node of this module's own, to kill, stop and start; running and usable when a test gets it
``new_broker``   makes more nodes: ``new_broker(config="...")``
``url``          a fresh place; the test runs once each on memory, file and amqp
``layout``       the test runs once each with per-key and shared
``prefix``       a name that no other test uses
``seed``         a number for a randomised run, printed when the test fails; MQKV_SEED=... repeats one

Markers: ``slow`` (see pyproject.toml), ``leaks_ok`` (don't check this test for leaks). Tests that use a broker are marked
``broker`` by themselves, so ``pytest -m "not broker"`` is the quick run.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from broker import Broker, ExternalBroker, NoBroker, private_broker

settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", settings.get_profile("default"), max_examples=200)
settings.load_profile("ci" if os.environ.get("CI") else "default")

GRACE = 2.0  # seconds that threads and descriptors of a closed store get to go away


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"broker", "own_broker", "new_broker"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.broker)
        if item.get_closest_marker("time_intensive"):  # dogpile's own name for it
            item.add_marker(pytest.mark.slow)
            if getattr(item.cls, "variant", False):  # ten seconds each, and the main class has them too
                item.add_marker(pytest.mark.long)


# Brokers


@contextlib.contextmanager
def _private(**options: object) -> Iterator[Broker]:
    try:
        with private_broker(**options) as node:  # type: ignore[arg-type]
            yield node
    except NoBroker as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker | ExternalBroker]:
    if named := os.environ.get("MQKV_TEST_BROKER"):
        yield ExternalBroker(named)
        return
    with _private(settle=False) as node:
        yield node


@pytest.fixture(scope="module")
def _module_broker() -> Iterator[Broker]:
    with _private() as node:
        yield node


@pytest.fixture
def own_broker(_module_broker: Broker) -> Iterator[Broker]:
    _module_broker.ensure()
    yield _module_broker
    if _module_broker.running:
        _module_broker.cont()


@pytest.fixture
def new_broker() -> Iterator[Callable[..., Broker]]:
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(_private(**options))


# Places and names


@pytest.fixture(params=["memory", "file", pytest.param("amqp", marks=pytest.mark.broker)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    if request.param == "file":
        return f"file://{tmp_path}/kv"
    address: str = request.getfixturevalue("broker").url
    return address


@pytest.fixture(params=["per-key", "shared"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    test = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    return f"t-{test}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def seed() -> int:
    number = int(os.environ.get("MQKV_SEED") or random.SystemRandom().getrandbits(32))
    print(f"MQKV_SEED={number}")
    return number


# Leaks


def _threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if not t.daemon or t.name.startswith("mqkv")}


def _descriptors() -> dict[int, str]:
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found = {}
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):  # the descriptor of listdir itself
            os.fstat(int(name))
            found[int(name)] = os.readlink(f"{folder}/{name}") if folder.startswith("/proc") else ""
    return {number: target for number, target in found.items() if number not in Broker.descriptors}


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread or a descriptor behind. A test's first fixture, so it looks when all others are gone."""
    if request.node.get_closest_marker("leaks_ok"):
        yield
        return
    threads, descriptors = _threads(), _descriptors()
    yield
    deadline = time.monotonic() + GRACE
    while True:
        new_threads = _threads() - threads
        now = _descriptors()
        new_descriptors = {n: t for n, t in now.items() if descriptors.get(n) != t} if len(now) > len(descriptors) else {}
        if not (new_threads or new_descriptors):
            return
        if time.monotonic() > deadline:
            break
        gc.collect()
        time.sleep(0.02)
    pytest.fail(f"left behind: threads {sorted(t.name for t in new_threads)}, descriptors {new_descriptors}", pytrace=False)
