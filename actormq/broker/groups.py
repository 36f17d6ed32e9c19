"""Consumer groups' configuration: what a group may do, how often it retries.

Who is connected is in `actormq.broker.members`; the JSON shape is the one of subscriptionGroup.json and of
the request codes 200, 201, 225 and 352.
Source: RocketMQ SubscriptionGroupConfig.java, SubscriptionGroupManager.java.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from actormq.broker.bodies import read_body
from actormq.broker.sending import check_group_name, group_fault, group_missing
from actormq.broker.tables import GroupEntry, GroupGone
from actormq.errors import RequestError, ResponseCode
from actormq.message import SYSTEM_GROUPS

GROUPS_MAX: Final = 100_000


def _default_policy() -> dict[str, Any]:
    return {"type": "CUSTOMIZED"}


class GroupConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One group; field names in JSON are RocketMQ's.  What we do not use is kept as it came."""

    group_name: str
    consume_enable: bool = True
    consume_from_min_enable: bool = True
    consume_broadcast_enable: bool = True
    consume_message_orderly: bool = False
    retry_queue_nums: int = 1
    retry_max_times: int = 16
    group_retry_policy: dict[str, Any] | None = msgspec.field(default_factory=_default_policy)
    broker_id: int = 0
    which_broker_when_consume_slowly: int = 1
    notify_consumer_ids_changed_enable: bool = True
    group_sys_flag: int = 0
    consume_timeout_minute: int = 15
    subscription_data_set: list[Any] | None = None
    attributes: dict[str, str] = {}


def group_from_json(value: Any) -> GroupConfig:
    """Return the configuration in a parsed JSON object; absent fields have RocketMQ's defaults.

    Raises: RequestError(INVALID_PARAMETER): no object, a bad name or a field of the wrong type.
    """
    config = read_body(value, GroupConfig, "subscription group")
    check_group_name(config.group_name)
    return config


def group_to_json(config: GroupConfig) -> dict[str, Any]:
    """Return the JSON object of `config`; null fields are left out, as fastjson does."""
    value: dict[str, Any] = msgspec.to_builtins(config)
    return {key: item for key, item in value.items() if item is not None}


class Groups:
    """Every group's configuration, and what the tables say of it.

    `put` and `set_locked` return the entry to publish, None when nothing changed.
    """

    def __init__(
        self, configs: Iterable[GroupConfig] = (), *, auto_create: bool = True, groups_max: int = GROUPS_MAX
    ) -> None:
        self.auto_create = auto_create
        self.groups_max = groups_max
        self.table: dict[str, GroupConfig] = {config.group_name: config for config in configs}
        self._locked: set[str] = set()

    def get(self, name: str) -> GroupConfig | None:
        return self.table.get(name)

    def create_missing_system_groups(self) -> list[GroupEntry]:
        """Create what every broker has and this one does not have yet."""
        missing = [name for name in SYSTEM_GROUPS if name not in self.table]
        for name in missing:
            self.table[name] = GroupConfig(group_name=name)
        return [self.entry(name) for name in missing]

    def put(self, config: GroupConfig) -> GroupEntry | None:
        """Create or replace a group."""
        if self.table.get(config.group_name) == config:
            return None
        self._check_room(config.group_name)
        self.table[config.group_name] = config
        return self.entry(config.group_name)

    def ensure(self, name: str) -> GroupEntry | None:
        """Create a group because someone uses it; None = it exists.

        Raises: RequestError(SUBSCRIPTION_GROUP_NOT_EXIST) when that is not allowed, or never for its name.
        """
        if name in self.table:
            return None
        if not self.auto_create:
            raise group_missing(name)
        if fault := group_fault(name):
            remark = f"this subscription group does not exist, and cannot be created: {fault}"
            raise RequestError(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, remark)
        self._check_room(name)
        self.table[name] = GroupConfig(group_name=name)
        return self.entry(name)

    def delete(self, name: str) -> GroupGone | None:
        """Remove a group's configuration; None = there is none."""
        return GroupGone(name) if self.table.pop(name, None) is not None else None

    def _check_room(self, name: str) -> None:
        if name not in self.table and len(self.table) >= self.groups_max:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"there are {self.groups_max} groups already")

    def set_locked(self, name: str, locked: bool) -> GroupEntry | None:
        """Note whether some queue of the group is locked."""
        if locked == (name in self._locked):
            return None
        if locked:
            self._locked.add(name)
        else:
            self._locked.discard(name)
        return self.entry(name) if name in self.table else None

    def entry(self, name: str) -> GroupEntry:
        """Return what the tables say of an existing group."""
        config = self.table[name]
        return GroupEntry(
            name=name,
            consume_enable=config.consume_enable,
            broadcast_enable=config.consume_broadcast_enable,
            retry_max_times=config.retry_max_times,
            retry_queues=config.retry_queue_nums,
            broker_id=config.broker_id,
            which_broker_when_slow=config.which_broker_when_consume_slowly,
            orderly_locked=name in self._locked,
            sys_flag=config.group_sys_flag,
        )
