"""status: the roles of every broker with what they use, and how far each has come."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from actormq.cli.options import NAMESRV_DEFAULT, Json, Namesrv, examples
from actormq.cli.output import print_json, print_table, say
from actormq.cli.remote import Cluster, Remote
from actormq.errors import ClientError, RequestRefused, ResponseCode
from actormq.wire import json
from actormq.wire.codes import RequestCode

EXAMPLES: Final = examples("status", "status --broker 127.0.0.1:10911 --json")
LAGS: Final = (
    ("flushed", "appended", "not yet synced"),
    ("dispatched", "appended", "not yet readable"),
    ("replicated", "appended", "not yet replicated"),
)
"""Position, the one that it follows, and what the distance between them means; bytes of the log."""
_NOT_SUPPORTED: Final = ResponseCode.REQUEST_CODE_NOT_SUPPORTED
_SAMPLE_S: Final = 0.2
"""Over which CPU use is measured."""


def status(
    broker: Annotated[
        str | None,
        typer.Option("--broker", "-b", metavar="HOST:PORT", help="Ask only this one."),
    ] = None,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """Show every role with its process, CPU and memory, the positions, and the lag between them."""
    with Remote() as remote:
        addresses = [broker] if broker else [item.address for item in Cluster(remote, namesrv).brokers()]
        found = [_broker(remote, address) for address in addresses]
    if as_json:
        print_json({"brokers": found})
        return
    if not found:
        say("no broker is registered")
    for item in found:
        _show(item)


def _broker(remote: Remote, address: str) -> dict[str, Any]:
    """Return what one broker says of itself, or why it does not."""
    try:
        value = json.loads(remote.ask(address, RequestCode.GET_ROLES).body)
    except ClientError as error:
        foreign = isinstance(error, RequestRefused) and error.response_code == _NOT_SUPPORTED
        return {"address": address, "error": f"{address} is no ActorMQ broker" if foreign else error.remark}
    roles = value["roles"]
    _add_use(roles)
    positions = value.get("positions", {})
    return {"address": address, "roles": roles, "positions": positions, "lag": _lag(positions)}


def _lag(positions: dict[str, int]) -> dict[str, int]:
    """Return how many bytes each position is behind the one that it follows."""
    return {
        name: positions[leader] - positions[name]
        for name, leader, _ in LAGS
        if positions.get(name) and positions.get(leader)
    }


def _add_use(roles: list[dict[str, Any]]) -> None:
    """Add CPU (percent of a core) and memory (bytes) of processes that run on this machine."""
    import psutil

    processes = {}
    for role in roles:
        role["cpu_percent"] = role["memory_bytes"] = None
        try:
            process = psutil.Process(role["pid"])
            if process.name().startswith("amq:"):  # else a pid of another machine, or one used again
                process.cpu_percent()
                processes[role["role"]] = process
        except (psutil.Error, ValueError):
            continue
    if processes:
        psutil.cpu_percent(_SAMPLE_S)
    for role in roles:
        if role["role"] in processes:
            _measure(role, processes[role["role"]])


def _measure(role: dict[str, Any], process: Any) -> None:
    import psutil

    try:
        role["cpu_percent"] = process.cpu_percent()
        memory = process.memory_full_info()
        role["memory_bytes"] = getattr(memory, "pss", memory.rss)
    except psutil.Error:
        role["cpu_percent"] = None


def _show(item: dict[str, Any]) -> None:
    if "error" in item:
        say(item["error"])
        return
    rows = [
        (
            role["role"],
            role["pid"],
            role["state"],
            role["incarnation"],
            role.get("heartbeat_age_ms"),
            role["cpu_percent"],
            None if role["memory_bytes"] is None else round(role["memory_bytes"] / (1 << 20), 1),
        )
        for role in item["roles"]
    ]
    columns = ("role", "pid", "state", "lives", "beat ms ago", "CPU %", "MB")
    print_table(columns, rows, title=f"broker {item['address']}")
    meanings = {name: meaning for name, _, meaning in LAGS}
    positions = [
        (name, value, item["lag"].get(name), meanings.get(name, ""))
        for name, value in item["positions"].items()
    ]
    print_table(("position", "value", "lag", ""), positions)
