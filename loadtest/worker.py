"""One native client in a process of its own, doing one piece of work for `native.py`.

    python -m loadtest.worker KIND WORK URL TOPIC [--size --rounds --seconds --count --rate --group]

Says ``begin`` when the measured part starts and one line of JSON when it has ended; then waits for the end of
its standard input, so that whoever measures can still read what it cost.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import time
from collections import Counter
from typing import Any, Final

from loadtest.clients import CLIENTS, NativeClient

POOL: Final = 4_096
STAMP: Final = struct.Struct("<q")
clock = time.perf_counter_ns


def pool(size: int, count: int = POOL) -> list[bytes]:
    """Return different bodies, the same ones in every process."""
    source = random.Random(size)
    return [source.randbytes(size) for _ in range(count)]


def quantiles(latencies_ns: list[int]) -> dict[str, float]:
    """Return the usual points of a distribution, in microseconds."""
    ordered = sorted(latencies_ns)
    points = {"p50_us": 0.5, "p90_us": 0.9, "p99_us": 0.99, "p999_us": 0.999}
    last = len(ordered) - 1
    found = {name: ordered[min(int(len(ordered) * part), last)] / 1_000 for name, part in points.items()}
    return found | {"max_us": ordered[-1] / 1_000}


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


# --- producing -----------------------------------------------------------------------------------------


def produce(client: NativeClient, options: argparse.Namespace) -> dict[str, Any]:
    """Send the pool round and round, for so many rounds or seconds; the last acknowledgement ends it."""
    bodies = pool(options.size, options.pool)
    client.create(options.warm_topic, options.topic)
    client.open_producer(pipelined=True)
    client.send_round(options.warm_topic, bodies)
    warm = client.finish()
    say("begin")
    began = clock()
    rounds = 0
    while rounds < options.rounds or clock() - began < options.seconds * 1e9:
        client.send_round(options.topic, bodies)
        rounds += 1
    acknowledged = client.finish() - warm
    seconds = (clock() - began) / 1e9
    return {"count": acknowledged, "rounds": rounds, "seconds": seconds, "rate": acknowledged / seconds}


def sync(client: NativeClient, options: argparse.Namespace) -> dict[str, Any]:
    """Send one message after the other, each acknowledged before the next."""
    bodies = pool(options.size, options.pool)
    client.create(options.warm_topic, options.topic)
    client.open_producer(pipelined=False)
    for number in range(options.count // 10 + 1):
        client.send(options.warm_topic, bodies[number % len(bodies)])
    say("begin")
    latencies = []
    for number in range(options.count):
        body = bodies[number % len(bodies)]
        began = clock()
        client.send(options.topic, body)
        latencies.append(clock() - began)
    return {"count": options.count, "rate": options.count / sum(latencies) * 1e9, **quantiles(latencies)}


def paced(client: NativeClient, options: argparse.Namespace) -> dict[str, Any]:
    """Send at an even rate bodies that say when; the first tenth is for warming up and says nothing."""
    tails = [body[STAMP.size :] for body in pool(options.size, options.pool)]
    client.open_producer(pipelined=False)
    step, warm = int(1e9 / options.rate), options.count // 10
    say("begin")
    due = clock()
    behind = []
    for number in range(warm + options.count):
        due += step
        while (left := due - clock()) > 0:
            time.sleep(left / 1e9)
        behind.append(clock() - due)
        stamp = clock() if number >= warm else 0
        client.send_round(options.topic, [STAMP.pack(stamp) + tails[number % len(tails)]])
    return {"count": client.finish(), "behind_p99_us": quantiles(behind)["p99_us"]}


# --- consuming -----------------------------------------------------------------------------------------


def consume(client: NativeClient, options: argparse.Namespace) -> dict[str, Any]:
    """Take a backlog; the clock runs from the first message to the last.

    Of each body its hash is kept: a process that keeps half a gigabyte of bodies spends its time on getting
    memory, and how long that takes depends on which thread asks.
    """
    hashes: list[int] = []
    times: list[int] = []
    left = options.count

    def received(body: bytes) -> None:
        nonlocal left
        if not hashes:
            say("begin")
            times.append(clock())
        hashes.append(hash(body))
        left -= 1
        if left == 0:
            times.append(clock())

    began = clock()
    client.consume(options.topic, options.group, options.count, received, pipelined=True, ready=lambda: None)
    seconds = (times[1] - times[0]) / 1e9
    found = Counter(hashes)
    expected = Counter(
        dict.fromkeys(map(hash, pool(options.size, options.pool)), options.count // options.pool)
    )
    return {
        "count": len(hashes),
        "seconds": seconds,
        "rate": len(hashes) / seconds,
        "joined_s": (times[0] - began) / 1e9,
        "wrong": (found - expected).total() + (expected - found).total(),
    }


def arrive(client: NativeClient, options: argparse.Namespace) -> dict[str, Any]:
    """Receive what `paced` sends, and say how old it was."""
    latencies: list[int] = []
    unpack = STAMP.unpack_from
    total = options.count + options.count // 10

    def received(body: bytes) -> None:
        now = clock()
        sent = unpack(body)[0]
        if sent:
            latencies.append(now - sent)

    client.create(options.topic)
    client.consume(options.topic, options.group, total, received, pipelined=False, ready=lambda: say("begin"))
    return {"count": len(latencies), **quantiles(latencies)}


WORK: Final = {"produce": produce, "sync": sync, "paced": paced, "consume": consume, "arrive": arrive}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=CLIENTS)
    parser.add_argument("work", choices=WORK)
    parser.add_argument("url")
    parser.add_argument("topic")
    parser.add_argument("--warm-topic", help="where the warm-up goes")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--pool", type=int, default=POOL, help="different bodies in a round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1_000.0)
    parser.add_argument("--group", default="bench")
    return parser.parse_args()


def main() -> int:
    """Do the work, say the result, stay until nobody needs the process any more."""
    options = arguments()
    client = CLIENTS[options.kind](options.url)
    say(WORK[options.work](client, options))
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
