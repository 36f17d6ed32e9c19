"""Messages out of a log: exactly those that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from unit.store.tools.whole_store import MESSAGES, copied, filled, poke

from actormq.store.disk import RealDisk
from actormq.store.record import Record
from actormq.store.tools.dumping import Wanted, dump
from actormq.store.tools.layout import find_layout
from actormq.store.tools.walking import BadPlace


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    filled(root)
    return root


def keys(root: Path, **wanted: Any) -> list[str]:
    """Return the keys of the dumped messages; damage as '!'."""
    disk = RealDisk()
    found = dump(disk, find_layout(disk, root), Wanted(**wanted))
    return ["!" if isinstance(one, BadPlace) else one.properties["KEYS"] for one in found]


def all_keys() -> list[str]:
    return [f"K{number:08d}" for number in range(MESSAGES)]


def records(root: Path) -> list[Record]:
    disk = RealDisk()
    return [one for one in dump(disk, find_layout(disk, root), Wanted()) if isinstance(one, Record)]


def test_everything(whole: Path) -> None:
    """In the log's order, bodies and all."""
    assert keys(whole) == all_keys()
    one = records(whole)[7]
    assert (one.topic, one.queue_id, one.queue_offset) == ("b", 1, 1)
    assert bytes(one.body[:9]) == b"K00000007"


def test_a_topic_a_queue_a_key(whole: Path) -> None:
    assert keys(whole, topic="a") == all_keys()[::2]
    assert keys(whole, topic="b", queue_id=2) == all_keys()[5::6]
    assert keys(whole, topic="b", key="K00000031") == ["K00000031"]
    assert keys(whole, topic="a", key="K00000031") == []
    assert keys(whole, topic="c") == []


def test_a_part_of_the_log(whole: Path) -> None:
    """From the first record that begins there or later, to the last that begins before the end."""
    places = [one.log_offset for one in records(whole)]
    assert keys(whole, first_offset=places[20]) == all_keys()[20:]
    assert keys(whole, first_offset=places[20] + 1) == all_keys()[21:]
    assert keys(whole, end_offset=places[20]) == all_keys()[:20]
    assert keys(whole, first_offset=places[3] - 5, end_offset=places[40] + 1, topic="a") == all_keys()[4:41:2]
    assert keys(whole, first_offset=1 << 40) == []


def test_a_time(whole: Path) -> None:
    """Both ends are included, to the millisecond."""
    times = [one.store_timestamp for one in records(whole)]
    assert keys(whole, first_ms=times[20], last_ms=times[45]) == all_keys()[20:46]
    assert keys(whole, first_ms=times[20] + 1, last_ms=times[45] - 1, topic="b") == all_keys()[21:45:2]
    assert keys(whole, first_ms=times[-1] + 1) == []


def test_damage_stands_where_it_is(whole: Path, tmp_path: Path) -> None:
    root = copied(whole, tmp_path)
    place = records(root)[20].log_offset
    poke(root / "commitlog" / f"{1 << 20:020d}", place - (1 << 20) + 200, b"?")
    expected = all_keys()
    expected[20] = "!"
    assert keys(root) == expected
