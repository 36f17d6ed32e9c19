"""What commands make of words, answers and messages; the commands themselves run in process/test_cli.py."""

from __future__ import annotations

import errno
import io
import json
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from unit.store.tools.whole_store import filled, look

from actormq.cli import bench, dumped, group, send, status, topic
from actormq.cli.beginning import Beginning
from actormq.cli.dev import _greeting
from actormq.cli.main import main
from actormq.cli.options import client_url
from actormq.cli.output import print_json, print_table
from actormq.cli.progress import progress_bar
from actormq.cli.remote import Broker
from actormq.cli.settings import Given, load_broker
from actormq.client.results import MessageQueue, StartFrom
from actormq.errors import ConfigError, RequestRefused, StoreForeign
from actormq.store.tools.layout import Sizes


def test_name_servers_make_the_clients_url() -> None:
    """Semicolons are RocketMQ's, commas the client's; a URL stays as it is."""
    assert client_url("h:1;i:2") == "rocketmq://h:1,i:2"
    assert client_url("zmq://h:1") == "zmq://h:1"


@pytest.mark.parametrize("words", [["backup"], ["rebuild", "--write"], ["truncate", "--at", "0", "--write"]])
def test_a_full_disk_is_one_sentence(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every command that writes, with exit code 1; the store is whole."""
    root = tmp_path / "store"
    filled(root)

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("actormq.store.disk.RealDisk.allocate", full)
        patch.setattr("actormq.store.disk.RealDisk.pwritev", full)
        target = [str(tmp_path / "copy")] if words == ["backup"] else []
        assert main(["store", words[0], str(root), *target, *words[1:]]) == 1
    assert capsys.readouterr().err == "actormq: the disk: No space left on device\n"
    assert look(root).whole


@pytest.mark.parametrize(
    "words",
    [["inspect"], ["verify"], ["dump"], ["rebuild"], ["truncate", "--at", "0"], ["backup", "DEST"]],
    ids=lambda words: words[0],
)
def test_sizes_can_be_said(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To every command that works on a store: each size goes where it belongs."""
    asked: list[tuple[Path, Sizes]] = []

    def find(_disk: object, root: Path, given: Sizes) -> None:
        asked.append((root, given))
        raise StoreForeign("none of ours")

    monkeypatch.setattr("actormq.store.tools.layout.find_layout", find)
    sizes = [
        "--log-file-bytes",
        "1",
        "--queue-file-entries",
        "2",
        "--batch-queue-file-entries",
        "3",
        "--index-slots",
        "4",
        "--index-entries",
        "5",
    ]
    assert main(["store", words[0], str(tmp_path), *words[1:], *sizes]) == 2
    assert "none of ours" in capsys.readouterr().err
    given = Sizes(
        log_file_bytes=1, queue_file_entries=2, batch_queue_file_entries=3, index_slots=4, index_entries=5
    )
    assert asked == [(tmp_path, given)]


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn into a pipe; on a terminal how much is done of how much."""
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stderr", piped)
    with progress_bar("verify") as progress:
        progress(1, 2)
    assert piped.getvalue() == ""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("verify") as progress:
        progress(1 << 20, 4 << 20)
    assert "verify" in terminal.getvalue()
    assert "1.0/4.0 MiB" in terminal.getvalue()


def test_places_in_a_log_are_offsets_or_times() -> None:
    """For `store dump`; anything else is a sentence."""
    time_ms = round(datetime.fromisoformat("2026-11-22T14:30:00").timestamp() * 1000)
    nothing = {"first_offset": None, "end_offset": None, "first_ms": None, "last_ms": None}
    assert dumped.bounds_of("", "") == nothing
    assert dumped.bounds_of("7", "2026-11-22T14:30:00") == nothing | {"first_offset": 7, "last_ms": time_ms}
    assert dumped.bounds_of("2026-11-22T14:30:00", "9") == nothing | {"end_offset": 9, "first_ms": time_ms}
    with pytest.raises(ConfigError, match="--to 'soon' must be a log offset"):
        dumped.bounds_of("", "soon")


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
    with send._opened("-", None) as opened:
        assert list(send._lines(opened)) == [b"one", b" two ", b"\xff\xfe"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    with send._opened("-", None) as opened:
        assert send._whole(opened) == data
    with send._opened("grüße", None) as opened:
        assert send._whole(opened) == "grüße".encode()
        with pytest.raises(ConfigError, match="standard input"):
            list(send._lines(opened))


def test_a_file_is_the_message_or_has_its_lines(tmp_path: Path) -> None:
    """Not both a file and an argument; one that is not there is a sentence."""
    path = tmp_path / "orders.txt"
    path.write_bytes(b"one\ntwo\n")
    with send._opened("-", path) as opened:
        assert list(send._lines(opened)) == [b"one", b"two"]
    with send._opened("-", path) as opened:
        assert send._whole(opened) == b"one\ntwo\n"
    for body, file, sentence in (
        ("x", path, "given twice"),
        ("-", tmp_path / "none", "cannot read .*none: No such"),
    ):
        with pytest.raises(ConfigError, match=sentence), send._opened(body, file):
            pass


def test_a_delay_is_a_level_or_its_time() -> None:
    """RocketMQ's eighteen; anything else is refused."""
    assert [send._delay_level(text) for text in ("0", "3", "1s", "10s", "2h")] == [0, 3, 1, 3, 18]
    for wrong in ("19", "7s", "", "-1"):
        with pytest.raises(ConfigError, match="--delay"):
            send._delay_level(wrong)


def test_a_queue_is_named_by_its_number() -> None:
    """With its broker where several have one."""
    queues = [MessageQueue("T", "a", 0), MessageQueue("T", "a", 1), MessageQueue("T", "b", 1)]
    assert send._queue(queues, "0") == queues[0]
    assert send._queue(queues, "b:1") == queues[2]
    for wrong, sentence in (
        ("1", "several brokers"),
        ("2", "no such queue"),
        ("c:1", "no such"),
        ("x", "no"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            send._queue(queues, wrong)


def test_a_rate_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock, not by pauses: what took long is made up for."""
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))
        now[0] += seconds

    monkeypatch.setattr("actormq.cli.send.time.monotonic", lambda: now[0])
    monkeypatch.setattr("actormq.cli.send.time.sleep", sleep)
    for number, _ in enumerate(send._paced([b""] * 5, 10)):
        now[0] += 0.25 if number == 1 else 0
    assert slept == [0.1, 0.05]
    assert list(send._paced([b"a", b"b"], 0)) == [b"a", b"b"]
    assert slept == [0.1, 0.05]


def test_where_a_group_begins() -> None:
    """first, last, or a moment; with an offset from UTC it is absolute."""
    assert Beginning.of("earliest") == Beginning(StartFrom.FIRST)
    assert Beginning.of("latest") == Beginning(StartFrom.LAST)
    assert Beginning.of("1970-01-01T00:00:01.5+00:00") == Beginning(StartFrom.TIMESTAMP, 1_500)
    with pytest.raises(ConfigError, match="--from 'yesterday'"):
        Beginning.of("yesterday")


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


def test_percentiles_are_of_everything_that_was_measured() -> None:
    """In milliseconds; of nothing there are none."""
    first, second = bench.Latencies(), bench.Latencies()
    for value in range(1, 1_001):
        (first if value % 2 else second).add(value * 1_000_000)
    joined = bench.Latencies().join([first, second])
    assert len(joined) == 1_000
    assert joined.as_dict() == {"p50": 501, "p90": 901, "p99": 991, "p99.9": 1_000, "max": 1_000}
    assert set(bench.Latencies().as_dict().values()) == {None}


def test_threads_share_the_messages_of_a_bench() -> None:
    """Neither more nor fewer, whatever divides; without a number they go on."""
    for count, threads in ((10, 3), (2, 4), (9, 3)):
        limit = bench.Limit(count, 0, threads, 0)
        assert sum(limit.left(thread, 0) for thread in range(threads)) == count
        assert not limit.turn(threads - 1, count)
    limit = bench.Limit(0, 5.0, 1, 0)
    assert limit.turn(0, 1_000_000)
    limit.stopped.set()
    assert not limit.turn(0, 0)


def test_a_bench_at_a_rate_waits_until_a_message_is_due() -> None:
    """And does not begin one that is due after the end."""
    limit = bench.Limit(0, 0.05, 2, 100)
    assert limit.turn(0, 0)
    assert limit.turn(1, 0)
    assert not limit.turn(0, 3)
    stopper = threading.Timer(0.05, limit.stopped.set)
    endless = bench.Limit(0, 0, 1, 0.001, limit.stopped)
    stopper.start()
    assert not endless.turn(0, 1)


class FakeRemote:
    """Answers brokers' questions from a table of (address, code)."""

    def __init__(self, answers: dict[tuple[str, int], Any]) -> None:
        self.answers = answers

    def ask(self, address: str, code: int, fields: dict[str, str]) -> Any:
        answer = self.answers[address, code]
        if isinstance(answer, Exception):
            raise answer
        return type("Answer", (), {"body": json.dumps(answer).encode()})


def test_a_group_is_what_all_brokers_say_of_it() -> None:
    """Members of several brokers are one; its retry topic is no subscription; offline it has no model."""
    member = {"clientId": "c1", "clientAddr": "h:1", "language": "JAVA"}
    online = {
        "messageModel": "CLUSTERING",
        "connectionSet": [member],
        "subscriptionTable": {"orders": {"subString": "a || b"}, "%RETRY%g": {"subString": "*"}},
    }
    offline = RequestRefused(206, "not online", "b:1")
    masters = [Broker("C", "a", 0, "a:1"), Broker("C", "b", 0, "b:1")]
    remote: Any = FakeRemote({("a:1", 203): online, ("b:1", 203): offline})
    assert group._group(remote, masters, "g") == {
        "group": "g",
        "members": [{"client": "c1", "address": "h:1", "language": "JAVA"}],
        "model": "clustering",
        "subscriptions": {"orders": "a || b"},
    }
    remote = FakeRemote({("a:1", 203): offline, ("b:1", 203): offline})
    assert group._group(remote, masters, "g")["model"] is None
    remote = FakeRemote({("a:1", 203): RequestRefused(1, "no", "a:1")})
    with pytest.raises(RequestRefused):
        group._group(remote, masters, "g")


def test_lag_is_summed_by_topic_and_in_all() -> None:
    """Over brokers, sorted; keys that are objects are read in either form."""

    def stats(topic: str, queue: int, end: int, done: int) -> dict[str, Any]:
        key = json.dumps({"topic": topic, "brokerName": "a", "queueId": queue})
        return {key: {"brokerOffset": end, "consumerOffset": done, "lastTimestamp": 5}}

    masters = [Broker("C", "a", 0, "a:1"), Broker("C", "b", 0, "b:1")]
    answers = {
        ("a:1", 208): {"offsetTable": stats("t", 1, 10, 4) | stats("t", 0, 7, 7)},
        ("b:1", 208): {"offsetTable": stats("s", 0, 5, 2)},
    }
    remote: Any = FakeRemote(answers)
    found = group.group_lag(remote, masters, "g", None)
    assert (found["lag"], found["topics"]) == (9, {"s": 3, "t": 6})
    assert [(row["topic"], row["queue"], row["lag"]) for row in found["queues"]] == [
        ("s", 0, 3),
        ("t", 0, 0),
        ("t", 1, 6),
    ]
