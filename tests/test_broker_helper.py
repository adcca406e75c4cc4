"""The private node is what the fault tests stand on: it dies when told, comes back with its data, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker import SETTLE, TROUBLE, Node, find_lavinmq, round_trip
from places import BROKERS


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_where_lavinmq_is_looked_for(tmp_path: Path) -> None:
    program = tmp_path / "lavinmq"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    on_path, url = {"PATH": str(tmp_path)}, "amqp://guest:guest@host/%2F"
    assert find_lavinmq({"PATH": ""}) == (None, None)
    assert find_lavinmq(on_path) == (str(program), None)
    assert find_lavinmq({**on_path, "MQKV_LAVINMQ": "/opt/start"}) == ("/opt/start", None)
    assert find_lavinmq({"MQKV_LAVINMQ": url, "PATH": ""}) == (None, url)
    assert find_lavinmq({**on_path, "MQKV_LAVINMQ": url}) == (str(program), url)


@pytest.mark.slow
def test_a_killed_node_comes_back_on_the_same_port_with_its_streams(own_broker: Node) -> None:
    port, before = own_broker.port, own_broker.pid
    own_broker.kill()
    assert not own_broker.running
    own_broker.start()
    assert own_broker.port == port
    assert own_broker.pid != before
    assert round_trip(own_broker.url)


@pytest.mark.slow
def test_a_stopped_node_does_not_answer_until_it_goes_on(own_broker: Node) -> None:
    own_broker.stop()
    with pytest.raises(TROUBLE):
        round_trip(own_broker.url, patience=1)
    own_broker.cont()
    assert round_trip(own_broker.url)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("maker", [{"rabbitmq": "Broker", "lavinmq": "LavinBroker"}[kind] for kind in BROKERS])
def test_a_node_dies_with_the_process_that_started_it(maker: str) -> None:
    program = f"""
import os
from broker import {maker}

node = {maker}()
node.start()
print(node.pid, node.folder, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=False
    )
    pid, folder = done.stdout.split()
    deadline = time.monotonic() + 5 + SETTLE
    while (alive(int(pid)) or os.path.exists(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(pid))
    assert not os.path.exists(folder)
