"""topic: make topics, list them, say what is in one, delete them."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from actormq.cli.options import NAMESRV_DEFAULT, Json, Namesrv, examples
from actormq.cli.output import print_json, print_table, say
from actormq.cli.remote import Broker, Cluster, Remote
from actormq.message import DLQ_PREFIX, RETRY_PREFIX, SYSTEM_TOPIC_PREFIX, SYSTEM_TOPICS, TEMPLATE_TOPIC
from actormq.wire.codes import RequestCode

app = typer.Typer()


@app.command(
    epilog=examples("topic create orders --queues 16", "topic create audit --broker broker-a --permission 4")
)
def create(
    topic: Annotated[str, typer.Argument(help="The topic's name.")],
    queues: Annotated[int, typer.Option(help="Queues on each broker.", min=1)] = 8,
    permission: Annotated[int, typer.Option(help="6 read and write, 4 read, 2 write.", min=1, max=7)] = 6,
    broker: Annotated[str | None, typer.Option(help="Only on the broker of this name.")] = None,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """Create or change a topic, on every master of the cluster."""
    fields = {
        "topic": topic,
        "defaultTopic": TEMPLATE_TOPIC,
        "readQueueNums": str(queues),
        "writeQueueNums": str(queues),
        "perm": str(permission),
        "topicFilterType": "SINGLE_TAG",
        "topicSysFlag": "0",
        "order": "false",
    }
    with Remote() as remote:
        masters = Cluster(remote, namesrv).masters(broker)
        for master in masters:
            remote.ask(master.address, RequestCode.UPDATE_AND_CREATE_TOPIC, fields)
    if as_json:
        print_json({"topic": topic, "queues": queues, "brokers": [master.name for master in masters]})
    else:
        say(f"topic {topic}: {queues} queues on {_names(masters)}")


@app.command(epilog=examples("topic delete orders", "topic delete orders --yes --json"))
def delete(
    topic: Annotated[str, typer.Argument(help="The topic's name.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """Delete a topic with its messages and its groups' offsets, on every broker and name server.

    Asks first when a person is there.  Messages stay in the log until that is too old, but nobody is served
    them any more, not even in a new topic of that name.
    """
    with Remote() as remote:
        cluster = Cluster(remote, namesrv)
        serving = {item["brokerName"] for item in cluster.route(topic)["brokerDatas"]}
        masters = [broker for broker in cluster.masters() if broker.name in serving]
        if sys.stdin.isatty() and not yes:
            typer.confirm(f"Delete {topic} on {_names(masters)}?", abort=True, err=True)
        for master in masters:
            remote.ask(master.address, RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": topic})
        cluster.tell_all(RequestCode.DELETE_TOPIC_IN_NAMESRV, {"topic": topic})
    if as_json:
        print_json({"topic": topic, "brokers": [master.name for master in masters]})
    else:
        say(f"topic {topic} deleted on {_names(masters)}")


def _names(brokers: list[Broker]) -> str:
    return ", ".join(broker.name for broker in brokers)


@app.command("list", epilog=examples("topic list", "topic list --all --json"))
def list_topics(
    everything: Annotated[bool, typer.Option("--all", help="Also those of the system.")] = False,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """List topics with their queues."""
    with Remote() as remote:
        cluster = Cluster(remote, namesrv)
        names = cluster.ask(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER)["topicList"]
        hidden = set() if everything else _system_names(cluster, names)
        rows = [_listed(cluster, name) for name in sorted(set(names) - hidden)]
    if as_json:
        print_json(rows)
    else:
        columns = ("topic", "brokers", "read_queues", "write_queues", "permission")
        print_table(columns, [[row[column] for column in columns] for row in rows])


def _system_names(cluster: Cluster, names: list[str]) -> set[str]:
    own = cluster.ask(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NS)["topicList"]
    prefixes = (RETRY_PREFIX, DLQ_PREFIX, SYSTEM_TOPIC_PREFIX)
    return (
        {name for name in names if name.startswith(prefixes)}
        | set(SYSTEM_TOPICS)
        | set(own)
        | {f"{name}_REPLY_TOPIC" for name in own}
    )


def _listed(cluster: Cluster, topic: str) -> dict[str, Any]:
    queues = cluster.route(topic)["queueDatas"]
    return {
        "topic": topic,
        "brokers": len(queues),
        "read_queues": sum(item["readQueueNums"] for item in queues),
        "write_queues": sum(item["writeQueueNums"] for item in queues),
        "permission": max(item["perm"] for item in queues),
    }


@app.command(epilog=examples("topic status orders"))
def status(
    topic: Annotated[str, typer.Argument(help="The topic's name.")],
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """Say what each queue of a topic holds."""
    with Remote() as remote:
        route = Cluster(remote, namesrv).route(topic)
        addresses = {item["brokerName"]: item["brokerAddrs"].get("0") for item in route["brokerDatas"]}
        rows = [
            _queue(remote, str(addresses[item["brokerName"]]), item["brokerName"], topic, queue_id)
            for item in route["queueDatas"]
            if addresses.get(item["brokerName"])
            for queue_id in range(item["readQueueNums"])
        ]
    if as_json:
        print_json({"topic": topic, "queues": rows, "messages": sum(row["messages"] for row in rows)})
    else:
        columns = ("broker", "queue", "min", "max", "messages")
        print_table(columns, [[row[column] for column in columns] for row in rows], title=topic)


def _queue(remote: Remote, address: str, broker: str, topic: str, queue_id: int) -> dict[str, Any]:
    fields = {"topic": topic, "queueId": str(queue_id)}
    lowest = int(remote.ask(address, RequestCode.GET_MIN_OFFSET, fields).fields["offset"])
    end = int(remote.ask(address, RequestCode.GET_MAX_OFFSET, fields).fields["offset"])
    return {"broker": broker, "queue": queue_id, "min": lowest, "max": end, "messages": end - lowest}
