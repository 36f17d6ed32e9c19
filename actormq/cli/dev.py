"""dev: a name server and a broker in one command, for development and tests: small files, async flush."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actormq.cli import serving

if TYPE_CHECKING:
    from actormq.config import BrokerConfig

SETTINGS = {
    "data_dir": "store.root",
    "namesrv_port": "namesrv.port",
    "namesrv_zmq_port": "namesrv.zmq_port",
    "port": "gateway.port",
    "zmq_port": "gateway.zmq_port",
    "broker_name": "broker.name",
    "flush": "store.flush",
    "gateways": "gateway.count",
}
FRONTS = (
    ("namesrv", "nameserver.tcp"),
    ("namesrv-zmq", "nameserver.zmq"),
    ("broker", "gateway.tcp"),
    ("zmq", "gateway.zmq"),
)
LOG_FILE_BYTES = 64 * 1024 * 1024
INDEX_SLOTS = 10_000
INDEX_ENTRIES = 40_000
QUEUE_ROWS = 10_000
SMALL = {
    "store.root": Path(".actormq"),
    "store.log_file_bytes": LOG_FILE_BYTES,
    "store.index_slots": INDEX_SLOTS,
    "store.index_entries": INDEX_ENTRIES,
    "memory.append_ring_bytes": 4 * 1024 * 1024 + 512 * 1024,
    "memory.completion_ring_bytes": 128 * 1024,
    "memory.tables_bytes": 1024 * 1024,
    "memory.queue_rows_max": QUEUE_ROWS,
    "gateway.zmq_port": 10921,
    "namesrv.port": 9876,
    "namesrv.zmq_port": 9877,
}
"""What differs from a real broker's defaults: little files and little memory (at most 8 MB are shared)."""


def main(words: Sequence[str]) -> int:
    """Run until SIGINT or SIGTERM, then leave nothing behind but the data; return the exit code."""
    options = serving.parse(_parser(), words)

    from actormq.actors.forkserver import BROKER_MODULES, Forkserver

    forkserver = Forkserver(BROKER_MODULES)  # it imports while we read

    from actormq.actors.roles import broker_roles
    from actormq.cli.settings import Given, load_broker

    base = {key: Given(value, "dev's default") for key, value in SMALL.items()}
    loaded = load_broker(None, os.environ, serving.layer(options, SETTINGS), base)
    config = loaded.config
    serving.warn(loaded.warnings)
    print(_greeting(config), file=sys.stderr, flush=True)
    return serving.serve(
        config, broker_roles(config), store_root=config.store.root, forkserver=forkserver, fronts=FRONTS
    )


def _greeting(config: BrokerConfig) -> str:
    """Say what a person must know before trusting it with data."""
    store = config.store
    flush = {
        "async": "async flush (acknowledged messages may be lost when the machine loses power)",
        "sync": "sync flush",
    }[store.flush.value]
    return (
        f"actormq dev: {flush}, data in {store.root.resolve()}, "
        f"small files ({store.log_file_bytes >> 20} MB log, {store.index_slots:,}-slot index)"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "actormq dev", description="Run a name server and a broker for development.", allow_abbrev=False
    )
    parser.add_argument("--data-dir", metavar="D", help="where the data is kept (./.actormq)")
    parser.add_argument("--namesrv-port", metavar="N", help="name server, TCP (9876); 0 for a free port")
    parser.add_argument("--namesrv-zmq-port", metavar="N", help="name server, ZeroMQ (9877)")
    parser.add_argument("--port", metavar="N", help="broker, RocketMQ's TCP (10911)")
    parser.add_argument("--zmq-port", metavar="N", help="broker, ZeroMQ (10921)")
    parser.add_argument("--broker-name", metavar="S", help="the broker's name (broker-a)")
    parser.add_argument("--flush", metavar="async|sync", help="acknowledge once appended or once synced")
    parser.add_argument("--gateways", metavar="N", help="processes that serve clients (1)")
    return parser
