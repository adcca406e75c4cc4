"""Preforking servers: each worker answers right after the fork, and sees what the others set."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches

import mqkv
from places import ON_BROKERS

TESTS = Path(__file__).parent.parent
WORKERS = 3


@contextlib.contextmanager
def gunicorn(url: str, prefix: str, *arguments: str) -> Iterator[str]:
    """A server with three workers, forked from a master that has used the cache."""
    pytest.importorskip("gunicorn")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", str(WORKERS), "--bind", f"127.0.0.1:{port}"]
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "MQKV_PROJECT_URL": url, "MQKV_PROJECT_PREFIX": prefix}
    server = subprocess.Popen(
        [*command, "--log-level", "warning", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"gunicorn did not start: {server.communicate()[0] if server.poll() is not None else ''}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            output = server.communicate(timeout=15)[0]
        except subprocess.TimeoutExpired:
            server.kill()
            output = server.communicate()[0] + "\n(did not end by itself)"
        print(output)
    assert "Traceback" not in output and "did not end" not in output


def fetch(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as response:
        return str(response.read().decode())


def everybody_says(base: str, path: str, value: Any) -> None:
    """All workers are asked until each has answered; every answer must be right."""
    seen: set[int] = set()
    deadline = time.monotonic() + 30
    while len(seen) < WORKERS:
        answer = json.loads(fetch(f"{base}{path}"))
        assert answer["value"] == value
        seen.add(answer["pid"])
        assert time.monotonic() < deadline, f"only {len(seen)} workers have answered"


@pytest.mark.broker
@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["--worker-class", "sync", "django_project.wsgi:application"], "/get/"),
        (["--worker-class", "gthread", "--threads", "4", "django_project.wsgi:application"], "/get/"),
        (["--worker-class", "uvicorn_worker.UvicornWorker", "django_project.wsgi:asgi"], "/aget/"),
    ],
    ids=["sync", "gthread", "uvicorn"],
)
def test_gunicorn_with_preload(broker: Any, prefix: str, arguments: list[str], path: str) -> None:
    if "uvicorn" in arguments[1]:
        pytest.importorskip("uvicorn_worker")
    with gunicorn(broker.url, prefix, *arguments) as base:
        first = json.loads(fetch(f"{base}{path}?key=master"))
        assert first["value"] and first["value"] != [first["pid"]], "the master's, made before the fork"
        everybody_says(base, f"{path}?key=master", first["value"])
        for n in range(5):
            fetch(f"{base}/set/?key=k&value=v{n}")
            time.sleep(0.05)  # a set is confirmed when the broker has it; others have it a moment later
            everybody_says(base, f"{path}?key=k", f"v{n}")
    with mqkv.Store(broker.url, prefix=prefix, layout="shared", name="django.django_project.default", _maker="") as store:
        store.purge()


def in_child(work: Callable[[], object]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "see the child's traceback above"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("url", ["file", *ON_BROKERS], indirect=True)
def test_a_plain_fork_as_celery_makes_it(cache: Any) -> None:
    cache.set_many({"k": "parent", "list": [1], "n": 1})
    assert cache.get("list") == [1]

    def child() -> None:
        assert cache.get("k") == "parent" and cache.get_many(["list", "k"]) == {"list": [1], "k": "parent"}
        assert cache.incr("n") and caches["default"].set("k", f"child {os.getpid()}")
        assert cache.get("k") == f"child {os.getpid()}"

    for n in range(2, 5):
        in_child(child)
        caches["default"]._store.sync()
        assert cache.get("k").startswith("child") and cache.get("n") == n
        cache.set("k", "parent")
    assert cache.get("k") == "parent"
