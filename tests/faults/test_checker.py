"""The checker catches what was done to a good history, whatever it is."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import pytest
from faults import checker, judging, long_history
from faults.checker import History, Verdict, check, main

Event = list[Any]
Histories = dict[str, list[Event]]
SECOND = 1_000_000_000


def _uncompiled() -> ModuleType:
    """Return judging.py as it stands, whatever is beside it."""
    spec = spec_from_file_location("faults.judging", Path(checker.__file__).with_name("judging.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True, params=["python", "compiled"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test has the judge uncompiled, then as it is imported, if that is compiled."""
    if request.param == "python":
        monkeypatch.setattr(checker, "Judge", _uncompiled().Judge)
    elif judging.__file__.endswith(".py"):
        pytest.skip("the checker's loop is not compiled here")
    return str(request.param)


def good(messages: int = 60) -> Histories:
    """Two queues, keyed messages, a retry, a redelivery, a restart of the broker, two groups."""
    producer: list[Event] = []
    one: list[Event] = [[1, "session", "g"]]
    two: list[Event] = [[1, "session", "h"]]
    ends = {"q0": 0, "q1": 0}
    at = 10
    for number in range(messages):
        queue = f"q{number % 2}"
        message = f"m{number}"
        producer.append([at, "send", message, f"k{number % 2}", number // 2, f"d{number}"])
        if number == 20:
            producer.append([at + 1, "fail", message])
            producer.append([at + 2, "send", message, f"k{number % 2}", number // 2, f"d{number}"])
        producer.append([at + 3, "ack", message, queue, ends[queue]])
        for group, history in (("g", one), ("h", two)):
            history.append([at + 4, "recv", group, queue, ends[queue], message, f"d{number}"])
            if number == 30:
                history.append([at + 5, "session", group])
                history.append([at + 6, "recv", group, queue, ends[queue], message, f"d{number}"])
            history.append([at + 7, "commit", group, queue, ends[queue] + 1])
        ends[queue] += 1
        if number == 40:
            producer += [[at + 8, "end", name, end] for name, end in ends.items()]
        at += 10
    one.append([at, "expect", "g"])
    two.append([at, "expect", "h"])
    return {"producer": producer, "one": one, "two": two}


def judge(histories: Histories, **options: Any) -> Verdict:
    return judge_all(*histories.values(), unavailable_ms_max=1000, **options)


def judge_all(*histories: list[Event], **options: Any) -> Verdict:
    return checker.judge((in_pieces(history) for history in histories), **options)


def in_pieces(history: list[Event], lines: int = 7) -> Iterator[bytes]:
    """Yield the lines of a history, some at once."""
    for first in range(0, len(history), lines):
        yield b"".join(orjson.dumps(event) + b"\n" for event in history[first : first + lines])


def find(history: list[Event], kind: str, message: str) -> int:
    return next(place for place, event in enumerate(history) if event[1] == kind and message in event[2:])


def test_a_good_history_is_clean() -> None:
    verdict = judge(good())
    assert verdict.clean, str(verdict)
    assert (verdict.sent, verdict.acknowledged, verdict.received, verdict.redelivered) == (60, 60, 122, 2)
    assert "clean" in str(verdict)


def lose(histories: Histories) -> None:
    del histories["two"][find(histories["two"], "recv", "m33")]


def invent(histories: Histories) -> None:
    histories["one"].insert(-1, [900, "recv", "g", "q0", 500, "nobody", "d"])


def acknowledge_unsent(histories: Histories) -> None:
    histories["producer"].append([900, "ack", "nobody", "q0", 500])


def store_twice(histories: Histories) -> None:
    histories["one"].insert(-1, [900, "recv", "g", "q0", 500, "m58", "d58"])


def acknowledge_twice(histories: Histories) -> None:
    histories["producer"].append([900, "ack", "m58", "q0", 500])


def reuse_an_offset(histories: Histories) -> None:
    place = find(histories["producer"], "ack", "m59")
    histories["producer"][place][4] = 28
    for name in ("one", "two"):
        histories[name][find(histories[name], "recv", "m59")][4] = 28


def receive_elsewhere(histories: Histories) -> None:
    for name in ("one", "two"):
        histories[name][find(histories[name], "recv", "m59")][4] = 99


def deliver_backwards(histories: Histories) -> None:
    one = histories["one"]
    first, second = find(one, "recv", "m50"), find(one, "recv", "m52")
    one[first][4:], one[second][4:] = one[second][4:], one[first][4:]


def deliver_a_key_backwards(histories: Histories) -> None:
    """Each queue in order for its consumer, but two consumers overtake each other within one key."""
    one = histories["one"]
    late = one.pop(find(one, "recv", "m50"))
    histories["other"] = [[900, *late[1:]]]


def store_backwards(histories: Histories) -> None:
    producer = histories["producer"]
    first, second = find(producer, "ack", "m50"), find(producer, "ack", "m52")
    producer[first][4], producer[second][4] = producer[second][4], producer[first][4]


def change_a_body(histories: Histories) -> None:
    histories["two"][find(histories["two"], "recv", "m7")][6] = "other"


def offset_goes_back(histories: Histories) -> None:
    histories["one"].insert(-1, [900, "commit", "g", "q1", 3])


def forget_what_was_consumed(histories: Histories) -> None:
    place = find(histories["producer"], "end", "q1")
    histories["producer"][place][3] -= 1


def pause(histories: Histories) -> None:
    for history in histories.values():
        for event in history:
            if event[0] > 300:
                event[0] += 2 * SECOND
    histories["producer"].append([301, "send", "waiting", None, 0, ""])
    histories["producer"].sort(key=lambda event: event[0])


MUTATIONS: list[tuple[Callable[[Histories], None], str]] = [
    (lose, "lost"),
    (invent, "phantom"),
    (acknowledge_unsent, "phantom"),
    (store_twice, "duplicate"),
    (acknowledge_twice, "duplicate"),
    (reuse_an_offset, "reused"),
    (receive_elsewhere, "duplicate"),
    (deliver_backwards, "queue inversion"),
    (deliver_a_key_backwards, "key inversion"),
    (store_backwards, "queue order"),
    (change_a_body, "digest"),
    (offset_goes_back, "offset back"),
    (forget_what_was_consumed, "beyond durable"),
    (pause, "unavailable"),
]


@pytest.mark.parametrize(("mutate", "kind"), MUTATIONS, ids=[each.__name__ for each, _ in MUTATIONS])
def test_a_mutated_history_is_caught(mutate: Callable[[Histories], None], kind: str) -> None:
    histories = good()
    mutate(histories)
    verdict = judge(histories)
    assert kind in verdict.violations, str(verdict)
    assert verdict.examples[kind]


def test_a_session_of_one_queue_excuses_that_queue_only() -> None:
    """Who takes over one queue may read again there, and nowhere else."""
    producer: list[Event] = []
    for number in range(4):
        producer.append([number, "send", f"m{number}", None, 0, ""])
        producer.append([number, "ack", f"m{number}", f"q{number % 2}", number // 2])
    consumer: list[Event] = [[10, "recv", "g", f"q{n % 2}", n // 2, f"m{n}", ""] for n in range(4)]
    consumer.append([11, "session", "g", "q0"])
    consumer.append([12, "recv", "g", "q0", 0, "m0", ""])
    assert judge_all(producer, consumer).clean
    consumer.append([13, "recv", "g", "q1", 0, "m1", ""])
    assert judge_all(producer, consumer).violations == {"queue inversion": 1}


def test_a_session_of_one_process_excuses_nobody_else() -> None:
    """Who takes a queue over begins where the offset is; whoever keeps his queue never goes back."""
    producer: list[Event] = [[1, "send", "a", None, 0, ""], [2, "send", "b", None, 0, ""]]
    former: list[Event] = [[3, "recv", "g", "q", 0, "a", ""], [4, "recv", "g", "q", 1, "b", ""]]
    next_one: list[Event] = [[5, "session", "g", "q"], [6, "recv", "g", "q", 1, "b", ""]]
    assert judge_all(producer, former, next_one).clean
    assert judge_all(producer, former, next_one[1:]).clean
    former.append([7, "recv", "g", "q", 0, "a", ""])
    assert judge_all(producer, former, next_one).violations == {"queue inversion": 1}


def test_a_delayed_message_may_be_delivered_twice_but_not_be_lost() -> None:
    """Its acknowledgement does not say where it will be; the scheduler's death may repeat it."""
    producer: list[Event] = [
        [1, "send", "late", None, 0, "d", True],
        [2, "ack", "late", None, 0],
        [3, "note", "killed", "scheduler"],
    ]
    consumer: list[Event] = [
        [10, "recv", "g", "q0", 5, "late", "d"],
        [11, "recv", "g", "q1", 7, "late", "d"],
        [20, "expect", "g"],
    ]
    verdict = judge_all(producer, consumer)
    assert verdict.clean, verdict
    assert verdict.redelivered == 1
    assert judge_all(producer, consumer[2:]).violations == {"lost": 1}
    consumer[1][6] = "other"
    assert judge_all(producer, consumer).violations == {"digest": 1}
    consumer[1] = [11, "recv", "g", "q0", 5, "unknown", "d"]
    assert judge_all(producer, consumer).violations["phantom"] == 1


def test_receiving_again_can_be_forbidden() -> None:
    assert judge(good(), again_allowed=False).violations["again"] == 2


def test_a_lost_tail_is_excused_only_in_async_mode_and_unread() -> None:
    """After a loss of power, async flush may lose what was acknowledged last, if nobody has received it."""
    producer: list[Event] = [
        [10, "send", "a", None, 0, ""],
        [11, "ack", "a", "q", 0],
        [12, "send", "b", None, 0, ""],
        [13, "ack", "b", "q", 1],
        [20, "end", "q", 1],
        [21, "send", "c", None, 0, ""],
        [22, "ack", "c", "q", 1],
    ]
    consumer: list[Event] = [
        [14, "recv", "g", "q", 0, "a", ""],
        [23, "recv", "g", "q", 1, "c", ""],
        [30, "expect", "g"],
    ]
    verdict = judge_all(producer, consumer, tail_may_be_lost=True)
    assert verdict.clean, str(verdict)
    assert verdict.excused == 1
    assert judge_all(producer, consumer).violations == {"lost": 1}
    consumer.insert(1, [15, "recv", "g", "q", 1, "b", ""])
    consumer[2][4] = 2
    assert "beyond durable" in judge_all(producer, consumer, tail_may_be_lost=True).violations
    producer[-1][4] = 2
    verdict = judge_all(producer, consumer, [[31, "expect", "h"]], seen_may_be_lost=True)
    assert verdict.violations == {"lost": 2}, "a and c, by a group that has received nothing"
    assert verdict.excused == 1


def test_histories_are_files_that_a_kill_may_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several processes append; a half line at the end does not count; the program says the verdict."""
    history = History(tmp_path / "one")
    history.send("a", "d", "key", 0)
    history.ack("a", "q", 0)
    history.send("b", "d", delayed=True)
    history.ack("b", None, 0)
    history.note("reconnected", 3)
    history.receive("g", "q", 0, "a", "d")
    history.commit("g", "q", 1)
    history.session("g")
    history.session("g", "q")
    history.receive("g", "q", 1, "b", "d")
    history.commit("g", "q", 2)
    history.end("q", 2)
    history.fail("a")
    history.expect("g")
    history.close()
    with open(tmp_path / "one", "ab") as file:
        file.write(b'[12, "recv", "g"')
    assert check([tmp_path / "one"]).clean
    monkeypatch.setattr("sys.argv", ["checker", str(tmp_path / "one")])
    assert main() == 0
    (tmp_path / "two").write_text('[1,"recv","g","q",7,"nobody",""]\n')
    monkeypatch.setattr("sys.argv", ["checker", str(tmp_path / "one"), str(tmp_path / "two")])
    assert main() == 1
    assert "NOT CLEAN" in capsys.readouterr().out


def test_random_losses_are_all_counted() -> None:
    chance = random.Random(3)
    histories = good(200)
    places = [
        place for place, event in enumerate(histories["one"]) if event[1] == "recv" and event[5] != "m30"
    ]
    for place in sorted(chance.sample(places, 25), reverse=True):
        del histories["one"][place]
    assert judge(histories).violations == {"lost": 25}


def test_words_are_those_of_json() -> None:
    """Ids and names may have quotes, commas, brackets and other alphabets in them, or be numbers."""
    for name in ('a"b', "back\\", "c,]", "[{d", "ü…", "", 5, -5):
        group = f"of {name}"
        producer: list[Event] = [[1, "send", name, None, 0, "d"], [2, "ack", name, "q,]", 0]]
        consumer: list[Event] = [
            [3, "recv", group, "q,]", 0, name, "d"],
            [4, "note", "any", [1, {"a": None}], 1.5],
            [5, "expect", group],
        ]
        assert judge_all(producer, consumer).clean
        verdict = judge_all(producer, consumer[2:])
        assert verdict.examples["lost"] == [f"{group} never received {name}, acknowledged: ('q,]', 0)"]
    assert not judge_all([[1, "send", "5", None, 0, ""]], [[2, "recv", "g", "q", 0, 5, ""]]).clean


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"1",
        b'[1, "expect","g"]',
        b'[1,"expect"]',
        b'[1,"expect","g',
        b'[1,"expect","g\\',
        b'["1","expect","g"]',
        b'[,"expect","g"]',
        b'[1,"else"]',
        b'[1,"ack","a","q"]',
        b'[1,"ack","a","q",1x]',
        b'[1,"ack","a","q",-]',
        b'[1,"ack","a","q",1234567890123456789]',
        b'[1,"ack","a","q","1"]',
        b'[1,"ack",["a"],"q",1]',
    ],
)
def test_a_line_that_is_none_is_named(line: bytes) -> None:
    """It is no history that the checker could call clean."""
    good = b'[1,"expect","g"]\n'
    with pytest.raises(ValueError, match="no line of a history") as caught:
        checker.judge([[good + line + b"\n" + good]])
    assert repr(line) in str(caught.value)


def test_files_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a piece has: a part of a line, or many."""
    paths = [tmp_path / name for name in good()]
    for path, history in zip(paths, good().values(), strict=True):
        path.write_bytes(b"".join(in_pieces(history)))
    whole = check(paths)
    assert whole.clean
    for size in (1, 50, 1000):
        monkeypatch.setattr(checker, "PIECE_BYTES", size)
        assert check(paths) == whole


def test_an_end_far_below_what_was_acknowledged() -> None:
    """All that was behind it is away, be it a few places or one that is far off."""
    producer: list[Event] = []
    for number, offset in enumerate((0, 1, 2, 1 << 40)):
        producer += [[number, "send", f"m{number}", None, 0, ""], [number, "ack", f"m{number}", "q", offset]]
    for end, excused in ((3, 1), (1, 3)):
        history: list[Event] = [*producer, [9, "end", "q", end]]
        for offset in range(end, 4):
            history += [[10, "send", f"n{offset}", None, 0, ""], [10, "ack", f"n{offset}", "q", offset]]
        consumer: list[Event] = [[20, "recv", "g", "q", n, f"m{n}", ""] for n in range(end)]
        consumer += [[21, "recv", "g", "q", n, f"n{n}", ""] for n in range(end, 4)]
        verdict = judge_all(history, [*consumer, [30, "expect", "g"]], tail_may_be_lost=True)
        assert verdict.clean, verdict
        assert verdict.excused == excused


def test_compiled_and_uncompiled_say_the_same(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of histories in which much is wrong."""
    if version == "python":
        pytest.skip("it would be compared with itself")
    chance = random.Random(5)
    pure = _uncompiled().Judge
    found: Counter[str] = Counter()
    for _ in range(100):
        histories = good(50)
        for history in histories.values():
            for _ in range(chance.randrange(4)):
                one, other = chance.sample(history, 2)
                if one[1] == other[1] and len(one) > 2:
                    field = chance.randrange(2, len(one))
                    one[field] = other[field]
                else:
                    history.remove(one)
        options = {name: chance.random() < 0.5 for name in ("tail_may_be_lost", "seen_may_be_lost")}
        verdict = judge(histories, **options)
        found += verdict.violations
        with monkeypatch.context() as patched:
            patched.setattr(checker, "Judge", pure)
            assert judge(histories, **options) == verdict
    assert len(found) >= 9, found


@pytest.mark.parametrize(
    "messages", [2000, pytest.param(10_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_a_long_history(messages: int, version: str, tmp_path: Path) -> None:
    """What it takes is printed; 60 s are allowed, on a machine that does nothing else."""
    if version == "python":
        pytest.skip("measured as it is imported")
    paths = long_history.write(tmp_path, messages)
    cost = long_history.measure(paths)
    print(cost)
    assert cost.clean
    assert f"{messages} sent, {messages} acknowledged, {messages} received" in cost.said
    with open(paths[-1], "ab") as watcher:
        watcher.write(b'[%d,"expect","another"]\n' % (messages * SECOND))
    if messages < 10_000:
        assert not long_history.measure(paths).clean
