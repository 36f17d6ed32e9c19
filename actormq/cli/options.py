"""options: the options that several commands share."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import typer

Namesrv: TypeAlias = Annotated[
    str,
    typer.Option(
        "--namesrv",
        "-n",
        envvar="NAMESRV_ADDR",
        metavar="HOST:PORT",
        help="Name servers, separated by ';'; zmq://HOST:PORT over ZeroMQ.",
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

NAMESRV_DEFAULT: Final = "127.0.0.1:9876"


def client_url(namesrv: str) -> str:
    """Return the client's URL for ``host:port;host:port``; what is a URL already stays as it is."""
    return namesrv if "://" in namesrv else f"rocketmq://{namesrv.replace(';', ',')}"


def examples(*commands: str) -> str:
    """Return the end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  actormq {command}" for command in commands)
