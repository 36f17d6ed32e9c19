"""Whose CPU it was."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from loadtest.machine import CpuMeter, machine, tree

BURN = "import sys, time\nend = time.process_time() + 0.1\nwhile time.process_time() < end: pass\n"
CHILD = BURN + "print('done', flush=True)\nsys.stdin.read()\n"
PARENT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {CHILD!r}])\n"


def test_descendants_count_for_their_root() -> None:
    """A broker of many processes is charged for all of them; what we use ourselves is charged to nobody."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "done\n"
        servers = tree([process.pid])
        assert len(servers) == 2
        meter = CpuMeter([process.pid], [os.getpid()])
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        used = meter.stop()
        assert process.stdin
        process.stdin.close()
    assert used.server_s < 0.05
    assert used.clients_s >= 0.03  # ticks of 10 ms


def test_cpu_seconds_of_a_tree() -> None:
    """The child's hundred milliseconds are in the sum."""
    from loadtest.machine import cpu_s

    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        process.stdout.readline()
        assert cpu_s(tree([process.pid])) >= 0.08
        assert process.stdin
        process.stdin.close()


def test_a_figure_is_never_without_its_machine() -> None:
    assert all(machine().values())
