"""`make demo`: the main job on real input, checked line by line.

Starts `actormq dev` on free ports in a temporary folder, sends every line of real files, keyed by file
name, to two consumers of one group and to a second group on its own; kills one consumer midway with
SIGKILL; checks that each group received exactly the lines sent, in order per file; prints what it cost.

    python loadtest/demo.py [FILE or FOLDER ...]      default: the Python standard library's sources
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from actormq.client import Consumer, ConsumerSettings, Message, Producer, StartFrom

TOPIC = "lines"
QUEUES = 16
PACED_MESSAGES = 2_000
PACED_PER_SECOND = 1_000
NEW_OWNER_LIMIT_S = 6.0
PATIENCE_S = 120.0
_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}


# --- input -------------------------------------------------------------------------------------------


def standard_library() -> list[Path]:
    """Return the standard library's own source files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in root.rglob("*.py") if not _LEFT_OUT & set(path.relative_to(root).parts))


def chosen(names: list[str]) -> list[Path]:
    """Return the files that `names` mean: files themselves, folders with all that is in them."""
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        paths += sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    return paths


def lines_of(path: Path) -> list[bytes]:
    """Return the file's lines with their ends; none is empty."""
    return path.read_bytes().splitlines(keepends=True)


# --- a consumer: a process of its own -----------------------------------------------------------------


def consume(url: str, group: str, record_path: str) -> None:
    """Write one line per received message to `record_path`, until the process is ended."""
    out = os.open(record_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def listener(message: object) -> None:
        properties = message.properties  # type: ignore[attr-defined]
        line = [
            time.monotonic_ns(),
            properties["file"],
            int(properties["n"]),
            hashlib.blake2b(message.body, digest_size=12).hexdigest(),  # type: ignore[attr-defined]
            int(properties["t"]),
            message.queue.queue_id,  # type: ignore[attr-defined]
        ]
        # One write per message, before it counts as consumed: a SIGKILL loses no record of it.
        os.write(out, (json.dumps(line) + "\n").encode())

    settings = ConsumerSettings(orderly=True, start_from=StartFrom.FIRST)
    with Consumer(url, group=group, settings=settings) as consumer:
        consumer.subscribe(TOPIC, "*", listener)
        print("consuming", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


@dataclass
class ConsumerProcess:
    """One consumer and the file it writes."""

    process: subprocess.Popen[str]
    record: Path

    @classmethod
    def start(cls, url: str, group: str, record: Path) -> ConsumerProcess:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        command = [sys.executable, __file__, "--consume", url, group, str(record)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        assert process.stdout
        assert process.stdout.readline().strip() == "consuming", "the consumer did not start"
        return cls(process, record)

    def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(by)
        self.process.wait(20)


# --- what was received --------------------------------------------------------------------------------


@dataclass
class Group:
    """What one group received so far, read from its consumers' files as they grow."""

    name: str
    consumers: list[ConsumerProcess] = field(default_factory=list)
    events: list[tuple[int, str, int, str, int, int, int]] = field(default_factory=list)
    seen: set[tuple[str, int]] = field(default_factory=set)
    _read: dict[Path, int] = field(default_factory=dict)

    def poll(self) -> None:
        """Read what the consumers have written since the last call."""
        for number, consumer in enumerate(self.consumers):
            if not consumer.record.exists():
                continue
            with consumer.record.open("rb") as stream:
                stream.seek(self._read.get(consumer.record, 0))
                data = stream.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[consumer.record] = self._read.get(consumer.record, 0) + len(whole)
            for line in whole.splitlines():
                at, file, index, digest, sent, queue = json.loads(line)
                self.events.append((at, file, index, digest, sent, queue, number))
                self.seen.add((file, index))

    def await_lines(self, count: int) -> None:
        """Return when `count` different lines have come."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.seen) < count:
            self.poll()
            if time.monotonic() > deadline:
                raise SystemExit(f"group {self.name}: {len(self.seen)} of {count} lines after {PATIENCE_S} s")
            time.sleep(0.02)

    def verdict(self, sent: dict[str, list[str]]) -> dict[str, int]:
        """Compare with what was sent: counts of lost, phantom, changed, out of order, repeated."""
        got: dict[str, dict[int, str]] = {}
        order_broken = repeated = changed = 0
        for _, file, index, digest, _, _, _ in sorted(self.events):
            of_file = got.setdefault(file, {})
            if index in of_file:
                repeated += 1
                changed += of_file[index] != digest
                continue
            order_broken += index != len(of_file)
            of_file[index] = digest
        lost = sum(len(lines) for lines in sent.values()) - sum(
            1 for file, lines in sent.items() for index in range(len(lines)) if index in got.get(file, {})
        )
        phantom = sum(len(lines) for file, lines in got.items() if file not in sent)
        changed += sum(
            file_digest([of_file[index] for index in sorted(of_file)]) != file_digest(sent.get(file, []))
            for file, of_file in got.items()
        )
        return {
            "lost": lost,
            "phantom": phantom,
            "changed": changed,
            "out of order": order_broken,
            "repeated": repeated,
        }


def file_digest(line_digests: list[str]) -> str:
    """Return one digest for a file, from those of its lines in order."""
    return hashlib.blake2b("".join(line_digests).encode(), digest_size=16).hexdigest()


# --- the broker ---------------------------------------------------------------------------------------


@dataclass
class Dev:
    """A running `actormq dev`."""

    process: subprocess.Popen[str]
    ready: dict[str, str]
    start_s: float

    @classmethod
    def start(cls, data_dir: Path) -> Dev:
        began = time.monotonic()
        command = [
            sys.executable, "-m", "actormq.cli.main", "dev", "--data-dir", str(data_dir),
            "--namesrv-port", "0", "--namesrv-zmq-port", "0", "--port", "0", "--zmq-port", "0",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        line = process.stdout.readline().strip()
        if not line.startswith("ready"):
            raise SystemExit(f"actormq dev did not start: {line}")
        return cls(
            process,
            dict(word.split("=", 1) for word in line.split() if "=" in word),
            time.monotonic() - began,
        )

    @property
    def processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def memory_mb(self) -> float:
        """Return the sum of PSS over all processes: shared pages counted once."""
        return sum(process.memory_full_info().pss for process in self.processes) / 1e6

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


# --- the run ------------------------------------------------------------------------------------------


def send_all(producer: Producer, files: list[Path], group: Group) -> tuple[dict[str, list[str]], int, float]:
    """Send every line; midway kill the first consumer of `group`.  Return digests, kill time and seconds."""
    contents = [(str(path), lines_of(path)) for path in files]
    half = sum(len(lines) for _, lines in contents) // 2
    sent: dict[str, list[str]] = {}
    count = killed_at = 0
    began = time.monotonic()
    futures = []
    for name, lines in contents:
        digests = sent.setdefault(name, [])
        for index, line in enumerate(lines):
            properties = {"file": name, "n": str(index), "t": str(time.monotonic_ns())}
            futures.append(producer.send_async(TOPIC, Message(line, properties=properties), key=name))
            digests.append(hashlib.blake2b(line, digest_size=12).hexdigest())
            count += 1
            if count == half:
                group.consumers[0].end(signal.SIGKILL)
                killed_at = time.monotonic_ns()
    producer.flush()
    seconds = time.monotonic() - began
    refused = [future for future in futures if future.result().status != 0]
    if refused:
        raise SystemExit(f"{len(refused)} lines were not acknowledged")
    return sent, killed_at, seconds


def take_over_s(group: Group, killed_at: int) -> float:
    """Return how long after the kill the dead consumer's queues were all being read by the other one."""
    of_dead = {event[5] for event in group.events if event[6] == 0}
    first: dict[int, int] = {}
    for at, _, _, _, _, queue, number in sorted(group.events):
        if number == 1 and queue in of_dead and at > killed_at:
            first.setdefault(queue, at)
    missing = of_dead - first.keys()
    if missing:
        raise SystemExit(f"queues {sorted(missing)} of the killed consumer have no new owner")
    return max((at - killed_at) / 1e9 for at in first.values()) if first else 0.0


def paced(producer: Producer, sent: dict[str, list[str]]) -> None:
    """Send a second, paced round, so that latency is not the backlog's length."""
    name = "paced"
    began = time.monotonic()
    for index in range(PACED_MESSAGES):
        due = began + index / PACED_PER_SECOND
        while (left := due - time.monotonic()) > 0:
            time.sleep(left)
        line = f"paced {index}\n".encode()
        properties = {"file": name, "n": str(index), "t": str(time.monotonic_ns())}
        producer.send_async(TOPIC, Message(line, properties=properties), key=name)
        sent.setdefault(name, []).append(hashlib.blake2b(line, digest_size=12).hexdigest())
    producer.flush()


def report(group: Group, sent: dict[str, list[str]]) -> bool:
    """Print one group's verdict; return whether it is clean."""
    verdict = group.verdict(sent)
    total = sum(map(len, sent.values()))
    clean = not any(count for what, count in verdict.items() if what != "repeated")
    print(
        f"  group {group.name:<8} {len(group.seen):>7} of {total} lines  "
        + "  ".join(f"{what} {count}" for what, count in verdict.items())
        + ("  ok" if clean else "  FAILED")
    )
    return clean


def run(files: list[Path]) -> int:
    """Run the demo; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="actormq-demo-") as folder:
        dev = Dev.start(Path(folder) / "data")
        groups = [Group("pair"), Group("single")]
        try:
            return drive(dev, files, groups, Path(folder))
        finally:
            for group in groups:
                for consumer in group.consumers:
                    if consumer.process.poll() is None:
                        consumer.end()
            code = dev.stop()
            print(f"stopped cleanly: exit code {code}" if code == 0 else f"dev ended with {code}")


def drive(dev: Dev, files: list[Path], groups: list[Group], folder: Path) -> int:
    """Do the work while everything runs."""
    url = f"zmq://{dev.ready['namesrv-zmq']}"
    idle_mb = dev.memory_mb()
    subprocess.run(
        [sys.executable, "-m", "actormq.cli.main", "topic", "create", TOPIC, "--queues", str(QUEUES),
         "--namesrv", dev.ready["namesrv"]],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    pair, single = groups
    for number in range(2):
        pair.consumers.append(ConsumerProcess.start(url, "pair", folder / f"pair-{number}.jsonl"))
    single.consumers.append(ConsumerProcess.start(url, "single", folder / "single.jsonl"))
    with Producer(url, group="demo") as producer:
        sent, killed_at, send_s = send_all(producer, files, pair)
        count = sum(map(len, sent.values()))
        for group in groups:
            group.await_lines(count)
        new_owner_s = take_over_s(pair, killed_at)
        finished = max(at for group in groups for at, *_ in group.events)
        began = min(event[4] for event in single.events)
        paced(producer, sent)
        for group in groups:
            group.await_lines(count + PACED_MESSAGES)
    consume_s = (finished - began) / 1e9
    latencies = sorted((at - t) / 1e6 for at, file, _, _, t, _, _ in single.events if file == "paced")
    print(f"actormq dev   ready after {dev.start_s:.2f} s, kernels={dev.ready['kernels']}")
    print(f"memory        {idle_mb:.0f} MB idle, {dev.memory_mb():.0f} MB now (PSS, all processes)")
    print(
        f"sent          {count} lines of {len(files)} files in {send_s:.2f} s: {count / send_s:,.0f} msg/s, "
        "all acknowledged"
    )
    print(
        f"consumed      by both groups in {consume_s:.2f} s: {2 * count / consume_s:,.0f} msg/s, "
        "one consumer killed midway"
    )
    print(f"new owner     of the killed consumer's queues after {new_owner_s:.1f} s")
    print(
        f"latency       p50 {statistics.median(latencies):.2f} ms, "
        f"p99 {latencies[len(latencies) * 99 // 100]:.2f} ms "
        f"from send to listener at {PACED_PER_SECOND} msg/s"
    )
    verdicts = [report(group, sent) for group in groups]
    clean = all(verdicts)
    if new_owner_s > NEW_OWNER_LIMIT_S:
        print(f"FAILED: a new owner only after {new_owner_s:.1f} s (at most {NEW_OWNER_LIMIT_S} s)")
        clean = False
    print("demo passed" if clean else "demo FAILED")
    return 0 if clean else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", help="files and folders whose lines are sent")
    parser.add_argument("--consume", nargs=3, metavar=("URL", "GROUP", "RECORD"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run as a consumer, or as the whole demo."""
    options = arguments()
    if options.consume:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        consume(*options.consume)
        return 0
    return run(chosen(options.files) if options.files else standard_library())


if __name__ == "__main__":
    sys.exit(main())
