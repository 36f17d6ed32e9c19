"""The README's example is run as it stands, against a real `actormq dev`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from actormq_process import running_dev

README = Path(__file__).parent.parent.parent / "README.md"
DEFAULT_ENDPOINT = "127.0.0.1:9877"
GREETINGS = ["hello Ada", "hello Edsger", "hello Grace"]


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def test_the_example_is_short() -> None:
    """One Python example, which a newcomer can type."""
    (example,) = blocks("python")
    assert len(example.splitlines()) <= 12


@pytest.mark.parametrize("transport", ["zmq", "rocketmq"])
def test_the_example_runs(transport: str, tmp_path: Path) -> None:
    """It prints the three messages that it sent, over either transport, and ends by itself."""
    (example,) = blocks("python")
    assert f"zmq://{DEFAULT_ENDPOINT}" in example, "the example talks to dev's own port"
    with running_dev() as dev:
        server = dev.namesrv_zmq if transport == "zmq" else dev.namesrv
        program = tmp_path / "example.py"
        program.write_text(example.replace(f"zmq://{DEFAULT_ENDPOINT}", f"{transport}://{server}"))
        done = subprocess.run(
            [sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == GREETINGS
