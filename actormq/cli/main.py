"""main: from ``actormq NOUN …`` to the file of that noun, and from errors to one sentence and an exit code.

``dev``, ``broker`` and ``namesrv`` go by argparse and import neither Typer nor rich (30 ms of their start);
everything else is a Typer command.  Exit codes: 0 done, 1 it failed, 2 wrong usage or settings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Final

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

SERVERS: Final = {
    "dev": "Run a name server and a broker for development, data in ./.actormq.",
    "broker": "Run a broker with the settings in a file.",
    "namesrv": "Run a name server.",
}
"""The long-lived commands: `actormq.cli.<name>` has ``main(arguments) -> int``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in SERVERS:
        return _guarded(lambda: _serve(words[0], words[1:]))
    return _guarded(lambda: _command(words))


def _serve(name: str, words: list[str]) -> int:
    result: int = import_module(f"actormq.cli.{name}").main(words)
    return result


def _guarded(run: Callable[[], int]) -> int:
    """Run a command; what people can cause ends in a sentence, what we did wrong in a traceback."""
    from actormq.errors import ActorMQError, ConfigError

    try:
        return run()
    except ActorMQError as error:
        print(f"actormq: {error.remark}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who read our output has gone; nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _command(words: list[str]) -> int:
    import click

    try:
        result = _app()(args=words, prog_name="actormq", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    return result if isinstance(result, int) else 0


def _app() -> Any:
    """Build the Typer application: every noun, the servers as names that lead back here."""
    import typer

    from actormq import __version__
    from actormq.cli import consume, send, status, topic

    app = typer.Typer(
        name="actormq",
        help="ActorMQ: Apache RocketMQ's semantics as a multiprocess shared-memory broker.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )

    def version(asked: bool) -> None:
        if asked:
            print(f"actormq {__version__}")
            raise typer.Exit

    @app.callback()
    def root(
        show: bool = typer.Option(
            False, "--version", callback=version, is_eager=True, help="Say the version."
        ),
    ) -> None:
        pass

    passing = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    for name, sentence in SERVERS.items():

        def serve(context: typer.Context) -> int:
            assert context.info_name is not None
            return _serve(context.info_name, context.args)

        app.command(name, help=sentence, context_settings=passing, add_help_option=False)(serve)
    app.add_typer(topic.app, name="topic")
    app.command("send")(send.send)
    app.command("consume")(consume.consume)
    app.command("status")(status.status)
    return app


if __name__ == "__main__":
    sys.exit(main())
