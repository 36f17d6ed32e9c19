"""Loss of power under a real broker with running clients, on an ext4 file system that is cut off in mid-air.

The store lies on an ext4 image, which is a file on another ext4 image.  Freezing the *outer* file system
stops what the loop device writes to the inner image, between two requests, without telling the inner one: a
copy of the image that is made then is what a disk has whose power fails at that moment, with all it had been
given and nothing that still was in the page cache.  (Freezing the inner one would write everything out first;
a copy that is made while writes go on would mix moments, which no disk does.)  The broker is killed before
the thaw, the copy takes the image's place, and the next broker starts on what ext4's journal makes of it.
Mounting takes root.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from process.broker_load import Load, await_true, broker_under_load

SMALL_FILES = {"ACTORMQ_STORE_LOG_FILE_BYTES": str(1 << 20), "ACTORMQ_STORE_BODY_BYTES_MAX": "65536"}
"""Rolls, and a small image: its copies are what this test does most."""
OUTER_MB, INNER_MB = 512, 192
CUTS = 50


def run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


class Disk:
    """A file system at `place` whose power can fail."""

    def __init__(self, folder: Path) -> None:
        self.outer, self.place = folder / "outer", folder / "disk"
        self.image = self.outer / "inner.img"
        self._copy = folder / "copy.img"
        self._mounted: list[Path] = []
        self._make(folder / "outer.img", OUTER_MB, self.outer)
        self._make(self.image, INNER_MB, self.place)

    def _make(self, image: Path, megabytes: int, place: Path) -> None:
        image.touch()
        os.truncate(image, megabytes << 20)
        run("mkfs.ext4", "-q", "-F", image)
        place.mkdir()
        self._mount(image, place)

    def _mount(self, image: Path, place: Path) -> None:
        run("mount", "-o", "loop", image, place)
        self._mounted.append(place)

    def _unmount(self, place: Path) -> None:
        # What dead processes had open is let go of a moment after they are gone.
        done = ("umount", str(place))
        await_true(f"{place} is free", lambda: subprocess.run(done, capture_output=True).returncode == 0)
        self._mounted.remove(place)

    def fail(self) -> None:
        """From here on nothing reaches the disk; who writes waits."""
        run("fsfreeze", "-f", self.outer)

    def keep(self) -> None:
        """Copy what the disk has, and let go of those who wait."""
        try:
            run("cp", "--sparse=always", self.image, self._copy)
        finally:
            run("fsfreeze", "-u", self.outer)

    def come_back(self) -> None:
        """Mount what was kept; nobody uses the disk."""
        self._unmount(self.place)
        run("cp", "--sparse=always", self._copy, self.image)
        self._mount(self.image, self.place)

    def close(self) -> None:
        for place in reversed(self._mounted):
            run("umount", "-l", place)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    tools = [tool for tool in ("mkfs.ext4", "fsfreeze", "mount") if shutil.which(tool) is None]
    if tools or os.geteuid() != 0:
        pytest.skip(f"file systems can be mounted by root only, with its tools (missing: {tools})")
    try:
        made = Disk(tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no file system can be mounted here: {error.stderr.decode().strip()}")
    yield made
    made.close()


def cut(load: Load, disk: Disk) -> None:
    """Cut the power, start again."""
    disk.fail()
    load.cut_power(meanwhile=disk.keep)
    disk.come_back()
    # What they send must come after the queues' ends are noted.
    for producer in load.producers:
        producer.send_signal(signal.SIGSTOP)
    load.restart(SMALL_FILES)
    for producer in load.producers:
        producer.send_signal(signal.SIGCONT)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(6))
def test_power_cuts_lose_nothing_acknowledged(disk: Disk, seed: int) -> None:
    """In sync mode: no message, no order, nothing that was seen; whatever is sent later is received."""
    chance = random.Random(seed)
    options = {"flush": "sync", "env": SMALL_FILES, "data": disk.place / "store"}
    with broker_under_load(**options) as load:  # type: ignore[arg-type]
        for _ in range(CUTS):
            load.await_flow(time.monotonic_ns(), chance.randrange(1, 20))
            cut(load, disk)
            await_true("the line in the log", lambda: "after=crash" in "".join(load.dev.errors))
        load.await_flow(time.monotonic_ns())
        verdict = load.finish()
        print(f"{CUTS} cuts: {verdict}")
        assert verdict.clean, str(verdict)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_power_cuts_in_async_mode_take_the_tail_only(disk: Disk) -> None:
    """Never something in the middle; and no group passes over what comes where the tail was.

    Consumers see what is appended: the cut takes some of it back.
    """
    chance = random.Random(0)
    options = {"env": SMALL_FILES, "data": disk.place / "store", "delayed_a_second": 0}
    with broker_under_load(**options) as load:  # type: ignore[arg-type]
        for _ in range(CUTS):
            load.await_flow(time.monotonic_ns(), chance.randrange(1, 20))
            cut(load, disk)
        load.await_flow(time.monotonic_ns())
        verdict = load.finish(seen_may_be_lost=True)
        print(f"{CUTS} cuts: {verdict.excused} lost with their tails; {verdict}")
        assert verdict.clean, str(verdict)
        assert verdict.excused, "the disk loses nothing: these were no cuts"
