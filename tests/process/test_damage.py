"""Bits that flip in the store of a broker at rest: the next one names them, and serves everything else."""

from __future__ import annotations

from pathlib import Path

from actormq_process import start_dev
from gateway_process import Peer, heartbeat, until
from gateway_rig import pull_request, send_request

from actormq.kernels import records
from actormq.kernels.queues import ENTRY, ENTRY_BYTES
from actormq.wire.command import RemotingCommand

TOPIC = "damage"
MESSAGES = 20
FIRST_FILE = "0" * 20


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def consume(peer: Peer) -> list[bytes]:
    """Return the bodies that a group gets which begins at the beginning, once all messages are readable."""
    asked = RemotingCommand.request(30, {"topic": TOPIC, "queueId": "0"})
    until("all messages are readable", lambda: peer.ask(asked).fields["offset"] == str(MESSAGES))
    bodies: list[bytes] = []
    at = 0
    while at < MESSAGES:
        answer = peer.ask(pull_request(TOPIC, "g", at, flags=4, subscription="*"))
        assert answer.code in (0, 20), answer.remark
        place = 0
        while place < len(answer.body):
            header = records.decode(answer.body, place, check_crc=records.CRC_DEMAND)
            bodies.append(bytes(answer.body[header.body_at : header.body_at + header.body_size]))
            place += header.total_size
        at = int(answer.fields["nextBeginOffset"])
    return bodies


def test_damage_is_named_and_everything_else_is_served(tmp_path: Path) -> None:
    """A record's body, a queue entry, and a digit of a table."""
    root = tmp_path / "store"
    dev = start_dev(root, flush="sync")
    try:
        peer = Peer(dev)
        for number in range(MESSAGES):
            assert peer.ask(send_request(TOPIC, b"%d" % number, queue_id=0)).code == 0
        assert peer.ask(heartbeat("c", "g", TOPIC)).code == 0
        assert consume(peer) == [b"%d" % number for number in range(MESSAGES)]
        peer.close()
    finally:
        assert dev.stop() == 0
    queue = root / "consumequeue" / TOPIC / "0" / FIRST_FILE
    whole = queue.read_bytes()
    log_offset, size, _ = ENTRY.unpack_from(whole, 7 * ENTRY_BYTES)
    log = root / "commitlog" / FIRST_FILE
    header = records.decode(log.read_bytes()[log_offset : log_offset + size], 0)
    flip(log, log_offset + header.body_at)
    flip(queue, 12 * ENTRY_BYTES + 6)
    groups = root / "config" / "subscriptionGroup.json"
    flip(groups, groups.read_bytes().index(b'"retryMaxTimes": 16') + len('"retryMaxTimes": 1'))
    dev = start_dev(root, flush="sync", like=dev)
    try:
        peer = Peer(dev)
        assert peer.ask(heartbeat("c", "g", TOPIC)).code == 0
        assert consume(peer) == [b"%d" % number for number in range(MESSAGES) if number != 7]
        queue_name = f"of queue 0 of topic {TOPIC} is damaged"
        named = (
            f"message 7 {queue_name} or gone: log offset {log_offset}, position {log_offset}",
            f"the queue entry of message 12 {queue_name}",
            f"{groups}: its checksum is not that of its content",
        )
        until("all are named", lambda: all(one in "".join(dev.errors) for one in named))
        until("the entry is made again", lambda: queue.read_bytes() == whole)
        peer.close()
    finally:
        assert dev.stop() == 0
    assert [sum(line.count(one) for line in dev.errors) for one in named[:2]] == [1, 1]
