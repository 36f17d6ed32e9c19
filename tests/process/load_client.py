"""One client process under load, writing its own history for the checker.

python load_client.py produce URL TOPIC HISTORY KEYS     until SIGTERM; one thread per key, in order
python load_client.py consume URL TOPIC GROUP HISTORY    until SIGTERM; orderly
"""

from __future__ import annotations

import hashlib
import signal
import sys
import threading
from pathlib import Path

from faults.checker import History

from actormq.client import Consumer, ConsumerSettings, Producer, ProducerSettings, StartFrom
from actormq.errors import ActorMQError


def queue_name(queue_id: int) -> str:
    """What the histories call a queue."""
    return f"q{queue_id}"


def digest_of(body: bytes) -> str:
    """Return what the histories keep of a body."""
    return hashlib.blake2b(body, digest_size=8).hexdigest()


def produce(url: str, topic: str, history_path: Path, keys: list[str], stop: threading.Event) -> None:
    """Send one message after the other per key; each is attempted once, and its outcome noted."""
    history = History(history_path)
    # No retries: the checker must know how often each message was handed to a broker.
    with Producer(
        url, group="load", settings=ProducerSettings(retries=0, send_timeout_ms=15_000)
    ) as producer:

        def one_key(key: str) -> None:
            number = 0
            while not stop.is_set():
                name = f"{key}-{number}"
                body = (name + " " * (number * 37 % 900)).encode()
                history.send(name, digest_of(body), key, number)
                try:
                    result = producer.send(topic, body, key=key)
                except ActorMQError:
                    history.fail(name)
                    stop.wait(0.05)
                else:
                    history.ack(name, queue_name(result.queue.queue_id), result.queue_offset)
                number += 1

        threads = [threading.Thread(target=one_key, args=(key,)) for key in keys]
        for thread in threads:
            thread.start()
        print("running", flush=True)
        for thread in threads:
            thread.join()
    history.close()


def consume(url: str, topic: str, group: str, history_path: Path, stop: threading.Event) -> None:
    """Note every message received, before it counts as consumed."""
    history = History(history_path)
    settings = ConsumerSettings(orderly=True, start_from=StartFrom.FIRST, commit_interval_ms=500)
    with Consumer(url, group=group, settings=settings) as consumer:
        history.session(group)

        def listener(message: object) -> None:
            body = message.body  # type: ignore[attr-defined]
            history.receive(
                group,
                queue_name(message.queue.queue_id),  # type: ignore[attr-defined]
                message.queue_offset,  # type: ignore[attr-defined]
                body.decode().strip(),
                digest_of(body),
            )

        consumer.subscribe(topic, "*", listener)
        print("running", flush=True)
        stop.wait()
    history.close()


def main() -> None:
    """Run one of the two until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    kind, url, topic, *rest = sys.argv[1:]
    if kind == "produce":
        produce(url, topic, Path(rest[0]), rest[1].split(","), stop)
    else:
        consume(url, topic, rest[0], Path(rest[1]), stop)


if __name__ == "__main__":
    main()
