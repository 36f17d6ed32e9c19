"""Settings: file, environment, flags; RocketMQ's files; sentences for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from actormq.cli.rocketmq_keys import BROKER_KEYS, NAMESRV_KEYS
from actormq.cli.settings import Given, flag, load_broker, load_namesrv
from actormq.config import BrokerConfig, FlushMode, NameServerConfig, RecordCrc
from actormq.errors import ConfigError

ROOT = {"store.root": Given(Path("/data"), "--data-dir")}


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_defaults_are_those_of_the_sections() -> None:
    """Without file, environment and flags nothing but the folder is needed."""
    loaded = load_broker(None, {}, ROOT)
    assert loaded.config.store.root == Path("/data")
    assert loaded.config.gateway.port == 10911
    assert loaded.config.namesrv is None
    assert loaded.warnings == ()
    assert load_namesrv(None, {}, {}).config == NameServerConfig()


def test_flags_beat_the_environment_and_that_beats_the_file(tmp_path: Path) -> None:
    """The nearer to the person, the stronger; the base is the weakest."""
    file = written(tmp_path, "a.toml", "[gateway]\nport = 1\ncount = 2\nzmq_port = 3\n")
    environ = {"ACTORMQ_GATEWAY_PORT": "4", "ACTORMQ_GATEWAY_COUNT": "5"}
    base = {"gateway.idle_timeout_ms": Given(6, "base"), "gateway.zmq_port": Given(7, "base")}
    gateway = load_broker(file, environ, {**ROOT, "gateway.port": flag("port", 8)}, base).config.gateway
    assert (gateway.port, gateway.count, gateway.zmq_port, gateway.idle_timeout_ms) == (8, 5, 3, 6)


def test_every_kind_of_value_is_read_from_toml_and_text(tmp_path: Path) -> None:
    """Texts, numbers, switches, paths, choices, lists, and nothing."""
    toml = """
[broker]
name = "b"
namesrv_addrs = ["h:1", "i:2"]
trace_on = false
log_path = "/var/log/b"
[store]
flush = "sync"
[gateway]
zmq_port = 0
"""
    config = load_broker(written(tmp_path, "a.toml", toml), {}, ROOT).config
    assert (config.name, config.namesrv_addrs, config.trace_on) == ("b", ("h:1", "i:2"), False)
    assert (config.log_path, config.store.flush, config.gateway.zmq_port) == (
        Path("/var/log/b"),
        FlushMode.SYNC,
        0,
    )
    environ = {
        "ACTORMQ_BROKER_NAMESRV_ADDRS": "h:1;i:2",
        "ACTORMQ_BROKER_TRACE_ON": "False",
        "ACTORMQ_BROKER_LOG_PATH": "/var/log/b",
        "ACTORMQ_STORE_FLUSH": "SYNC",
        "ACTORMQ_GATEWAY_ZMQ_PORT": "off",
        "ACTORMQ_STORE_ROOT": "~/d",
    }
    config = load_broker(None, environ, {}).config
    assert (config.namesrv_addrs, config.trace_on, config.log_path) == (
        ("h:1", "i:2"),
        False,
        Path("/var/log/b"),
    )
    assert (config.store.flush, config.gateway.zmq_port) == (FlushMode.SYNC, None)
    assert config.store.root == Path.home() / "d"


BROKER_CONF = """
# as shipped, with some of everything
brokerClusterName = DefaultCluster
brokerName = broker-x
brokerId = 0
deleteWhen = 04
fileReservedTime = 48
brokerRole = ASYNC_MASTER
flushDiskType = SYNC_FLUSH
namesrvAddr = 10.0.0.1:9876;10.0.0.2:9876
listenPort = 20911
brokerIP1 = 10.0.0.9
storePathRootDir = /srv/rmq
storePathCommitLog = /srv/rmq/commitlog
mapedFileSizeCommitLog = 134217728
mapedFileSizeConsumeQueue = 300000
autoCreateTopicEnable = false
enabledAppendPropCRC = true
forceVerifyPropCRC = true
serverChannelMaxIdleTimeSeconds = 60
aclEnable = false
haListenPort = 10912
"""


def test_a_broker_conf_is_read_as_it_is(tmp_path: Path) -> None:
    """RocketMQ's key names, old spellings and units; what we do not use is kept and named once."""
    file = written(tmp_path, "broker.conf", BROKER_CONF)
    loaded = load_broker(file, {}, {})
    config = loaded.config
    assert (config.name, config.cluster, config.advertised_host) == ("broker-x", "DefaultCluster", "10.0.0.9")
    assert config.namesrv_addrs == ("10.0.0.1:9876", "10.0.0.2:9876")
    assert (config.store.root, config.store.flush) == (Path("/srv/rmq"), FlushMode.SYNC)
    assert (config.store.record_crc, config.store.demand_record_crc) == (RecordCrc.ON, True)
    assert (config.store.retention_hours, config.store.delete_when) == (48, "04")
    assert (config.store.log_file_bytes, config.store.queue_file_entries) == (134_217_728, 15_000)
    assert (config.gateway.port, config.gateway.host) == (20911, "10.0.0.9")
    assert config.gateway.idle_timeout_ms == 60_000
    assert config.coordinator.auto_create_topics is False
    assert config.other_keys == {"brokerRole": "ASYNC_MASTER", "haListenPort": "10912", "aclEnable": "false"}
    assert loaded.warnings == (
        f"{file}: these keys are kept but not used: aclEnable, brokerRole, haListenPort",
    )


def test_a_broker_conf_never_starts_the_native_front(tmp_path: Path) -> None:
    """ZeroMQ starts where it is configured, not merely because a file is there."""
    assert load_broker(written(tmp_path, "b.conf", "brokerName=b"), {}, {}).config.gateway.zmq_port is None


def test_a_short_broker_conf_means_rocketmqs_defaults(tmp_path: Path) -> None:
    """Folder ~/store, the host's name, and loopback, since nobody said where clients come."""
    config = load_broker(written(tmp_path, "b.conf", ""), {"NAMESRV_ADDR": "h:1"}, {}).config
    assert config.store.root == Path.home() / "store"
    assert config.gateway.host == "127.0.0.1"
    assert config.namesrv_addrs == ("h:1",)


def test_the_address_to_listen_on_may_differ_from_the_advertised_one(tmp_path: Path) -> None:
    """bindAddress wins over brokerIP1."""
    file = written(tmp_path, "b.conf", "brokerIP1=10.0.0.9\nbindAddress=0.0.0.0")
    assert load_broker(file, {}, {}).config.gateway.host == "0.0.0.0"


def test_a_namesrv_conf_is_read_as_it_is(tmp_path: Path) -> None:
    """The name server's keys, and those that it does not use."""
    text = "listenPort=1\nkvConfigPath=/srv/kv.json\norderMessageEnable=true\nserverWorkerThreads=8\n"
    loaded = load_namesrv(written(tmp_path, "n.conf", text), {"ACTORMQ_NAMESRV_ZMQ_PORT": "2"}, {})
    assert (loaded.config.port, loaded.config.zmq_port) == (1, 2)
    assert loaded.config.kv_path == Path("/srv/kv.json")
    assert loaded.config.order_message_enable is True
    assert loaded.config.other_keys == {"serverWorkerThreads": "8"}
    assert len(loaded.warnings) == 1


def test_a_broker_has_a_name_server_only_when_told() -> None:
    """A table or flag starts one; the environment alone does not."""
    environ = {"ACTORMQ_NAMESRV_PORT": "5"}
    assert load_broker(None, environ, ROOT).config.namesrv is None
    config = load_broker(None, environ, {**ROOT, "namesrv.zmq_port": flag("namesrv-zmq-port", 0)}).config
    assert config.namesrv == NameServerConfig(port=5, zmq_port=0)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("b.conf", "listenPort=many", "listenPort in {file} must be an integer, not 'many'"),
        ("b.conf", "listenPort=70000", "listenPort in {file}: port cannot be 70000: no port"),
        (
            "b.conf",
            "maxMessageSize=-1",
            "maxMessageSize in {file}: body_bytes_max must be between 1 and 16,777",
        ),
        ("b.conf", "mapedFileSizeCommitLog=1", "mapedFileSizeCommitLog in {file}: log_file_bytes must be"),
        (
            "b.conf",
            "mappedFileSizeConsumeQueue=20",
            "mappedFileSizeConsumeQueue in {file}: queue_file_entries",
        ),
        ("b.conf", "flushIntervalCommitLog=0", "flushIntervalCommitLog in {file}: flush_interval_ms must be"),
        ("b.conf", "deleteWhen=25", "deleteWhen in {file}: delete_when must be hours like 04 or 04;16"),
        ("b.conf", "brokerName=a/b", "brokerName in {file}: name cannot be 'a/b'"),
        ("b.conf", "brokerClusterName=", "brokerClusterName in {file}: cluster cannot be ''"),
        ("b.conf", "brokerName=..", "brokerName in {file}: name cannot be '..'"),
        ("b.conf", "brokerPermission=9", "brokerPermission in {file}: permission must be between 0 and 7"),
        ("b.conf", "namesrvAddr=10.0.0.1", "namesrvAddr in {file}: namesrv_addrs must be HOST:PORT each"),
        ("b.conf", "storePathRootDir=", "storePathRootDir in {file} must be a path, not ''"),
        (
            "b.toml",
            "[memory]\nqueue_rows_max = 99999999999",
            "memory.queue_rows_max in {file}: queue_rows_max",
        ),
        ("b.toml", "[store]\nlog_file_bytes = 99999999999999999999", "store.log_file_bytes in {file}: log_"),
        ("b.toml", "[supervisor]\nsilence_ms = 0", "supervisor.silence_ms in {file}: silence_ms must be"),
        (
            "b.toml",
            "[coordinator]\ndefault_topic_queues = -3",
            "coordinator.default_topic_queues in {file}: ",
        ),
        ("b.conf", "flushDiskType=NEVER", "flushDiskType in {file} cannot be 'NEVER'"),
        ("b.conf", "mapedFileSizeConsumeQueue=x", "mapedFileSizeConsumeQueue in {file} cannot be 'x'"),
        ("b.conf", "traceOn=perhaps", "traceOn in {file} must be true or false, not 'perhaps'"),
        ("b.conf", "brokerRole=SLAVE", "brokerRole=SLAVE in {file} cannot be kept: this version"),
        ("b.conf", "brokerId=1", "brokerId=1 in {file} cannot be kept: this version"),
        ("b.conf", "aclEnable=true", "aclEnable=true in {file} cannot be kept: access control"),
        ("b.conf", "authenticationEnabled=TRUE", "authenticationEnabled=TRUE in {file} cannot be kept"),
        ("b.conf", "storePathRootDir=/a\nstorePathCommitLog=/b", "storePathCommitLog in {file} must be"),
        ("b.conf", "storePathCommitLog=/b/commitlog", "storePathCommitLog in {file} must be"),
        ("b.conf", "storePathCommitLog=/a/c,/b/c", "storePathCommitLog in {file} has several paths"),
        ("b.toml", "[gateway]\nport = true", "gateway.port in {file} must be an integer, not True"),
        ("b.toml", "[gateway]\nport = 1.5", "gateway.port in {file} must be an integer, not 1.5"),
        ("b.toml", "[store]\nflush = 'never'", "store.flush in {file} must be async or sync, not 'never'"),
        ("b.toml", "[broker]\nnamesrv_addrs = 5", "broker.namesrv_addrs in {file} must be a list of texts"),
        ("b.toml", "[broker]\nlog_path = 5", "broker.log_path in {file} must be a path"),
        ("b.toml", "[broker", "{file} is no TOML: "),
        ("b.toml", "", "store.root is missing in {file}"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    """Key, file and what would be right."""
    file = written(tmp_path, name, text)
    with pytest.raises(ConfigError) as caught:
        load_broker(file, {}, {} if "missing" in sentence or "RootDir" in sentence else ROOT)
    assert caught.value.remark.startswith(sentence.format(file=file)), caught.value.remark
    assert "\n" not in caught.value.remark


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Absent, a folder, or no text."""
    (tmp_path / "binary.conf").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.toml", ".", "binary.conf"):
        with pytest.raises(ConfigError, match=r"cannot be read|is no UTF-8"):
            load_broker(tmp_path / name, {}, {})


def test_wrong_words_outside_files_are_placed_too() -> None:
    """Variables and flags are named where the person wrote them."""
    with pytest.raises(ConfigError, match="ACTORMQ_GATEWAY_PORT in the environment must be an integer"):
        load_broker(None, {"ACTORMQ_GATEWAY_PORT": "x"}, ROOT)
    with pytest.raises(ConfigError, match="--flush must be async or sync"):
        load_broker(None, {}, {**ROOT, "store.flush": flag("flush", "x")})
    with pytest.raises(ConfigError, match="no data folder"):
        load_broker(None, {}, {})


def test_unknown_keys_are_kept_and_named_once(tmp_path: Path) -> None:
    """A typing error in a TOML file or a variable does not go unseen."""
    file = written(tmp_path, "a.toml", "stray = 1\n[store]\nroot = '/d'\nflsh = 'sync'\n[nonsense]\na = 1\n")
    environ = {"ACTORMQ_STORE_FLSH": "sync", "ACTORMQ_PURE": "1", "OTHER": "1"}
    loaded = load_broker(file, environ, {})
    assert loaded.config.other_keys == {"stray": "1", "store.flsh": "sync", "nonsense.a": "1"}
    assert loaded.warnings == (
        f"{file}: these keys are kept but not used: nonsense.a, store.flsh, stray",
        "the environment: these variables are no settings: ACTORMQ_STORE_FLSH",
    )


def test_every_key_of_rocketmq_leads_to_a_setting(tmp_path: Path) -> None:
    """The tables name sections and fields that exist, and their defaults can be written with them."""
    values = {"flushDiskType": "ASYNC_FLUSH", "traceOn": "true", "mappedFileSizeCommitLog": "134217728"}
    values |= {"mappedFileSizeConsumeQueue": "6000000", "storePathRootDir": "/d", "brokerId": "0"}
    values |= {"checkCRCOnRecover": "true", "autoCreateSubscriptionGroup": "true", "deleteWhen": "04;16"}
    values |= {"namesrvAddr": "h:1", "brokerPermission": "6", "diskSpaceWarningLevelRatio": "90"}
    switches = "enabledAppendPropCRC forceVerifyPropCRC flushCommitLogTimed wakeFlushWhenPutMessage"
    more = "wakeCommitWhenPutMessage fastFailIfNoBufferInStorePool"
    values |= dict.fromkeys([*switches.split(), *more.split(), "enableConsumeQueueExt"], "true")
    text = "".join(f"{key}={values.get(key, '600')}\n" for key in BROKER_KEYS if "Enable" not in key)
    loaded = load_broker(written(tmp_path, "b.conf", text), {}, {})
    assert isinstance(loaded.config, BrokerConfig)
    assert loaded.warnings == ()
    text = "".join(f"{key}=true\n" for key in NAMESRV_KEYS if "nable" in key or "rder" in key)
    assert load_namesrv(written(tmp_path, "n.conf", text), {}, {}).warnings == ()


def test_rocketmqs_levels_are_moved_to_their_bounds(tmp_path: Path) -> None:
    """As RocketMQ does with them, silently; the store pool's buffers have a size of ours."""
    text = "diskMaxUsedSpaceRatio=99\ndiskSpaceCleanForciblyRatio=2\ndiskSpaceWarningLevelRatio=95\n"
    text += "storePathRootDir=/d\ntransientStorePoolEnable=true\ntransientStorePoolSize=2\n"
    store = load_broker(written(tmp_path, "b.conf", text), {}, {}).config.store
    assert (store.disk_expire_percent, store.disk_force_percent, store.disk_warning_percent) == (95, 30, 90)
    assert store.pooled
    assert store.pool_bytes == 128 << 20
    sync = load_broker(written(tmp_path, "s.conf", f"{text}flushDiskType=SYNC_FLUSH\n"), {}, {}).config.store
    assert not sync.pooled


def test_a_pool_must_hold_some_of_the_largest_messages(tmp_path: Path) -> None:
    toml = "[store]\nroot = '/d'\npool_enabled = true\npool_bytes = 10_000_000\n"
    with pytest.raises(ConfigError, match="pool_bytes must be at least 20,971,520"):
        load_broker(written(tmp_path, "a.toml", toml), {}, {})
