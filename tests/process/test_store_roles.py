"""Real writer, flusher, dispatcher and cleaner around a store: messages in, queues out."""

from __future__ import annotations

from pathlib import Path

import pytest
from process.store_broker import FILE_BYTES, StoreBroker

from actormq.config import FlushMode
from actormq.shm.positions import Position


@pytest.mark.parametrize("flush", list(FlushMode))
def test_messages_of_two_clients_end_up_in_the_queues(tmp_path: Path, flush: FlushMode) -> None:
    """Every message once, in its place; a clean stop leaves all of it synced and no abort file."""
    with StoreBroker(tmp_path, flush=flush, messages=2000, body_bytes=600).start() as broker:
        broker.wait_acknowledged(2000)
        broker.wait_dispatched()
        assert broker.positions.get(Position.APPENDED) > 2 * FILE_BYTES
        assert broker.stop() == 0, broker.log
        assert not (broker.store / "abort").exists(), broker.log
        assert (broker.store / "actormq.clean").exists()
        verdict = broker.check()
        assert verdict.clean, verdict
        assert verdict.acknowledged == verdict.received == 4000
