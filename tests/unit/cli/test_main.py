"""The way from words to commands: exit codes, sentences, and what a start must not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from actormq.cli import main as cli
from actormq.cli.serving import ready_line, seconds_since_start
from actormq.errors import ConfigError, StoreLocked


def run(code: str) -> str:
    """Run `code` in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


@pytest.mark.parametrize("name", sorted(cli.SERVERS))
def test_servers_are_started_without_the_heavy_libraries(name: str) -> None:
    """Typer, pydantic and rich cost 100 ms that a start does not have."""
    code = (
        "import sys\nfrom actormq.cli.main import main\n"
        f"try: main([{name!r}, '--help'])\nexcept SystemExit: pass\n"
        "print('imported:', sorted({'typer', 'rich', 'pydantic', 'click', 'zmq'} & set(sys.modules)))"
    )
    assert run(code).endswith("imported: []\n")


def test_the_forkserver_starts_before_anything_else() -> None:
    """Its imports are the longest part of a start: ours go on beside them."""
    code = """
import sys
from actormq.actors import forkserver
from actormq.cli.main import main
class Started(Exception): pass
def start(modules):
    assert 'actormq.actors.gateway' in modules
    raise Started
forkserver.Forkserver = start
for words in (['dev'], ['broker', '-c', 'f']):
    try: main(words)
    except Started: pass
print(sorted({'dataclasses', 'actormq.config', 'zmq', 'msgspec', 'tomllib'} & set(sys.modules)))
"""
    assert run(code) == "[]\n"


def test_every_noun_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """The help names servers and commands alike."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(noun in shown for noun in (*cli.SERVERS, "topic", "send", "consume", "status"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["frobnicate"], "No such command"),
        (["topic", "create"], "Missing argument"),
        (["namesrv", "--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_wrong_usage_ends_with_2(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads the words."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_trouble_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """2 when the settings are wrong, 1 when it failed; a mistake of ours keeps its traceback."""
    for error, code in ((ConfigError("wrong"), 2), (StoreLocked("locked"), 1), (KeyboardInterrupt(), 130)):

        def fail(name: str, words: list[str], error: BaseException = error) -> int:
            raise error

        monkeypatch.setattr(cli, "serve", fail)
        assert cli.main(["dev"]) == code
    assert capsys.readouterr().err == "actormq: wrong\nactormq: locked\n"
    monkeypatch.setattr(cli, "serve", lambda name, words: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["dev"])


def test_a_reader_that_goes_away_is_no_error_of_ours() -> None:
    """``actormq … | head -1`` prints no traceback."""
    program = """
import sys
from actormq.cli import main, output
main.serve = lambda name, words: [output.print_json(number) for number in range(100_000)]
sys.exit(main.main(["dev"]))
"""
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" | head -1', sys.executable, program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_the_ready_line_says_everything_that_is_needed() -> None:
    """Seconds since the process began, each front's address (- for none), pid and kernels."""
    addresses = {"gateway.tcp": ("127.0.0.1", 1), "nameserver.tcp": ("::1", 2)}
    line = ready_line(
        addresses, [("namesrv", "nameserver.tcp"), ("broker", "gateway.tcp"), ("zmq", "gateway.zmq")]
    )
    words = line.split()
    assert words[:2] == ["ready", "in"]
    assert 0 < float(words[2]) < seconds_since_start() + 0.01
    assert words[4:7] == ["namesrv=[::1]:2", "broker=127.0.0.1:1", "zmq=-"]
    assert words[8] in ("kernels=compiled", "kernels=python")
