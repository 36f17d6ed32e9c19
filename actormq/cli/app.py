"""app: the Typer application: every noun and its options; the servers' names lead back to their files."""

from __future__ import annotations

from typing import Annotated

import typer

from actormq import __version__
from actormq.cli import consume, send, status, topic
from actormq.cli.main import SERVERS, serve

app = typer.Typer(
    name="actormq",
    help="ActorMQ: Apache RocketMQ's semantics as a multiprocess shared-memory broker.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"actormq {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before the noun."""


def _serve(context: typer.Context) -> None:
    assert context.info_name is not None
    raise typer.Exit(serve(context.info_name, context.args))


for _name, _sentence in SERVERS.items():
    # Their words are argparse's, --help included; here they are only listed.
    app.command(
        _name,
        help=_sentence,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(_serve)
app.add_typer(topic.app, name="topic")
app.command("send")(send.send)
app.command("consume")(consume.consume)
app.command("status")(status.status)
