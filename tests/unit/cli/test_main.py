"""The way from words to commands: exit codes, sentences, and what a start must not import."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module

import pytest

from actormq import __version__
from actormq.cli import app
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
    """The help names servers and commands alike, whether their files are read or not."""
    for words in (["--help"], []):
        assert cli.main(words) == (0 if words else 2)
        shown = capsys.readouterr().out
        assert all(noun in shown for noun in (*cli.SERVERS, *app.NOUNS))


@pytest.mark.parametrize("noun", sorted(app.NOUNS))
def test_every_command_has_help_with_examples(noun: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a noun with several commands each; examples are commands that begin with the name of this one."""
    module = import_module(f"actormq.cli.{noun}")
    commands = [noun]
    if hasattr(module, "app"):
        names = [
            info.name or info.callback.__name__.replace("_", "-") for info in module.app.registered_commands
        ]
        commands = [f"{noun} {name}" for name in names]
        assert cli.main([noun, "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in names)
    for command in commands:
        assert cli.main([*command.split(), "--help"]) == 0
        shown = capsys.readouterr().out
        examples = shown.partition("Examples:\n")[2].splitlines()
        assert examples
        assert any(line.strip().startswith(f"actormq {command}") for line in examples)
        assert all(" actormq " in line for line in examples)


def test_only_the_noun_that_was_asked_for_is_read() -> None:
    """Each file costs milliseconds; the help of all needs none, nor rich, nor the client."""
    code = (
        "import sys\nfrom actormq.cli.main import main\n"
        "main({words})\n"
        "print('imported:', sorted(name for name in sys.modules if name.split('.')[:2] in"
        " (['actormq', 'client'], ['rich']) or name in {names}))"
    )
    names = {f"actormq.cli.{noun}" for noun in app.NOUNS}
    for words, found in (([], []), (["topic"], ["actormq.cli.topic"]), (["send"], ["actormq.cli.send"])):
        printed = run(code.format(words=[*words, "--help"], names=names))
        assert printed.splitlines()[-1] == f"imported: {found}"
    for words in (["topic", "list"], ["group", "lag", "g"], ["status"]):
        printed = run(code.format(words=[*words, "-n", "127.0.0.1:1"], names={"pydantic"}))
        assert printed == "imported: []\n"
    printed = run(code.format(words=["--version"], names=names | {"typer", "orjson", "msgspec"}))
    assert printed == f"actormq {__version__}\nimported: []\n"


def test_shells_are_told_how_a_line_may_go_on() -> None:
    """Nouns, their commands and options, also of nouns whose files are otherwise not read."""
    for line, words in (
        ("actormq ", {"topic", "dev", "bench"}),
        ("actormq topic ", {"create", "list", "status", "delete"}),
        ("actormq bench produce --thr", {"--threads"}),
    ):
        environment = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        done = subprocess.run(
            [sys.executable, "-m", "actormq.cli.main"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **environment, "_ACTORMQ_COMPLETE": "complete_bash"},
        )
        assert words <= set(done.stdout.split()), done


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["frobnicate"], "actormq: No such command 'frobnicate' (see actormq --help)\n"),
        (["topic", "create"], "actormq: Missing argument 'topic' (see actormq topic create --help)\n"),
        (["topic", "crate"], "(see actormq topic --help)\n"),
        (["consume", "T", "--colour"], "(see actormq consume --help)\n"),
        (["consume", "T", "--count", "x"], "(see actormq consume --help)\n"),
    ],
)
def test_wrong_usage_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the exit code 2; where the help is, is part of it."""
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.endswith(sentence)


def test_servers_read_their_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["namesrv", "--frobnicate"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --frobnicate" in capsys.readouterr().err


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
