"""What every test of bad input stands between: a broker that goes on serving the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from actormq_process import Dev, start_dev
from process.odd_clients import Witness


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    started = start_dev(tmp_path_factory.mktemp("bad-input"))
    yield started
    assert started.stop() == 0, "".join(started.errors)
    assert "Traceback" not in "".join(started.errors)


@pytest.fixture(scope="module")
def witness(dev: Dev) -> Iterator[Witness]:
    made = Witness(dev)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def unharmed(witness: Witness) -> Iterator[None]:
    """Every test runs between two good messages, both of which are consumed; no role is replaced."""
    before = witness.send(b"before")
    yield
    after = witness.send(b"after")
    assert (witness.consume(before), witness.consume(after)) == (b"before", b"after")
    witness.check_roles()
