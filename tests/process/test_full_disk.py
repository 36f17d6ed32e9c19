"""A full disk: sends are refused with a sentence, pulls go on, nothing is damaged, and it passes by itself.

On a small file system of its own (tmpfs), which only root may mount.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from actormq_process import Dev, start_dev
from gateway_process import Peer, heartbeat, until
from gateway_rig import pull_request, send_request
from process.odd_clients import broker, roles_of

from actormq.store import record as records
from actormq.wire.command import RemotingCommand

TOPIC, GROUP = "full", "g-full"
DISK_MB = 24
SMALL_FILES = {"ACTORMQ_STORE_LOG_FILE_BYTES": str(1 << 20), "ACTORMQ_STORE_BODY_BYTES_MAX": "65536"}
EAGER = {"ACTORMQ_STORE_CLEAN_INTERVAL_MS": "20", "ACTORMQ_STORE_DELETE_INTERVAL_MS": "0"}
"""The disk is looked at fifty times a second."""
BY_HAND = {
    "ACTORMQ_STORE_FORCE_CLEAN": "false",
    "ACTORMQ_STORE_DISK_EXPIRE_PERCENT": "100",
    "ACTORMQ_STORE_RETENTION_HOURS": "0",
    "ACTORMQ_STORE_DELETE_WHEN": str((time.localtime().tm_hour + 12) % 24),
    "ACTORMQ_STORE_FLUSH_INTERVAL_MS": "20",
}
"""Everything is old, and no hour or level makes it go: an administrator does."""
BODY_BYTES = 50_000
A_FILE = (1 << 20) // BODY_BYTES
"""About so many messages fill one log file."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system can be mounted by root only")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


class Ballast:
    """A file that takes all the room there is."""

    def __init__(self, disk: Path) -> None:
        self.path = disk / "ballast"

    def take_all(self) -> None:
        with self.path.open("ab", buffering=0) as file:
            for size in (1 << 20, 4096):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def take(self, size: int) -> None:
        with self.path.open("ab") as file:
            file.write(bytes(size))

    def give_back(self) -> None:
        self.path.unlink()


class Messages:
    """What was sent and acknowledged, in order."""

    def __init__(self, dev: Dev) -> None:
        self.acknowledged: list[bytes] = []
        self.connect(dev)

    def connect(self, dev: Dev) -> None:
        self.peer = Peer(dev)
        assert self.peer.ask(heartbeat("c@full", GROUP, TOPIC)).code == 0

    def send(self) -> RemotingCommand:
        body = b"%d." % len(self.acknowledged)
        answer = self.peer.ask(send_request(TOPIC, body.ljust(BODY_BYTES, b"x")))
        if answer.code == 0:
            assert int(answer.fields["queueOffset"]) == len(self.acknowledged)
            self.acknowledged.append(body)
        return answer

    def send_first(self) -> None:
        """Send one and await it: on a full disk its queue file could not be made, and nothing be readable."""
        assert self.send().code == 0
        assert self.consume_all() == self.acknowledged

    def fill(self) -> RemotingCommand:
        """Send until a send is refused; return the refusal."""
        for _ in range(DISK_MB * A_FILE):
            answer = self.send()
            if answer.code != 0:
                return answer
        raise AssertionError("the disk is larger than it should be")

    def pull(self, offset: int) -> list[bytes]:
        """Return what is served from there on, each message in its place."""
        answer = self.peer.ask(pull_request(TOPIC, GROUP, offset, flags=0))
        found, at = [], 0
        body = memoryview(bytes(answer.body))
        while at < len(body):
            record = records.decode(body, at, check_crc=True)
            found.append(bytes(record.body)[: bytes(record.body).index(b".") + 1])
            assert found[-1] == b"%d." % record.queue_offset
            at += record.size
        return found

    def first(self) -> int:
        """Return the queue's lowest offset."""
        asked = RemotingCommand.request(31, {"topic": TOPIC, "queueId": "0"})
        return int(self.peer.ask(asked).fields["offset"])

    def remove_old(self, store: Path) -> None:
        """Have all but the last log files removed: mqadmin deleteExpiredCommitLog."""
        log = store / "commitlog"
        kept = max(map(int, os.listdir(log))) - (1 << 20)
        # What is not yet synced stays: it is asked for again until that is so.
        until(
            "the old ones are gone",
            lambda: (
                self.peer.ask(RemotingCommand.request(329, {})).code == 0
                and min(map(int, os.listdir(log))) >= kept
            ),
        )

    def consume_all(self) -> list[bytes]:
        """Return everything from the beginning, once all that was acknowledged is readable."""
        count = str(len(self.acknowledged))
        asked = RemotingCommand.request(30, {"topic": TOPIC, "queueId": "0"})
        until("all messages to be readable", lambda: self.peer.ask(asked).fields["offset"] == count)
        got = self.acknowledged[: self.first()]
        while len(got) < len(self.acknowledged):
            got += self.pull(len(got))
        return got

    def close(self) -> None:
        self.peer.close()


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_it_passes_by_itself_again_and_again(disk: Path, rounds: int) -> None:
    """Refused at once while it lasts, served again a moment after there is room; no role is replaced.

    Nothing goes by itself; after each round what is old is removed by hand.
    """
    with broker(disk / "store", env={**SMALL_FILES, **EAGER, **BY_HAND}) as dev:
        ballast, messages = Ballast(disk), Messages(dev)
        messages.send_first()
        roles = roles_of(messages.peer)
        for _ in range(rounds):
            ballast.take_all()
            refused = messages.fill()
            assert refused.code == 14
            assert "the broker's disk is full" in (refused.remark or "")
            assert messages.send().code == 14
            # What was asked for may still be going on: the beginning moves.
            until("messages are readable", lambda: messages.pull(messages.first()))
            commit = {"topic": TOPIC, "consumerGroup": GROUP, "queueId": "0", "commitOffset": "1"}
            assert messages.peer.ask(RemotingCommand.request(15, commit)).code == 0
            ballast.give_back()
            until("sends are taken again", lambda: messages.send().code == 0)
            for _ in range(A_FILE):
                assert messages.send().code == 0
            messages.remove_old(disk / "store")
        assert roles_of(messages.peer) == roles
        assert messages.consume_all() == messages.acknowledged
        messages.close()
        assert dev.stop() == 0
        told = "".join(dev.errors)
        assert "Traceback" not in told
        assert told.count("so mark disk full, sends are refused") == told.count("so mark disk ok") >= 1


@pytest.mark.parametrize("flush", ["async", "sync"])
def test_it_outlives_a_stop_and_a_start(disk: Path, flush: str) -> None:
    """A stop says that it could not leave its mark; the start serves what is there, and sends when it can."""
    ballast = Ballast(disk)
    with broker(disk / "store", flush=flush, env=SMALL_FILES) as dev:
        messages = Messages(dev)
        messages.send_first()
        ballast.take_all()
        assert messages.fill().code == 14
        messages.close()
        assert dev.stop() == 1
        told = "".join(dev.errors)
        assert "no room for the mark of a clean stop" in told
        assert "the store was not left clean, the next start recovers it" in told
        assert "Traceback" not in told
    with broker(disk / "store", flush=flush, env=SMALL_FILES) as dev:
        messages.connect(dev)
        assert messages.fill().code == 14
        assert messages.consume_all() == messages.acknowledged
        ballast.give_back()
        until("sends are taken", lambda: messages.send().code == 0)
        assert messages.consume_all() == messages.acknowledged
        messages.close()
        assert dev.stop() == 0, "".join(dev.errors)


def used_percent(disk: Path) -> float:
    stat = os.statvfs(disk)
    return 100 * (1 - stat.f_bavail / stat.f_blocks)


def test_above_the_warning_level_sends_are_refused(disk: Path) -> None:
    """RocketMQ's level and words, while there would still be room; below it sends are taken again."""
    env = {**SMALL_FILES, **EAGER, "ACTORMQ_STORE_FORCE_CLEAN": "false"}
    with broker(disk / "store", env=env) as dev:
        ballast, messages = Ballast(disk), Messages(dev)
        assert messages.send().code == 0
        for _ in range(2):
            ballast.take(int(DISK_MB * 0.92 - DISK_MB * used_percent(disk) / 100) << 20)
            assert used_percent(disk) > 90
            until("sends are refused", lambda: messages.send().code == 14)
            refused = messages.send()
            assert re.fullmatch(
                r"service not available now\. It may be caused by one of the following reasons: "
                r"the broker's disk is full \[CL:  0\.9\d CQ:  0\.9\d INDEX:  0\.9\d\], "
                r"messages are put to the slave, message store has been shut down, etc\.",
                refused.remark or "",
            )
            assert messages.pull(0)[0] == b"0."
            ballast.give_back()
            until("sends are taken again", lambda: messages.send().code == 0)
        assert messages.consume_all() == messages.acknowledged
        messages.close()
        assert dev.stop() == 0
        told = "".join(dev.errors)
        assert told.count("so mark disk full, sends are refused") == 2
        assert told.count("so mark disk ok") == 2


def test_oldest_files_make_room(disk: Path) -> None:
    """More is sent than the disk holds: what goes is the beginning, and no send is refused for long."""
    env = {**SMALL_FILES, **EAGER, "ACTORMQ_STORE_FLUSH_INTERVAL_MS": "20"}
    with broker(disk / "store", env=env) as dev:
        messages = Messages(dev)
        while len(messages.acknowledged) < 2 * DISK_MB * A_FILE:
            until("there is room", lambda: messages.send().code == 0)
        assert messages.first() > DISK_MB * A_FILE
        until("the beginning is served, and moves no more", lambda: messages.pull(messages.first()))
        messages.close()
        assert dev.stop() == 0
        assert "Traceback" not in "".join(dev.errors)


def test_old_files_go_when_an_administrator_says_so(tmp_path: Path) -> None:
    """mqadmin deleteExpiredCommitLog (329) waits for no hour; cleanExpiredCQ (306) is answered, too."""
    with broker(tmp_path / "store", env={**SMALL_FILES, **BY_HAND}) as dev:
        messages = Messages(dev)
        for _ in range(3 * A_FILE):
            assert messages.send().code == 0
        assert len(os.listdir(tmp_path / "store" / "commitlog")) >= 3
        messages.consume_all()
        messages.remove_old(tmp_path / "store")
        assert messages.peer.ask(RemotingCommand.request(306, {})).code == 0
        until("the beginning is served, and moves no more", lambda: messages.pull(messages.first()))
        messages.close()
        assert dev.stop() == 0


def test_without_any_room_nothing_begins(disk: Path) -> None:
    """One sentence; with room the same command starts."""
    ballast = Ballast(disk)
    ballast.take_all()
    with pytest.raises(AssertionError, match=r"cannot use the store folder .*: No space left on device"):
        start_dev(disk / "store", env=SMALL_FILES)
    ballast.give_back()
    with broker(disk / "store", env=SMALL_FILES) as dev:
        messages = Messages(dev)
        assert messages.send().code == 0
        messages.close()
        assert dev.stop() == 0
