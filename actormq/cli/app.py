"""app: from the noun to its Typer commands; only the file of the noun that was asked for is imported.

Wrong usage ends in one sentence and exit code 2, like everything else that people can cause.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, Final

import typer

from actormq import __version__
from actormq.cli.main import EXIT_FAILED, EXIT_USAGE, SERVERS, serve

COMPLETION: Final = "_ACTORMQ_COMPLETE"
"""Set by the shell that wants to know how a line may go on."""
NOUNS: Final = {
    "topic": "Topics: create, list, status, delete.",
    "group": "Consumer groups: list, lag.",
    "send": "Send messages, from the command line, a file or standard input.",
    "consume": "Print messages as they come.",
    "message": "Look at single messages: by id, by key, by time.",
    "status": "Show every role with its process, CPU and memory, the positions, and the lag between them.",
    "store": "A store's files: inspect, verify, dump, rebuild, truncate, backup, restore.",
    "bench": "Measure a running broker: produce, consume, latency.",
}
"""`actormq.cli.<noun>` has a Typer called ``app``, or one command named like the noun."""
_EPILOG: Final = (
    "`actormq NOUN --help` has examples; `actormq --install-completion` completes words in your shell."
)


def run(words: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    command: Any = typer.main.get_command(build(None if COMPLETION in os.environ else _names(words)))
    _leave_texts_alone(command)
    errors = import_module(typer.BadParameter.__module__)
    try:
        status = command(args=list(words), prog_name="actormq", standalone_mode=False)
    except errors.ClickException as error:
        return _refuse(error)
    except typer.Abort:
        print("actormq: nothing was done", file=sys.stderr)
        return EXIT_FAILED
    return status if isinstance(status, int) else 0


def _leave_texts_alone(command: Any) -> None:
    """Have texts and flags be taken as they are: for its own look at them Typer loads pydantic, 50 ms."""
    try:
        as_it_is = import_module("typer._coercion").PassThroughRuntimeParam
    except (ImportError, AttributeError):
        return  # a Typer that does without
    for option in command.get_params(typer.Context(command)):
        described = getattr(option, "type_descriptor", None)
        if described is not None and described.annotation in (str, bool) and not option.multiple:
            option._runtime_param = as_it_is(described.parameter_info, described.annotation)
    for inner in getattr(command, "commands", {}).values():
        _leave_texts_alone(inner)


def _refuse(error: Any) -> int:
    """Say what is wrong in one sentence, and where the help is."""
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message)
        return EXIT_USAGE
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "actormq"
    sentence = " ".join(message.split()).rstrip(".")
    print(f"actormq: {sentence} (see {path} --help)", file=sys.stderr)
    return EXIT_USAGE


def _names(words: Sequence[str]) -> tuple[str, str]:
    """Return the first word and the next that is no option; they need not be a noun and its command."""
    return "".join(words[:1]), next((word for word in words[1:] if not word.startswith("-")), "")


def build(names: tuple[str, str] | None) -> typer.Typer:
    """Return the application with the command of those names, or all (None); the others are only listed.

    Typer builds every command that it is given: 2 ms for each option.
    """
    noun, command = names or (None, None)
    # Without rich: its help takes 60 ms more.
    app = typer.Typer(
        name="actormq",
        help="ActorMQ: Apache RocketMQ's semantics as a multiprocess shared-memory broker.",
        epilog=_EPILOG,
        no_args_is_help=True,
        # An option, even one that is not given, has Typer import pydantic: 40 ms.
        add_completion=noun not in NOUNS,
        add_help_option=noun not in NOUNS,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_nothing if noun in NOUNS else root)
    for name, sentence in SERVERS.items():
        # Their words are argparse's, --help included; here they are only listed.
        app.command(
            name,
            help=sentence,
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )(_serve)
    for name, sentence in NOUNS.items():
        if noun not in (None, name):
            app.command(name, help=sentence)(_elsewhere)
        else:
            _add(app, name, sentence, import_module(f"actormq.cli.{name}"), command)
    return app


def _add(app: typer.Typer, name: str, sentence: str, module: ModuleType, command: str | None) -> None:
    if not hasattr(module, "app"):
        app.command(name, epilog=module.EXAMPLES, short_help=sentence)(getattr(module, name))
        return
    group = typer.Typer(rich_markup_mode=None)
    for info in module.app.registered_commands:
        title = info.name or info.callback.__name__
        run = info.callback if command in (None, title) else _elsewhere
        group.command(title, help=info.callback.__doc__, epilog=info.epilog)(run)
    app.add_typer(group, name=name, help=sentence, no_args_is_help=True)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"actormq {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before the noun."""


def _nothing() -> None:
    """Take no option before the noun."""


def _serve(context: typer.Context) -> None:
    assert context.info_name is not None
    raise typer.Exit(serve(context.info_name, context.args))


def _elsewhere() -> None:
    """Stand for a command of another noun."""
