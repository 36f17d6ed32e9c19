"""Procedures, carried out in virtual time and in a calling thread."""

from __future__ import annotations

from typing import Any

import pytest
from unit.client.fakes import SimLoop

from actormq.client import requests
from actormq.client.procedures import Address, Ask, Call, Pause, Signal, Tell, Together, Wait
from actormq.client.tasks import Answer, Task, run_here
from actormq.errors import ClientClosed, ConnectionLost, RequestTimeout
from actormq.wire import frame
from actormq.wire.command import RemotingCommand

HERE = Address("tcp://here:1")


class FakeNetwork:
    """Keeps what was asked; the test answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[RemotingCommand, Any]] = []
        self.told: list[RemotingCommand] = []
        self.given_up: list[int] = []
        self.at_once: Answer | None = None

    def ask(self, address: Address, command: RemotingCommand, on_answer: Any) -> None:
        if self.at_once is not None:
            on_answer(self.at_once)
        self.asked.append((command, on_answer))

    def ask_frame(self, address: Address, opaque: int, data: bytes, on_answer: Any) -> None:
        self.asked.append((frame.decode(data[4:]), on_answer))

    def give_up(self, address: Address, opaque: int) -> None:
        self.given_up.append(opaque)

    def tell(self, address: Address, command: RemotingCommand) -> None:
        self.told.append(command)


class FakeDirect:
    """Answers a call with `outcome`."""

    def __init__(self) -> None:
        self.outcome: bytes | ConnectionLost = b"answer"
        self.called: list[tuple[Address, bytes, int | None, int]] = []

    def call(self, address: Address, data: bytes, opaque: int | None, timeout_ms: int) -> bytes:
        self.called.append((address, data, opaque, timeout_ms))
        if isinstance(self.outcome, ConnectionLost):
            raise self.outcome
        return self.outcome


class Running:
    """One task and its outcome."""

    def __init__(self, procedure: Any) -> None:
        self.loop, self.network = SimLoop(), FakeNetwork()
        self.outcome: list[tuple[Any, BaseException | None]] = []
        self.task: Task[Any] = Task(
            self.loop, self.network, procedure, lambda value, error: self.outcome.append((value, error))
        ).start()
        self.loop.settle()


def ask() -> Ask:
    return Ask(HERE, requests.route("t"), 100)


def answer(command: RemotingCommand) -> RemotingCommand:
    return RemotingCommand.response_to(command, 0)


def test_an_answer_resumes_the_procedure() -> None:
    async def procedure() -> int:
        return (await ask()).opaque

    running = Running(procedure())
    command, on_answer = running.network.asked[0]
    on_answer(answer(command))
    assert running.outcome == [(command.opaque, None)]
    running.loop.run_for(1_000)
    assert running.network.given_up == []


def test_a_late_answer_raises_request_timeout_and_is_ignored_when_it_comes() -> None:
    async def procedure() -> str:
        try:
            await ask()
        except RequestTimeout as error:
            return str(error)
        return "answered"

    running = Running(procedure())
    running.loop.run_for(99)
    assert running.outcome == []
    running.loop.run_for(1)
    assert "did not answer request 105 within 100 ms" in running.outcome[0][0]
    command, on_answer = running.network.asked[0]
    assert running.network.given_up == [command.opaque]
    on_answer(answer(command))
    assert len(running.outcome) == 1


def test_trouble_with_the_connection_is_raised_where_it_is_awaited() -> None:
    async def procedure() -> None:
        await ask()

    running = Running(procedure())
    running.network.asked[0][1](ConnectionLost("gone"))
    assert isinstance(running.outcome[0][1], ConnectionLost)


def test_a_pause_takes_its_time() -> None:
    async def procedure() -> str:
        await Pause(50)
        return "rested"

    running = Running(procedure())
    running.loop.run_for(49)
    assert running.outcome == []
    running.loop.run_for(1)
    assert running.outcome == [("rested", None)]


def test_waiting_for_a_signal() -> None:
    signal = Signal()

    async def procedure() -> list[bool]:
        return [await Wait(signal, 50), await Wait(signal), await Wait(signal, 50)]

    running = Running(procedure())
    running.loop.run_for(50)
    signal.set()
    running.loop.settle()
    signal.set()
    running.loop.settle()
    assert running.outcome == [([False, True, True], None)]


def test_a_signal_set_before_is_not_lost() -> None:
    signal = Signal()
    signal.set()

    async def procedure() -> list[bool]:
        return [await Wait(signal, 50), await Wait(signal, 50)]

    running = Running(procedure())
    running.loop.run_for(50)
    assert running.outcome == [([True, False], None)]


def test_together_waits_for_all_and_gives_failures_as_values() -> None:
    async def rest(ms: int) -> int:
        await Pause(ms)
        return ms

    async def fail() -> None:
        raise ConnectionLost("gone")

    async def procedure() -> list[Any]:
        return await Together([rest(30), fail(), rest(10)])

    running = Running(procedure())
    running.loop.run_for(30)
    [(results, _)] = running.outcome
    assert (results[0], results[2]) == (30, 10)
    assert isinstance(results[1], ConnectionLost)


def test_together_does_not_hide_mistakes() -> None:
    async def wrong() -> None:
        raise ZeroDivisionError

    async def procedure() -> list[Any]:
        return await Together([wrong()])

    assert isinstance(Running(procedure()).outcome[0][1], ZeroDivisionError)


def test_together_of_nothing_is_nothing() -> None:
    async def procedure() -> list[Any]:
        return await Together([])

    assert Running(procedure()).outcome == [([], None)]


@pytest.mark.parametrize("effect", [ask(), Pause(9), Wait(Signal(), 9), Together([])])
def test_cancelling_runs_finally_and_nothing_after(effect: Any) -> None:
    steps = []

    async def inner() -> None:
        try:
            await Pause(5)
        finally:
            steps.append("inner")

    async def procedure() -> None:
        try:
            await (Together([inner()]) if isinstance(effect, Together) else effect)
            steps.append("went on")
        finally:
            steps.append("cleaned up")

    running = Running(procedure())
    running.task.cancel()
    running.loop.run_for(1_000)
    assert steps[-1] == "cleaned up"
    assert "went on" not in steps
    assert isinstance(running.outcome[0][1], ClientClosed)
    assert not isinstance(effect, Together) or steps == ["inner", "cleaned up"]


def test_a_one_way_request_does_not_wait() -> None:
    async def procedure() -> str:
        await Tell(HERE, requests.route("t"))
        return "told"

    running = Running(procedure())
    assert len(running.network.told) == 1
    assert running.outcome == [("told", None)]


def test_in_the_calling_thread() -> None:
    """The same procedures, blocking: answers, failures, time-outs, pauses."""
    network, direct = FakeNetwork(), FakeDirect()

    async def procedure() -> str:
        await Pause(1)
        await Tell(HERE, requests.route("t"))
        return (await ask()).remark or ""

    network.at_once = RemotingCommand(code=0, remark="fine")
    assert run_here(network, procedure(), direct) == "fine"
    network.at_once = ConnectionLost("gone")
    with pytest.raises(ConnectionLost):
        run_here(network, procedure(), direct)

    async def late() -> None:
        await Ask(HERE, requests.route("t"), 1)

    network.at_once = None
    with pytest.raises(RequestTimeout):
        run_here(network, late(), direct)
    assert len(network.given_up) == 1


def test_a_call_is_made_by_the_calling_thread_itself() -> None:
    network, direct = FakeNetwork(), FakeDirect()

    async def procedure() -> bytes:
        try:
            return await Call(HERE, b"request", 7, 100)
        except ConnectionLost as error:
            return str(error).encode()

    assert run_here(network, procedure(), direct) == b"answer"
    direct.outcome = ConnectionLost("gone")
    assert run_here(network, procedure(), direct) == b"gone"
    assert direct.called == [(HERE, b"request", 7, 100)] * 2
    assert network.asked == []


def test_a_loop_does_not_block_in_a_call() -> None:
    async def procedure() -> None:
        await Call(HERE, b"request", 7, 100)

    with pytest.raises(AssertionError, match="does not block"):
        Running(procedure())
