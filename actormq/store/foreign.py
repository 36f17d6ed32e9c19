"""What other kinds of RocketMQ store leave in a folder: refused by name, or left alone where it does no harm.

Source: RocketMQ StorePathConfigHelper.java, DLedgerCommitLog.java, EpochFileCache.java; storage reference §1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from actormq.errors import StoreForeign
from actormq.message import TIMER_TOPIC
from actormq.store import consume_queue, tables
from actormq.store.disk import Disk

_ROCKSDB_QUEUES: Final = ("consumequeue_rocksdb", "consumequeue_r")
_ROCKSDB_FILE: Final = "CURRENT"
"""Every RocksDB has it."""


def check_kind(disk: Disk, root: Path) -> list[str]:
    """Return a sentence for everything that is left alone although somebody may miss it.

    Raises:
        StoreForeign: a part of the store is kept in a way that we cannot read, or must keep up and cannot.
    """
    for name in disk.listdir(root):
        if name.startswith("dledger-") and disk.is_folder(root / name):
            raise StoreForeign(f"{root / name}: a store of DLedger mode, whose log we cannot read")
    if disk.exists(root / "epochFileCheckpoint"):
        raise StoreForeign(
            f"{root / 'epochFileCheckpoint'}: a store of controller mode, whose epochs we cannot keep up"
        )
    for name in _ROCKSDB_QUEUES:
        if disk.exists(root / name / _ROCKSDB_FILE) and not disk.listdir(root / consume_queue.FOLDER):
            raise StoreForeign(f"{root / name}: the queues are in RocksDB, which we cannot read")
    for name in disk.listdir(root / tables.FOLDER):
        if disk.exists(root / tables.FOLDER / name / _ROCKSDB_FILE):
            raise StoreForeign(f"{root / tables.FOLDER / name}: a table in RocksDB, which we cannot read")
    return _left_alone(disk, root)


def _left_alone(disk: Disk, root: Path) -> list[str]:
    notes = []
    if disk.listdir(root / consume_queue.FOLDER / TIMER_TOPIC):
        notes.append(
            f"{root / 'timerlog'} and {root / 'timerwheel'} are left alone: "
            "messages that wait there for their time are not delivered"
        )
    if disk.listdir(root / "compaction" / "compactionLog"):
        notes.append(
            f"{root / 'compaction'} is left alone: "
            "topics that RocketMQ compacted are served as they were sent"
        )
    return notes
