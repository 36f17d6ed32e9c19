"""The commands as a person runs them, against one real `actormq dev`; and what cannot start says why."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from actormq_process import PATIENCE_S, Dev, dev_in, leavings, running_dev
from server_process import running

FREE_PORTS = ["--port", "0", "--zmq-port", "0", "--namesrv-port", "0", "--namesrv-zmq-port", "0"]


def actormq(*words: str, stdin: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Run one command to its end and check its exit code; it never prints a traceback."""
    command = [sys.executable, "-m", "actormq.cli.main", *words]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert b"Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    with running_dev() as dev:
        yield dev


def ask(dev: Dev, *words: str, stdin: bytes = b"") -> Any:
    """Run a command with --json and return what it printed."""
    printed = actormq(*words, "--json", "-n", dev.namesrv, stdin=stdin).stdout.splitlines()
    values = [json.loads(line) for line in printed]
    return values[0] if len(values) == 1 else values


def ask_until(holds: Callable[[Any], bool], dev: Dev, *words: str) -> Any:
    """Ask again and again until the answer is right: what was just sent may not be readable yet."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds(found := ask(dev, *words)):
        assert time.monotonic() < deadline, found
    return found


def test_a_topic_is_created_listed_and_described(dev: Dev) -> None:
    """On every master; the system's own topics are shown only when asked for."""
    assert ask(dev, "topic", "create", "Made", "--queues", "3") == {
        "topic": "Made",
        "queues": 3,
        "brokers": ["broker-a"],
    }
    made = {"topic": "Made", "brokers": 1, "read_queues": 3, "write_queues": 3, "permission": 6}
    listed = ask(dev, "topic", "list")
    assert made in listed
    assert "TBW102" not in {item["topic"] for item in listed}
    assert "TBW102" in {item["topic"] for item in ask(dev, "topic", "list", "--all")}
    status = ask(dev, "topic", "status", "Made")
    assert status["messages"] == 0
    assert [row["queue"] for row in status["queues"]] == [0, 1, 2]
    assert b"Made" in actormq("topic", "list", "-n", dev.namesrv).stdout


def test_what_is_sent_is_consumed(dev: Dev) -> None:
    """One message with everything, then the lines of an input; a second group sees them all, too."""
    sent = ask(dev, "send", "Words", "hello", "--tags", "red", "--keys", "k1", "-p", "a=b")
    assert (sent["status"], sent["topic"]) == ("SEND_OK", "Words")
    lines = [f"line {number}".encode() for number in range(50)]
    results = ask(dev, "send", "Words", "--lines", "--by", "one queue", stdin=b"\n".join(lines))
    assert len({result["queue"] for result in results}) == 1
    assert [result["offset"] for result in results] == sorted(result["offset"] for result in results)
    got = ask(dev, "consume", "Words", "--group", "first", "--from", "earliest", "--count", "51")
    assert {item["body"] for item in got} == {"hello"} | {line.decode() for line in lines}
    first = next(item for item in got if item["body"] == "hello")
    assert (first["tags"], first["keys"], first["message_id"]) == ("red", ["k1"], sent["message_id"])
    assert first["properties"]["a"] == "b"
    plain = actormq(
        "consume", "Words", "-g", "second", "--from", "earliest", "-t", "red", "-c", "1", "-n", dev.namesrv
    )
    assert plain.stdout == b"hello\n"


def test_sending_has_options_for_everything(dev: Dev, tmp_path: Path) -> None:
    """From a file, again and again, into one queue, later, and at a rate."""
    path = tmp_path / "lines.txt"
    path.write_bytes(b"one\ntwo\n")
    assert ask(dev, "send", "Options", "--file", str(path))["status"] == "SEND_OK"
    results = ask(dev, "send", "Options", "--file", str(path), "--lines", "--queue", "broker-a:1")
    assert [result["queue"] for result in results] == [1, 1]
    began = time.monotonic()
    assert len(ask(dev, "send", "Options", "tick", "--count", "5", "--rate", "20")) == 5
    assert time.monotonic() - began >= 0.2
    ask(dev, "send", "Options", "late", "--delay", "1s")
    words = ("consume", "Options", "--from", "earliest", "--count", "9")
    got = ask(dev, *words)
    assert sorted(item["body"] for item in got) == ["late", "one", "one\ntwo\n", *["tick"] * 5, "two"]
    late = next(item for item in got if item["body"] == "late")
    assert late["store_timestamp_ms"] - late["born_timestamp_ms"] >= 1_000


def test_a_consumer_without_a_group_leaves_none_behind(dev: Dev) -> None:
    """It has one of its own; nothing of it is left on broker and name server, nor over ZeroMQ."""
    ask(dev, "send", "Alone", "x")
    before = {item["group"] for item in ask(dev, "group", "list", "--all")}
    assert ask(dev, "consume", "Alone", "--from", "earliest", "--count", "1")["body"] == "x"
    over_zmq = actormq(
        "consume", "Alone", "--from", "earliest", "--count", "1", "-n", f"zmq://{dev.namesrv_zmq}"
    )
    assert over_zmq.stdout == b"x\n"
    assert {item["group"] for item in ask(dev, "group", "list", "--all")} == before
    topics = {item["topic"] for item in ask(dev, "topic", "list", "--all")}
    assert not [name for name in topics if "actormq-cli" in name]


def test_a_new_group_begins_where_it_is_told_to(dev: Dev) -> None:
    """Also in a topic so young that RocketMQ would begin at its first message."""
    ask(dev, "topic", "create", "Begins", "--queues", "1")
    ask(dev, "send", "Begins", "old")
    time.sleep(0.01)
    moment = datetime.now().isoformat()
    ask(dev, "send", "Begins", "new")
    assert ask(dev, "consume", "Begins", "-g", "b1", "--from", moment, "--count", "1")["body"] == "new"
    assert ask(dev, "consume", "Begins", "-g", "b2", "--from", "latest", "--idle", "1") == []
    words = ("consume", "Begins", "-g", "b2", "--from", "earliest", "--count", "1")
    ask(dev, "send", "Begins", "newest")
    assert ask(dev, *words)["body"] == "newest"


def test_groups_are_listed_with_their_members(dev: Dev) -> None:
    """Online ones say who, how and what; those of the system only when asked for."""
    ask(dev, "send", "Listed", "x")
    command = [sys.executable, "-m", "actormq.cli.main", "consume", "Listed", "-g", "listed"]
    words = ["--from", "earliest", "--tags", "*", "-n", dev.namesrv]
    with subprocess.Popen([*command, *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"x\n"
        (found,) = [item for item in ask(dev, "group", "list") if item["group"] == "listed"]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    assert (found["model"], found["subscriptions"]) == ("clustering", {"Listed": "*"})
    assert [member["language"] for member in found["members"]] == ["PYTHON"]
    assert b"listed" in actormq("group", "list", "-n", dev.namesrv).stdout
    assert "TOOLS_CONSUMER" not in {item["group"] for item in ask(dev, "group", "list")}
    assert "TOOLS_CONSUMER" in {item["group"] for item in ask(dev, "group", "list", "--all")}


def test_lag_says_what_a_group_has_not_consumed(dev: Dev) -> None:
    """By queue, by topic, in all; of all groups together."""
    ask(dev, "topic", "create", "Lags", "--queues", "2")
    ask(dev, "send", "Lags", "x", "--count", "5", "--queue", "0")
    ask(dev, "consume", "Lags", "-g", "lagging", "--from", "earliest", "--count", "2")
    ask(dev, "send", "Lags", "x", "--count", "3", "--queue", "1")
    found = ask_until(lambda found: found["lag"] == 6, dev, "group", "lag", "lagging")
    assert (found["group"], found["topics"]) == ("lagging", {"Lags": 6})
    rows = [
        (row["queue"], row["broker_offset"], row["consumer_offset"], row["lag"]) for row in found["queues"]
    ]
    assert rows == [(0, 5, 2, 3), (1, 3, 0, 3)]
    assert ask(dev, "group", "lag", "lagging", "--topic", "Lags")["lag"] == 6
    assert {"group": "lagging", "lag": 6, "topics": {"Lags": 6}} in ask(dev, "group", "lag")
    shown = actormq("group", "lag", "lagging", "-n", dev.namesrv).stdout.decode().splitlines()
    assert shown[-1].split() == ["all", "6"]


def test_a_deleted_topic_is_gone(dev: Dev) -> None:
    """On broker and name server, with its groups' offsets; made again it begins anew."""
    ask(dev, "topic", "create", "Doomed", "--queues", "1")
    ask(dev, "send", "Doomed", "old")
    assert ask(dev, "consume", "Doomed", "-g", "d", "--from", "earliest", "--count", "1")["body"] == "old"
    assert ask(dev, "topic", "delete", "Doomed") == {"topic": "Doomed", "brokers": ["broker-a"]}
    assert "Doomed" not in {item["topic"] for item in ask(dev, "topic", "list")}
    actormq("topic", "status", "Doomed", "-n", dev.namesrv, code=1)
    assert "Doomed" not in ask(dev, "group", "lag", "d")["topics"]
    ask(dev, "topic", "create", "Doomed", "--queues", "1")
    assert ask(dev, "send", "Doomed", "new")["offset"] == 0
    assert ask(dev, "consume", "Doomed", "--from", "earliest", "--count", "1")["body"] == "new"
    assert ask(dev, "consume", "Doomed", "-g", "d", "--from", "latest", "--idle", "1") == []


def test_a_running_broker_is_measured(dev: Dev) -> None:
    """Sent, acknowledged one by one, taken, and end to end between two processes; all of them counted."""
    words = ("bench", "produce", "Bench", "--size", "64")
    fast = ask(dev, *words, "--count", "1111", "--threads", "2")
    assert (fast["messages"], fast["errors"], fast["size"]) == (1_111, {}, 64)
    assert fast["messages_per_second"] > 0
    one_by_one = ask(dev, *words, "--count", "50", "--sync", "--rate", "500")
    assert one_by_one["messages"] == 50
    assert 0 < one_by_one["latency_ms"]["p50"] <= one_by_one["latency_ms"]["max"]
    taken = ask(dev, "bench", "consume", "Bench", "--count", "1161")
    assert (taken["messages"], taken["size"]) == (1_161, 64)
    assert taken["latency_ms"]["p50"] > 0
    both = ask(dev, "bench", "latency", "Ends", "--rate", "100", "--seconds", "1")
    assert (both["sent"]["messages"], both["received"]["messages"]) == (100, 100)
    assert both["received"]["latency_ms"]["p50"] > 0
    assert b"msg/s" in actormq(*words, "--count", "10", "-n", dev.namesrv).stdout
    assert not [item for item in ask(dev, "group", "list") if item["group"].startswith("actormq-bench-")]


def test_commands_take_a_name_server_over_zeromq(dev: Dev) -> None:
    """As clients do; several are tried in turn."""
    url = f"zmq://127.0.0.1:1,{dev.namesrv_zmq}"
    listed = actormq("topic", "list", "--all", "--json", "-n", f"zmq://{dev.namesrv_zmq}")
    assert "TBW102" in {item["topic"] for item in json.loads(listed.stdout)}
    assert json.loads(actormq("topic", "list", "--json", "-n", url).stdout) is not None
    over_tcp = actormq("topic", "list", "--json", "-n", f"rocketmq://{dev.namesrv}")
    assert over_tcp.stdout == actormq("topic", "list", "--json", "-n", dev.namesrv).stdout


def test_what_was_printed_is_not_printed_again(dev: Dev) -> None:
    """A group goes on where it ended."""
    for number in range(2):
        ask(dev, "send", "Once", f"m{number}")
        got = ask(dev, "consume", "Once", "--group", "once", "--from", "earliest", "--count", "1")
        assert got["body"] == f"m{number}"


def test_bytes_stay_bytes(dev: Dev) -> None:
    """A body from standard input, of any bytes; over ZeroMQ, too."""
    body = bytes(range(256)) * 10
    sent = actormq("send", "Bytes", "-", "-n", f"zmq://{dev.namesrv_zmq}", stdin=body)
    assert sent.stdout.startswith(b"SEND_OK ")
    got = actormq("consume", "Bytes", "-g", "b", "--from", "earliest", "-c", "1", "-n", dev.namesrv)
    assert got.stdout == body + b"\n"


def test_status_shows_every_role_and_how_far_it_is(dev: Dev) -> None:
    """Pid, CPU, memory of each process; positions and the lag between them."""
    (broker,) = ask(dev, "status")["brokers"]
    assert broker["address"] == dev.broker
    roles = {role["role"]: role for role in broker["roles"]}
    assert {"writer", "flusher", "dispatcher", "holder", "coordinator", "gateway-0"} <= roles.keys()
    for name in ("writer", "gateway-0"):
        assert psutil.Process(roles[name]["pid"]).name() == f"amq:{name}"
        assert roles[name]["memory_bytes"] > 1_000_000
        assert roles[name]["cpu_percent"] >= 0
    assert broker["positions"]["appended"] >= broker["positions"]["dispatched"] > 0
    assert set(broker["lag"]) >= {"flushed", "dispatched"}
    assert ask(dev, "status", "-b", dev.broker)["brokers"][0]["address"] == dev.broker
    shown = actormq("status", "-n", dev.namesrv).stdout.decode()
    assert "writer" in shown
    assert "not yet readable" in shown


def test_a_consumer_ends_quietly_when_it_is_told_to(dev: Dev) -> None:
    """Ctrl-C and SIGTERM are the usual ends of `consume`; what was printed stays consumed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        body = f"before {number.name}"
        ask(dev, "send", "Quiet", body)
        words = ("consume", "Quiet", "-g", "q", "--from", "earliest", "-n", dev.namesrv)
        process = subprocess.Popen(
            [sys.executable, "-m", "actormq.cli.main", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == body + "\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (
            ["topic", "status", "Absent"],
            1,
            "answered 17: No topic route info in name server",
        ),
        (["topic", "create", "no blanks please"], 1, "answered 29"),
        (["topic", "create", "T", "--broker", "nobody"], 2, "actormq: no broker nobody is registered"),
        (["send", "T", ""], 1, "actormq: "),
        (["send", "no blanks", "x"], 1, "actormq: "),
        (["send", "T", "x", "-p", "a"], 2, "actormq: --property 'a' must be NAME=VALUE"),
        (["consume", "T", "-g", "g", "--from", "never"], 2, "actormq: --from 'never' must be"),
        (["consume", "T", "-g", "no blanks"], 2, "actormq: group 'no blanks'"),
        (["topic", "delete", "Absent"], 1, "answered 17"),
        (["topic", "delete", "TBW102"], 1, "conflict with system topic"),
        (["group", "lag", "nobody"], 2, "actormq: there is no group nobody"),
        (["send", "T", "x", "--delay", "7s"], 2, "actormq: --delay '7s' must be"),
        (["send", "T", "x", "--queue", "99"], 2, "actormq: --queue '99'"),
        (["send", "T", "--lines", "--count", "2"], 2, "actormq: --count repeats one message"),
        (["bench", "produce", "no blanks"], 1, "actormq: "),
        (["bench", "consume", "T", "--from", "never"], 2, "actormq: --from 'never' must be"),
    ],
)
def test_what_is_refused_is_one_sentence(dev: Dev, words: list[str], code: int, sentence: str) -> None:
    """What the broker, the client or the command does not accept."""
    done = actormq(*words, "-n", dev.namesrv, code=code)
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    assert sentence in lines[0]


def test_nobody_there_is_one_sentence() -> None:
    """No name server, with every command that needs one."""
    for words in (["topic", "list"], ["status"], ["send", "T", "x"]):
        done = actormq(*words, "-n", "127.0.0.1:1", code=1)
        assert done.stderr.decode().count("\n") == 1
        assert b"127.0.0.1:1" in done.stderr


def test_dev_says_what_it_is_and_leaves_only_its_data(tmp_path: Path) -> None:
    """Data folder and flush mode at start; after SIGTERM no process, no shared memory, no socket folder."""
    with dev_in(tmp_path / "data") as dev:
        assert leavings(dev.data_dir)
        processes = psutil.Process(dev.process.pid).children(recursive=True)
        assert len(processes) >= 8
        assert dev.stop() == 0
        _, alive = psutil.wait_procs(processes, PATIENCE_S)
        assert not alive
    assert leavings(dev.data_dir) == []
    assert (tmp_path / "data" / "commitlog").is_dir()
    assert not (tmp_path / "data" / "abort").exists()
    told = "".join(dev.errors)
    assert (
        f"async flush (acknowledged messages may be lost when the machine loses power), data in {tmp_path}"
        in told
    )
    assert "64 MB log, 10,000-slot index" in told


@pytest.mark.parametrize("option", ["--port", "--zmq-port", "--namesrv-port", "--namesrv-zmq-port"])
def test_a_port_in_use_refuses_the_start(tmp_path: Path, option: str) -> None:
    """Which one, and why; nothing is left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [*FREE_PORTS, option, str(port), "--data-dir", str(tmp_path / "data")]
        done = actormq("dev", *words, code=2)
    assert f"actormq: cannot listen on 127.0.0.1:{port}" in done.stderr.decode()


def test_a_second_broker_on_the_same_folder_is_refused(dev: Dev) -> None:
    """The first goes on, and is named by its process."""
    done = actormq("dev", *FREE_PORTS, "--data-dir", str(dev.data_dir), code=1)
    sentence = f"actormq: another broker (process {dev.process.pid}) works on {dev.data_dir}"
    assert sentence in done.stderr.decode()
    ask(dev, "send", "Words", "still here")


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A file in its place."""
    (tmp_path / "file").write_text("")
    done = actormq("dev", *FREE_PORTS, "--data-dir", str(tmp_path / "file" / "data"), code=1)
    assert f"actormq: cannot use the store folder {tmp_path}/file/data" in done.stderr.decode()


def test_a_foreign_folder_is_left_as_it_is(tmp_path: Path) -> None:
    """A commit log of another shape is neither opened nor mended."""
    foreign = tmp_path / "commitlog" / "notes.txt"
    foreign.parent.mkdir()
    foreign.write_text("somebody else's")
    done = actormq("dev", *FREE_PORTS, "--data-dir", str(tmp_path), code=2)
    assert "is no file of a store" in done.stderr.decode()
    assert foreign.read_text() == "somebody else's"


def test_a_broker_starts_from_rocketmqs_own_file(tmp_path: Path) -> None:
    """Key names, old spellings and unknown keys as they are; ZeroMQ stays off."""
    conf = tmp_path / "broker.conf"
    conf.write_text(
        f"brokerName=from-conf\nlistenPort=0\nflushDiskType=SYNC_FLUSH\nstorePathRootDir={tmp_path}/store\n"
        "mapedFileSizeCommitLog=67108864\nmaxHashSlotNum=10000\nmaxIndexNum=40000\nhaListenPort=10912\n"
    )
    with running(tmp_path, "broker", "-c", str(conf)) as server:
        assert server.words["zmq"] == "-"
        (broker,) = json.loads(actormq("status", "-b", server.words["broker"], "--json").stdout)["brokers"]
        assert "writer" in {role["role"] for role in broker["roles"]}
    assert server.process.returncode == 0
    assert f"{conf}: these keys are kept but not used: haListenPort" in server.log.read_text()
    assert (tmp_path / "store" / "commitlog").is_dir()


def test_single_messages_are_found(dev: Dev) -> None:
    """By the producer's id, by the broker's, by key, by time; what is not there is one sentence."""
    ask(dev, "topic", "create", "Single", "--queues", "2")
    first = ask(dev, "send", "Single", "one", "--keys", "both", "--keys", "k1", "--queue", "broker-a:0")
    time.sleep(0.01)
    moment = datetime.now().isoformat()
    second = ask(dev, "send", "Single", "two", "--keys", "both", "-p", "a=b", "--queue", "broker-a:1")
    both = ("message", "find", "Single", "--key", "both")
    ask_until(lambda found: isinstance(found, list) and len(found) == 2, dev, *both)
    for message_id in (second["message_id"], second["offset_message_id"]):
        got = ask(dev, "message", "get", message_id, "--topic", "Single")
        assert (got["body"], got["queue"], got["topic"], got["broker"]) == ("two", 1, "Single", "broker-a")
        assert (got["keys"], got["properties"]["a"]) == (["both"], "b")
    assert ask(dev, "message", "get", first["offset_message_id"])["message_id"] == first["message_id"]
    assert [row["body"] for row in ask(dev, *both)] == ["one", "two"]
    assert [row["body"] for row in ask(dev, "message", "find", "Single", "-k", "both", "-c", "1")] == ["two"]
    since = ask(dev, "message", "find", "Single", "-k", "both", "--since", moment)
    until = ask(dev, "message", "find", "Single", "-k", "both", "--until", moment)
    assert [row["body"] for row in since + until] == ["two", "one"]
    assert [row["body"] for row in ask(dev, "message", "find", "Single", "--at", moment)] == ["two"]
    assert ask(dev, "message", "find", "Single", "--key", "nobody") == []
    plain = actormq("message", "find", "Single", "--key", "k1", "-n", dev.namesrv).stdout.decode()
    assert first["message_id"] in plain
    assert "a=b" in actormq("message", "get", second["offset_message_id"], "-n", dev.namesrv).stdout.decode()
    for words, sentence in (
        (("get", "0" * 32, "--topic", "Single"), b"topic Single has no message with the id"),
        (("get", first["message_id"]), b"--topic"),
        (("find", "Single"), b"either --key or --at"),
        (("find", "Single", "--key", "a", "--at", "now"), b"either --key or --at"),
        (("find", "Single", "--at", "yesterday"), b"--at 'yesterday' must be like"),
    ):
        assert sentence in actormq("message", *words, "-n", dev.namesrv, code=2).stderr
