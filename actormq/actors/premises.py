"""What a broker stands on, made before any role runs and kept for the supervisor's whole life.

The store's lock, the run folder, listening sockets, shared memory and doorbells.  Everything is given
back in reverse order, also when making it fails half-way.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actormq.actors import control
from actormq.actors.listeners import Listeners, resolve
from actormq.actors.roles import RoleSpec, settle
from actormq.actors.rundir import RunDir, prefix_of
from actormq.actors.storelock import StoreLock
from actormq.actors.unsynced import UnsyncedFiles
from actormq.config import BrokerConfig
from actormq.shm.doorbell import doorbell_fd
from actormq.shm.extents import Extents
from actormq.shm.intent import IntentPage
from actormq.shm.positions import Positions, RoleCell, RoleState, slot_of
from actormq.shm.segment import Segment, sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What every role is handed; descriptors by name."""

    positions: Positions
    segments: dict[str, int]
    doorbells: dict[str, int]
    listeners: Listeners
    log_fd: int
    config: bytes
    run_dir: Path
    prefix: str
    """What names of our segments start with."""


class Premises:
    """All of it.

    Args:
        store_root: the folder that is locked; None where no store is kept.
        log_fd: the end of the log's pipe that roles write into.
    Attributes:
        config: with the ports that were really taken.
        unsynced: our own descriptors of log files with unsynced data; None without a store.
    """

    def __init__(
        self,
        config: BrokerConfig,
        roles: Sequence[RoleSpec],
        store_root: Path | None,
        log: logging.Logger,
        log_fd: int,
    ) -> None:
        with contextlib.ExitStack() as release:
            self._release = release
            if store_root is not None:
                resolve(config.advertised_host)  # here, once: every role that stores would trip over it
            self._lock(store_root)
            prefix = prefix_of(store_root)
            run_dir = self._run_dir(prefix, log)
            self.listeners = self._bind(roles, log)
            self.config = settle(config, self.listeners.addresses)
            segments = self._segments(prefix, store_root is not None)
            if "pool" in segments:
                _lock_pool(segments["pool"], log)
            elif self.config.store.pool_enabled and store_root is not None:
                log.warning("the store pool stays off: in sync mode everybody waits for the disk anyway")
            self.positions = _own_page(segments["positions"])
            self.unsynced = self._follow_log(store_root)
            self.shared = Shared(
                positions=self.positions,
                segments={purpose: segment.fd for purpose, segment in segments.items()},
                doorbells=self._doorbells(roles),
                listeners=self.listeners,
                log_fd=log_fd,
                config=control.encode_config(self.config),
                run_dir=run_dir,
                prefix=prefix,
            )
            self._release = release.pop_all()

    def close(self) -> None:
        """Give everything back."""
        self._release.close()

    def _lock(self, store_root: Path | None) -> None:
        if store_root is not None:
            lock = StoreLock(store_root)
            self._release.callback(lock.close)
            lock.own()

    def _run_dir(self, prefix: str, log: logging.Logger) -> Path:
        run_dir = RunDir(prefix)
        self._release.callback(run_dir.remove)
        swept = run_dir.swept + sweep(prefix)
        if swept:
            log.info("swept what a dead broker left", extra={"count": len(swept)})
        return run_dir.path

    def _bind(self, roles: Sequence[RoleSpec], log: logging.Logger) -> Listeners:
        listeners = Listeners()
        self._release.callback(listeners.close)
        for spec in roles:
            for front in spec.fronts:
                if not listeners.bind(spec.role, front):
                    log.warning("a port is taken, doing without", extra={"front": front.address_key})
        return listeners

    def _segments(self, prefix: str, with_store: bool) -> dict[str, Segment]:
        sizes = {"positions": Positions.payload_bytes()}
        if with_store:
            sizes["extents"] = Extents.payload_bytes(self.config.memory.queue_rows_max)
            sizes["tables"] = self.config.memory.tables_bytes
            sizes["intent"] = IntentPage.payload_bytes()
            if self.config.store.pooled:
                sizes["pool"] = self.config.store.pool_bytes
        return {purpose: self._segment(prefix, purpose, size) for purpose, size in sizes.items()}

    def _segment(self, prefix: str, purpose: str, size: int) -> Segment:
        segment = Segment.create(prefix, purpose, size)
        segment.unlink()  # roles get descriptors: a name would only be something to leave behind
        self._release.callback(segment.close)
        return segment

    def _follow_log(self, store_root: Path | None) -> UnsyncedFiles | None:
        if store_root is None:
            return None
        files = UnsyncedFiles(store_root / "commitlog", self.config.store.log_file_bytes)
        self._release.callback(files.close)
        return files

    def _doorbells(self, roles: Sequence[RoleSpec]) -> dict[str, int]:
        doorbells = {}
        for role in ("supervisor", *(spec.role for spec in roles)):
            doorbells[role] = doorbell_fd()
            self._release.callback(os.close, doorbells[role])
        return doorbells


def _lock_pool(pool: Segment, log: logging.Logger) -> None:
    """Say what a store pool means, and keep it from being swapped out where that is allowed."""
    log.warning(
        "the store pool is on: what it holds is acknowledged, and lost when the whole broker is killed",
        extra={"bytes": len(pool.view)},
    )
    if not pool.lock():
        log.warning("the store pool cannot be locked in memory (see ulimit -l): it may be swapped out")


def _own_page(segment: Segment) -> Positions:
    positions = Positions(segment.view)
    for cell, value in (
        (RoleCell.INCARNATION, 1),
        (RoleCell.PID, os.getpid()),
        (RoleCell.STATE, RoleState.RUNNING),
        (RoleCell.SLEEPING, 1),  # always: the supervisor only looks when rung
    ):
        positions.set_role(slot_of("supervisor"), cell, value)
    return positions
