"""broker: a broker with the settings of a TOML file, or of a RocketMQ ``broker.conf`` as it is."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from actormq.cli import serving

SETTINGS = {
    "data_dir": "store.root",
    "namesrv": "broker.namesrv_addrs",
    "name": "broker.name",
    "host": "gateway.host",
    "port": "gateway.port",
    "zmq_port": "gateway.zmq_port",
    "flush": "store.flush",
    "gateways": "gateway.count",
}
FRONTS = (("broker", "gateway.tcp"), ("zmq", "gateway.zmq"))


def main(words: Sequence[str]) -> int:
    """Run a broker until SIGINT or SIGTERM; return the exit code."""
    options = serving.parse(_parser(), words)

    from actormq.actors.forkserver import BROKER_MODULES, Forkserver

    forkserver = Forkserver(BROKER_MODULES)  # it imports while we read

    from actormq.actors.roles import broker_roles
    from actormq.cli.settings import load_broker

    file = options.get("config")
    assert file is None or isinstance(file, Path)
    loaded = load_broker(file, os.environ, serving.layer(options, SETTINGS))
    serving.warn(loaded.warnings)
    config = loaded.config
    return serving.serve(
        config, broker_roles(config), store_root=config.store.root, forkserver=forkserver, fronts=FRONTS
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("actormq broker", description="Run a broker.")
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="TOML, or a RocketMQ broker.conf as it is"
    )
    parser.add_argument("--data-dir", metavar="D", help="the store's folder")
    parser.add_argument("-n", "--namesrv", metavar="HOST:PORT", help="name servers, separated by ';'")
    parser.add_argument("--name", metavar="S", help="the broker's name")
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", metavar="N", help="RocketMQ's TCP port (10911); 0 for a free one")
    parser.add_argument("--zmq-port", metavar="N", help="native clients' port; 0 for a free one")
    parser.add_argument("--flush", metavar="async|sync", help="acknowledge once appended or once synced")
    parser.add_argument("--gateways", metavar="N", help="processes that serve clients")
    return parser
