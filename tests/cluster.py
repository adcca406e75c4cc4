"""A private cluster of RabbitMQ nodes, in which a node's replicas can be made to lag."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator

from broker import Broker, free_port

#: The processes of a node that send what it leads to the replicas of another node.
SENDERS = (
    "[P || {{_, P, _, _}} <- supervisor:which_children(osiris_replica_reader_sup), is_pid(P), "
    "lists:any(fun(X) -> is_pid(X) andalso node(X) == '{node}' end, tuple_to_list(sys:get_state(P)))]"
)


class ClusterNode(Broker):
    """A node that can be joined to others of the same cookie and epmd."""

    def __init__(self, epmd: int) -> None:
        self._epmd = epmd
        self.joined = False
        super().__init__("cluster_partition_handling = ignore\nnet_ticktime = 120")
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text("MQKVCLUSTERFORTESTS")
        cookie.chmod(0o400)

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"ERL_EPMD_PORT": str(self._epmd)}

    def wait_until_usable(self, deadline: float) -> None:
        """A node that has had a stream can't be joined to others any more."""
        if self.joined:
            super().wait_until_usable(deadline)
            return
        while True:
            try:
                self.ctl("await_startup")
                return
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise

    def join(self, other: ClusterNode) -> None:
        """Become a node of the other's cluster."""
        self.ctl("stop_app")
        self.ctl("join_cluster", other.name)
        self.ctl("start_app")
        self.joined = True


class Cluster:
    """Some nodes, joined."""

    def __init__(self, nodes: list[ClusterNode]) -> None:
        self.nodes = nodes

    def url(self, *numbers: int) -> str:
        """Of these nodes, in this order; of all."""
        chosen = [self.nodes[number] for number in numbers] or self.nodes
        return f"amqp://guest:guest@{','.join(f'127.0.0.1:{node.port}' for node in chosen)}/%2F"

    @contextlib.contextmanager
    def lagging(self, leader: int, number: int) -> Iterator[None]:
        """Have the replicas of a node stand still, of the streams that another leads; all else goes on. (The replicas themselves
        are not held: a node whose replica does not answer breaks its clients' connections.)"""
        leads, senders = self.nodes[leader], SENDERS.format(node=self.nodes[number].name)
        held = leads.ctl(
            "eval", f"Held = {senders}, [sys:suspend(P) || P <- Held], application:set_env(kernel, mqkv, Held), Held."
        )
        assert "<" in held, "there is nothing to hold"
        try:
            yield
        finally:
            leads.ctl("eval", "{ok, Held} = application:get_env(kernel, mqkv), [catch sys:resume(P) || P <- Held].")


@contextlib.contextmanager
def private_cluster(size: int = 3) -> Iterator[Cluster]:
    """A started cluster, ended on leaving."""
    epmd = free_port()
    nodes = [ClusterNode(epmd) for _ in range(size)]
    try:
        starts = [threading.Thread(target=node.start) for node in nodes]
        for start in starts:
            start.start()
        for start in starts:
            start.join()
        for node in nodes[1:]:
            node.join(nodes[0])
        nodes[0].joined = True
        for node in nodes:
            node.wait_until_usable(time.monotonic() + 60)
        yield Cluster(nodes)
    finally:
        for node in nodes:
            node.close()
