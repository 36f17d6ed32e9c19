"""The stores that the official broker has left (`record.py`), unpacked, with what it said of them."""

from __future__ import annotations

import base64
import functools
import ipaddress
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actormq.config import StoreConfig
from actormq.store.commit_log import FOLDER, LogReader
from actormq.store.disk import RealDisk

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.zip"))


@functools.cache
def said(name: str) -> dict[str, Any]:
    """Return what Java said of a store."""
    with zipfile.ZipFile(HERE / f"{name}.zip") as archive:
        found: dict[str, Any] = json.loads(archive.read("java.json"))
    return found


@dataclass(frozen=True)
class Golden:
    """A copy of one store, which the test may change."""

    root: Path
    name: str

    @property
    def said(self) -> dict[str, Any]:
        return said(self.name)

    @property
    def config(self) -> StoreConfig:
        """The sizes that the recorded broker was told."""
        return StoreConfig(
            root=self.root,
            log_file_bytes=1 << 20,
            queue_file_entries=100,
            batch_queue_file_entries=50,
            index_slots=50,
            index_entries=400,
            body_bytes_max=700_000,
        )

    @property
    def log(self) -> LogReader:
        return LogReader(RealDisk(), self.root / FOLDER, self.config.log_file_bytes)

    def stored(self, log_offset: int, size: int) -> bytes:
        return bytes(self.log.view(log_offset, size))


def unpack(name: str, folder: Path) -> Golden:
    with zipfile.ZipFile(HERE / f"{name}.zip") as archive:
        archive.extractall(folder)
    return Golden(folder / "store", name)


def body_of(entry: dict[str, Any]) -> bytes:
    return base64.b64decode(entry["body"])


def host_of(text: str) -> tuple[str, int]:
    """Return what Java names "address port", the address as Python writes it."""
    address, port = text.split(" ")
    return str(ipaddress.ip_address(address)), int(port)
