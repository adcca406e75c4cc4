"""What all tests share: brokers, places to store things, names, and the check that a test leaks nothing.

``broker``       a node for the whole run, started by the first test that asks for it: use it, don't kill it
``own_broker``   a node of this module's own, to kill, stop and start; running and usable when a test gets it
``new_broker``   makes more RabbitMQ nodes: ``new_broker(config="...")``
``url``          a fresh place; the test runs once each on memory, file, and each broker
``layout``       the test runs once each with per-key and shared
``prefix``       a name that no other test uses
``seed``         a number for a randomised run, printed when the test fails; MQKV_SEED=... repeats one

A test that asks for ``broker`` or ``own_broker`` runs once on RabbitMQ and once on LavinMQ, where one is found (``broker.py``
says how it is looked for, and the header of a run what was found). One that names the ways of one of them is marked
``rabbitmq_only("why")`` or ``lavinmq_only("why")``. To choose among places:
``@pytest.mark.parametrize("url", ["file", *ON_BROKERS], indirect=True)``.

Markers: ``slow`` (see pyproject.toml), ``leaks_ok`` (don't check this test for leaks). Tests that use a broker are marked
``broker`` by themselves, so ``pytest -m "not broker"`` is the quick run; ``-k lavinmq`` is what runs on LavinMQ.
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
from typing import Any

import pytest
from hypothesis import settings

from broker import (
    HOW_TO_GET_LAVINMQ,
    AnyNode,
    Broker,
    ExternalBroker,
    LavinBroker,
    NoBroker,
    Node,
    find_lavinmq,
    private_broker,
    private_lavinmq,
)
from places import BROKERS, ON_BROKERS

settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", settings.get_profile("default"), max_examples=200)
settings.load_profile("ci" if os.environ.get("CI") else "default")

GRACE = 2.0  # seconds that threads and descriptors of a closed store get to go away


def pytest_report_header() -> str:
    found = find_lavinmq()
    if not (found.url or found.program):
        return f"LavinMQ: none found, so nothing runs on it. To have it: {HOW_TO_GET_LAVINMQ}"
    return f"LavinMQ: {'the one of MQKV_LAVINMQ; ' if found.url else ''}private nodes by {found.program or 'nothing'}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What asks for a broker runs on each of them, and what asks for two at once has both of one kind."""
    if "broker_kind" in metafunc.fixturenames:
        kinds = BROKERS
        if metafunc.definition.get_closest_marker("rabbitmq_only") or "new_broker" in metafunc.fixturenames:
            kinds = ["rabbitmq"]
        elif "own_broker" in metafunc.fixturenames and find_lavinmq().program is None:
            kinds = ["rabbitmq"]  # a LavinMQ that somebody else runs is not ours to kill
        if metafunc.definition.get_closest_marker("lavinmq_only"):
            kinds = [kind for kind in kinds if kind == "lavinmq"]
        metafunc.parametrize("broker_kind", kinds, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"broker_kind", "rabbitmq", "new_broker"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.broker)
        if item.get_closest_marker("time_intensive"):  # dogpile's own name for it
            item.add_marker(pytest.mark.slow)
            if getattr(item.cls, "variant", False):  # ten seconds each, and the main class has them too
                item.add_marker(pytest.mark.long)


# Brokers


@contextlib.contextmanager
def _found(node: contextlib.AbstractContextManager[AnyNode]) -> Iterator[AnyNode]:
    try:
        with node as started:
            yield started
    except NoBroker as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[Broker | ExternalBroker]:
    if named := os.environ.get("MQKV_TEST_BROKER"):
        yield ExternalBroker(named)
        return
    with _found(private_broker(settle=False)) as node:
        yield node


@pytest.fixture(scope="session")
def lavinmq() -> Iterator[LavinBroker | ExternalBroker]:
    if named := find_lavinmq().url:
        yield ExternalBroker(named)
        return
    with _found(private_lavinmq()) as node:
        yield node


@pytest.fixture(scope="module")
def _own_rabbitmq() -> Iterator[Broker]:
    with _found(private_broker()) as node:
        yield node


@pytest.fixture(scope="module")
def _own_lavinmq() -> Iterator[LavinBroker]:
    with _found(private_lavinmq()) as node:
        yield node


@pytest.fixture
def broker_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def broker(request: pytest.FixtureRequest, broker_kind: str) -> Any:
    return request.getfixturevalue(broker_kind)


@pytest.fixture
def own_broker(request: pytest.FixtureRequest, broker_kind: str) -> Iterator[Node]:
    node: Node = request.getfixturevalue(f"_own_{broker_kind}")
    node.ensure()
    yield node
    if node.running:
        node.cont()


@pytest.fixture
def new_broker() -> Iterator[Callable[..., Broker]]:
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(_found(private_broker(**options)))


# Places and names


@pytest.fixture(params=["memory", "file", *ON_BROKERS])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    if request.param == "file":
        return f"file://{tmp_path}/kv"
    address: str = request.getfixturevalue(request.param).url
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
