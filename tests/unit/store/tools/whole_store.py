"""A small store to look at and to spoil, and copies of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from faults.small_store import DELAYS, Message, SmallStore, small_config

from actormq.store.disk import RealDisk
from actormq.store.tools.layout import find_layout
from actormq.store.tools.verifying import Verdict, verify

MESSAGES = 60
BODY_BYTES = 60_000
INDEX_ENTRIES = 40


def filled(
    root: Path, *, stop: bool = True, messages: int = MESSAGES, body_bytes: int = BODY_BYTES
) -> SmallStore:
    """Make a store of four log files, two topics and more than one index file; by default, stop it."""
    config = small_config(root, index_entries=INDEX_ENTRIES)
    store = SmallStore(RealDisk(), config, body_bytes=body_bytes)
    for number in range(messages):
        store.append([Message(number, "ab"[number % 2], number % 3)])
    if stop:
        store.stop()
        let_go(store)
        (root / "config").mkdir()
        table = {"topicConfigTable": {"a": {"topicName": "a"}, "b": {"topicName": "b"}}}
        (root / "config/topics.json").write_text(json.dumps(table))
    return store


def started(root: Path) -> SmallStore:
    """Recover the store, as the next broker does."""
    return SmallStore(RealDisk(), small_config(root, index_entries=INDEX_ENTRIES))


def let_go(store: SmallStore) -> None:
    """Close its files."""
    store.index.close()
    store.queue_files.close()
    store.log.close()


def look(root: Path) -> Verdict:
    disk = RealDisk()
    return verify(disk, find_layout(disk, root), delay_ms=DELAYS)


def copied(whole: Path, root: Path) -> Path:
    """Copy a store with its times: the end mark knows that of the checkpoint."""
    for path in whole.rglob("*"):
        target = root / path.relative_to(whole)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            os.utime(target, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    return root


def poke(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
