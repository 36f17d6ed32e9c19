"""The roles around the store in one thread: deaths at any step, power cuts at any moment, from one seed.

The disk may lose whatever no sync has covered.  What is judged: nothing durable is lost, nothing readable
is taken back, queues are dense and say what the log says, whoever died when.
"""

from __future__ import annotations

import random

import pytest
from faults.store_life import Broker
from store_rig import FILE_BYTES

from actormq.config import FlushMode
from actormq.shm.positions import Position


@pytest.mark.parametrize(
    ("mode", "pooled"), [(FlushMode.SYNC, False), (FlushMode.ASYNC, False), (FlushMode.ASYNC, True)]
)
@pytest.mark.parametrize("seed", range(12))
def test_power_cuts(mode: FlushMode, pooled: bool, seed: int) -> None:
    """Three lives of a broker, each ended by a loss of power, with deaths of roles in between."""
    broker = Broker(mode, random.Random(seed), pooled=pooled)
    for _ in range(3):
        broker.start()
        before = broker.readable()
        for _ in range(broker.chance.randrange(200)):
            broker.step()
        # Async mode shows consumers what a power cut may take back: only sync mode promises this.
        before = broker.readable() if mode is FlushMode.SYNC else before
        broker.disk = broker.disk.crash(broker.chance)
        broker.start()
        broker.check(before)
    broker.settle()
    broker.check(broker.readable())
    assert broker.deaths > 0


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_kill_of_everything(seed: int, pooled: bool) -> None:
    """`kill -9` of all processes takes nothing from async mode either: the page cache stays.

    With a store pool it takes what is not in the log's files, but nothing that a consumer may have seen.
    """
    broker = Broker(FlushMode.ASYNC, random.Random(seed), pooled=pooled)
    for _ in range(3):
        broker.start(power=True)
        for _ in range(broker.chance.randrange(200)):
            broker.step()
        before = broker.readable()
        in_files = broker.memory.positions.get(Position.WRITTEN if pooled else Position.APPENDED)
        for sent in broker.acknowledged:
            if sent.log_end <= in_files:
                broker.durable[sent.log_offset] = sent
        broker.start(power=True)
        broker.check(before)
    broker.settle()
    broker.check(broker.readable())


@pytest.mark.parametrize("seed", range(12))
def test_deaths_of_roles_take_nothing_from_the_store_pool(seed: int) -> None:
    """All that was acknowledged comes into the log's files, whoever dies how often meanwhile."""
    broker = Broker(FlushMode.ASYNC, random.Random(seed), pooled=True)
    broker.start()
    for _ in range(600):
        broker.step()
    assert broker.deaths > 0
    assert broker.memory.positions.get(Position.APPENDED) > broker.memory.positions.get(Position.FLUSHED)
    for sent in broker.acknowledged:
        broker.durable[sent.log_offset] = sent
    broker.settle()
    broker.check({})


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_clean_stop_needs_no_look_at_the_log(seed: int, pooled: bool) -> None:
    broker = Broker(FlushMode.ASYNC, random.Random(seed), pooled=pooled)
    broker.start()
    for _ in range(40):
        broker.step()
    broker.flusher.stopping = True
    broker.settle()
    before = broker.readable()
    assert broker.flusher.leave(broker.memory.positions.get(Position.CLEANED))
    broker.disk = broker.disk.crash(broker.chance)
    broker.peaceful = True
    broker.start()
    assert broker.store.clean
    assert broker.store.scanned_bytes == 0
    broker.check(before)


def test_file_size_of_the_rig_is_rolled_over() -> None:
    """The runs above are worth something only if the log needs more than one file."""
    broker = Broker(FlushMode.SYNC, random.Random(5))
    broker.start()
    while broker.memory.positions.get(Position.APPENDED) < FILE_BYTES:
        broker.step()
    broker.settle()
    broker.check({})
