"""ActorMQ: Apache RocketMQ's semantics, wire protocol and store format as a Python broker.

The rooms, bottom up: ``kernels`` (hot loops over memory), ``message config errors clock``
(what everyone may import), ``wire store raft filters security broker`` (pure rules),
``shm net telemetry`` (the operating system), ``actors`` (the roles, one process each) and
``client``, then ``cli web testing``.  Imports point one way; CI checks it.
"""

__version__ = "0.1.0"
