"""A `FakeCluster` behind real sockets: one TCP port and one ROUTER, both name server and broker."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq
from unit.client.fakes import FakeBroker, FakeCluster

from actormq.wire import frame
from actormq.wire.codes import RequestCode
from actormq.wire.command import RemotingCommand


class FakeServer:
    """One broker, which is its own name server.

    Attributes:
        drop_on: request codes whose connection is closed instead of an answer.
    """

    def __init__(self, queues: int) -> None:
        self.cluster = FakeCluster(queues=queues)
        self.cluster.now_ms = lambda: time.monotonic_ns() // 1_000_000
        self.cluster.knows_endpoints = True
        self.drop_on: set[int] = set()
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.tcp = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self.zmq = f"127.0.0.1:{self._router.bind_to_random_port('tcp://127.0.0.1')}"
        self._replies = self._context.socket(zmq.PULL)
        self._replies.bind("inproc://replies")
        broker = FakeBroker("broker-a", self.tcp, self.zmq)
        self.cluster.brokers = {self.tcp: broker, self.zmq: broker}
        self.cluster.name_server = ""
        self._connections: list[socket.socket] = []
        self.opened = 0
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._accept, self._route, self._tick)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_connections()
        for thread in self._threads:
            thread.join(5)
        self._router.close(0)
        self._replies.close(0)
        self._context.term()

    def drop_connections(self) -> None:
        """Close every TCP connection, as a dying gateway does."""
        with self._lock:
            self.cluster.parked.clear()
            for connection in self._connections:
                with connection:
                    try:
                        connection.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        continue
            self._connections.clear()

    def _serve(self, where: str, command: RemotingCommand, answer: Callable[[RemotingCommand], None]) -> None:
        with self._lock:
            if command.code == RequestCode.GET_ROUTEINFO_BY_TOPIC:
                self.cluster.asked.append((where, command))
                if not self.cluster.refuse[command.code]:
                    answer(self.cluster._route(command))
                    return
            self.cluster.handle(where, command, answer, answer)

    def _tick(self) -> None:
        while not self._stopped.wait(0.02):
            with self._lock:
                self.cluster.tick()

    # -- TCP

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.opened += 1
                self._connections.append(connection)
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        cutter = frame.FrameCutter()

        def answer(command: RemotingCommand) -> None:
            try:
                connection.sendall(frame.encode(command))
            except OSError:
                return

        while True:
            try:
                data = connection.recv(65_536)
            except OSError:
                return
            if not data:
                return
            for one in cutter.feed(data):
                command = frame.decode(one)
                if command.code in self.drop_on:
                    self.drop_on.discard(command.code)
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                self._serve(self.tcp, command, answer)

    # -- ZeroMQ

    def _route(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._replies, zmq.POLLIN)
        while not self._stopped.is_set():
            for ready, _ in poller.poll(20):
                if ready is self._replies:
                    self._router.send_multipart(self._replies.recv_multipart())
                else:
                    identity, head, *body = self._router.recv_multipart()
                    self._serve(self.zmq, frame.decode_parts(head, b"".join(body)), self._answer_to(identity))

    def _answer_to(self, identity: bytes) -> Callable[[RemotingCommand], None]:
        def answer(command: RemotingCommand) -> None:
            # A socket belongs to one thread: whoever answers hands the parts to the router's.
            with self._lock:
                push = self._context.socket(zmq.PUSH)
                push.connect("inproc://replies")
                head = frame.encode_head(command)[4:]
                push.send_multipart([identity, head, *([bytes(command.body)] if command.body else [])])
                push.close(1_000)

        return answer


@contextmanager
def serving(queues: int = 4) -> Iterator[FakeServer]:
    """Run a server for the length of a block."""
    server = FakeServer(queues)
    try:
        yield server
    finally:
        server.close()
