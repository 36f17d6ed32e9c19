"""RocketMQ's configuration keys: which of our settings they are, and which we must refuse.

Source: RocketMQ BrokerConfig.java, MessageStoreConfig.java, NamesrvConfig.java, NettyServerConfig.java.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

QUEUE_ENTRY_BYTES: Final = 20
BATCH_QUEUE_ENTRY_BYTES: Final = 46
POOL_BUFFER_BYTES: Final = 64 * 1024 * 1024
"""What one of RocketMQ's pool buffers is here: theirs hold a whole log file each, ours is a ring."""


def _plain(text: str) -> object:
    return text


def _times(factor: int) -> Callable[[str], object]:
    return lambda text: int(text) * factor


def _clamped(least: int, most: int) -> Callable[[str], object]:
    """Numbers outside are moved to the bound, as RocketMQ does."""
    return lambda text: min(max(int(text), least), most)


def _queue_entries(text: str) -> object:
    """Bytes of a queue file to entries, rounded up as RocketMQ does."""
    return -(-int(text) // QUEUE_ENTRY_BYTES)


def _batch_queue_entries(text: str) -> object:
    return -(-int(text) // BATCH_QUEUE_ENTRY_BYTES)


def _flush(text: str) -> object:
    return {"ASYNC_FLUSH": "async", "SYNC_FLUSH": "sync"}[text.upper()]


def _record_crc(text: str) -> object:
    return {"true": "on", "false": "off"}[text.lower()]


BROKER_KEYS: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "brokerName": ("broker.name", _plain),
    "brokerClusterName": ("broker.cluster", _plain),
    "brokerId": ("broker.broker_id", _plain),
    "brokerIP1": ("broker.advertised_host", _plain),
    "namesrvAddr": ("broker.namesrv_addrs", _plain),
    "brokerPermission": ("broker.permission", _plain),
    "regionId": ("broker.region", _plain),
    "traceOn": ("broker.trace_on", _plain),
    "storePathRootDir": ("store.root", _plain),
    "mappedFileSizeCommitLog": ("store.log_file_bytes", _plain),
    "mappedFileSizeConsumeQueue": ("store.queue_file_entries", _queue_entries),
    "mapperFileSizeBatchConsumeQueue": ("store.batch_queue_file_entries", _batch_queue_entries),
    "enableConsumeQueueExt": ("store.queue_ext", _plain),
    "mappedFileSizeConsumeQueueExt": ("store.queue_ext_file_bytes", _plain),
    "maxHashSlotNum": ("store.index_slots", _plain),
    "maxIndexNum": ("store.index_entries", _plain),
    "messageIndexEnable": ("store.index_enabled", _plain),
    "flushDiskType": ("store.flush", _flush),
    "flushIntervalCommitLog": ("store.flush_interval_ms", _plain),
    "flushCommitLogLeastPages": ("store.flush_least_pages", _plain),
    "flushCommitLogThoroughInterval": ("store.flush_thorough_interval_ms", _plain),
    "flushCommitLogTimed": ("store.flush_timed", _plain),
    "wakeFlushWhenPutMessage": ("store.flush_on_append", _plain),
    "flushIntervalConsumeQueue": ("store.flush_queue_interval_ms", _plain),
    "flushConsumeQueueLeastPages": ("store.flush_queue_least_pages", _plain),
    "flushConsumeQueueThoroughInterval": ("store.flush_queue_thorough_interval_ms", _plain),
    "syncFlushTimeout": ("store.sync_flush_timeout_ms", _plain),
    "transientStorePoolEnable": ("store.pool_enabled", _plain),
    "transientStorePoolSize": ("store.pool_bytes", _times(POOL_BUFFER_BYTES)),
    "commitIntervalCommitLog": ("store.pool_commit_interval_ms", _plain),
    "commitCommitLogLeastPages": ("store.pool_commit_least_pages", _plain),
    "commitCommitLogThoroughInterval": ("store.pool_commit_thorough_interval_ms", _plain),
    "wakeCommitWhenPutMessage": ("store.pool_commit_on_append", _plain),
    "fastFailIfNoBufferInStorePool": ("store.pool_fail_fast", _plain),
    "maxMessageSize": ("store.body_bytes_max", _plain),
    "fileReservedTime": ("store.retention_hours", _plain),
    "deleteWhen": ("store.delete_when", _plain),
    "cleanResourceInterval": ("store.clean_interval_ms", _plain),
    "diskMaxUsedSpaceRatio": ("store.disk_expire_percent", _clamped(10, 95)),
    "diskSpaceCleanForciblyRatio": ("store.disk_force_percent", _clamped(30, 85)),
    "diskSpaceWarningLevelRatio": ("store.disk_warning_percent", _clamped(35, 90)),
    "cleanFileForciblyEnable": ("store.force_clean", _plain),
    "deleteFileBatchMax": ("store.delete_batch_max", _plain),
    "deleteCommitLogFilesInterval": ("store.delete_interval_ms", _plain),
    "destroyMapedFileIntervalForcibly": ("store.delete_wait_ms", _plain),
    "warmMapedFileEnable": ("store.warm_files", _plain),
    "flushLeastPagesWhenWarmMapedFile": ("store.warm_flush_pages", _plain),
    "checkCRCOnRecover": ("store.check_crc_on_recover", _plain),
    "enabledAppendPropCRC": ("store.record_crc", _record_crc),
    "forceVerifyPropCRC": ("store.demand_record_crc", _plain),
    "listenPort": ("gateway.port", _plain),
    "bindAddress": ("gateway.host", _plain),
    "waitTimeMillsInSendQueue": ("gateway.waiting_ms_max", _plain),
    "sendThreadPoolQueueCapacity": ("gateway.waiting_requests_max", _plain),
    "serverChannelMaxIdleTimeSeconds": ("gateway.idle_timeout_ms", _times(1000)),
    "autoCreateTopicEnable": ("coordinator.auto_create_topics", _plain),
    "autoCreateSubscriptionGroup": ("coordinator.auto_create_groups", _plain),
    "defaultTopicQueueNums": ("coordinator.default_topic_queues", _plain),
    "channelExpiredTimeout": ("coordinator.client_expiry_ms", _plain),
    "flushConsumerOffsetInterval": ("coordinator.offsets_interval_ms", _plain),
    "registerNameServerPeriod": ("coordinator.register_interval_ms", _plain),
    "messageDelayLevel": ("coordinator.delay_levels", _plain),
}

NAMESRV_KEYS: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "listenPort": ("namesrv.port", _plain),
    "bindAddress": ("namesrv.host", _plain),
    "kvConfigPath": ("namesrv.kv_path", _plain),
    "scanNotActiveBrokerInterval": ("namesrv.scan_interval_ms", _plain),
    "serverChannelMaxIdleTimeSeconds": ("namesrv.idle_timeout_ms", _times(1000)),
    "orderMessageEnable": ("namesrv.order_message_enable", _plain),
    "returnOrderTopicConfigToBroker": ("namesrv.return_order_topic_config", _plain),
    "enableAllTopicList": ("namesrv.enable_all_topic_list", _plain),
    "enableTopicList": ("namesrv.enable_topic_list", _plain),
    "supportActingMaster": ("namesrv.support_acting_master", _plain),
    "deleteTopicWithBrokerRegistration": ("namesrv.delete_topic_with_broker_registration", _plain),
}

OLD_SPELLINGS: Final = {
    "mapedFileSizeCommitLog": "mappedFileSizeCommitLog",
    "mapedFileSizeConsumeQueue": "mappedFileSizeConsumeQueue",
    "destroyMappedFileIntervalForcibly": "destroyMapedFileIntervalForcibly",
    "flushLeastPagesWhenWarmMappedFile": "flushLeastPagesWhenWarmMapedFile",
    "warmMappedFileEnable": "warmMapedFileEnable",
    "mapperFileSizeCommitLog": "mappedFileSizeCommitLog",
    "mapperFileSizeConsumeQueue": "mappedFileSizeConsumeQueue",
    "namesrvAddress": "namesrvAddr",
}
"""What releases before 4.5, and files in the wild, say."""

_OPEN: Final = "access control is not built yet, and the broker would be open to everyone"
_MASTER: Final = "this version can only be a master"
REFUSED: Final = {
    "aclEnable": ("true", _OPEN),
    "authenticationEnabled": ("true", _OPEN),
    "authorizationEnabled": ("true", _OPEN),
    "brokerRole": ("slave", _MASTER),
    "enableControllerMode": ("true", "this version knows no controller"),
    "enableDLegerCommitLog": ("true", "this version does not replicate"),
    "storeType": ("defaultrocksdb", "only RocketMQ's file store is supported"),
}
"""Key to the value (in small letters) that we must not ignore, and why."""
