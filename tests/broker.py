"""Private nodes of RabbitMQ and LavinMQ in temporary folders on free ports, to use, kill, stop and start again.

As a program it runs a RabbitMQ node until Ctrl-C: ``python tests/broker.py``, then
``MQKV_TEST_BROKER=<the URL it prints> pytest`` spares each run the start.

1. A node never outlives the process that started it, however that ends: a shell waits for the other end of a pipe to close and
   then kills the node's process group, stops its epmd and removes its folder.
2. Each RabbitMQ node has an epmd of its own, so nodes of several test runs don't meet.
3. Ports are taken below the range that the system gives to outgoing connections: nobody takes them while the node is down.
4. RabbitMQ must be there. LavinMQ is used where one is found (``find_lavinmq``): then what runs on a broker runs on both.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError

HOW_TO_GET_ONE = (
    "This test needs a RabbitMQ broker and found none. `scripts/test` installs one; or install it by hand "
    "(`apt-get install rabbitmq-server`, `brew install rabbitmq`); or name a running one: MQKV_TEST_BROKER=amqp://user:password@host/vhost"
)
LAVINMQ = "MQKV_LAVINMQ"  # a program that is called `PROGRAM FOLDER PORT`, or the URL of a LavinMQ that runs
HOW_TO_GET_LAVINMQ = f"put `lavinmq` on the PATH, or set {LAVINMQ} to a program (called `PROGRAM FOLDER PORT`) or to an amqp URL"
TROUBLE = (AMQPError, AMQPConnectorException, OSError)  # what pika raises where a node is away or silent
PROBE = "mqkv-test-probe"  # the stream that shows that a node is usable
#: On a disk each confirm of LavinMQ waits for `syncfs`: for whatever else is being written there. A node in memory is as sure
#: to come back after kill -9, and takes a test no longer where the machine is busy.
IN_MEMORY, ROOM = Path("/dev/shm"), 2 * 2**30
SETTLE = 2.0  # seconds; a node killed sooner after its very first stream declare can lose that stream for good
DEBIAN = Path("/usr/lib/rabbitmq/bin")  # Debian's /usr/sbin/rabbitmq-server changes the user, these run as whoever calls them
WATCHDOG = """
trap '' INT TERM HUP
node=
while read -r line; do node=$line; done
[ -z "$node" ] || kill -s KILL -- "-$node" 2>/dev/null
sleep 0.1
[ -z "$ERL_EPMD_PORT" ] || epmd -port "$ERL_EPMD_PORT" -kill >/dev/null 2>&1
rm -rf "$HOME"
"""


class NoBroker(Exception):
    """The broker that a test needs is not here; the message says how to get one."""


class LavinFound(NamedTuple):
    """Where LavinMQ is: a program that starts a node, the URL of one that runs, both, or neither."""

    program: str | None
    url: str | None


def find_lavinmq(environment: Mapping[str, str] = os.environ) -> LavinFound:
    """The LavinMQ to test on. ``MQKV_LAVINMQ`` comes first; ``lavinmq`` on the PATH is what else starts private nodes."""
    named = environment.get(LAVINMQ, "")
    program = shutil.which("lavinmq", path=environment.get("PATH"))
    if "://" in named:
        return LavinFound(program, named)
    return LavinFound(os.path.abspath(named) if named else program, None)


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


class Node(ABC):
    """A node of some broker. ``start`` it first; ``close`` ends it and removes its folder."""

    descriptors: ClassVar[set[int]] = set()  # ours, not leaked by a test
    product: ClassVar[str]
    #: Seconds after the start from which on it is safe to kill a node.
    settle: ClassVar[float] = 0.0

    def __init__(self, where: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mqkv-broker-", dir=where))
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"
        self.pid: int | None = None  # of the process group
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = self._environment()
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG], stdin=subprocess.PIPE, cwd="/", env=self.environment, start_new_session=True, bufsize=0
        )
        assert self._watchdog.stdin is not None
        self._pipe = self._watchdog.stdin
        self.descriptors.add(self._pipe.fileno())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, folder={str(self.folder)!r}, pid={self.pid})"

    @abstractmethod
    def _environment(self) -> dict[str, str]:
        """For the node's process; HOME is the folder, which goes when the node goes."""

    @abstractmethod
    def _command(self) -> list[str]:
        """What runs the node in the foreground."""

    @property
    def running(self) -> bool:
        """Whether the node's process lives (it may be stopped with ``stop``)."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout: float = 60.0) -> None:
        """Start, or start again in the same folder and port; returns when a stream can be written and read."""
        if self.running:
            return
        deadline = time.monotonic() + timeout
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                self._command(),
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
            except TROUBLE as error:
                problem = repr(error)
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"{self.product} ended by itself.\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.product} was not usable in time: {problem}\n{self.log_tail()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to the whole node, as a crash would end it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._pipe.write(b"\n")
            self._process = self.pid = None

    def stop(self) -> None:
        """SIGSTOP: connections stay open, nothing answers. ``cont`` ends it. Returns when all of its threads have stopped."""
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + 2
        while self._runs() and time.monotonic() < deadline:
            time.sleep(0.002)

    def _runs(self) -> bool:
        """Whether any thread of the node runs (as far as the system tells: Linux)."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getpgid(int(process.name)) == self.pid:
                    states = [stat.read_text().rpartition(")")[2].split()[0] for stat in process.glob("task/*/stat")]
                    if set(states) - set("TZX"):
                        return True
        return False

    def cont(self) -> None:
        """SIGCONT, after ``stop``."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.pid is not None, "the node is not running"
        os.killpg(self.pid, number)

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


class Broker(Node):
    """A RabbitMQ node."""

    product = "RabbitMQ"
    settle = SETTLE

    def __init__(self, config: str = "") -> None:
        self._server = find("rabbitmq-server")
        self._control = find("rabbitmqctl")
        super().__init__()
        lines = f"listeners.tcp.1 = 127.0.0.1:{self.port}\nloopback_users = none\ndisk_free_limit.absolute = 50MB\n{config}\n"
        (self.folder / "rabbitmq.conf").write_text(lines)
        (self.folder / "plugins").write_text("[].\n")

    def _environment(self) -> dict[str, str]:
        self.name = f"mqkv{self.port}@localhost"
        return {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_"))} | {
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(free_port()),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
        }

    def _command(self) -> list[str]:
        return [self._server]

    @property
    def data(self) -> Path:
        """The node's data folder."""
        return self.folder / "data" / self.name

    def ctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run ``rabbitmqctl``; what it printed. ``CalledProcessError`` if it failed."""
        command = [self._control, "--quiet", *arguments]
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, " ".join(command), done.stdout, done.stdout + done.stderr)
        return done.stdout

    def add_user(self, name: str, password: str) -> None:
        self.ctl("add_user", name, password)

    def delete_user(self, name: str) -> None:
        self.ctl("delete_user", name)

    def set_permissions(self, name: str, configure: str, write: str, read: str) -> None:
        self.ctl("set_permissions", name, configure, write, read)


class LavinBroker(Node):
    """A LavinMQ node. ``program`` is called as ``PROGRAM FOLDER PORT``; without one ``lavinmq`` itself is run, from the PATH."""

    product = "LavinMQ"

    def __init__(self, program: str | None = None) -> None:
        self._program = program or find_lavinmq().program or ""
        if shutil.which(self._program) is None:
            raise NoBroker(f"This test needs a LavinMQ, and can't run {self._program!r}: {HOW_TO_GET_LAVINMQ}")
        roomy = IN_MEMORY.is_dir() and os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > ROOM
        super().__init__(IN_MEMORY if roomy else None)

    def _environment(self) -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if not k.startswith(("LAVINMQ_", "ERL_"))} | {
            "HOME": str(self.folder),
            "LAVINMQ_CONFIGURATION_DIRECTORY": str(self.folder / "none"),
        }

    @property
    def data(self) -> Path:
        """The node's data folder."""
        return self.folder / "data"

    def _command(self) -> list[str]:
        if Path(self._program).name != "lavinmq":
            return [self._program, str(self.data), str(self.port)]
        self.data.mkdir(exist_ok=True)
        return [
            *(self._program, "--data-dir", str(self.data), "--bind", "127.0.0.1", "--amqp-port", str(self.port)),
            *("--http-port=-1", "--mqtt-port=-1", "--metrics-http-port=-1", "--clustering-port=0"),
            *("--control-unix-path", str(self.data / "control.sock")),
        ]

    def add_user(self, name: str, password: str) -> None:
        self._put(f"users/{name}", {"password": password, "tags": ""})

    def delete_user(self, name: str) -> None:
        self._ask("DELETE", f"users/{name}")

    def set_permissions(self, name: str, configure: str, write: str, read: str) -> None:
        self._put(f"permissions/%2F/{name}", {"configure": configure, "write": write, "read": read})

    def _put(self, path: str, what: dict[str, str]) -> None:
        self._ask("PUT", path, json.dumps(what))

    def _ask(self, method: str, path: str, body: str | None = None) -> None:
        """A call of the HTTP API on the node's control socket."""
        with contextlib.closing(http.client.HTTPConnection("localhost", timeout=10)) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(self.data / "control.sock"))
            connection.request(method, f"/api/{path}", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.status} {answer.read()!r}")


AnyNode = TypeVar("AnyNode", bound=Node)


class ExternalBroker:
    """A broker that somebody else runs (MQKV_TEST_BROKER, MQKV_LAVINMQ): it can be used, not killed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.port = pika.URLParameters(url).port

    def __repr__(self) -> str:
        return f"ExternalBroker(port={self.port})"


def round_trip(url: str, patience: float = 5) -> bool:
    """Whether a message published to the probe stream comes back within a second. Raises what pika raises, after ``patience``
    seconds of silence."""
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = patience
    connection = pika.BlockingConnection(parameters)
    try:
        channel = connection.channel()
        channel.queue_declare(PROBE, durable=True, arguments={"x-queue-type": "stream"})
        channel.confirm_delivery()
        channel.basic_publish("", PROBE, b"probe", pika.BasicProperties(delivery_mode=2), mandatory=True)
        channel.basic_qos(prefetch_count=10)
        # Not "last": that is broken on LavinMQ while a stream is empty.
        for method, _, _ in channel.consume(PROBE, arguments={"x-stream-offset": 0}, inactivity_timeout=1):
            return method is not None
        return False
    finally:
        with contextlib.suppress(*TROUBLE):
            connection.close()


@contextlib.contextmanager
def private_broker(config: str = "", settle: bool = True) -> Iterator[Broker]:
    """A started RabbitMQ node, ended on leaving. ``settle`` waits until it is safe to kill it."""
    with _started(Broker(config), settle) as node:
        yield node


@contextlib.contextmanager
def private_lavinmq(settle: bool = True) -> Iterator[LavinBroker]:
    """A started LavinMQ node, ended on leaving."""
    with _started(LavinBroker(), settle) as node:
        yield node


@contextlib.contextmanager
def _started(node: AnyNode, settle: bool) -> Iterator[AnyNode]:
    try:
        node.start()
        if settle:
            time.sleep(node.settle)
        yield node
    finally:
        node.close()


if __name__ == "__main__":
    with private_broker() as node, contextlib.suppress(KeyboardInterrupt):
        print(f"MQKV_TEST_BROKER={node.url}\nCtrl-C ends it.", flush=True)
        signal.pause()
