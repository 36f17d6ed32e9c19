"""group: which consumer groups there are, and how far each is behind."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from actormq.cli.options import NAMESRV_DEFAULT, Json, Namesrv, examples
from actormq.cli.output import print_json, print_table
from actormq.cli.remote import Broker, Cluster, Remote
from actormq.errors import ConfigError, RequestRefused, ResponseCode
from actormq.message import RETRY_PREFIX, SYSTEM_GROUPS
from actormq.wire import json
from actormq.wire.codes import RequestCode

app = typer.Typer()

_HIDDEN = frozenset((*SYSTEM_GROUPS, "__MONITOR_CONSUMER", "CLIENT_INNER_PRODUCER", "SELF_TEST_P_GROUP"))
"""RocketMQ's own (MixAll.java)."""


@app.command("list", epilog=examples("group list", "group list --all --json"))
def list_groups(
    everything: Annotated[bool, typer.Option("--all", help="Also those of the system.")] = False,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """List groups with their members, how they consume, and what they subscribe to."""
    with Remote() as remote:
        masters = Cluster(remote, namesrv).masters()
        names = sorted({name for master in masters for name in group_names(remote, master)})
        groups = [_group(remote, masters, name) for name in names if everything or name not in _HIDDEN]
    if as_json:
        print_json(groups)
        return
    columns = ("group", "members", "model", "subscriptions")
    rows = [
        (
            item["group"],
            len(item["members"]),
            item["model"],
            " ".join(f"{topic}:{expression}" for topic, expression in item["subscriptions"].items()),
        )
        for item in groups
    ]
    print_table(columns, rows)


def group_names(remote: Remote, broker: Broker) -> list[str]:
    """Return the groups that a broker knows."""
    body = json.loads(remote.ask(broker.address, RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG).body)
    return list(body["subscriptionGroupTable"])


def _group(remote: Remote, masters: list[Broker], name: str) -> dict[str, Any]:
    """Return what the brokers say of a group together; offline it has no members and no model."""
    members: dict[str, dict[str, Any]] = {}
    subscriptions: dict[str, str] = {}
    model = None
    for master in masters:
        fields = {"consumerGroup": name}
        try:
            body = json.loads(
                remote.ask(master.address, RequestCode.GET_CONSUMER_CONNECTION_LIST, fields).body
            )
        except RequestRefused as refused:
            if refused.response_code != ResponseCode.CONSUMER_NOT_ONLINE:
                raise
            continue
        model = str(body["messageModel"]).lower()
        for member in body["connectionSet"]:
            members[member["clientId"]] = {
                "client": member["clientId"],
                "address": member["clientAddr"],
                "language": member["language"],
            }
        for topic, data in body["subscriptionTable"].items():
            if topic != RETRY_PREFIX + name:
                subscriptions[topic] = data["subString"]
    return {"group": name, "members": list(members.values()), "model": model, "subscriptions": subscriptions}


@app.command(epilog=examples("group lag", "group lag billing", "group lag billing --topic orders --json"))
def lag(
    group: Annotated[
        str | None, typer.Argument(help="One group, queue by queue; without it all, in sum.")
    ] = None,
    topic: Annotated[str | None, typer.Option("--topic", "-t", help="Only this topic.")] = None,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """Say how many messages each group has not consumed yet."""
    with Remote() as remote:
        masters = Cluster(remote, namesrv).masters()
        known = sorted({name for master in masters for name in group_names(remote, master)})
        if group is not None and group not in known:
            raise ConfigError(f"there is no group {group}")
        if group is None:
            rows = [group_lag(remote, masters, name, topic) for name in known if name not in _HIDDEN]
            _show_groups(rows, as_json)
        else:
            _show_group(group_lag(remote, masters, group, topic), as_json)


def group_lag(remote: Remote, masters: list[Broker], group: str, topic: str | None) -> dict[str, Any]:
    """Return a group's progress: every queue, the sum of each topic, and of all."""
    fields = {"consumerGroup": group} | ({"topic": topic} if topic else {})
    queues = []
    for master in masters:
        body = json.loads(remote.ask(master.address, RequestCode.GET_CONSUME_STATS, fields).body)
        queues += [_queue(json.key_object(key), value) for key, value in body["offsetTable"].items()]
    queues.sort(key=lambda row: (row["topic"], row["broker"], row["queue"]))
    topics: dict[str, int] = {}
    for row in queues:
        topics[row["topic"]] = topics.get(row["topic"], 0) + row["lag"]
    return {"group": group, "lag": sum(topics.values()), "topics": topics, "queues": queues}


def _queue(key: dict[str, Any], value: dict[str, int]) -> dict[str, Any]:
    return {
        "topic": key["topic"],
        "broker": key["brokerName"],
        "queue": key["queueId"],
        "broker_offset": value["brokerOffset"],
        "consumer_offset": value["consumerOffset"],
        "lag": value["brokerOffset"] - value["consumerOffset"],
        "last_consumed_ms": value["lastTimestamp"],
    }


def _show_groups(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json([{name: row[name] for name in ("group", "lag", "topics")} for row in rows])
    else:
        print_table(
            ("group", "topics", "lag"), [(row["group"], len(row["topics"]), row["lag"]) for row in rows]
        )


def _show_group(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    columns = ("topic", "broker", "queue", "broker_offset", "consumer_offset", "lag", "last consumed")
    rows = [
        [*(row[column] for column in columns[:-1]), _time(row["last_consumed_ms"])] for row in found["queues"]
    ]
    print_table(columns, rows, title=f"group {found['group']}")
    totals = [*found["topics"].items(), ("all", found["lag"])]
    print_table(("topic", "lag"), totals)


def _time(wall_ms: int) -> str | None:
    return datetime.fromtimestamp(wall_ms / 1000).isoformat(" ", "seconds") if wall_ms > 0 else None
