"""The checker catches what was done to a good history, whatever it is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.checker import Checker, Event, History, Verdict, check, main

Histories = dict[str, list[Event]]
SECOND = 1_000_000_000


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
    return Checker(unavailable_ms_max=1000, **options).run(copies(*histories.values()))


def copies(*histories: list[Event]) -> list[list[Event]]:
    return [[[*event] for event in history] for history in histories]


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
    assert Checker().run(copies(producer, consumer)).clean
    consumer.append([13, "recv", "g", "q1", 0, "m1", ""])
    assert Checker().run(copies(producer, consumer)).violations == {"queue inversion": 1}


def test_a_session_of_one_process_excuses_nobody_else() -> None:
    """Who takes a queue over begins where the offset is; whoever keeps his queue never goes back."""
    producer: list[Event] = [[1, "send", "a", None, 0, ""], [2, "send", "b", None, 0, ""]]
    former: list[Event] = [[3, "recv", "g", "q", 0, "a", ""], [4, "recv", "g", "q", 1, "b", ""]]
    next_one: list[Event] = [[5, "session", "g", "q"], [6, "recv", "g", "q", 1, "b", ""]]
    assert Checker().run(copies(producer, former, next_one)).clean
    assert Checker().run(copies(producer, former, next_one[1:])).clean
    former.append([7, "recv", "g", "q", 0, "a", ""])
    assert Checker().run(copies(producer, former, next_one)).violations == {"queue inversion": 1}


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
    verdict = Checker().run(copies(producer, consumer))
    assert verdict.clean, verdict
    assert verdict.redelivered == 1
    assert Checker().run(copies(producer, consumer[2:])).violations == {"lost": 1}
    consumer[1][6] = "other"
    assert Checker().run(copies(producer, consumer)).violations == {"digest": 1}
    consumer[1] = [11, "recv", "g", "q0", 5, "unknown", "d"]
    assert Checker().run(copies(producer, consumer)).violations["phantom"] == 1


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
    verdict = Checker(tail_may_be_lost=True).run(copies(producer, consumer))
    assert verdict.clean, str(verdict)
    assert verdict.excused == 1
    assert Checker().run(copies(producer, consumer)).violations == {"lost": 1}
    consumer.insert(1, [15, "recv", "g", "q", 1, "b", ""])
    consumer[2][4] = 2
    assert "beyond durable" in Checker(tail_may_be_lost=True).run(copies(producer, consumer)).violations
    producer[-1][4] = 2
    verdict = Checker(seen_may_be_lost=True).run(copies(producer, consumer, [[31, "expect", "h"]]))
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
    (tmp_path / "two").write_text(json.dumps([1, "recv", "g", "q", 7, "nobody", ""]) + "\n")
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
