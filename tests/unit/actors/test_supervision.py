"""The supervisor's parts: when to restart, sockets, run folders, unsynced files, the roles' table."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from actormq.actors import rundir as rundir_module
from actormq.actors.child import KILLED_EARLY_NS, SHORT_LIFE_NS, Child, Deaths
from actormq.actors.listeners import Listeners
from actormq.actors.roles import Front, RoleSpec, StopStage, broker_roles, settle
from actormq.actors.rundir import RunDir, prefix_of
from actormq.actors.unsynced import UnsyncedFiles
from actormq.config import BrokerConfig, GatewayConfig, NameServerConfig, StoreConfig, SupervisorConfig
from actormq.errors import ConfigError, StoreFailed
from actormq.shm.positions import slot_of

SECOND_NS = 1_000_000_000


def child() -> Child:
    return Child(RoleSpec(role="holder", class_path="a:B"), slot_of("holder"))


# -- when to restart


def test_first_restart_is_immediate_and_the_next_wait_longer() -> None:
    """Deaths before it recovered: 0, then doubling from the back-off to its maximum."""
    limits = SupervisorConfig(restart_backoff_ms=20, restart_backoff_max_ms=100, crash_loop_restarts=9)
    deaths = Deaths()
    pauses = [deaths.count(0, number * 60 * SECOND_NS, limits, from_outside=False) for number in range(8)]
    assert pauses == [0, 20, 40, 80, 100, 100, 100, 100]
    assert deaths.count(0, 9 * 60 * SECOND_NS, limits, from_outside=False) is None


@pytest.mark.parametrize("lived_ns", [KILLED_EARLY_NS, SHORT_LIFE_NS, 60 * SECOND_NS])
def test_kills_from_outside_never_add_up(lived_ns: int) -> None:
    """However often a role that serves is killed: never a crash loop, never a slower restart."""
    limits = SupervisorConfig()
    deaths = Deaths()
    for number in range(200):
        assert deaths.count(lived_ns, number, limits, from_outside=True) == 0


def test_kills_at_birth_add_up() -> None:
    """Killed as soon as it serves, again and again: the system has a reason, and restarts must slow down."""
    limits = SupervisorConfig(crash_loop_restarts=3)
    deaths = Deaths()
    pauses = [deaths.count(KILLED_EARLY_NS - 1, number, limits, from_outside=True) for number in range(3)]
    assert pauses == [0, 20, None]


def test_life_that_recovered_starts_the_count_again() -> None:
    """Bugs met now and then by a role that had recovered do not slow its restart."""
    limits = SupervisorConfig()
    deaths = Deaths()
    for number in range(200):
        assert deaths.count(SHORT_LIFE_NS, number * SECOND_NS, limits, from_outside=False) == 0


def test_too_many_deaths_in_the_window() -> None:
    """However long each lived: so many within the window is a crash loop."""
    limits = SupervisorConfig(crash_loop_restarts=3, crash_loop_window_ms=1_000)
    deaths = Deaths()
    pauses = [
        deaths.count(SECOND_NS, now_ns, limits, from_outside=False)
        # the first is out of the window when the third comes
        for now_ns in (0, 400_000_000, 1_300_000_000, 1_390_000_000)
    ]
    assert pauses == [0, 0, 0, None]


def test_endings_in_words() -> None:
    role = child()
    assert "unknown" in role.ending()
    role.status = 9
    assert role.ending() == "was killed by SIGKILL"
    assert role.exit_status is None
    assert role.was_killed
    role.status = 70 << 8
    assert role.ending() == "exited with status 70"
    assert role.exit_status == 70


# -- sockets


def tcp(port: int = 0) -> Front:
    return Front(name="tcp", group="gateway", host="127.0.0.1", port=port)


def test_group_shares_one_port() -> None:
    """The first socket picks a free port, the others bind the same; each role has its own descriptor."""
    listeners = Listeners()
    for role in ("gateway-0", "gateway-1", "gateway-2"):
        assert listeners.bind(role, tcp())
    listeners.listen()
    ports = {socket.socket(fileno=os.dup(listeners.of(role)["tcp"])).getsockname()[1] for role in
             ("gateway-0", "gateway-1", "gateway-2")}  # fmt: skip
    assert ports == {listeners.addresses["gateway.tcp"][1]}
    assert len({listeners.of(role)["tcp"] for role in ("gateway-0", "gateway-1")}) == 2
    listeners.close()


def test_relative_front_follows_the_port_really_taken() -> None:
    """VIP = listen − 2; when somebody has it, an optional front is left out."""
    vip = Front(name="vip", group="gateway", host="127.0.0.1", port=-2, follows="tcp", optional=True)
    while True:
        listeners = Listeners()
        listeners.bind("gateway-0", tcp())
        port = listeners.addresses["gateway.tcp"][1]
        other = socket.socket()
        with contextlib.suppress(OSError):  # somebody else has that one
            other.bind(("127.0.0.1", port - 2))
            other.listen()
            break
        other.close()
        listeners.close()
    with other:
        assert not listeners.bind("gateway-0", vip)
        assert "vip" not in listeners.of("gateway-0")
    assert listeners.bind("gateway-0", vip)
    assert listeners.addresses["gateway.vip"] == ("127.0.0.1", port - 2)
    listeners.close()


@pytest.mark.parametrize("host", ["203.0.113.1", "no such host"])
def test_address_that_is_not_ours(host: str) -> None:
    """One sentence that names it."""
    listeners = Listeners()
    with pytest.raises(ConfigError, match=r"cannot listen on .*:0 \(gateway.tcp\)"):
        listeners.bind("gateway-0", replace(tcp(), host=host))
    listeners.close()


# -- run folders


def test_run_folder_is_private_short_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    folder = RunDir(prefix_of(tmp_path))
    assert folder.path.parent == Path("/tmp")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.path.name.startswith(prefix_of(tmp_path))
    folder.remove()
    assert not folder.path.exists()


def test_long_base_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base whose sockets would not fit is not used."""
    base = tmp_path / ("x" * 80)
    base.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    folder = RunDir(prefix_of(tmp_path))
    assert base not in folder.path.parents
    folder.remove()


def test_only_dead_folders_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock decides: a living broker's folder stays, whatever its store, and so do folders not ours."""
    base = Path("/tmp") / f"d{os.getpid()}"
    base.mkdir()
    monkeypatch.setattr(rundir_module, "_bases", lambda: iter([base]))
    living = RunDir("amq00000000")
    dead = RunDir("amq11111111")
    os.close(dead._owner_fd)
    foreign = base / "amq22222222-abc"
    foreign.mkdir()
    third = RunDir("amq33333333")
    assert third.swept == [str(dead.path)]
    assert living.path.exists()
    assert foreign.exists()
    living.remove()
    third.remove()
    foreign.rmdir()
    base.rmdir()


def test_prefix_is_the_stores(tmp_path: Path) -> None:
    """The same for every spelling of the folder, another for another; random without a store."""
    (tmp_path / "a").mkdir()
    assert prefix_of(tmp_path / "a") == prefix_of(tmp_path / "a/../a")
    assert prefix_of(tmp_path / "a") != prefix_of(tmp_path / "b")
    assert prefix_of(None) != prefix_of(None)


# -- unsynced files


def log_files(root: Path, *starts: int) -> None:
    for start in starts:
        (root / f"{start:020d}").write_bytes(b"x" * 100)


def open_logs(root: Path) -> set[str]:
    links = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
    return {Path(link).name for link in links if link.startswith(str(root))}


def test_unsynced_files_are_kept_open(tmp_path: Path) -> None:
    """From the file with the first unsynced byte to the one after the last; synced ones are closed."""
    log_files(tmp_path, 0, 100, 200, 300)
    files = UnsyncedFiles(tmp_path, 100)
    files.follow(0, 150)
    assert open_logs(tmp_path) == {f"{start:020d}" for start in (0, 100, 200)}
    files.follow(150, 250)
    assert open_logs(tmp_path) == {f"{start:020d}" for start in (100, 200, 300)}
    files.follow(300, 300)
    assert open_logs(tmp_path) == {f"{300:020d}"}
    files.close()
    assert open_logs(tmp_path) == set()


def test_nothing_new_costs_no_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = UnsyncedFiles(tmp_path, 100)
    files.follow(0, 150)
    monkeypatch.setattr(os, "open", lambda *arguments: pytest.fail("opened"))
    files.follow(0, 150)


def test_a_log_that_is_a_file_is_followed_nowhere(tmp_path: Path) -> None:
    """Recovery says what is wrong with the folder; the supervisor may look before it has."""
    (tmp_path / "commitlog").write_text("x")
    files = UnsyncedFiles(tmp_path / "commitlog", 100)
    files.follow(0, 0)
    files.close()


def test_lost_write_is_not_lost_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing sync of a kept descriptor names file and offset."""
    log_files(tmp_path, 0, 100)
    files = UnsyncedFiles(tmp_path, 100)
    files.follow(0, 50)
    files.sync()

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(StoreFailed, match=r"00000000000000000000 \(from log offset 0\).*Input/output error"):
        files.sync()
    files.close()


# -- the roles' table


def config(**changes: object) -> BrokerConfig:
    return BrokerConfig(store=StoreConfig(root=Path("/nowhere")), **changes)  # type: ignore[arg-type]


def test_broker_has_its_roles_and_ports() -> None:
    """Every role of the contract, gateways as many as configured, ports to the roles that serve them."""
    gateways = GatewayConfig(count=3, zmq_port=0)
    specs = {spec.role: spec for spec in broker_roles(config(gateway=gateways))}
    assert set(specs) == {
        "recovery", "writer", "flusher", "dispatcher", "holder", "coordinator", "scheduler", "cleaner",
        "gateway-0", "gateway-1", "gateway-2",
    }  # fmt: skip
    ports = {(role, port.kind, port.server) for role, spec in specs.items() for port in spec.ports}
    assert ports == {
        ("dispatcher", "arrived", "holder"),
        ("coordinator", "append", "writer"),
        ("scheduler", "append", "writer"),
        *((f"gateway-{n}", kind, server) for n in range(3) for kind, server in
          (("append", "writer"), ("park", "holder"))),
    }  # fmt: skip
    assert [front.name for front in specs["gateway-1"].fronts] == ["tcp", "vip", "zmq"]
    assert [role for role, spec in specs.items() if spec.one_shot] == ["recovery"]
    stages = {role: spec.stop_stage for role, spec in specs.items()}
    assert stages["gateway-0"] < stages["coordinator"] < stages["writer"] < stages["dispatcher"]
    assert stages["dispatcher"] == stages["cleaner"] < stages["flusher"] < StopStage.REST


def test_zmq_front_only_where_configured() -> None:
    """Neither ZeroMQ nor a name server starts by itself."""
    specs = {spec.role: spec for spec in broker_roles(config())}
    assert [front.name for front in specs["gateway-0"].fronts] == ["tcp", "vip"]
    assert "nameserver" not in specs
    assert "nameserver" in {spec.role for spec in broker_roles(config(namesrv=NameServerConfig()))}


def test_the_largest_message_fits_into_the_ring_of_a_gateway() -> None:
    """A broker.conf may allow larger messages than our own default ring holds."""
    store = StoreConfig(root=Path("/nowhere"), body_bytes_max=16 << 20)
    specs = {spec.role: spec for spec in broker_roles(BrokerConfig(store=store))}
    assert specs["gateway-0"].ports[0].request_bytes > (16 << 20) + 33_000
    assert broker_roles(config())[-1].ports[0].request_bytes == config().memory.append_ring_bytes


def test_roles_are_told_the_ports_really_taken() -> None:
    """Port 0 is gone from the settings; the embedded name server stands in where none or port 0 is named."""
    addresses = {
        "gateway.tcp": ("127.0.0.1", 1000),
        "gateway.zmq": ("127.0.0.1", 1001),
        "nameserver.tcp": ("127.0.0.1", 1002),
        "nameserver.zmq": ("127.0.0.1", 1003),
    }
    before = config(
        gateway=GatewayConfig(port=0, zmq_port=0),
        namesrv=NameServerConfig(port=0, zmq_port=0),
        namesrv_addrs=("other:9876", "127.0.0.1:0"),
    )
    after = settle(before, addresses)
    assert (after.gateway.port, after.gateway.zmq_port, after.gateway.vip_port) == (1000, 1001, False)
    assert after.namesrv is not None
    assert (after.namesrv.port, after.namesrv.zmq_port) == (1002, 1003)
    assert after.namesrv_addrs == ("other:9876", "127.0.0.1:1002")
    assert settle(replace(before, namesrv_addrs=()), addresses).namesrv_addrs == ("127.0.0.1:1002",)
