"""gateway: the role that clients talk to; see `actormq.actors.gateway.role`.

A folder because it is several things: `clients` (connections), `sends`, `pulls` with `cold` reads, `lookups`,
`threads` (which may wait for a disk), `relay` (everything for the coordinator) and `replies`.  `role` wires
them to fronts, rings and tables.
Each of the others is tested without a process.
"""

from actormq.actors.gateway.role import GatewayActor

__all__ = ["GatewayActor"]
