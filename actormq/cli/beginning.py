"""beginning: where a group begins to consume, decided before it does; and groups that last for one command.

By itself a new group begins at 0 of a young topic, whatever it asks for (RocketMQ's rule): `--from latest`
would print everything.  So its offsets are committed first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from actormq.cli.remote import Broker, Cluster, Remote
from actormq.errors import ClientError, ConfigError, RequestRefused, ResponseCode
from actormq.message import RETRY_PREFIX
from actormq.wire import json
from actormq.wire.codes import RequestCode

if TYPE_CHECKING:
    from actormq.client.results import StartFrom


@dataclass(frozen=True, slots=True)
class Beginning:
    """What ``--from`` says."""

    start_from: StartFrom
    timestamp_ms: int | None = None

    @classmethod
    def of(cls, text: str) -> Beginning:
        """Read earliest, latest, or a time as ISO 8601 has it.

        Raises:
            ConfigError: it is something else.
        """
        from actormq.client.results import StartFrom

        if text in ("earliest", "latest"):
            return cls(StartFrom.FIRST if text == "earliest" else StartFrom.LAST)
        return cls(StartFrom.TIMESTAMP, moment_ms("--from", text, "earliest, latest or "))


def moment_ms(option: str, text: str, others: str = "") -> int:
    """Return the time that an option says, as ISO 8601 has it.

    Raises:
        ConfigError: it is none; `others` are the words that would do, too.
    """
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        raise ConfigError(f"{option} {text!r} must be {others}like 2026-11-22T14:30:00") from None


def begin_at(namesrv: str, group: str, topic: str, beginning: Beginning) -> None:
    """Commit where the group begins, on every queue where it has not committed anything; make the group."""
    with Remote() as remote:
        cluster = Cluster(remote, namesrv)
        try:
            route = cluster.route(topic)
        except RequestRefused as refused:
            if refused.response_code == ResponseCode.TOPIC_NOT_EXIST:
                return  # made later, it is new, and wholly the group's
            raise
        queues = {item["brokerName"]: item["readQueueNums"] for item in route["queueDatas"]}
        for master in cluster.masters():
            if master.name in queues:
                _ensure_group(remote, master, group)
                for queue_id in range(queues[master.name]):
                    _begin_queue(remote, master, group, topic, queue_id, beginning)


def _ensure_group(remote: Remote, master: Broker, group: str) -> None:
    try:
        remote.ask(master.address, RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, {"group": group})
    except RequestRefused:
        body = json.dumps({"groupName": group})
        remote.ask(master.address, RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, None, body)


def _begin_queue(
    remote: Remote, master: Broker, group: str, topic: str, queue_id: int, beginning: Beginning
) -> None:
    queue = {"topic": topic, "queueId": str(queue_id)}
    try:
        fields = {**queue, "consumerGroup": group, "setZeroIfNotFound": "false"}
        remote.ask(master.address, RequestCode.QUERY_CONSUMER_OFFSET, fields)
        return
    except RequestRefused as refused:
        if refused.response_code != ResponseCode.QUERY_NOT_FOUND:
            raise
    offset = _offset(remote, master, queue, beginning)
    fields = {**queue, "consumerGroup": group, "commitOffset": offset}
    remote.ask(master.address, RequestCode.UPDATE_CONSUMER_OFFSET, fields)


def _offset(remote: Remote, master: Broker, queue: dict[str, str], beginning: Beginning) -> str:
    fields = dict(queue)
    match beginning.start_from.name:
        case "FIRST":
            code = RequestCode.GET_MIN_OFFSET
        case "LAST":
            code = RequestCode.GET_MAX_OFFSET
        case _:
            code = RequestCode.SEARCH_OFFSET_BY_TIMESTAMP
            fields["timestamp"] = str(beginning.timestamp_ms)
    return remote.ask(master.address, code, fields).fields["offset"]


@contextmanager
def throw_away(namesrv: str, group: str) -> Iterator[None]:
    """Remove the group at the end, with its offsets and its retry topic, from brokers and name servers.

    What cannot be removed stays: the command's work is done by then.
    """
    try:
        yield
    finally:
        retry = {"topic": RETRY_PREFIX + group}
        with suppress(ClientError, ConfigError), Remote() as remote:
            cluster = Cluster(remote, namesrv)
            for master in cluster.masters():
                fields = {"groupName": group, "cleanOffset": "true"}
                remote.ask(master.address, RequestCode.DELETE_TOPIC_IN_BROKER, retry)
                remote.ask(master.address, RequestCode.DELETE_SUBSCRIPTIONGROUP, fields)
            cluster.tell_all(RequestCode.DELETE_TOPIC_IN_NAMESRV, retry)
