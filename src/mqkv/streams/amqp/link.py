"""The connection as a thing that comes back: the I/O thread, connecting, and the one verb that drops and resumes.

It knows how to connect and when to try again; it knows nothing of streams. Rules:

1. Everything but ``call``, ``close`` and ``abandon`` runs on the I/O thread. The thread starts at the first call.
2. While no connection was ever made, a failed attempt fails all who wait. Later, who waits does so until its own deadline.
3. It reconnects by itself while ``wanted`` says so or somebody waits, at growing intervals, with jitter.
4. No error ends the I/O thread, wherever it comes from: what was under way is settled, and the thread goes on. Where it ends
   all the same, nobody waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import pika

from mqkv.errors import Closed, ConnectionFailed
from mqkv.logfmt import Log
from mqkv.streams.amqp.failures import connect_error, dropped
from mqkv.streams.amqp.frames import Connection
from mqkv.streams.amqp.loop import Loop
from mqkv.streams.amqp.session import Session
from mqkv.streams.amqp.tasks import Future, spawn
from mqkv.url import URL

A = TypeVar("A")

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0


class Owner(Protocol):
    """Who must know how the connection fares."""

    def wanted(self) -> bool:
        """Whether to reconnect without being asked."""

    async def up(self, session: Session) -> None:
        """A connection was made; nobody uses it before this returns."""

    def resume(self, session: Session) -> None:
        """The connection is in use from now on."""

    def down(self) -> None:
        """The connection is gone."""

    def flush(self) -> None:
        """Its channels are open again."""

    def farewell(self) -> None:
        """No connection will be made any more: settle what waits for one."""


def parameters(url: URL) -> pika.ConnectionParameters:
    """pika's parameters, all of them given: its defaults hang, or retry behind our back.

    ``blocked_connection_timeout`` stays off on purpose: it would cut the tails too, which a memory or disk alarm leaves alone.
    Appends have deadlines of their own.
    """
    timeout = connect_timeout(url)
    return pika.ConnectionParameters(
        host=url.host,
        port=url.port,
        virtual_host=url.path,
        credentials=pika.PlainCredentials(url.user, url.password),
        heartbeat=int(float(url.option("heartbeat") or 30)),
        blocked_connection_timeout=None,
        connection_attempts=1,
        retry_delay=0,
        socket_timeout=timeout,
        stack_timeout=timeout,
        ssl_options=_tls(url),
        client_properties={"connection_name": f"mqkv pid {os.getpid()}", "product": "mqkv"},
    )


def connect_timeout(url: URL) -> float:
    return float(url.option("connect_timeout") or 5)


def _tls(url: URL) -> pika.SSLOptions | None:
    if url.scheme != "amqps":
        return None
    context = ssl.create_default_context(cafile=url.option("cafile"))
    if url.option("verify") == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate = url.option("certfile")
    if certificate:
        context.load_cert_chain(certificate, url.option("keyfile"))
    return pika.SSLOptions(context, url.host)


class Link:
    """The connection to one broker."""

    def __init__(self, url: URL, owner: Owner, log: Log) -> None:
        self.url = url
        self.session: Session | None = None
        self.closed = False
        self._owner = owner
        self._log = log
        self._lock = threading.RLock()
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None
        self._calls: deque[Callable[[], None]] = deque()
        self._called = False
        self._torn: BaseException | None = None  # what interrupted a thread that was sending on this connection
        # From here on for the I/O thread.
        self._connection: Connection | None = None
        self._leaving: set[Connection] = set()  # of no use any more, and not closed yet
        self._connecting = False
        self._was_up = False
        self._node = 0  # which of them is tried, or in use
        self._tried = 0  # how many have failed since the last pause
        self._pause = FIRST_PAUSE
        self._last_error: ConnectionFailed | None = None
        self._told: set[str] = set()  # why it could not be connected, since it was last
        self._waiting: list[Future[Session]] = []

    # For any thread

    def call(self, function: Callable[[], None]) -> None:
        """Run on the I/O thread, in the order of the calls. Many calls share one wake-up."""
        self._calls.append(function)
        if not self._called:
            loop = self._loop or self._start()
            try:
                self._called = True
                loop.call(self._run_calls)
            except BaseException:  # a signal's, say, before the loop was woken
                loop.call(self._run_calls)
                raise

    def here(self, function: Callable[[A], bool], argument: A) -> bool:
        """Whether it could be done at once, in this thread, in place of the I/O thread (see ``loop.py``)."""
        loop = self._loop
        if loop is None or self.closed or self._calls or self._torn is not None:
            return False
        try:
            return loop.here(function, argument)
        except BaseException as error:  # a signal's, say: a frame may have been sent in part, so nothing may follow it
            self._torn = torn = error
            connection = self._connection
            if connection is not None:
                connection.tear()
            loop.call(lambda: self._on_lost(connection, torn))
            raise

    def wake(self) -> None:
        """After ``here``: have the I/O thread look again what it waits for."""
        if self._loop is not None:
            self._loop.wake()

    def check(self) -> None:
        if self.closed:
            raise Closed("this engine was closed, or belongs to the parent of this process")

    def _start(self) -> Loop:
        with self._lock:
            self.check()
            if self._loop is None:
                loop = Loop()
                thread = threading.Thread(target=self._run, args=(loop,), name="mqkv-amqp", daemon=True)
                if self._loop is not None:  # a signal's handler was here in between
                    loop.close()  # type: ignore[unreachable]
                    return self._loop
                self._loop, self._thread = loop, thread
                thread.start()
            return self._loop

    def _run(self, loop: Loop) -> None:
        try:
            while not self.closed:
                try:
                    loop.run()
                except Exception as error:  # noqa: BLE001 -- rule 4
                    _report(error)
                    self._on_lost(self._connection, error)
        finally:
            self._say_goodbye()
            for connection in {*self._leaving, self._connection}:
                _sever(connection)
            loop.close()

    def _say_goodbye(self) -> None:
        self.closed = True  # who hands over something from now on sees it, and what was handed over before is begun
        self._run_calls()
        self._safely(self._owner.farewell)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.reject(Closed("this engine was closed"))
        session = self.session
        if session is not None:
            self._safely(lambda: session.lost(None))

    def _safely(self, step: Callable[[], object]) -> None:
        """One of several steps, of which each must be made, whatever comes of the others."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 -- rule 4
            _report(error)

    def _run_calls(self) -> None:
        self._called = False
        calls = self._calls
        while calls:
            self._safely(calls.popleft())

    def close(self, timeout: float = 1.0) -> None:
        """Say goodbye, and end the thread."""
        with self._lock:
            if self.closed:
                return
            loop, thread = self._loop, self._thread
            if loop is None or thread is None:
                self.closed = True
                return

        def leave() -> None:
            self._say_goodbye()
            connection = self._connection
            if connection is None:
                loop.stop()
                return
            connection.add_on_close_callback(lambda *_: loop.stop())
            connection.add_on_open_error_callback(lambda *_: loop.stop(), remove_default=False)
            loop.later(timeout, loop.stop)
            if not (connection.is_closed or connection.is_closing):
                connection.close()

        loop.call(leave)
        if thread is not threading.current_thread():
            thread.join(timeout + 1)

    def abandon(self) -> None:
        """In a forked child: close the descriptors, which are shared with the parent, without a word on them."""
        self.closed = True
        self._lock = threading.RLock()
        transport = getattr(self._connection, "_transport", None)
        for sock in (getattr(transport, "_sock", None), *_wakers(self._loop)):
            if sock is not None:
                descriptor = sock.detach()
                if descriptor >= 0:
                    os.close(descriptor)

    # For the I/O thread

    def later(self, delay: float, function: Callable[[], None]) -> Callable[[], None]:
        """Run after ``delay`` seconds; call what is returned to forget it."""
        loop = self._loop
        assert loop is not None
        return loop.later(delay, lambda: self._safely(function))

    async def sleep(self, delay: float) -> None:
        awake: Future[None] = Future()
        self.later(delay, lambda: awake.resolve(None))
        await awake

    async def up(self, deadline: float) -> Session:
        """The session, made if need be."""
        self.check()
        if self.session is not None:
            return self.session
        waiter: Future[Session] = Future()
        self._waiting.append(waiter)
        forget = self.later(deadline - time.monotonic(), lambda: waiter.reject(self.late()))
        self.connect()
        try:
            return await waiter
        finally:
            forget()

    def late(self) -> ConnectionFailed:
        """What is raised where there was no connection in time."""
        problem = ConnectionFailed(f"no connection to {self.url} in time: is the broker running and reachable? Nothing was sent")
        problem.__cause__ = self._last_error
        return problem

    def connect(self) -> None:
        """See that there is a connection, or an attempt to make one."""
        if self._connecting or self.session is not None or self.closed:
            return
        self._connecting = True
        loop = self._loop
        assert loop is not None
        try:
            connection: Any = Connection(
                parameters(self.url.nodes[self._node]),
                on_open_callback=self._on_open,
                on_open_error_callback=self._on_lost,
                on_close_callback=self._on_lost,
                custom_ioloop=loop.raw,
            )
        except Exception as error:  # noqa: BLE001 -- an unreadable cafile and the like
            self._on_lost(None, error)
            return
        self._connection = connection
        # pika's own timeouts begin after the name was resolved, and each address has its own.
        self.later(connect_timeout(self.url), lambda: self._give_up(connection))

    def _give_up(self, connection: Connection) -> None:
        if self._connection is connection and self._connecting:
            self._on_lost(connection, TimeoutError())

    def _on_open(self, connection: Connection) -> None:
        if self._connection is connection:
            spawn(self._begin(connection))

    async def _begin(self, connection: Connection) -> None:
        session = Session(connection, self.later)
        connection.session = session
        try:
            await self._owner.up(session)
        except Exception as error:  # noqa: BLE001 -- whatever it is, this connection is of no use
            if self._connection is connection:
                self._on_lost(connection, error)
            return
        if self._connection is not connection or not connection.is_open:
            return
        self._log(
            logging.INFO, "connect", url=self.url, product=session.dialect.product or "unknown", version=session.dialect.version
        )
        self.session = session
        self._connecting = False
        self._was_up = True
        self._told.clear()
        self._tried = 0
        self._pause = FIRST_PAUSE
        waiting, self._waiting = self._waiting, []
        self._owner.resume(session)
        for waiter in waiting:
            waiter.resolve(session)

    def reopen(self, session: Session, opening: Coroutine[Future[Any], None, None]) -> None:
        """Open a channel again on a connection that is well."""
        spawn(self._reopen(session, opening))

    async def _reopen(self, session: Session, opening: Coroutine[Future[Any], None, None]) -> None:
        try:
            await opening
        except Exception as error:  # noqa: BLE001 -- then the connection is not well
            if self.session is session:
                self._on_lost(self._connection, error)
            return
        self._owner.flush()

    def _on_lost(self, connection: Connection | None, error: BaseException) -> None:
        """Drop what there was, and resume: the one place where a connection ends, however it ends."""
        if connection is not None:
            if connection.is_closed:
                self._leaving.discard(connection)
            if connection is not self._connection:
                return
        session: Session | None = getattr(connection, "session", None)
        was_in_use = self.session is not None
        self.session, self._connection, self._torn = None, None, None
        if session is not None:
            self._safely(lambda: session.lost(error))
        if connection is not None and not connection.is_closed:
            self._leave(connection)
        if self.closed:
            return
        if was_in_use:
            reason = str(dropped(error)) or type(error).__name__
            self._log(logging.WARNING, "disconnect", url=self.url, reason=reason)
            self._safely(self._owner.down)
        else:
            problem = connect_error(error, self.url.nodes[self._node])
            self._node = (self._node + 1) % len(self.url.nodes)
            self._tried += 1
            if self._tried < len(self.url.nodes):
                self._last_error = problem
                self._log(logging.DEBUG, "connect-failed", url=self.url, reason=str(problem))
                self._again(pause=0)
                return
            self._tried = 0
            self._failed(problem)
        self._connecting = False
        if self._owner.wanted() or self._waiting:
            self._again()

    def _leave(self, connection: Connection) -> None:
        """Close what is of no use any more, whether the other side answers or not."""
        self._leaving.add(connection)
        if not connection.is_closing:
            self._safely(connection.close)
        self.later(connect_timeout(self.url), lambda: self._abort(connection))

    def _abort(self, connection: Connection) -> None:
        if connection in self._leaving:
            self._leaving.discard(connection)
            connection._adapter_disconnect_stream()

    def _failed(self, problem: ConnectionFailed) -> None:
        self._last_error = problem
        # Once an outage, however many calls it costs; one that began with a lost connection was told then.
        new = not self._was_up and str(problem) not in self._told and len(self._told) < 10
        if new:
            self._told.add(str(problem))
        self._log(logging.WARNING if new else logging.DEBUG, "connect-failed", url=self.url, reason=str(problem))
        if not self._was_up:
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                waiter.reject(problem)

    def _again(self, pause: float | None = None) -> None:
        """Connect anew, after ``pause`` seconds, or after the pause that is due."""
        if pause is None:
            pause = self._pause * random.uniform(0.5, 1.0)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
        self._log(logging.DEBUG, "reconnect", url=self.url, pause=f"{pause:.3f}")
        self._connecting = True

        def attempt() -> None:
            self._connecting = False
            if self._owner.wanted() or self._waiting:
                self.connect()

        self.later(pause, attempt)


def _report(error: BaseException) -> None:
    with contextlib.suppress(Exception):  # a handler or filter that fails must not end the thread that would tell of it
        logging.getLogger(__name__).error("the I/O thread met an error, and goes on", exc_info=error)


def _sever(connection: Connection | None) -> None:
    """Close the socket of a connection whose loop has ended."""
    sock = getattr(getattr(connection, "_transport", None), "_sock", None)
    if sock is not None:
        sock.close()


def _wakers(loop: Loop | None) -> tuple[Any, Any]:
    poller = getattr(loop.raw, "_poller", None) if loop is not None else None
    return getattr(poller, "_r_interrupt", None), getattr(poller, "_w_interrupt", None)
