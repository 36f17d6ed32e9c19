"""namesrv: a name server alone, with the settings of a TOML file or a RocketMQ ``namesrv.conf``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from actormq.cli import serving

SETTINGS = {"port": "namesrv.port", "zmq_port": "namesrv.zmq_port", "host": "namesrv.host"}
FRONTS = (("namesrv", "nameserver.tcp"), ("namesrv-zmq", "nameserver.zmq"))
KV_FILE = Path("namesrv") / "kvConfig.json"


def main(words: Sequence[str]) -> int:
    """Run a name server until SIGINT or SIGTERM; return the exit code."""
    options = serving.parse(_parser(), words)

    from actormq.actors.roles import nameserver_roles
    from actormq.cli.settings import Given, load_namesrv
    from actormq.config import BrokerConfig, StoreConfig

    data_dir = options.get("data_dir", Path(".actormq"))
    assert isinstance(data_dir, Path)
    file = options.get("config")
    assert file is None or isinstance(file, Path)
    base = {"namesrv.kv_path": Given(data_dir / KV_FILE, "--data-dir")}
    loaded = load_namesrv(file, os.environ, serving.layer(options, SETTINGS), base)
    serving.warn(loaded.warnings)
    namesrv = loaded.config
    # The supervisor's settings are a broker's; a name server uses none of its folders.
    config = BrokerConfig(store=StoreConfig(root=data_dir), namesrv=namesrv, log_path=namesrv.log_path)
    return serving.serve(config, nameserver_roles(config), store_root=None, fronts=FRONTS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("actormq namesrv", description="Run a name server.")
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="TOML, or a RocketMQ namesrv.conf as it is"
    )
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", metavar="N", help="RocketMQ's TCP port (9876); 0 for a free one")
    parser.add_argument("--zmq-port", metavar="N", help="native clients' port (9877); 0 for a free one")
    parser.add_argument("--data-dir", type=Path, metavar="D", help="where KV entries are kept (./.actormq)")
    return parser
