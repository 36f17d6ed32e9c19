"""Loss of power in async mode: the log ends earlier than groups had come; nothing may point beyond it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from actormq_process import Dev, start_dev
from gateway_process import Peer, heartbeat, until
from gateway_rig import pull_request

from actormq.store import tables
from actormq.store.disk import RealDisk
from actormq.store.record import Record, decode
from actormq.wire.command import RemotingCommand

OFTEN = {"ACTORMQ_COORDINATOR_OFFSETS_INTERVAL_MS": "50"}
SELDOM = {"ACTORMQ_COORDINATOR_OFFSETS_INTERVAL_MS": "3600000"}
TOPIC = "tail"
MESSAGES = 20
KEPT = 12


def request(code: int, **fields: object) -> RemotingCommand:
    return RemotingCommand.request(code, {name: str(value) for name, value in fields.items()})


def send(peer: Peer, number: int) -> int:
    """Store one message and return its queue offset."""
    command = request(
        10, producerGroup="p", topic=TOPIC, defaultTopic="TBW102", defaultTopicQueueNums=1, queueId=0,
        sysFlag=0, bornTimestamp=1, flag=0, properties="", reconsumeTimes=0, unitMode="false", batch="false",
    )  # fmt: skip
    command.body = b"%d" % number
    answer = peer.ask(command)
    assert answer.code == 0, answer.remark
    return int(answer.fields["queueOffset"])


def pulled(peer: Peer, group: str, queue_offset: int) -> Record:
    """Return the message at a place, once it is readable."""

    def found() -> Record | None:
        options: dict[str, Any] = {"flags": 6, "subscription": "*", "messages": 1, "suspend_ms": 5_000}
        answer = peer.ask(pull_request(TOPIC, group, queue_offset, **options))
        return decode(memoryview(bytes(answer.body))) if answer.code == 0 else None

    record = until("the message", found)
    assert isinstance(record, Record)
    return record


def commit(peer: Peer, group: str, offset: int) -> None:
    fields = {"consumerGroup": group, "topic": TOPIC, "queueId": 0, "commitOffset": offset}
    assert peer.ask(request(15, **fields)).code == 0


def committed(peer: Peer, group: str) -> int:
    answer = peer.ask(request(14, consumerGroup=group, topic=TOPIC, queueId=0))
    assert answer.code == 0, answer.remark
    return int(answer.fields["offset"])


def max_offset(peer: Peer) -> int:
    return int(peer.ask(request(30, topic=TOPIC, queueId=0)).fields["offset"])


def saved(dev: Dev, group: str) -> int | None:
    """Return what the file says of a group."""
    table = tables.load(RealDisk(), dev.data_dir / tables.FOLDER / tables.CONSUMER_OFFSETS) or {}
    offset: int | None = table.get("offsetTable", {}).get(f"{TOPIC}@{group}", {}).get("0")
    return offset


def lose_power(dev: Dev, log_end: int) -> None:
    """End everything at once; what was written behind `log_end` never reached the disk."""
    os.kill(dev.process.pid, signal.SIGKILL)
    dev.process.wait()
    # The store is unlocked when the last role is gone.
    until("the last role is gone", lambda: not _is_in_use(dev.data_dir))
    log = next(iter(sorted(dev.data_dir.rglob("commitlog/0*"))))
    with log.open("r+b") as file:
        file.seek(log_end)
        file.write(bytes(log.stat().st_size - log_end))


def _is_in_use(folder: Path) -> bool:
    for process in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(str(folder) in os.readlink(fd) for fd in process.iterdir()):
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize("env", [OFTEN, SELDOM], ids=["offsets-in-the-file", "offsets-in-the-ledger-only"])
def test_no_group_is_ahead_of_a_lost_tail(tmp_path: Path, env: dict[str, str]) -> None:
    """Whatever file held them: offsets end where their queue ends, the log says whose and how far.

    A group that stayed ahead would skip the messages that take those places next.
    """
    with contextlib.ExitStack() as to_stop:
        dev = start_dev(tmp_path / "data", env=env)
        to_stop.callback(dev.stop)
        offset_of_cut = fill(dev, env)
        lose_power(dev, offset_of_cut)
        dev = start_dev(tmp_path / "data", env=env)
        to_stop.callback(dev.stop)
        with contextlib.closing(Peer(dev)) as peer:
            look(dev, peer, env)
        assert dev.stop() == 0


def fill(dev: Dev, env: dict[str, str]) -> int:
    """Send, commit; return where in the log the messages begin that will be lost."""
    peer = Peer(dev)
    for group in ("fast", "slow"):
        assert peer.ask(heartbeat("c", group, TOPIC)).code == 0
    assert [send(peer, number) for number in range(MESSAGES)] == list(range(MESSAGES))
    cut = pulled(peer, "slow", KEPT).log_offset
    commit(peer, "fast", MESSAGES)
    commit(peer, "slow", 3)
    if env is OFTEN:
        until("saved offsets", lambda: saved(dev, "fast") == MESSAGES and saved(dev, "slow") == 3)
    peer.close()
    return cut


def look(dev: Dev, peer: Peer, env: dict[str, str]) -> None:
    """See where the groups are now."""
    if env is OFTEN:
        assert (committed(peer, "fast"), committed(peer, "slow")) == (KEPT, 3)
        sentence = f"fast had come to {MESSAGES} in queue 0 of {TOPIC}, which ends at {KEPT}: set back"
        until("the line in the log", lambda: sentence in "".join(dev.errors))
        commit(peer, "fast", MESSAGES)
        assert committed(peer, "fast") == KEPT, "a consumer that runs on says once more what it had"
    else:  # the ledger is in the run folder, which dies with its broker
        assert (committed(peer, "fast"), committed(peer, "slow")) == (0, 0)
    assert send(peer, 100) == KEPT
    assert bytes(pulled(peer, "fast", KEPT).body) == b"100"


@pytest.mark.parametrize("done", [0, 4], ids=["nothing-committed", "some-committed"])
def test_who_was_ahead_two_lives_ago_is_set_back(tmp_path: Path, done: int) -> None:
    """The broker between ended before it met him; its messages stand where he believes to have been.

    Whatever others of his group have committed since: he may have seen nothing of it.
    """
    with contextlib.ExitStack() as to_stop:
        dev = start_dev(tmp_path / "data", env=SELDOM)
        to_stop.callback(dev.stop)
        lose_power(dev, fill(dev, SELDOM))
        dev = start_dev(tmp_path / "data", env=SELDOM)
        to_stop.callback(dev.stop)
        with contextlib.closing(Peer(dev)) as peer:
            assert [send(peer, number) for number in range(100, 120)] == list(range(KEPT, KEPT + 20))
            assert peer.ask(heartbeat("other", "fast", TOPIC)).code == 0
            for queue_offset in range(KEPT, KEPT + done):
                pulled(peer, "fast", queue_offset)
            if done:
                commit(peer, "fast", KEPT + done)
            until("all is readable", lambda: max_offset(peer) == KEPT + 20)
        assert dev.stop() == 0
        for _ in range(2):  # after a clean stop and, since nobody was met, after the next one
            dev = start_dev(tmp_path / "data", env=SELDOM)
            to_stop.callback(dev.stop)
            with contextlib.closing(Peer(dev)) as peer:
                assert peer.ask(heartbeat("c", "fast", TOPIC)).code == 0
                answer = peer.ask(pull_request(TOPIC, "fast", MESSAGES, flags=6, subscription="*"))
                assert (answer.code, answer.fields["nextBeginOffset"]) == (21, str(KEPT))
            assert dev.stop() == 0
