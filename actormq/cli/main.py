"""main: from ``actormq NOUN …`` to the file of that noun, and from errors to one sentence and an exit code.

``dev``, ``broker`` and ``namesrv`` go by argparse and import neither Typer nor rich (30 ms of their start);
everything else is a Typer command (`actormq.cli.app`).  Exit codes: 0 done, 1 it failed, 2 wrong usage or
settings; a broker whose store failed ends with 74, one whose roles die again and again with 71.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

SERVERS: Final = {
    "dev": "Run a name server and a broker for development, data in ./.actormq.",
    "broker": "Run a broker, with a TOML file or a RocketMQ broker.conf.",
    "namesrv": "Run a name server.",
}
"""The long-lived commands: `actormq.cli.<name>` has ``main(words) -> int``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in SERVERS:
        return _guarded(lambda: serve(words[0], words[1:]))
    return _guarded(lambda: _command(words))


def serve(name: str, words: Sequence[str]) -> int:
    """Run one of `SERVERS` until it ends."""
    status: int = import_module(f"actormq.cli.{name}").main(words)
    return status


def _command(words: list[str]) -> int:
    if words == ["--version"]:
        from actormq import __version__

        print(f"actormq {__version__}")
        return 0
    from actormq.cli.app import run

    return run(words)


def _guarded(run: Callable[[], int]) -> int:
    """Run a command: what people can cause ends in a sentence, what we did wrong in a traceback."""
    from actormq.errors import ActorMQError, ConfigError

    try:
        return run()
    except ActorMQError as error:
        print(f"actormq: {error.remark}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone; nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
