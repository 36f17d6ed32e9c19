"""Mailboxes between two owners in one process: answers, time-outs, deaths, junk."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from actormq.actors.mailbox import (
    ActorDeadError,
    Asked,
    Mailbox,
    ProcessFuture,
    Sender,
    Timeout,
    mailbox_path,
)
from actormq.errors import RequestError


class Ping(msgspec.Struct):
    number: int


class Pong(msgspec.Struct):
    number: int


class Alive:
    """A directory of who is said to live."""

    def __init__(self) -> None:
        self.incarnations = {"holder": 1}

    def incarnation_of(self, role: str) -> int:
        return self.incarnations.get(role, 0)

    def pid_of(self, role: str) -> int:
        return 0


@pytest.fixture
def run_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="amq"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def alive() -> Alive:
    return Alive()


@pytest.fixture
def caller(run_dir: Path, alive: Alive) -> Iterator[Mailbox]:
    mailbox = Mailbox(run_dir, "gateway-0", 1, (), alive)
    yield mailbox
    mailbox.close()


@pytest.fixture
def holder(run_dir: Path, alive: Alive) -> Iterator[Mailbox]:
    mailbox = Mailbox(run_dir, "holder", 1, (Ping,), alive)
    yield mailbox
    mailbox.close()


def receive(mailbox: Mailbox, count: int) -> list[Asked]:
    deadline = time.monotonic() + 60
    got: list[Asked] = []
    while len(got) < count:
        assert time.monotonic() < deadline, got
        mailbox.socket.poll(100)
        got += mailbox.receive(count - len(got))
    return got


def test_tell_brings_the_message_and_its_sender(caller: Mailbox, holder: Mailbox) -> None:
    """In order, with who sent it; nothing is answered to a tell."""
    assert all(caller.tell("holder", Ping(number)) for number in range(5))
    got = receive(holder, 5)
    assert [asked.message for asked in got] == [Ping(number) for number in range(5)]
    assert got[0].sender == Sender("gateway-0", 1, 0)
    assert not holder.reply(got[0].sender, Pong(0))


def test_answers_may_come_in_any_order(caller: Mailbox, holder: Mailbox) -> None:
    """Each future gets the answer to its own question."""
    futures = [caller.ask("holder", Ping(number), reply_type=Pong) for number in range(3)]
    for asked in reversed(receive(holder, 3)):
        assert holder.reply(asked.sender, Pong(asked.message.number * 10))  # type: ignore[attr-defined]
    assert [future.get() for future in futures] == [Pong(0), Pong(10), Pong(20)]


def test_callbacks_run_once(caller: Mailbox, holder: Mailbox) -> None:
    """`on_done` runs when the answer is received, and at once when it is there already."""
    seen: list[int] = []
    future = caller.ask("holder", Ping(1), reply_type=Pong)
    future.on_done(lambda done: seen.append(done.get().number))
    (asked,) = receive(holder, 1)
    assert seen == []
    holder.reply(asked.sender, Pong(7))
    future.get()
    future.on_done(lambda done: seen.append(done.get().number + 1))
    assert seen == [7, 8]


def test_refusal_is_an_exception(caller: Mailbox, holder: Mailbox) -> None:
    """`refuse` becomes a RequestError with the same code and remark."""
    future = caller.ask("holder", Ping(1))
    (asked,) = receive(holder, 1)
    holder.refuse(asked.sender, RequestError(17, "no such topic"))
    with pytest.raises(RequestError, match="no such topic") as caught:
        future.get()
    assert caught.value.response_code == 17


def test_expire_ends_old_questions(caller: Mailbox, holder: Mailbox) -> None:
    """The loop calls `expire`: questions past their deadline fail, a late answer is ignored."""
    failed: list[ProcessFuture] = []
    future = caller.ask("holder", Ping(1), timeout_s=60)
    future.on_done(failed.append)
    deadline = caller.next_deadline_ns()
    assert deadline is not None
    caller.expire(deadline - 1)
    assert not failed
    caller.expire(deadline)
    assert isinstance(failed[0].error, Timeout)
    assert caller.next_deadline_ns() is None
    (asked,) = receive(holder, 1)
    holder.reply(asked.sender, Pong(1))
    other = caller.ask("holder", Ping(2), reply_type=Pong)
    (asked,) = receive(holder, 1)
    holder.reply(asked.sender, Pong(2))
    assert other.get() == Pong(2)


def test_questions_to_the_dead_fail(caller: Mailbox, holder: Mailbox, alive: Alive) -> None:
    """`role_changed`: what was asked of another incarnation fails, what was asked of this one stays."""
    old = caller.ask("holder", Ping(1), timeout_s=60)
    caller.role_changed("holder", 1)
    assert not old.done
    alive.incarnations["holder"] = 2
    new = caller.ask("holder", Ping(2), timeout_s=60)
    caller.role_changed("holder", 2)
    assert isinstance(old.error, ActorDeadError)
    assert not new.done


def test_a_late_word_of_a_death_takes_nothing_from_the_successor(
    caller: Mailbox, holder: Mailbox, alive: Alive
) -> None:
    """`role_changed` may come when the next one has been written to: that is neither lost nor failed."""
    asked = caller.ask("holder", Ping(1), reply_type=Pong, timeout_s=60)
    ways = dict(caller._outgoing)
    caller.role_changed("holder", 0)  # of the one before
    assert caller._outgoing == ways
    (ping,) = receive(holder, 1)
    holder.reply(ping.sender, Pong(1))
    assert asked.get() == Pong(1)


def test_death_ends_a_wait(caller: Mailbox, holder: Mailbox, alive: Alive) -> None:
    """Blocked in `get`, with the time-out far away: the directory says that it is gone."""
    future = caller.ask("holder", Ping(1), timeout_s=60)
    alive.incarnations["holder"] = 0
    with pytest.raises(ActorDeadError):
        future.get()


def test_lifeline_ends_a_wait(caller: Mailbox, holder: Mailbox) -> None:
    """Blocked in `get` when the supervisor dies: the role is told at once; its messages can wait."""
    ours, supervisors = socket.socketpair()
    calls: list[int] = []

    class Orphaned(Exception):
        pass

    def orphaned() -> None:
        calls.append(1)
        raise Orphaned

    caller.lifeline_fd = ours.fileno()
    caller.on_lifeline = orphaned
    supervisors.send(b"a message")
    future = caller.ask("holder", Ping(1), timeout_s=60)
    with pytest.raises(Timeout):
        future.get(timeout=0.02)
    assert not calls
    supervisors.close()
    with pytest.raises(Orphaned):
        future.get()
    ours.close()


@pytest.mark.parametrize("letter", [b"", b"\xc1", b"\x01", b"\x96\x00\x01\x02\x03\x04\x05"])
def test_junk_is_counted_and_dropped(caller: Mailbox, holder: Mailbox, run_dir: Path, letter: bytes) -> None:
    """Bytes that are no letter do not disturb those that are."""
    with caller.zmq.socket(zmq.PUSH) as push:
        push.connect(mailbox_path(run_dir, "holder.1"))
        push.send(letter)
        push.send(letter)
        deadline = time.monotonic() + 60
        while holder.bad_letters < 2:
            assert time.monotonic() < deadline
            holder.socket.poll(100)
            assert holder.receive() == []
    caller.tell("holder", Ping(1))
    assert [asked.message for asked in receive(holder, 1)] == [Ping(1)]


def test_message_of_an_unlisted_type_is_dropped(caller: Mailbox, holder: Mailbox) -> None:
    """Only what the role lists comes in."""
    caller.tell("holder", Pong(1))
    caller.tell("holder", Ping(2))
    assert [asked.message for asked in receive(holder, 1)] == [Ping(2)]
    assert holder.bad_letters == 1


def test_answers_meanwhile_keep_other_messages(caller: Mailbox, holder: Mailbox, alive: Alive) -> None:
    """A wait for one answer keeps what else arrives, in order, for the next `receive`."""
    alive.incarnations["gateway-0"] = 1
    future = holder.ask("gateway-0", Ping(0), timeout_s=60)
    for number in range(1, 4):
        caller.tell("holder", Ping(number))
    holder.socket.poll(60_000)
    with pytest.raises(Timeout):
        future.get(timeout=0.05)
    assert holder.kept
    assert [asked.message for asked in receive(holder, 3)] == [Ping(1), Ping(2), Ping(3)]


def test_path_must_fit_a_unix_socket() -> None:
    """A path of 107 bytes or more is refused when it is made, not when somebody binds."""
    with pytest.raises(ValueError, match="too long"):
        mailbox_path(Path("/" + "x" * 90), "coordinator.123456")
