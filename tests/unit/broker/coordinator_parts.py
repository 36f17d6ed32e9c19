"""A coordinator's state for tests: small, with a store view made of dictionaries."""

from __future__ import annotations

from random import Random
from typing import Any

from actormq.broker.admin import Admin
from actormq.broker.coordinating import Coordinator, Settings
from actormq.broker.delay import DelayLevels
from actormq.broker.groups import GroupConfig, Groups
from actormq.broker.locks import Locks
from actormq.broker.members import ConnectionKey
from actormq.broker.offsets import Offsets
from actormq.broker.outbox import Caller, Now, Reply
from actormq.broker.tables import OwnTables, TopicEntry
from actormq.broker.topics import Topics, TopicSettings
from actormq.message import LogOffset, QueueOffset
from actormq.store.record import Record
from actormq.wire import json
from actormq.wire.command import RemotingCommand

NOW = Now(wall_ms=1_700_000_000_000, monotonic_ms=50_000)
LEVELS = DelayLevels("1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h")


class FakeView:
    """Queues and records by hand."""

    def __init__(self) -> None:
        self.extents: dict[tuple[str, int], tuple[int, int]] = {}
        self.records: dict[int, Record] = {}
        self.near = True
        self.end = 5_000

    def extent(self, entry: TopicEntry, queue_id: int) -> tuple[int, int]:
        return self.extents.get((entry.name, queue_id), (0, 0))

    def is_near(self, entry: TopicEntry, queue_id: int, queue_offset: int) -> bool:
        return self.near

    def record(self, log_offset: int) -> Record | None:
        return self.records.get(log_offset)

    def store_time(self, entry: TopicEntry, queue_id: int, queue_offset: int) -> int:
        return 1_000 + queue_offset

    def log_end(self) -> int:
        return self.end

    def runtime(self) -> dict[str, str]:
        return {"commitLogMaxOffset": "77"}


def record(log_offset: int, **changes: Any) -> Record:
    """Return a stored message with a body of ten bytes."""
    values: dict[str, Any] = {
        "topic": "orders",
        "queue_id": 0,
        "queue_offset": QueueOffset(0),
        "log_offset": LogOffset(log_offset),
        "size": 120,
        "flag": 5,
        "sys_flag": 1,
        "born_timestamp": 11,
        "born_host": ("10.0.0.1", 80),
        "store_timestamp": 12,
        "store_host": ("127.0.0.1", 10911),
        "reconsume_times": 0,
        "prepared_offset": LogOffset(0),
        "body": memoryview(b"0123456789"),
        "body_crc": 0,
        "properties": {"KEYS": "k"},
        "message_id": "AB" * 16,
    }
    return Record(**{**values, **changes})


class Bench:
    """A coordinator, its clients and what it answered."""

    def __init__(self, **options: Any) -> None:
        self.view = FakeView()
        rows_max = options.pop("rows_max", 300)
        settings = options.pop("settings", Settings(broker="broker-a"))
        topics = options.pop("topics", None) or Topics(
            TopicSettings(cluster="c", broker="broker-a", rows_max=rows_max)
        )
        parts: dict[str, Any] = {
            "tables": OwnTables(),
            "groups": Groups([GroupConfig(group_name="g")]),
            "offsets": Offsets(),
            "locks": Locks(),
            "levels": LEVELS,
            "random": Random(1),
        }
        self.state = Coordinator(settings, topics=topics, view=self.view, **{**parts, **options})
        self.admin = Admin(self.state, {"brokerName": "broker-a"}, NOW.wall_ms - 90_061_000)
        self.state.add_handlers(self.admin.handlers())
        self.state.begin(NOW)
        self.begun = self.state.take()
        self.request_id = 0

    def ask(
        self,
        code: int,
        fields: dict[str, str] | None = None,
        body: Any = b"",
        *,
        connection: int = 1,
        gateway: str = "gateway-0",
        now: Now = NOW,
        replay: bool = False,
        lease_ms: int = 120_000,
        oneway: bool = False,
        read_ms: int = 0,
    ) -> RemotingCommand | None:
        """Serve one request; return its answer, None when there is none yet (see `reply`)."""
        data = body if isinstance(body, bytes) else json.dumps(body)
        request = RemotingCommand.request(code, fields, data, oneway=oneway)
        self.request_id += 1
        caller = Caller(
            ConnectionKey(gateway, 1, connection),
            self.request_id,
            f"10.0.0.{connection}:5",
            lease_ms,
            read_ms,
        )
        before = len(self.state.outbox.replies)
        self.state.serve(caller, request, now, replay=replay)
        replies = self.state.outbox.replies[before:]
        return replies[0].command if replies else None

    def reply(self) -> Reply:
        """Return the last answer with its conditions."""
        return self.state.outbox.replies[-1]

    def good(self, code: int, fields: dict[str, str] | None = None, body: Any = b"", **how: Any) -> Any:
        """Serve one request that must succeed; return its parsed body, or its fields when it has none."""
        answer = self.ask(code, fields, body, **how)
        assert answer is not None
        assert answer.code == 0, answer.remark
        return json.loads(answer.body) if answer.body else answer.fields

    def beat(self, client_id: str = "c1", group: str = "g", topics: Any = ("orders",), **how: Any) -> Any:
        """Let a client send a heartbeat as a consumer of `group`."""
        body = {
            "clientID": client_id,
            "producerDataSet": [{"groupName": "p"}],
            "consumerDataSet": [
                {
                    "groupName": group,
                    "consumeType": "CONSUME_PASSIVELY",
                    "messageModel": how.pop("model", "CLUSTERING"),
                    "consumeFromWhere": "CONSUME_FROM_LAST_OFFSET",
                    "subscriptionDataSet": [
                        {"topic": topic, "subString": "*", "subVersion": how.pop("version", 1)}
                        for topic in topics
                    ],
                }
            ],
        }
        return self.ask(34, None, body, **how)
