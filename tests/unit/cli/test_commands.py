"""What commands make of words, answers and messages; the commands themselves run in process/test_cli.py."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from actormq.cli import send, status, topic
from actormq.cli.consume import _settings
from actormq.cli.dev import _greeting
from actormq.cli.options import client_url
from actormq.cli.output import print_json, print_table
from actormq.cli.settings import Given, load_broker
from actormq.client.results import StartFrom
from actormq.errors import ConfigError


def test_name_servers_make_the_clients_url() -> None:
    """Semicolons are RocketMQ's, commas the client's; a URL stays as it is."""
    assert client_url("h:1;i:2") == "rocketmq://h:1,i:2"
    assert client_url("zmq://h:1") == "zmq://h:1"


def test_properties_are_pairs() -> None:
    """The first equals sign separates."""
    assert send._properties(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    for wrong in ("a", "=b", ""):
        with pytest.raises(ConfigError, match="NAME=VALUE"):
            send._properties(["x=y", wrong])


def test_lines_are_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends of lines and empty lines are left out, bytes stay bytes; without --lines it is one message."""
    data = b"one\r\n\n two \n\xff\xfe"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert list(send._lines("-")) == [b"one", b" two ", b"\xff\xfe"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert send._whole("-") == data
    assert send._whole("grüße") == "grüße".encode()
    with pytest.raises(ConfigError, match="standard input"):
        list(send._lines("body"))


def test_where_a_group_begins() -> None:
    """first, last, or a moment; with an offset from UTC it is absolute."""
    assert _settings("earliest").start_from is StartFrom.FIRST
    assert _settings("latest").start_from is StartFrom.LAST
    settings = _settings("1970-01-01T00:00:01.5+00:00")
    assert (settings.start_from, settings.start_timestamp_ms) == (StartFrom.TIMESTAMP, 1_500)
    with pytest.raises(ConfigError, match="--from 'yesterday'"):
        _settings("yesterday")


def test_tables_are_for_people_and_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers right, nothing for None, rows never cut; JSON in one line."""
    print_table(("name", "count"), [("[bold]a", 5), ("b", 1_234), ("c" * 90, None)], title="things")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["things"],
        ["name", "count"],
        ["[bold]a", "5"],
        ["b", "1234"],
        ["c" * 90],
    ]
    assert len(lines[1]) == len(lines[2]) == len(lines[3])
    print_table(("name",), [])
    print_json({"a": [1, None]})
    assert capsys.readouterr().out == 'name\n{"a":[1,null]}\n'


def test_on_a_terminal_markup_is_plain_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What brokers and topics call themselves is never read as rich's commands."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    print_table(("name", "count"), [("[bold]a[/]", 5)])
    assert "[bold]a[/]" in capsys.readouterr().out


def test_lag_is_the_distance_to_the_position_ahead() -> None:
    """Positions that nobody moves (0) have none."""
    positions = {"appended": 100, "flushed": 60, "dispatched": 90, "replicated": 0}
    assert status._lag(positions) == {"flushed": 40, "dispatched": 10}
    assert status._lag({}) == {}


def test_use_is_added_for_processes_of_this_machine() -> None:
    """A pid that is somebody else's has no CPU and memory to show."""
    roles: list[dict[str, Any]] = [{"role": "writer", "pid": 1}, {"role": "holder", "pid": 2**22 + 5}]
    status._add_use(roles)
    assert [(role["cpu_percent"], role["memory_bytes"]) for role in roles] == [(None, None)] * 2


def test_a_broker_is_shown_with_its_roles_and_positions(capsys: pytest.CaptureFixture[str]) -> None:
    """One that does not answer is one sentence."""
    role = {"role": "writer", "pid": 7, "state": "RUNNING", "incarnation": 2, "heartbeat_age_ms": 5}
    role |= {"cpu_percent": 1.5, "memory_bytes": 3 << 20}
    item = {
        "address": "h:1",
        "roles": [role],
        "positions": {"appended": 10, "flushed": 4},
        "lag": {"flushed": 6},
    }
    status._show(item)
    status._show({"address": "h:2", "error": "h:2 does not answer"})
    shown = capsys.readouterr()
    row = next(line.split() for line in shown.out.splitlines() if "writer" in line)
    assert row == ["writer", "7", "RUNNING", "2", "5", "1.5", "3.0"]
    lag = next(line.split() for line in shown.out.splitlines() if "flushed" in line)
    assert lag == ["flushed", "4", "6", "not", "yet", "synced"]
    assert shown.err == "h:2 does not answer\n"


class FakeCluster:
    """Answers name server questions from a table."""

    def __init__(self, answers: dict[int, Any]) -> None:
        self.answers = answers

    def ask(self, code: int, fields: dict[str, str] | None = None) -> Any:
        return self.answers[code]

    def route(self, name: str) -> dict[str, Any]:
        one = {"readQueueNums": 4, "writeQueueNums": 3, "perm": 6}
        return {"queueDatas": [one, one]}


def test_topics_of_the_system_are_hidden() -> None:
    """Retry and dead-letter topics, RocketMQ's own names, the cluster's and the brokers'."""
    names = [
        "orders",
        "%RETRY%g",
        "%DLQ%g",
        "TBW102",
        "rmq_sys_X",
        "C",
        "a",
        "C_REPLY_TOPIC",
        "BenchmarkTest",
    ]
    cluster: Any = FakeCluster({304: {"topicList": ["C", "a"]}})
    assert set(names) - topic._system_names(cluster, names) == {"orders"}
    assert topic._listed(cluster, "orders") == {
        "topic": "orders",
        "brokers": 2,
        "read_queues": 8,
        "write_queues": 6,
        "permission": 6,
    }


def test_dev_says_what_may_be_lost_and_where_the_data_is() -> None:
    """Plainly, before the first message."""
    for flush, words in (
        ("async", "async flush (acknowledged messages may be lost"),
        ("sync", "sync flush,"),
    ):
        flags = {"store.root": Given("/data", "-"), "store.flush": Given(flush, "-")}
        greeting = _greeting(load_broker(None, {}, flags).config)
        assert words in greeting
        assert "data in /data" in greeting


def test_json_of_a_result_names_its_place() -> None:
    """What `send --json` prints."""
    from actormq.client.results import MessageQueue, SendResult
    from actormq.message import QueueOffset, SendStatus

    result = SendResult(SendStatus.SEND_OK, "id", "offset-id", MessageQueue("T", "a", 3), QueueOffset(7))
    assert json.loads(json.dumps(send._as_json(result))) == {
        "status": "SEND_OK",
        "message_id": "id",
        "offset_message_id": "offset-id",
        "topic": "T",
        "broker": "a",
        "queue": 3,
        "offset": 7,
    }
