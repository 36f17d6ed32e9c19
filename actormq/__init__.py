"""ActorMQ: Apache RocketMQ's semantics, wire protocol and store format as a Python broker.

The rooms, bottom up: ``kernels`` (hot loops over memory), ``message config errors clock``
(what everyone may import), ``wire store raft filters security broker`` (pure rules),
``shm net telemetry`` (the operating system), ``actors`` (the roles, one process each) and
``client``, then ``cli web testing``.  Imports point one way; CI checks it.

Users begin with ``actormq.connect(url)`` (asyncio) or ``actormq.connect_sync(url)``, or with the
classes of `actormq.client`, which are also found here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actormq.client import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The client is loaded when first asked for: a broker's roles never need it.
    if not name.startswith("_"):
        from importlib import import_module

        client = import_module("actormq.client")
        if name in client.__all__:
            return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
