"""A private RabbitMQ node in a temporary folder on free ports, to use, kill, stop and start again.

As a program it runs a node until Ctrl-C: ``python tests/broker.py``, then ``MQKV_TEST_BROKER=<the URL it prints> pytest``
spares each run the start.

1. A node never outlives the process that started it, however that ends: a shell waits for the other end of a pipe to close and
   then kills the node's process group, stops its epmd and removes its folder.
2. Each node has an epmd of its own, so nodes of several test runs don't meet.
3. Ports are taken below the range that the system gives to outgoing connections: nobody takes them while the node is down.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pika
from pika.exceptions import AMQPError

HOW_TO_GET_ONE = (
    "This test needs a RabbitMQ broker and found none. `scripts/test` installs one; or install it by hand "
    "(`apt-get install rabbitmq-server`, `brew install rabbitmq`); or name a running one: MQKV_TEST_BROKER=amqp://user:password@host/vhost"
)
PROBE = "mqkv-test-probe"  # the stream that shows that a node is usable
SETTLE = 2.0  # seconds; a node killed sooner after its very first stream declare can lose that stream for good
DEBIAN = Path("/usr/lib/rabbitmq/bin")  # Debian's /usr/sbin/rabbitmq-server changes the user, these run as whoever calls them
WATCHDOG = """
trap '' INT TERM HUP
node=
while read -r line; do node=$line; done
[ -z "$node" ] || kill -s KILL -- "-$node" 2>/dev/null
sleep 0.1
epmd -port "$ERL_EPMD_PORT" -kill >/dev/null 2>&1
rm -rf "$HOME"
"""


class NoBroker(Exception):
    """There is no RabbitMQ here; the message says how to get one."""


def find(program: str) -> str:
    """The path of ``rabbitmq-server`` or ``rabbitmqctl``; ``NoBroker`` if there is none."""
    elsewhere = f"{os.environ.get('PATH', '')}:/opt/homebrew/sbin:/usr/local/sbin"
    path = shutil.which(program, path=str(DEBIAN)) or shutil.which(program, path=elsewhere)
    if path is None:
        raise NoBroker(HOW_TO_GET_ONE)
    return path


def free_port() -> int:
    """A TCP port nobody listens on, outside the usual ranges of outgoing connections (32768 and up)."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Broker:
    """One node. ``start`` it first; ``close`` ends it and removes its folder."""

    descriptors: ClassVar[set[int]] = set()  # ours, not leaked by a test

    def __init__(self, config: str = "") -> None:
        self._server = find("rabbitmq-server")
        self._control = find("rabbitmqctl")
        self.folder = Path(tempfile.mkdtemp(prefix="mqkv-broker-"))
        self.port, distribution, epmd = free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"
        self.name = f"mqkv{self.port}@localhost"
        self.pid: int | None = None  # of the process group
        self._process: subprocess.Popen[bytes] | None = None
        lines = f"listeners.tcp.1 = 127.0.0.1:{self.port}\nloopback_users = none\ndisk_free_limit.absolute = 50MB\n{config}\n"
        (self.folder / "rabbitmq.conf").write_text(lines)
        (self.folder / "plugins").write_text("[].\n")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_"))} | {
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(epmd),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
        }
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG], stdin=subprocess.PIPE, cwd="/", env=self.environment, start_new_session=True, bufsize=0
        )
        assert self._watchdog.stdin is not None
        self._pipe = self._watchdog.stdin
        self.descriptors.add(self._pipe.fileno())

    def __repr__(self) -> str:
        return f"Broker({self.url!r}, folder={str(self.folder)!r}, pid={self.pid})"

    @property
    def running(self) -> bool:
        """Whether the node's process lives (it may be stopped with ``stop``)."""
        return self._process is not None and self._process.poll() is None

    @property
    def data(self) -> Path:
        """The node's data folder."""
        return self.folder / "data" / self.name

    def start(self, timeout: float = 60.0) -> None:
        """Start, or start again in the same folder and port; returns when a stream can be written and read."""
        if self.running:
            return
        deadline = time.monotonic() + timeout
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [self._server],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._pipe.write(f"{self.pid}\n".encode())
        self.wait_until_usable(deadline)

    def wait_until_usable(self, deadline: float) -> None:
        """Until a message can be written to the probe stream and read back."""
        while True:
            try:
                if round_trip(self.url):
                    return
                problem: object = "a stream did not answer"
            except (AMQPError, OSError) as error:
                problem = repr(error)
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"RabbitMQ ended by itself.\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"RabbitMQ was not usable in time: {problem}\n{self.log_tail()}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to the whole node, as a crash would end it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._pipe.write(b"\n")
            self._process = self.pid = None

    def stop(self) -> None:
        """SIGSTOP: connections stay open, nothing answers. ``cont`` ends it."""
        self._signal(signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT, after ``stop``."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.pid is not None, "the node is not running"
        os.killpg(self.pid, number)

    def ctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run ``rabbitmqctl``; what it printed. ``CalledProcessError`` if it failed."""
        command = [self._control, "--quiet", *arguments]
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, " ".join(command), done.stdout, done.stdout + done.stderr)
        return done.stdout

    def ensure(self) -> None:
        """Running, not stopped, usable: whatever a test did to it before."""
        if self.running:
            self.cont()
        self.start()

    def log_tail(self, lines: int = 30) -> str:
        """The end of what the node printed."""
        return "\n".join((self.folder / "output").read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """End the node and its epmd, remove its folder."""
        self.kill()
        self.descriptors.discard(self._pipe.fileno())
        self._pipe.close()
        try:
            self._watchdog.wait(timeout=10)
        except subprocess.TimeoutExpired:  # a forked child still holds the pipe: it is as good as done
            self._watchdog.kill()
            self._watchdog.wait()
            shutil.rmtree(self.folder, ignore_errors=True)


class ExternalBroker:
    """A broker that somebody else runs (MQKV_TEST_BROKER): it can be used, not killed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.port = pika.URLParameters(url).port

    def __repr__(self) -> str:
        return f"ExternalBroker(port={self.port})"


def round_trip(url: str) -> bool:
    """Whether a message published to the probe stream comes back within a second. Raises what pika raises."""
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = 5
    connection = pika.BlockingConnection(parameters)
    try:
        channel = connection.channel()
        channel.queue_declare(PROBE, durable=True, arguments={"x-queue-type": "stream"})
        channel.confirm_delivery()
        channel.basic_publish("", PROBE, b"probe", pika.BasicProperties(delivery_mode=2), mandatory=True)
        channel.basic_qos(prefetch_count=10)
        for method, _, _ in channel.consume(PROBE, arguments={"x-stream-offset": "last"}, inactivity_timeout=1):
            return method is not None
        return False
    finally:
        with contextlib.suppress(AMQPError):
            connection.close()


@contextlib.contextmanager
def private_broker(config: str = "", settle: bool = True) -> Iterator[Broker]:
    """A started node, ended on leaving. ``settle`` waits until it is safe to kill it."""
    broker = Broker(config)
    try:
        broker.start()
        if settle:
            time.sleep(SETTLE)
        yield broker
    finally:
        broker.close()


if __name__ == "__main__":
    with private_broker() as node, contextlib.suppress(KeyboardInterrupt):
        print(f"MQKV_TEST_BROKER={node.url}\nCtrl-C ends it.", flush=True)
        signal.pause()
