"""bench: measure a running broker through the native client, from one process or two.

Each message begins with the time at which it was handed to the client (`CLOCK_MONOTONIC`, which all
processes of a machine share), so consumers can say how long it took.  `loadtest/` compares brokers; this
looks at one.
"""

from __future__ import annotations

import secrets
import struct
import subprocess
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from actormq.cli.options import NAMESRV_DEFAULT, Json, Namesrv, client_url, examples
from actormq.cli.output import print_json, print_table, say
from actormq.errors import ClientError
from actormq.wire import json

if TYPE_CHECKING:
    from actormq.client.futures import SendFuture
    from actormq.client.producer import Producer
    from actormq.client.received import ReceivedMessage
    from actormq.client.results import MessageQueue

app = typer.Typer()

STAMP: Final = struct.Struct("<q")
PERCENTS: Final = (50, 90, 99, 99.9)
GROUP: Final = "actormq-bench"
IDLE_S: Final = 10.0
"""A consumer that gets nothing for so long has all there is."""
_NS: Final = 1_000_000_000
_LATE_NS_MAX: Final = 3_600 * _NS
_WINDOW: Final = 100_000
"""Messages of one thread that may be under way; the producer's own window is smaller."""
_SAMPLE_EVERY: Final = 50

Topic: TypeAlias = Annotated[str, typer.Argument(help="The topic's name; made by the broker where it may.")]
Size: TypeAlias = Annotated[
    int, typer.Option("--size", "-s", help="Bytes of each message.", min=STAMP.size, max=4 << 20)
]
Count: TypeAlias = Annotated[int, typer.Option("--count", "-c", help="End after so many messages.", min=0)]
Seconds: TypeAlias = Annotated[float, typer.Option("--seconds", help="End after so long.", min=0)]


class Latencies:
    """Times in nanoseconds; what is asked for are percentiles."""

    def __init__(self) -> None:
        self._values = array("q")

    def add(self, value_ns: int) -> None:
        self._values.append(value_ns)

    def join(self, others: Iterable[Latencies]) -> Latencies:
        for other in others:
            self._values.extend(other._values)
        return self

    def __len__(self) -> int:
        return len(self._values)

    def as_dict(self) -> dict[str, float | None]:
        """Return milliseconds by percentile, and the largest; None of nothing."""
        ordered = sorted(self._values)
        count = len(ordered)
        names = [*(f"p{percent:g}" for percent in PERCENTS), "max"]
        places = [*(min(count - 1, int(count * percent / 100)) for percent in PERCENTS), count - 1]
        values = [round(ordered[place] / 1e6, 3) if count else None for place in places]
        return dict(zip(names, values, strict=True))


@dataclass(slots=True)
class Run:
    """What one thread, or one consumer, has done."""

    messages: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    latencies: Latencies = field(default_factory=Latencies)
    first_ns: int = 0
    last_ns: int = 0

    def done(self, begin_ns: int) -> None:
        """A message that was handed over at `begin_ns` is acknowledged."""
        self.last_ns = time.monotonic_ns()
        self.latencies.add(self.last_ns - begin_ns)
        self.messages += 1

    def failed(self, error: BaseException) -> None:
        name = type(error).__name__
        self.errors[name] = self.errors.get(name, 0) + 1


# --- produce -----------------------------------------------------------------------------------------


@app.command(
    epilog=examples(
        "bench produce load --size 128 --seconds 10",
        "bench produce load --count 100000 --threads 4 --sync",
        "bench produce load --seconds 60 --rate 1000 --json",
    )
)
def produce(
    topic: Topic,
    size: Size = 128,
    count: Count = 0,
    seconds: Seconds = 0,
    threads: Annotated[int, typer.Option("--threads", help="Threads that send.", min=1, max=256)] = 1,
    rate: Annotated[
        float, typer.Option("--rate", "-r", help="At most so many a second together.", min=0)
    ] = 0,
    sync: Annotated[bool, typer.Option("--sync", help="One after the other, not in batches.")] = False,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """Send messages as fast as it goes, or at a rate; ends after --count, --seconds (10), or Ctrl-C.

    A latency is the time from a message's send call to its acknowledgement; at full speed it is taken of
    every 50th message.
    """
    from actormq.client.messages import check_topic
    from actormq.client.producer import Producer

    check_topic(topic)
    limit = Limit(count, seconds if seconds or count else 10.0, threads, rate)
    send = _send_one_by_one if sync else _send_in_batches
    with Producer(client_url(namesrv), GROUP) as producer:
        producer.queues(topic)  # makes connections, and asks for the topic
        runs = _in_threads(limit, lambda run, number: send(producer, topic, size, limit, number, run))
    _report("produced", runs, size, as_json, sync=sync, threads=threads)


@dataclass(slots=True)
class Limit:
    """When to end, after so many messages or so long, and how fast to go; for all threads together."""

    count: int
    seconds: float
    threads: int
    rate: float
    stopped: threading.Event = field(default_factory=threading.Event)
    start_ns: int = field(default_factory=time.monotonic_ns)

    def left(self, thread: int, number: int) -> int:
        """Return how many messages a thread has still to send that has sent `number`."""
        share = self.count // self.threads + (thread < self.count % self.threads)
        return share - number if self.count else _WINDOW

    def turn(self, thread: int, number: int) -> bool:
        """Wait until a thread's message of that number is due; False at the end."""
        if self.stopped.is_set() or self.left(thread, number) <= 0:
            return False
        elapsed_s = (time.monotonic_ns() - self.start_ns) / _NS
        due_s = (number * self.threads + thread) / self.rate if self.rate else elapsed_s
        if self.seconds and max(elapsed_s, due_s) >= self.seconds:
            return False
        return due_s <= elapsed_s or not self.stopped.wait(due_s - elapsed_s)


def _in_threads(limit: Limit, work: Callable[[Run, int], None]) -> list[Run]:
    runs = [Run() for _ in range(limit.threads)]
    threads = [threading.Thread(target=work, args=(run, number)) for number, run in enumerate(runs)]
    limit.start_ns = time.monotonic_ns()
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        limit.stopped.set()
        for thread in threads:
            thread.join()
    return runs


def _send_one_by_one(producer: Producer, topic: str, size: int, limit: Limit, thread: int, run: Run) -> None:
    rest = bytes(size - STAMP.size)
    number = 0
    run.first_ns = time.monotonic_ns()
    while limit.turn(thread, number):
        number += 1
        begin_ns = time.monotonic_ns()
        try:
            producer.send(topic, STAMP.pack(begin_ns) + rest)
        except ClientError as error:
            run.failed(error)
        else:
            run.done(begin_ns)


def _send_in_batches(producer: Producer, topic: str, size: int, limit: Limit, thread: int, run: Run) -> None:
    """Hand messages over without waiting for any; the time is taken of a few, or it would be the work."""
    rest = bytes(size - STAMP.size)
    under_way: deque[SendFuture] = deque()
    every = 1 if limit.rate else _SAMPLE_EVERY
    number = 0
    run.first_ns = time.monotonic_ns()
    while limit.turn(thread, number):
        begin_ns = time.monotonic_ns()
        chunk = min(every, limit.left(thread, number))
        for place in range(chunk):
            try:
                future = producer.send_async(topic, STAMP.pack(begin_ns) + rest)
            except ClientError as error:
                run.failed(error)
                continue
            under_way.append(future)
            if place == 0:
                future.add_done_callback(_take_time(run, begin_ns))
        number += chunk
        while under_way and (len(under_way) > _WINDOW or under_way[0].done()):
            _settle(under_way.popleft(), run)
    while under_way:
        _settle(under_way.popleft(), run)
    run.last_ns = time.monotonic_ns()


def _take_time(run: Run, begin_ns: int) -> Callable[[SendFuture], None]:
    return lambda future: run.latencies.add(time.monotonic_ns() - begin_ns)


def _settle(future: SendFuture, run: Run) -> None:
    error = future.exception()
    if error is None:
        run.messages += 1
    else:
        run.failed(error)


# --- consume -----------------------------------------------------------------------------------------


@app.command(
    epilog=examples(
        "bench consume load",
        "bench consume load --from latest --seconds 30",
        "bench consume load --group billing --count 500000 --json",
    )
)
def consume(
    topic: Topic,
    count: Count = 0,
    seconds: Seconds = 0,
    group: Annotated[
        str | None,
        typer.Option("--group", "-g", help="The consumer group; without it one of its own, until the end."),
    ] = None,
    start: Annotated[
        str,
        typer.Option("--from", metavar="earliest|latest|TIME", help="Where a group begins that is new here."),
    ] = "earliest",
    threads: Annotated[int, typer.Option("--threads", help="Threads that take messages.", min=1)] = 1,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """Take messages as fast as they come; ends after --count, --seconds, 10 s of nothing, or Ctrl-C.

    A latency is the time from the send call of `bench produce`, on this machine, to the listener.
    """
    taking = _Taking(count)
    _take(taking, namesrv, topic, group, start, threads, seconds)
    _report("consumed", [taking.run], taking.size, as_json, threads=threads)


class _Taking:
    """A listener that counts."""

    def __init__(self, count: int) -> None:
        self.run = Run()
        self.size = 0
        self.joined = threading.Event()
        self._count = count
        self._lock = threading.Lock()
        self._enough = threading.Event()

    def on_queues(self, taken: Iterable[MessageQueue], left: Iterable[MessageQueue]) -> None:
        self.joined.set()

    def take(self, message: ReceivedMessage) -> None:
        body = message.body
        now_ns = time.monotonic_ns()
        run = self.run
        with self._lock:
            if self._enough.is_set():
                return
            if not run.messages:
                run.first_ns, self.size = now_ns, len(body)
            run.messages += 1
            run.last_ns = now_ns
            if len(body) >= STAMP.size:
                late_ns = now_ns - STAMP.unpack_from(body)[0]
                if 0 <= late_ns < _LATE_NS_MAX:  # else it is no message of ours
                    run.latencies.add(late_ns)
            if run.messages == self._count:
                self._enough.set()

    def wait(self, seconds: float) -> None:
        """Return when there is enough: of messages, of time, of silence."""
        start_ns = time.monotonic_ns()
        while not self._enough.wait(0.1):
            now_ns = time.monotonic_ns()
            silent_ns = now_ns - max(start_ns, self.run.last_ns)
            if now_ns - start_ns >= seconds * _NS if seconds else silent_ns >= IDLE_S * _NS:
                return


def _take(
    taking: _Taking,
    namesrv: str,
    topic: str,
    group: str | None,
    start: str,
    threads: int,
    seconds: float,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Consume until there is enough; `on_ready` is called when queues have been given to us."""
    from actormq.cli.beginning import Beginning, begin_at, throw_away
    from actormq.client.consumer import Consumer
    from actormq.client.settings import ConsumerSettings, check_group

    beginning = Beginning.of(start)
    name = group or f"{GROUP}-{secrets.token_hex(6)}"
    check_group(name)
    settings = ConsumerSettings(
        start_from=beginning.start_from,
        start_timestamp_ms=beginning.timestamp_ms,
        workers=threads,
        pull_messages=1_024,
        pull_bytes=1 << 20,
    )
    with suppress(KeyboardInterrupt), throw_away(namesrv, name) if group is None else nullcontext():
        begin_at(namesrv, name, topic, beginning)
        url = client_url(namesrv)
        with Consumer(url, name, settings=settings, on_queues=taking.on_queues) as consumer:
            consumer.subscribe(topic, "*", taking.take)
            taking.joined.wait(IDLE_S)
            on_ready()
            taking.wait(seconds)


# --- latency -----------------------------------------------------------------------------------------


@app.command(epilog=examples("bench latency load", "bench latency load --rate 5000 --seconds 30 --json"))
def latency(
    topic: Topic,
    size: Size = 128,
    seconds: Seconds = 10,
    rate: Annotated[float, typer.Option("--rate", "-r", help="Messages a second.", min=1)] = 1_000,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """Send messages one at a time, at a rate, from another process, and receive them here.

    Says how long they take to their acknowledgement and, end to end, to the listener.
    """
    count = max(1, int(rate * (seconds or 10)))
    command = [
        sys.executable, "-m", "actormq.cli.main", "bench", "produce", topic, "--sync", "--json",
        "--namesrv", namesrv, "--size", str(size), "--count", str(count), "--rate", str(rate),
    ]  # fmt: skip
    senders: list[subprocess.Popen[bytes]] = []
    taking = _Taking(count)

    def start_sender() -> None:
        senders.append(subprocess.Popen(command, stdout=subprocess.PIPE))  # noqa: S603  ourselves

    _make_topic(namesrv, topic)
    _take(taking, namesrv, topic, None, "latest", 1, count / rate + IDLE_S, start_sender)
    printed, _ = senders[0].communicate() if senders else (b"", b"")
    if not printed:
        raise typer.Exit(1)  # it has said why
    sent = json.loads(printed)
    received: dict[str, Any] = {"messages": taking.run.messages, "latency_ms": taking.run.latencies.as_dict()}
    if as_json:
        print_json({"rate": rate, "size": size, "sent": sent, "received": received})
        return
    columns = ("", "messages", *(f"{name} ms" for name in sent["latency_ms"]))
    rows = [
        (word, what["messages"], *what["latency_ms"].values())
        for word, what in (("acknowledged", sent), ("received", received))
    ]
    print_table(columns, rows)
    _say_errors(sent["errors"])


def _make_topic(namesrv: str, topic: str) -> None:
    """Have the topic there before anyone consumes it: a consumer looks for a new one once a second."""
    from actormq.client.producer import Producer

    with Producer(client_url(namesrv), GROUP) as producer:
        producer.send(topic, b"bench latency begins")


def _report(what: str, runs: list[Run], size: int, as_json: bool, **how: Any) -> None:
    """Print what was measured; the time is that from the first message to the last outcome."""
    messages = sum(run.messages for run in runs)
    spans = [(run.first_ns, run.last_ns) for run in runs if run.messages]
    seconds = (max(last for _, last in spans) - min(first for first, _ in spans)) / _NS if spans else 0.0
    rate = messages / seconds if seconds else 0.0
    errors: dict[str, int] = {}
    for run in runs:
        for name, number in run.errors.items():
            errors[name] = errors.get(name, 0) + number
    latencies = Latencies().join(run.latencies for run in runs)
    result: dict[str, Any] = {
        "messages": messages,
        "seconds": round(seconds, 3),
        "messages_per_second": round(rate),
        "megabytes_per_second": round(rate * size / 1e6, 3),
        "size": size,
        "latency_ms": latencies.as_dict(),
        "errors": errors,
        **how,
    }
    if as_json:
        print_json(result)
        return
    print(f"{what} {messages:,} messages of {size:,} bytes in {seconds:.2f} s: ", end="")
    print(f"{rate:,.0f} msg/s, {rate * size / 1e6:,.1f} MB/s")
    if len(latencies):
        print_table([f"{name} ms" for name in result["latency_ms"]], [list(result["latency_ms"].values())])
    _say_errors(errors)


def _say_errors(errors: dict[str, int]) -> None:
    for name, number in sorted(errors.items()):
        say(f"{number:,} failed: {name}")
