"""Which roles there are: for the supervisor, what each needs and in which order they stop.

Names classes by path, so that the supervisor's process never imports a role.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from actormq.config import BrokerConfig, MemoryConfig
from actormq.errors import ConfigError

_BESIDES_BODY_BYTES: Final = 128 * 1024
"""A message's properties (32,767 bytes), names and headers, and the end of a lap in the ring."""


class StopStage(IntEnum):
    """The order of a clean stop: each stage ends before the next is asked.

    The dispatcher ends before the flusher: it follows what is flushed, and its last files want a sync.
    The flusher comes last of those who touch the store: it writes the mark of a clean end.
    """

    FRONTS = 10
    SERVICES = 20
    REPLICATION = 25
    WRITER = 30
    FOLLOWERS = 40
    FLUSHER = 50
    REST = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class PortSpec:
    """A port that this role is the client of."""

    kind: str
    server: str
    request_bytes: int
    completion_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """A listening socket of a role.

    Attributes:
        name: by which the role finds it (``tcp``, ``vip``, ``zmq``).
        group: roles that share one address, each with its own socket on it.
        port: 0 for a free one; with `follows`, the distance to that front's port.
        follows: the front of the same group whose port this one is relative to.
        optional: whether doing without it is better than not starting.
    """

    name: str
    group: str
    host: str
    port: int
    follows: str | None = None
    optional: bool = False

    @property
    def address_key(self) -> str:
        return f"{self.group}.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSpec:
    """One role.

    Attributes:
        role: its name; decides the slot.
        class_path: ``package.module:Class`` of its `ProcessActor`.
        one_shot: runs alone before the others, to its end, and must end well.
    """

    role: str
    class_path: str
    ports: tuple[PortSpec, ...] = ()
    fronts: tuple[Front, ...] = ()
    stop_stage: int = StopStage.REST
    one_shot: bool = False

    @property
    def module(self) -> str:
        return self.class_path.partition(":")[0]


def _actor(role: str, class_name: str) -> str:
    return f"actormq.actors.{role}:{class_name}"


def _append(memory: MemoryConfig, request_bytes: int) -> PortSpec:
    return PortSpec(
        kind="append",
        server="writer",
        request_bytes=request_bytes,
        completion_bytes=memory.completion_ring_bytes,
    )


def _to_holder(memory: MemoryConfig, kind: str) -> PortSpec:
    return PortSpec(
        kind=kind,
        server="holder",
        request_bytes=memory.park_ring_bytes,
        completion_bytes=memory.park_ring_bytes,
    )


def _send_ring_bytes(config: BrokerConfig) -> int:
    """Return the configured size, or more where the largest message would not fit."""
    return max(config.memory.append_ring_bytes, config.store.body_bytes_max + _BESIDES_BODY_BYTES)


def _gateway(config: BrokerConfig, number: int) -> RoleSpec:
    gateway = config.gateway
    fronts = [Front(name="tcp", group="gateway", host=gateway.host, port=gateway.port)]
    if gateway.vip_port:
        fronts.append(
            Front(name="vip", group="gateway", host=gateway.host, port=-2, follows="tcp", optional=True)
        )
    if gateway.zmq_port is not None:
        fronts.append(Front(name="zmq", group="gateway", host=gateway.host, port=gateway.zmq_port))
    return RoleSpec(
        role=f"gateway-{number}",
        class_path=_actor("gateway", "GatewayActor"),
        ports=(_append(config.memory, _send_ring_bytes(config)), _to_holder(config.memory, "park")),
        fronts=tuple(fronts),
        stop_stage=StopStage.FRONTS,
    )


def nameserver_roles(config: BrokerConfig) -> list[RoleSpec]:
    """Return the name server as the only role of a supervisor, or embedded beside a broker's."""
    if config.namesrv is None:
        raise ConfigError("no name server is configured")
    host = config.namesrv.host
    fronts = [Front(name="tcp", group="nameserver", host=host, port=config.namesrv.port)]
    if config.namesrv.zmq_port is not None:
        fronts.append(Front(name="zmq", group="nameserver", host=host, port=config.namesrv.zmq_port))
    class_path = _actor("nameserver", "NameServerActor")
    return [RoleSpec(role="nameserver", class_path=class_path, fronts=tuple(fronts))]


def broker_roles(config: BrokerConfig) -> list[RoleSpec]:
    """Return every role of a broker, with the embedded name server when one is configured."""
    internal = _append(config.memory, config.memory.internal_ring_bytes)
    services = StopStage.SERVICES
    roles = [
        RoleSpec(role="recovery", class_path=_actor("recovery", "RecoveryActor"), one_shot=True),
        RoleSpec(role="writer", class_path=_actor("writer", "WriterActor"), stop_stage=StopStage.WRITER),
        RoleSpec(role="flusher", class_path=_actor("flusher", "FlusherActor"), stop_stage=StopStage.FLUSHER),
        RoleSpec(
            role="dispatcher",
            class_path=_actor("dispatcher", "DispatcherActor"),
            ports=(_to_holder(config.memory, "arrived"),),
            stop_stage=StopStage.FOLLOWERS,
        ),
        RoleSpec(role="holder", class_path=_actor("holder", "HolderActor"), stop_stage=services),
        RoleSpec(
            role="coordinator",
            class_path=_actor("coordinator", "CoordinatorActor"),
            ports=(internal,),
            stop_stage=services,
        ),
        RoleSpec(
            role="scheduler",
            class_path=_actor("scheduler", "SchedulerActor"),
            ports=(internal,),
            stop_stage=services,
        ),
        RoleSpec(
            role="cleaner", class_path=_actor("cleaner", "CleanerActor"), stop_stage=StopStage.FOLLOWERS
        ),
        *(_gateway(config, number) for number in range(config.gateway.count)),
    ]
    return roles + nameserver_roles(config) if config.namesrv is not None else roles


def settle(config: BrokerConfig, addresses: dict[str, tuple[str, int]]) -> BrokerConfig:
    """Return `config` with the ports that were really taken, as every role is told them.

    An entry of `namesrv_addrs` with port 0 stands for the embedded name server, which is always among them.
    """
    taken = {key: port for key, (_, port) in addresses.items()}
    gateway = replace(
        config.gateway,
        port=taken.get("gateway.tcp", config.gateway.port),
        zmq_port=taken.get("gateway.zmq", config.gateway.zmq_port),
        vip_port="gateway.vip" in taken,
    )
    config = replace(config, gateway=gateway)
    if config.namesrv is None or "nameserver.tcp" not in taken:
        return config
    namesrv = replace(
        config.namesrv,
        port=taken["nameserver.tcp"],
        zmq_port=taken.get("nameserver.zmq", config.namesrv.zmq_port),
    )
    ours = f"{config.namesrv.host}:{namesrv.port}"
    others = tuple(ours if address.endswith(":0") else address for address in config.namesrv_addrs)
    addresses_of_all = others if ours in others else (*others, ours)
    return replace(config, namesrv=namesrv, namesrv_addrs=addresses_of_all)
